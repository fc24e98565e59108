//! A container's `/etc/hosts`: what is settled when it starts, and its peers, who come and go.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::FileExt as _;

use crate::ProcessSpec;

const LOCAL: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
const LOCAL_NAMES: [&str; 3] = ["localhost", "ip6-localhost", "ip6-loopback"];

/// What the file says besides the names of peers.
pub(crate) struct Hosts {
    own: Option<(String, Ipv4Addr)>,
    extra: Vec<(String, IpAddr)>,
}

impl Hosts {
    /// `address` is the container's own, if it has one.
    pub(crate) fn new(spec: &ProcessSpec, address: Option<Ipv4Addr>) -> Self {
        let address = address.unwrap_or(Ipv4Addr::LOCALHOST);
        let own = (!spec.hostname.is_empty()).then(|| (spec.hostname.clone(), address));
        Self { own, extra: spec.extra_hosts.clone() }
    }

    /// The file's text. Some libraries take all lines that have a name, so one that is asked for
    /// by the specification is not a peer's as well, and a peer's is not that of the container.
    pub(crate) fn text(&self, peers: &[(String, Ipv4Addr)]) -> String {
        let mut settled: HashSet<String> = LOCAL_NAMES.map(str::to_owned).into();
        settled.extend(self.extra.iter().map(|(name, _)| name.to_ascii_lowercase()));
        let of_peer = |own: &str| peers.iter().any(|(name, _)| name.eq_ignore_ascii_case(own));
        let own = self.own.iter().filter(|(name, _)| !of_peer(name));
        let own = own.map(|(name, address)| (name, IpAddr::V4(*address)));
        let extra = self.extra.iter().map(|(name, address)| (name, *address));
        let peers = peers
            .iter()
            .filter(|(name, _)| !settled.contains(&name.to_ascii_lowercase()))
            .map(|(name, address)| (name, IpAddr::V4(*address)));
        let mut text = LOCAL.to_owned();
        for (name, address) in own.chain(extra).chain(peers) {
            // Writing to a string cannot fail.
            let _written = writeln!(text, "{address}\t{name}");
        }
        text
    }
}

/// The file of a container that has peers. It stays one file, since a container has it mounted.
pub(crate) struct HostsFile {
    hosts: Hosts,
    file: File,
    /// How much was written last.
    size: usize,
}

impl HostsFile {
    /// `file` is empty.
    pub(crate) fn new(hosts: Hosts, file: File) -> Self {
        Self { hosts, file, size: 0 }
    }

    /// Writes the file anew, at once, so that a reader finds it neither empty nor cut: what was
    /// longer is first overwritten by empty lines.
    pub(crate) fn write(&mut self, peers: &[(String, Ipv4Addr)]) -> io::Result<()> {
        let mut bytes = self.hosts.text(peers).into_bytes();
        let size = bytes.len();
        bytes.resize(size.max(self.size), b'\n');
        self.size = bytes.len();
        self.file.write_all_at(&bytes, 0)?;
        self.file.set_len(size as u64)?;
        self.size = size;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(peers: &[(&str, u8)]) -> Vec<(String, Ipv4Addr)> {
        let address = |last: u8| Ipv4Addr::new(10, 213, 0, last);
        peers.iter().map(|(name, last)| ((*name).to_owned(), address(*last))).collect()
    }

    #[test]
    fn a_name_is_in_the_file_once() {
        let hosts = Hosts {
            own: Some(("box".to_owned(), Ipv4Addr::LOCALHOST)),
            extra: vec![("mirror".to_owned(), Ipv4Addr::new(192, 0, 2, 1).into())],
        };
        let all = peers(&[("db", 2), ("Mirror", 3), ("localhost", 4)]);
        expect_test::expect![[r#"
            127.0.0.1	localhost
            ::1	localhost ip6-localhost ip6-loopback
            127.0.0.1	box
            192.0.2.1	mirror
            10.213.0.2	db
        "#]]
        .assert_eq(&hosts.text(&all));
        expect_test::expect![[r#"
            127.0.0.1	localhost
            ::1	localhost ip6-localhost ip6-loopback
            192.0.2.1	mirror
            10.213.0.5	BOX
        "#]]
        .assert_eq(&hosts.text(&peers(&[("BOX", 5)])));
    }

    #[test]
    fn a_file_says_nothing_but_what_was_written_last() {
        let mut file =
            HostsFile::new(Hosts { own: None, extra: Vec::new() }, tempfile::tempfile().unwrap());
        for names in [&[][..], &[("a", 2), ("bbbbbbbb", 3)], &[("a", 2)], &[]] {
            let names = peers(names);
            file.write(&names).unwrap();
            let mut bytes = vec![0; 4096];
            let size = file.file.read_at(&mut bytes, 0).unwrap();
            assert_eq!(str::from_utf8(&bytes[..size]).unwrap(), file.hosts.text(&names));
        }
    }
}
