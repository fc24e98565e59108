//! Where steps may connect to, as settings, tasks and requests say it.

use std::net::IpAddr;

use container::{DESTINATIONS_MAX, Destination, Egress};
use engine::Engine;

/// The port of a registry that names none.
const HTTPS: &str = "443";

/// Everywhere.
const OPEN: &str = "open";
/// Nowhere.
const NONE: &str = "none";
/// To the registry that the run is of.
const REGISTRY: &str = "registry";

/// Reads a list of places; without any there is no bound. `registry` is where steps find the run's
/// own registry, if they can: a list that has it may have it for nothing.
pub(crate) fn parse(list: &[String], registry: Option<&Destination>) -> Result<Egress, String> {
    if list.len() > DESTINATIONS_MAX {
        return Err(format!("more than {DESTINATIONS_MAX} places to connect to"));
    }
    match list {
        [] => return Ok(Egress::open()),
        [only] if only == NONE => return Ok(Egress::only(Vec::new())),
        _ => (),
    }
    let mut places = Vec::with_capacity(list.len());
    for text in list {
        match text.as_str() {
            OPEN => places.push(Destination::ANYWHERE),
            NONE => return Err(format!("`{NONE}` stands alone")),
            REGISTRY => places.extend(registry.cloned()),
            text => match text.parse() {
                Ok(place) => places.push(place),
                Err(error) => {
                    return Err(format!(
                        "{error}, and none of the words `{OPEN}`, `{REGISTRY}` and `{NONE}`"
                    ));
                }
            },
        }
    }
    Ok(Egress::only(places))
}

/// The place of a registry that references name so. What is at a loopback address is another place
/// in each container.
pub(crate) fn registry(host: &str) -> Option<Destination> {
    let (name, port) = host.split_once(':').unwrap_or((host, HTTPS));
    let is_loopback =
        name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let place = format!("{name}:{port}").parse::<Destination>().ok();
    place.filter(|_| !is_loopback).map(Destination::own)
}

/// Bounds the containers of an engine by the server's own list.
pub(crate) fn bound_all(engine: &mut Engine, list: &[String]) {
    bound(engine, list, true);
}

/// Bounds those of one run besides.
pub(crate) fn bound_run(engine: &mut Engine, list: &[String]) {
    bound(engine, list, false);
}

/// The lists were checked: what cannot be read is nowhere.
fn bound(engine: &mut Engine, list: &[String], is_servers: bool) {
    let registry = engine.own.host(&engine.registry).and_then(registry);
    // This machine is reached only if the server's own list, which comes first, says so.
    let registry = match is_servers || !engine.container_limits.egress.is_open() {
        true => registry,
        false => registry.map(Destination::elsewhere),
    };
    let egress = parse(list, registry.as_ref());
    engine.bound_egress(&egress.unwrap_or_else(|_| Egress::only(Vec::new())));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &str, registry: Option<&str>) -> Result<Egress, String> {
        let list: Vec<_> = words.split_whitespace().map(str::to_owned).collect();
        let registry = registry.and_then(super::registry);
        parse(&list, registry.as_ref())
    }

    #[test]
    fn words_stand_for_places() {
        assert!(parsed("", None).unwrap().is_open());
        assert!(parsed("open", None).unwrap().is_open());
        assert!(parsed("none", None).unwrap().is_closed());
        assert!(parsed("registry", None).unwrap().is_closed());
        assert!(parsed("registry", Some("127.0.0.1:5000")).unwrap().is_closed());
        let registry = Some("Refit.example.com");
        let own: Destination = "refit.example.com:443".parse().unwrap();
        assert_eq!(parsed("registry", registry), Ok(Egress::only(vec![own.clone().own()])));
        let both = Egress::only(vec![Destination::ANYWHERE, own.own()]);
        assert_eq!(parsed("open registry", registry), Ok(both));
    }

    #[test]
    fn nonsense_is_named() {
        assert_eq!(parsed("none a.example", None), Err("`none` stands alone".to_owned()));
        let wrong = parsed("https://a.example", None).unwrap_err();
        assert!(wrong.starts_with("`https://a.example` is no destination such as"), "{wrong}");
        assert!(parsed(&"a.example ".repeat(65), None).is_err());
    }
}
