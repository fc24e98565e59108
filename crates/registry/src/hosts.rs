//! Which registry a `Host` header means.

use std::collections::HashMap;

use oci::RegistryName;

use crate::access::host_name;

/// The registries of a server by their login servers and aliases.
#[derive(Debug, Clone, Default)]
pub struct Hosts {
    by_host: HashMap<String, RegistryName>,
    default: Option<RegistryName>,
}

impl Hosts {
    /// One registry for every host name.
    pub fn only(registry: RegistryName) -> Self {
        Self { by_host: HashMap::new(), default: Some(registry) }
    }

    /// No registry for hosts that are not added.
    pub fn none() -> Self {
        Self::default()
    }

    /// Serves `registry` at `host`: a name for every port, or a name with its port.
    pub fn with(mut self, host: &str, registry: RegistryName) -> Self {
        self.by_host.insert(host.to_ascii_lowercase(), registry);
        self
    }

    /// The registry at a `Host` header's value; name and port count before the name alone.
    pub fn registry(&self, host: &str) -> Option<&RegistryName> {
        if self.by_host.is_empty() {
            return self.default.as_ref();
        }
        let host = host.to_ascii_lowercase();
        let found = self.by_host.get(&host).or_else(|| self.by_host.get(host_name(&host)));
        found.or(self.default.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_counts_only_where_it_is_configured() {
        let name = |text: &str| text.parse::<RegistryName>().unwrap();
        let hosts = Hosts::only(name("local"))
            .with("one.example", name("first"))
            .with("one.example:5001", name("second"));
        for (host, expected) in [
            ("one.example", "first"),
            ("ONE.example:443", "first"),
            ("one.example:5001", "second"),
            ("[::1]:5000", "local"),
            ("", "local"),
        ] {
            assert_eq!(hosts.registry(host), Some(&name(expected)), "{host}");
        }
        assert_eq!(Hosts::none().with("a", name("first")).registry("b"), None);
    }
}
