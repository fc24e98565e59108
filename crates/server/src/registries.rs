//! The registries of this server, and the names that are their own.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use oci::RegistryName;
use registry::Hosts;

use crate::settings::RegistrySettings;

/// Which registry a host name means.
#[derive(Debug, Clone)]
pub(crate) struct Registries {
    all: BTreeMap<RegistryName, OwnNames>,
    by_host: HashMap<String, RegistryName>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnNames {
    pub(crate) login_server: String,
    pub(crate) aliases: Vec<String>,
}

impl Registries {
    /// The first registry that names no login server owns the addresses that are listened on,
    /// and every loopback name of them.
    pub(crate) fn new(
        settings: &BTreeMap<RegistryName, RegistrySettings>,
        listen: impl IntoIterator<Item = SocketAddr>,
    ) -> Self {
        let mut own = Self { all: BTreeMap::new(), by_host: HashMap::new() };
        let mut addresses: Vec<String> = listen.into_iter().flat_map(address_names).collect();
        for (name, registry) in settings {
            let mut aliases = registry.aliases.clone();
            let login_server = match &registry.login_server {
                Some(login_server) => login_server.clone(),
                None => {
                    let mut found = std::mem::take(&mut addresses).into_iter();
                    let first = found.next();
                    aliases.extend(found);
                    first.unwrap_or_else(|| name.to_string())
                }
            };
            aliases.retain(|alias| *alias != login_server);
            for host in aliases.iter().chain([&login_server]) {
                own.by_host.insert(host.clone(), name.clone());
            }
            own.all.insert(name.clone(), OwnNames { login_server, aliases });
        }
        // Nobody took them: loopback names lead to the first registry even so.
        if let Some(first) = own.all.keys().next().cloned() {
            for host in addresses {
                own.by_host.entry(host).or_insert_with(|| first.clone());
            }
        }
        own
    }

    pub(crate) fn get(&self, name: &RegistryName) -> Option<&OwnNames> {
        self.all.get(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&RegistryName, &OwnNames)> {
        self.all.iter()
    }

    /// Which registry a `Host` header selects. A server with a single registry needs no
    /// names for it.
    pub(crate) fn hosts(&self) -> Hosts {
        let start = match (self.all.len(), self.all.keys().next()) {
            (1, Some(only)) => Hosts::only(only.clone()),
            _ => Hosts::none(),
        };
        let by_host = self.by_host.iter();
        by_host.fold(start, |hosts, (host, name)| hosts.with(host, name.clone()))
    }

    /// Every own name and the registry that it means; of each registry its login server first.
    pub(crate) fn own_names(&self) -> Vec<(String, RegistryName)> {
        let mut names: Vec<_> =
            self.all.iter().map(|(name, own)| (own.login_server.clone(), name.clone())).collect();
        for (host, name) in &self.by_host {
            if !names.iter().any(|(known, _)| known == host) {
                names.push((host.clone(), name.clone()));
            }
        }
        names
    }
}

/// Names of an address; the one to show first.
fn address_names(listen: SocketAddr) -> Vec<String> {
    let port = listen.port();
    let loopback =
        [format!("localhost:{port}"), format!("127.0.0.1:{port}"), format!("[::1]:{port}")];
    let mut names = Vec::new();
    if !listen.ip().is_loopback() && !listen.ip().is_unspecified() {
        names.push(listen.to_string());
    }
    names.extend(loopback);
    if !names.contains(&listen.to_string()) {
        names.push(listen.to_string());
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registries(settings: &[(&str, Option<&str>, &[&str])], listen: &str) -> Registries {
        let settings = settings.iter().map(|(name, login_server, aliases)| {
            let settings = RegistrySettings {
                login_server: login_server.map(Into::into),
                aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
                ..RegistrySettings::default()
            };
            (name.parse().unwrap(), settings)
        });
        let listen = listen.split(' ').map(|address| address.parse().unwrap());
        Registries::new(&settings.collect(), listen)
    }

    #[test]
    fn a_single_registry_owns_the_address_that_is_listened_on() {
        let own = registries(&[("local", None, &[])], "127.0.0.1:5000");
        let local = RegistryName::default();
        assert_eq!(own.get(&local).unwrap().login_server, "localhost:5000");
        for host in ["localhost:5000", "LOCALHOST:5000", "127.0.0.1:5000", "[::1]:5000"] {
            let found = own.own_names().into_iter().any(|(own, _)| own.eq_ignore_ascii_case(host));
            assert!(found, "{host}");
            assert_eq!(own.hosts().registry(host), Some(&local), "{host}");
        }
        assert_eq!(own.own_names()[0], ("localhost:5000".to_owned(), local.clone()));
        assert_eq!(own.hosts().registry("example.com"), Some(&local));
    }

    #[test]
    fn every_address_that_is_listened_on_is_own() {
        let own = registries(&[("local", None, &[])], "127.0.0.1:5000 0.0.0.0:5001");
        let names: Vec<String> = own.own_names().into_iter().map(|(name, _)| name).collect();
        for host in ["localhost:5000", "localhost:5001", "127.0.0.1:5001"] {
            assert!(names.iter().any(|name| name == host), "{host} is not in {names:?}");
        }
        assert_eq!(names[0], "localhost:5000");
    }

    #[test]
    fn hosts_select_registries() {
        let own = registries(
            &[
                ("first", Some("first.example.com"), &["f.example.com"]),
                ("second", Some("second.example.com"), &[]),
            ],
            "0.0.0.0:80",
        );
        let hosts = own.hosts();
        let name = |host| hosts.registry(host).map(RegistryName::as_str);
        assert_eq!(name("f.example.com"), Some("first"));
        assert_eq!(name("second.example.com"), Some("second"));
        assert_eq!(name("localhost:80"), Some("first"));
        assert_eq!(name("third.example.com"), None);
    }
}
