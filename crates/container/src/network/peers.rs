//! Networks in which containers reach each other by name.
//!
//! Such a network is a namespace of its own with a bridge in it, from which no device leads
//! elsewhere. The server holds it by files: when they are closed (also when the server is killed)
//! it goes, and its devices with it, so nothing of it is to be seen on the machine, and no
//! firewall rule is needed. A member has one more device, whose other end hangs on the bridge.
//!
//! Names are lines of the members' `/etc/hosts`, rewritten whenever a member comes or goes: that
//! works in every image, and without a name server.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rtnetlink::Handle;

use super::{
    Namespace, Pair, Subnet, Taken, add_bridge, cannot, connect, namespace, no_address, used_ranges,
};
use crate::ContainerError;
use crate::hosts::{Hosts, HostsFile};

/// Where these networks have their addresses from, in this order: each holds 256 ranges. The
/// last is set apart for tests between networks, so hardly anybody has a route to it.
const SPACES: [Ipv4Addr; 3] =
    [Ipv4Addr::new(10, 213, 0, 0), Ipv4Addr::new(172, 29, 0, 0), Ipv4Addr::new(198, 18, 0, 0)];
const SPACE_PREFIX: u8 = 16;
const PREFIX: u8 = 24;

/// What the bridge is called in its namespace.
const BRIDGE: &str = "peers";

/// A network that some containers share, besides the one they have otherwise: in it they reach
/// each other, by address and by name, and nothing else.
///
/// It has room for 254 containers at a time, and IPv4 only. It is gone when the last clone is
/// dropped and the last of its containers has ended, or with the server. All such networks may
/// have the same addresses, since none sees another. The members trust each other: nothing keeps
/// one from claiming another's address.
#[derive(Clone)]
pub struct PeerNetwork {
    shared: Arc<Shared>,
}

struct Shared {
    subnet: Subnet,
    /// The bridge's number in the namespace.
    bridge: u32,
    handle: Handle,
    members: Mutex<Members>,
    _namespace: OwnedFd,
}

#[derive(Default)]
struct Members {
    taken: Taken,
    /// How many there have been: no two devices have the same name, since that of a container
    /// which has ended goes a little later.
    count: u32,
    /// Those that have a name, in the order in which they came.
    named: Vec<Named>,
}

struct Named {
    host: u32,
    address: Ipv4Addr,
    names: Vec<String>,
    hosts: HostsFile,
}

/// A container's place in a network. Dropping it frees the address, and takes the container's
/// names out of the other members' files.
pub(crate) struct Member {
    shared: Arc<Shared>,
    host: u32,
}

impl PeerNetwork {
    /// Makes a network without members, whose addresses are none of the machine's and none that
    /// isolated networks may have, which begin at `isolated`.
    pub(crate) async fn make(isolated: Subnet) -> Result<Self, ContainerError> {
        let used = used_ranges(&connect()?).await;
        let used = used.map_err(|error| cannot("read the routes", error))?;
        let subnet = choose(isolated, &used).ok_or_else(|| {
            let spaces = SPACES.map(|space| format!("`{space}/{SPACE_PREFIX}`")).join(", ");
            let reason = format!("the machine has addresses or routes in all of {spaces}");
            cannot("choose addresses for a network of peers", reason)
        })?;
        let Namespace { file, handle } = namespace::make().await?;
        let made = async {
            let bridge = add_bridge(&handle, BRIDGE).await?;
            namespace::set_up(&handle, bridge).await?;
            Ok::<u32, rtnetlink::Error>(bridge)
        };
        let bridge = made.await.map_err(|error| {
            let reason = format!("{error}; the kernel needs bridges for it");
            cannot("make a network of peers", reason)
        })?;
        let members = Mutex::default();
        let shared = Shared { subnet, bridge, handle, members, _namespace: file };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Gives a container's namespace a device in this network. No other member knows it yet.
    pub(crate) async fn join(
        &self,
        namespace: &Namespace,
        device: &str,
    ) -> Result<Member, ContainerError> {
        let shared = &self.shared;
        let (host, number) = shared.take_host()?;
        let member = Member { shared: Arc::clone(shared), host };
        let (name, address) = (format!("member{number}"), shared.subnet.host(host));
        let joined = async {
            let pair = Pair { name: &name, bridge: shared.bridge, device, address };
            pair.make(&shared.handle, namespace).await?;
            namespace.configure(device, address, shared.subnet).await
        };
        joined.await.map_err(|error| cannot("connect the container with its peers", error))?;
        Ok(member)
    }
}

impl fmt::Debug for PeerNetwork {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PeerNetwork({})", self.shared.subnet)
    }
}

/// All that the addresses of these networks can be, where isolated networks begin at `isolated`.
pub(super) fn spaces(isolated: Subnet) -> impl Iterator<Item = Subnet> {
    let spaces = SPACES.into_iter().filter_map(|space| Subnet::new(space, SPACE_PREFIX));
    spaces.filter(move |space| !space.overlaps(isolated))
}

fn choose(isolated: Subnet, used: &[Subnet]) -> Option<Subnet> {
    let ranges = spaces(isolated).filter_map(|space| Subnet::new(space.host(0), PREFIX));
    ranges
        .flat_map(|range| range.candidates(0))
        .find(|range| !used.iter().any(|used| used.overlaps(*range)))
}

impl Shared {
    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An address, and a number for the device.
    fn take_host(&self) -> Result<(u32, u32), ContainerError> {
        let mut members = self.members();
        let host = members.taken.take(1, self.subnet.host_count());
        let host = host.ok_or_else(|| no_address(self.subnet))?;
        members.count = members.count.wrapping_add(1);
        Ok((host, members.count))
    }
}

impl Member {
    /// Makes the container's `/etc/hosts` at `file`, and lets all members know it under `names`.
    pub(crate) fn announce(
        &self,
        names: &[String],
        hosts: Hosts,
        file: &Path,
    ) -> std::io::Result<()> {
        let hosts = HostsFile::new(hosts, File::create(file)?);
        let (host, address) = (self.host, self.shared.subnet.host(self.host));
        let mut members = self.shared.members();
        members.named.push(Named { host, address, names: names.to_vec(), hosts });
        members.tell(Some(host))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut members = self.shared.members();
        members.named.retain(|named| named.host != self.host);
        // Only that of a new member is an error.
        let _told = members.tell(None);
        members.taken.hosts.remove(&self.host);
    }
}

impl Members {
    /// Writes all names into all files; an error if that of the member `new` cannot be written.
    /// Of two members with one name the first has it.
    fn tell(&mut self, new: Option<u32>) -> std::io::Result<()> {
        let mut seen = HashSet::new();
        let all = self.named.iter().flat_map(|named| {
            named.names.iter().map(|name| (name.clone(), named.address)).collect::<Vec<_>>()
        });
        let known: Vec<(String, Ipv4Addr)> =
            all.filter(|(name, _)| seen.insert(name.to_ascii_lowercase())).collect();
        for named in &mut self.named {
            match named.hosts.write(&known) {
                Err(error) if new == Some(named.host) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "a container does not learn which peers it has");
                }
                Ok(()) => (),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::network::link_index;

    async fn wait_until_gone(handle: &Handle, device: &str) {
        let started = Instant::now();
        while link_index(handle, device).await.unwrap().is_some() {
            assert!(started.elapsed() < Duration::from_secs(20), "`{device}` stays");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A device goes with the namespace that its other end is in.
    #[tokio::test]
    async fn as_root_neither_a_member_nor_a_network_leaves_anything() {
        let network = PeerNetwork::make("10.89.0.0/24".parse().unwrap()).await.unwrap();
        let handle = network.shared.handle.clone();
        for device in ["member1", "member2"] {
            let namespace = namespace::make().await.unwrap();
            let member = network.join(&namespace, "eth0").await.unwrap();
            assert!(link_index(&handle, device).await.unwrap().is_some());
            drop((member, namespace));
            wait_until_gone(&handle, device).await;
        }
        drop(handle);
        assert!(network.shared.members().taken.hosts.is_empty());
        let namespace = namespace::make().await.unwrap();
        drop(network.join(&namespace, "eth0").await.unwrap());
        drop(network);
        wait_until_gone(&namespace.handle, "eth0").await;
    }

    #[test]
    fn a_range_has_a_bound_and_gives_no_address_twice_in_a_row() {
        let mut taken = Taken::default();
        let first = taken.take(1, 254).unwrap();
        taken.hosts.remove(&first);
        let second = taken.take(1, 254).unwrap();
        assert_ne!(first, second);
        taken.hosts.remove(&second);
        assert!((0..254).all(|_| taken.take(1, 254).is_some_and(|host| host != 0)));
        assert_eq!(taken.hosts.len(), 254);
        assert_eq!(taken.take(1, 254), None);
        taken.hosts.remove(&7);
        assert_eq!(taken.take(1, 254), Some(7));
    }

    #[test]
    fn addresses_of_peers_are_nobody_else_s() {
        let chosen = |isolated: &str, used: &[&str]| {
            let used: Vec<Subnet> = used
                .iter()
                .map(|used| {
                    let (address, prefix) = used.split_once('/').unwrap();
                    Subnet::new(address.parse().unwrap(), prefix.parse().unwrap()).unwrap()
                })
                .collect();
            let range = choose(isolated.parse().unwrap(), &used);
            range.map_or("none".to_owned(), |range| range.to_string())
        };
        assert_eq!(chosen("10.89.0.0/24", &["192.168.1.0/24"]), "10.213.0.0/24");
        assert_eq!(chosen("10.89.0.0/24", &["10.213.0.0/23", "10.213.2.9/32"]), "10.213.3.0/24");
        assert_eq!(chosen("10.213.7.0/24", &[]), "172.29.0.0/24");
        assert_eq!(chosen("10.89.0.0/24", &["10.0.0.0/8", "172.16.0.0/12"]), "198.18.0.0/24");
        let all = ["10.0.0.0/8", "172.16.0.0/12", "198.18.0.0/15"];
        assert_eq!(chosen("10.89.0.0/24", &all), "none");
    }
}
