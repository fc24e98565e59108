//! Where containers may connect to, beyond each other.
//!
//! A policy is a list of places; where several lists are given, for a pool and for a task, all of
//! them have to have a place. Names are kept by the name server of the bridge: a container that is
//! bounded hears only of names that it may, and reaches the addresses that it was told of.

use std::collections::HashSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::Arc;

use crate::network::Subnet;

/// So many places are in one list.
pub const DESTINATIONS_MAX: usize = 64;
/// As long as names are.
const NAME_LENGTH_MAX: usize = 253;

/// Where a container may connect to. By default: everywhere where the machine's other rules let it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Egress {
    /// Each of them has to have a place.
    lists: Vec<Arc<[Destination]>>,
}

/// A place to connect to: `pypi.org`, `*.debian.org:80`, `10.0.0.0/8`, `192.168.1.7:5000`, or
/// [`Destination::ANYWHERE`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    place: Place,
    /// Absent: all of them.
    port: Option<u16>,
    /// It may be this machine, which containers do not reach otherwise.
    is_own: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Anywhere,
    /// In lower case.
    Name(String),
    /// All names that end so: a dot and a name, in lower case.
    Below(String),
    Range(Subnet),
}

/// What a firewall can be told: packets to a range, or to everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Rule {
    pub(crate) range: Option<Subnet>,
    pub(crate) port: Option<u16>,
    pub(crate) is_own: bool,
}

impl Egress {
    /// No bound.
    pub fn open() -> Self {
        Self::default()
    }

    /// To these places, and to no others.
    pub fn only(places: Vec<Destination>) -> Self {
        match &*places {
            [only] if *only == Destination::ANYWHERE => Self::open(),
            _ => Self { lists: vec![places.into()] },
        }
    }

    /// Where both let it.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.lists.extend(other.lists.iter().cloned());
        self
    }

    pub fn is_open(&self) -> bool {
        self.lists.is_empty()
    }

    /// Whether there is no place at all.
    pub fn is_closed(&self) -> bool {
        self.lists.iter().any(|list| list.is_empty())
    }

    /// Whether a container may ask for a name, written in any case and with or without its last
    /// dot: all lists have it. Ranges alone have none: a question leads out as an answer leads in.
    pub(crate) fn has_name(&self, name: &str) -> bool {
        let name = canonical(name);
        self.lists.iter().all(|list| list.iter().any(|place| place.has_name(&name)))
    }

    /// What is let through to an address that a name stands for.
    pub(crate) fn rules_for(&self, name: &str, address: Ipv4Addr) -> Vec<Rule> {
        let Some(range) = Subnet::new(address, 32) else { return Vec::new() };
        let name = canonical(name);
        let at_address = |place: &Destination| {
            let fits = place.has_name(&name);
            let rule = Rule { range: Some(range), port: place.port, is_own: place.is_own };
            fits.then_some(rule)
        };
        self.combined(at_address)
    }

    /// What is let through whatever its name.
    pub(crate) fn rules(&self) -> Vec<Rule> {
        self.combined(|place| {
            let range = match place.place {
                Place::Anywhere => None,
                Place::Range(range) => Some(range),
                Place::Name(_) | Place::Below(_) => return None,
            };
            Some(Rule { range, port: place.port, is_own: place.is_own })
        })
    }

    /// What is in all of the lists.
    fn combined(&self, rule: impl Fn(&Destination) -> Option<Rule>) -> Vec<Rule> {
        let all = vec![Rule { range: None, port: None, is_own: false }];
        let mut combined = self.lists.iter().enumerate().fold(all, |known, (number, list)| {
            let rules = list.iter().filter_map(&rule);
            let pairs = rules.flat_map(|rule| known.iter().map(move |known| (rule, *known)));
            pairs.filter_map(|(rule, known)| rule.and(known, number == 0)).collect()
        });
        let mut known = HashSet::new();
        combined.retain(|rule| known.insert(*rule));
        combined
    }
}

impl Rule {
    /// What both let through. This machine is let in on only if both mean it.
    fn and(self, other: Self, is_first: bool) -> Option<Self> {
        let range = match (self.range, other.range) {
            (Some(one), Some(two)) if !one.overlaps(two) => return None,
            // Ranges that overlap lie one in the other.
            (Some(one), Some(two)) => Some(if one.prefix() > two.prefix() { one } else { two }),
            (one, two) => one.or(two),
        };
        let port = match (self.port, other.port) {
            (Some(one), Some(two)) if one != two => return None,
            (one, two) => one.or(two),
        };
        Some(Self { range, port, is_own: self.is_own && (is_first || other.is_own) })
    }
}

impl Destination {
    pub const ANYWHERE: Self = Self { place: Place::Anywhere, port: None, is_own: false };

    /// The same, though it may be at an address of this machine.
    #[must_use]
    pub fn own(self) -> Self {
        Self { is_own: true, ..self }
    }

    /// The same, but not at an address of this machine.
    #[must_use]
    pub fn elsewhere(self) -> Self {
        Self { is_own: false, ..self }
    }

    fn has_name(&self, name: &str) -> bool {
        match &self.place {
            Place::Anywhere => true,
            Place::Name(own) => own == name,
            Place::Below(end) => name.ends_with(end.as_str()),
            Place::Range(_) => false,
        }
    }
}

fn canonical(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// Why a text is no destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` is no destination such as `pypi.org`, `*.debian.org:80`, `10.0.0.0/8` or `192.168.1.7:5000`",
    .0.escape_debug()
)]
pub struct DestinationError(String);

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || DestinationError(text.chars().take(300).collect());
        let (place, port) = match text.split_once(':') {
            Some((place, port)) => {
                let port = port.parse().ok().filter(|port| *port != 0);
                (place, Some(port.ok_or_else(wrong)?))
            }
            None => (text, None),
        };
        let place = Place::parse(place).ok_or_else(wrong)?;
        Ok(Self { place, port, is_own: false })
    }
}

impl Place {
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().ok()?)),
            None => (text, None),
        };
        match (address.parse::<Ipv4Addr>(), prefix) {
            (Ok(address), prefix) => Subnet::new(address, prefix.unwrap_or(32)).map(Self::Range),
            (Err(_), Some(_)) => None,
            (Err(_), None) => match text.strip_prefix("*.") {
                Some(end) if is_name(end) => Some(Self::Below(format!(".{}", canonical(end)))),
                None if is_name(text) => Some(Self::Name(canonical(text))),
                _ => None,
            },
        }
    }
}

/// Letters, digits, hyphens and underscores between dots; and not digits alone at the end, which
/// would be an address that is written wrongly.
fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= NAME_LENGTH_MAX
        && text.split('.').all(is_label)
        && !last.bytes().all(|byte| byte.is_ascii_digit())
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Anywhere => f.write_str("open")?,
            Place::Name(name) => f.write_str(name)?,
            Place::Below(end) => write!(f, "*{end}")?,
            Place::Range(range) => write!(f, "{range}")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(text: &str) -> Egress {
        Egress::only(text.split_whitespace().map(|text| text.parse().unwrap()).collect())
    }

    fn shown(rules: &[Rule]) -> String {
        let rules = rules.iter().map(|rule| {
            let range = rule.range.map_or("all".to_owned(), |range| range.to_string());
            let port = rule.port.map(|port| format!(":{port}")).unwrap_or_default();
            format!("{range}{port}{}", if rule.is_own { "!" } else { "" })
        });
        rules.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn destinations_are_read_and_shown() {
        for text in ["pypi.org", "*.debian.org:80", "10.0.0.0/8", "192.168.1.7/32:5000", "a_b:1"] {
            assert_eq!(text.parse::<Destination>().unwrap().to_string(), text);
        }
        assert_eq!("PyPI.org".parse::<Destination>().unwrap().to_string(), "pypi.org");
        assert_eq!("10.1.2.3".parse::<Destination>().unwrap().to_string(), "10.1.2.3/32");
        let wrong = [
            "",
            "*",
            "*.",
            "a..b",
            ".a",
            "a.",
            "a b",
            "a:0",
            "a:x",
            "a:70000",
            "10.0.0.0/33",
            "10.0.0",
            "1.2.3.4.5",
            "0.0.0.0/0",
            "::1",
            "a/8",
            "https://a",
            "*.*.a",
            "ä.example",
        ];
        for text in wrong {
            assert!(text.parse::<Destination>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_is_let_through_where_all_lists_have_it() {
        let (pool, task) = (list("*.example.com 10.0.0.0/8"), list("a.example.com:443 b.test"));
        let both = pool.clone().and(&task);
        assert!(both.has_name("A.example.com."));
        assert!(!both.has_name("c.example.com") && !both.has_name("example.com"));
        let at = |name, address: &str| shown(&both.rules_for(name, address.parse().unwrap()));
        assert_eq!(at("a.example.com", "1.2.3.4"), "1.2.3.4/32:443");
        assert_eq!(shown(&both.rules()), "");
        // A question alone would lead out, whatever its answer.
        assert!(!both.has_name("b.test") && !list("10.0.0.0/8").has_name("b.test"));
    }

    #[test]
    fn lists_without_a_common_place_let_nothing_through() {
        assert!(Egress::open().is_open() && !Egress::open().is_closed());
        assert!(Egress::only(vec![Destination::ANYWHERE]).is_open());
        assert!(Egress::open().and(&Egress::only(Vec::new())).is_closed());
        let (one, two) = (list("10.0.0.0/8:80 192.168.0.0/16"), list("10.1.0.0/16 172.16.0.0/12"));
        assert_eq!(shown(&one.clone().and(&two).rules()), "10.1.0.0/16:80");
        assert_eq!(shown(&one.and(&list("10.1.0.0/16:443")).rules()), "");
    }

    #[test]
    fn this_machine_is_let_in_on_where_all_lists_mean_it() {
        let own: Destination = "192.168.1.7:5000".parse().unwrap();
        let own = Egress::only(vec![Destination::ANYWHERE, own.own()]);
        assert!(!own.is_open());
        assert_eq!(shown(&own.rules()), "all 192.168.1.7/32:5000!");
        assert_eq!(shown(&own.clone().and(&own).rules()).matches('!').count(), 1);
        let other = own.and(&list("192.168.0.0/16"));
        assert_eq!(shown(&other.rules()), "192.168.0.0/16 192.168.1.7/32:5000");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,80}") {
            if let Ok(destination) = text.parse::<Destination>() {
                prop_assert_eq!(destination.to_string().parse(), Ok(destination));
            }
        }
    }
}
