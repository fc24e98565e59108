//! Which network addresses a server may be sent to by those who use it.
//!
//! A server stands where its users do not: what listens only for its machine, or answers only
//! to machines of its network, is not theirs to ask. The rules are those of containers, which
//! do not reach their host, link-local addresses or the metadata services of clouds.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::str::FromStr;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::Host;

/// Addresses that begin alike: `10.0.0.0/8`, `::1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    /// Bits that count.
    prefix: u8,
}

/// Not a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("neither an IP address nor a network such as `10.0.0.0/8`")]
pub struct BadNetwork;

impl FromStr for Network {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| BadNetwork)?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(prefix) => prefix.parse().map_err(|_| BadNetwork)?,
            None => bits,
        };
        if prefix <= bits { Ok(Self { address, prefix }) } else { Err(BadNetwork) }
    }
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        let same = |bits: u32, differing: u128| {
            differing.checked_shr(bits - u32::from(self.prefix)).unwrap_or(0) == 0
        };
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                same(32, (own.to_bits() ^ other.to_bits()).into())
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => same(128, own.to_bits() ^ other.to_bits()),
            _ => false,
        }
    }
}

/// What may be reached.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    /// Policy: may be asked although they are this machine's or of its link.
    pub allowed: Vec<Network>,
    /// How the names of those network devices begin that have other users' containers behind
    /// them; empty: there are none.
    pub bridges: String,
    /// Names of the proxies that the process uses. Their addresses are the operator's choice,
    /// and nobody else's to ask.
    pub proxies: BTreeSet<String>,
}

/// A server that may not be reached: by its address, or because none of those of its name may.
#[derive(Debug, thiserror::Error)]
#[error("`{host}` is {what}, which users may not reach")]
pub(crate) struct Refused {
    pub(crate) host: String,
    pub(crate) what: &'static str,
}

/// The refusal that an HTTP client's error comes from, if it does.
pub(crate) fn refused<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Refused> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(refused) = error.downcast_ref() {
            return Some(refused);
        }
        cause = error.source();
    }
    None
}

impl Reach {
    /// Whether a server may be asked, as far as its address tells. Names are checked when they
    /// are [resolved](Self::resolve).
    pub(crate) fn check<T: AsRef<str>>(&self, host: &Host<T>) -> Result<(), Refused> {
        let (what, host) = match host {
            Host::Ipv4(address) => (self.refusal((*address).into()), address.to_string()),
            Host::Ipv6(address) => (self.refusal((*address).into()), address.to_string()),
            Host::Domain(name) => {
                let name = name.as_ref().trim_end_matches('.').to_ascii_lowercase();
                // Behind a proxy it is the proxy that resolves names.
                let is_local = name == "localhost" || name.ends_with(".localhost");
                let what = match self.proxies.contains(&name) {
                    true => Some("the server's proxy"),
                    false if is_local => self.refusal(Ipv4Addr::LOCALHOST.into()),
                    false => None,
                };
                (what, name)
            }
        };
        what.map_or(Ok(()), |what| Err(Refused { host, what }))
    }

    /// The addresses of a name that may be reached.
    pub(crate) async fn resolve(
        &self,
        host: &str,
        port: u16,
    ) -> std::io::Result<Result<Vec<SocketAddr>, Refused>> {
        let (mut fine, mut refused) = (Vec::new(), None);
        for address in tokio::net::lookup_host((host, port)).await? {
            match self.refusal(address.ip()) {
                Some(what) => refused = Some(what),
                None => fine.push(address),
            }
        }
        Ok(match refused {
            Some(what) if fine.is_empty() => Err(Refused { host: host.to_owned(), what }),
            _ => Ok(fine),
        })
    }

    /// Why an address is not for users; none if it is.
    pub(crate) fn refusal(&self, address: IpAddr) -> Option<&'static str> {
        let address = embedded(address);
        if self.allowed.iter().any(|network| network.contains(address)) {
            return None;
        }
        let special = match address {
            IpAddr::V4(address) => special_v4(address).or_else(|| self.container(address)),
            IpAddr::V6(address) => special_v6(address),
        };
        special.or_else(|| is_own(address).then_some("an address of the server itself"))
    }

    /// Containers have IPv4 only.
    fn container(&self, address: Ipv4Addr) -> Option<&'static str> {
        if self.bridges.is_empty() {
            return None;
        }
        let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
        is_behind(&routes, &self.bridges, address).then_some("a container's address")
    }
}

/// As an HTTP client resolves names, to connect to no other address.
impl Resolve for Reach {
    fn resolve(&self, name: Name) -> Resolving {
        let (reach, host) = (self.clone(), name.as_str().to_owned());
        Box::pin(async move {
            let found = match reach.proxies.contains(&host.to_ascii_lowercase()) {
                true => tokio::net::lookup_host((host.as_str(), 0)).await?.collect(),
                false => Reach::resolve(&reach, &host, 0).await??,
            };
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Whether a route leads to an address through one of some devices. The kernel writes addresses
/// as numbers of this machine.
fn is_behind(routes: &str, devices: &str, address: Ipv4Addr) -> bool {
    let number = |text: &str| {
        u32::from_str_radix(text, 16).ok().map(|number| u32::from_be_bytes(number.to_ne_bytes()))
    };
    routes.lines().skip(1).any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [device, destination, _, _, _, _, _, mask, ..] = words[..] else { return false };
        let (Some(destination), Some(mask)) = (number(destination), number(mask)) else {
            return false;
        };
        device.starts_with(devices) && address.to_bits() & mask == destination
    })
}

/// The IPv4 address to which an IPv6 address leads in the end, if it does.
fn embedded(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let [a, b, c, d, e, f, g, h] = v6.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match [a, b, c, d, e, f] {
        // `::` and `::1` are no IPv4 addresses.
        [0, 0, 0, 0, 0, 0] if g != 0 => v4(g, h),
        // Mapped, translated (RFC 6052, RFC 2765), 6to4.
        [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0] | [0, 0, 0, 0, 0xffff, 0] => v4(g, h),
        [0x2002, ..] => v4(b, c),
        _ => address,
    }
}

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        [127, ..] => Some("a loopback address"),
        [0, ..] => Some("an address of this machine"),
        [169, 254, ..] => Some("a link-local address"),
        // Metadata services of Azure and Alibaba.
        [168, 63, 129, 16] | [100, 100, 100, 200] => Some("a metadata service"),
        [224..=255, ..] => Some("no address of one machine"),
        _ => None,
    }
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("a loopback address"),
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("an address of this machine"),
        // Old site-local ones too.
        [0xfe80..=0xfeff, ..] => Some("a link-local address"),
        [0xff00..=0xffff, ..] => Some("no address of one machine"),
        // Metadata services of Amazon and Google.
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] | [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254] => {
            Some("a metadata service")
        }
        // Teredo: where it leads is written down in a way that its relays read.
        [0x2001, 0, ..] => Some("a tunnel"),
        // Local translation (RFC 8215): it may lead anywhere.
        [0x64, 0xff9b, 1, ..] => Some("a tunnel"),
        _ => None,
    }
}

/// Whether packets to an address stay on this machine: then they come from that address too.
/// Connecting a datagram socket sends nothing.
fn is_own(address: IpAddr) -> bool {
    let any: SocketAddr = match address {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let source = UdpSocket::bind(any)
        .and_then(|socket| socket.connect((address, 9)).and_then(|()| socket.local_addr()));
    source.is_ok_and(|source| source.ip() == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(allowed: &[&str]) -> Reach {
        let allowed = allowed.iter().map(|network| network.parse().unwrap()).collect();
        Reach { allowed, ..Reach::default() }
    }

    #[tokio::test]
    async fn names_are_resolved_to_what_may_be_reached() {
        let resolve = async |allowed: &[&str], proxy: &str| {
            let reach = Reach { proxies: [proxy.to_owned()].into(), ..reach(allowed) };
            let found = Resolve::resolve(&reach, "localhost".parse().unwrap()).await;
            found.map(|found| found.count())
        };
        let Err(error) = resolve(&[], "").await else { panic!("localhost was resolved") };
        assert!(error.is::<Refused>(), "{error}");
        assert!(resolve(&["127.0.0.0/8", "::1"], "").await.unwrap() > 0);
        assert!(resolve(&[], "localhost").await.unwrap() > 0);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn containers_are_behind_their_bridges() {
        let routes = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
            eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            refit3\t0000D50A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
            odd\n";
        let behind = |address: &str| is_behind(routes, "refit", address.parse().unwrap());
        assert!(behind("10.213.0.9"));
        assert!(behind("10.213.255.9"));
        assert!(!behind("10.214.0.9"));
        assert!(!behind("192.0.2.1"));
        assert!(!is_behind("", "refit", Ipv4Addr::LOCALHOST));
    }

    #[test]
    fn addresses_of_the_machine_and_its_link_are_refused_however_they_are_written() {
        for refused in [
            "127.0.0.1",
            "127.8.9.1",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "168.63.129.16",
            "100.100.100.200",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::7f00:1",
            "::ffff:0:7f00:1",
            "2002:7f00:1::",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "fd00:ec2::254",
        ] {
            assert!(reach(&[]).refusal(refused.parse().unwrap()).is_some(), "{refused}");
        }
        for fine in ["192.0.2.1", "10.1.2.3", "192.168.7.7", "1.1.1.1", "2606:4700::1111"] {
            assert_eq!(reach(&[]).refusal(fine.parse().unwrap()), None, "{fine}");
        }
    }

    #[test]
    fn what_is_allowed_is_not_refused() {
        let refused = |address: &str, allowed: &str| {
            reach(&[allowed]).refusal(address.parse().unwrap()).is_some()
        };
        assert!(!refused("127.0.0.1", "127.0.0.1"));
        assert!(!refused("::ffff:127.0.0.1", "127.0.0.1"));
        assert!(refused("127.0.0.2", "127.0.0.1"));
        assert!(!refused("127.9.0.2", "127.0.0.0/8"));
        assert!(refused("169.254.1.1", "127.0.0.0/8"));
        assert!(!refused("169.254.1.1", "0.0.0.0/0"));
        assert!(refused("::1", "0.0.0.0/0"));
        assert!(!refused("::1", "::/0"));
        assert!(!refused("fe80::7", "fe80::/10"));
        for bad in ["", "x", "127.0.0.1/33", "::/129", "127.0.0.1/", "127.0.0.1/-1", "localhost"] {
            assert_eq!(bad.parse::<Network>(), Err(BadNetwork), "{bad}");
        }
    }

    #[test]
    fn the_machines_other_addresses_are_its_own() {
        // The address that packets to the outside come from.
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        if socket.connect("192.0.2.1:9").is_ok() {
            let own = socket.local_addr().unwrap().ip();
            assert!(reach(&[]).refusal(own).is_some(), "{own}");
        }
    }
}
