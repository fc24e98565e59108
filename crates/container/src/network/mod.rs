//! Networks of isolated containers: a bridge, and a pair of devices for each container.
//!
//! A container's network namespace is made by a thread that enters it and ends; the server
//! keeps it open as a file. Everything else follows from that file: when it is closed (also
//! when the server is killed) the namespace goes, and its devices with it. So only the bridge
//! and the firewall rules can be left behind. Both carry a number that the server holds by a
//! file lock; a number whose lock is free has no owner, and is swept by the next server.
//!
//! A container reaches what the host can reach by routing, and a name server on the bridge's
//! address. It does not reach the host itself, other containers or link-local addresses. It has
//! IPv4 only. Containers that are to reach each other share a network of their own besides:
//! [`PeerNetwork`].

mod bound;
mod dns;
mod firewall;
mod namespace;
mod peers;
mod subnet;
mod user_mode;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use firewall::Bounded;
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth};
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) use dns::{configuration as host_configuration, configuration_for};
pub(crate) use firewall::listing as firewall_listing;
pub(crate) use namespace::{Namespace, allow_users, make as make_namespace};
pub(crate) use peers::Member;
pub use peers::PeerNetwork;
pub(crate) use subnet::Subnet;
pub(crate) use user_mode::{Uplink, attach as attach_user, find as find_uplink};

use bound::{Bounds, Held};

use crate::egress::Egress;
use crate::{ContainerError, LocalService, lock};

/// Names of bridges begin so, of all servers of a machine.
pub const BRIDGES: &str = "refit";
/// How many servers of one machine can have a bridge at the same time.
const BRIDGES_MAX: u32 = 32;

/// The bridge of this server, made when the first isolated container starts.
pub(crate) struct Bridge {
    name: String,
    number: u32,
    index: u32,
    subnet: Subnet,
    handle: Handle,
    taken: Mutex<Taken>,
    bounds: Bounds,
    workers: Vec<tokio::task::JoinHandle<()>>,
    /// Held as long as the bridge is ours.
    _lock: File,
}

/// Addresses in use, and where to look for the next: an address is not given again soon, since
/// others may remember who had it.
#[derive(Default)]
struct Taken {
    hosts: BTreeSet<u32>,
    last: u32,
}

impl Taken {
    /// Takes a free one of the hosts from `first` to `end`.
    fn take(&mut self, first: u32, end: u32) -> Option<u32> {
        let count = end - first + 1;
        let host = (1..=count)
            .map(|step| first + (self.last.saturating_sub(first) + step) % count)
            .find(|host| !self.hosts.contains(host))?;
        self.hosts.insert(host);
        self.last = host;
        Some(host)
    }
}

/// One container's network. Dropping it takes the container's names from its peers, ends its
/// service, and frees the namespace and the addresses.
pub(crate) struct Endpoint {
    member: Option<Member>,
    namespace: OwnedFd,
    outlet: Option<Outlet>,
    _service: Option<DropGuard>,
}

/// A container's way out of its namespace.
pub(crate) struct Outlet {
    address: Ipv4Addr,
    name_server: Ipv4Addr,
    uplink: Option<Uplink>,
    /// Ends before the address is another container's.
    bound: Option<Held>,
    _place: Option<Place>,
}

/// An address on a bridge, free again when dropped.
struct Place {
    bridge: Arc<Bridge>,
    host: u32,
}

impl Endpoint {
    pub(crate) fn new(
        namespace: Namespace,
        outlet: Option<Outlet>,
        member: Option<Member>,
        service: Option<DropGuard>,
    ) -> Self {
        Self { member, namespace: namespace.file, outlet, _service: service }
    }

    /// A path by which another process can open the namespace while this value lives.
    pub(crate) fn namespace_path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd())
    }

    /// The name server to use.
    pub(crate) fn name_server(&self) -> Option<Ipv4Addr> {
        self.outlet.as_ref().map(|outlet| outlet.name_server)
    }

    /// The container's own address, which its peers do not use.
    pub(crate) fn address(&self) -> Option<Ipv4Addr> {
        self.outlet.as_ref().map(|outlet| outlet.address)
    }

    /// The program to start for it.
    pub(crate) fn uplink(&self) -> Option<&Uplink> {
        self.outlet.as_ref()?.uplink.as_ref()
    }

    /// Whether it may not connect to everywhere.
    pub(crate) fn is_bounded(&self) -> bool {
        self.outlet.as_ref().is_some_and(|outlet| outlet.bound.is_some())
    }

    /// Names that the container asked for and may not connect to.
    pub(crate) fn refused(&self) -> Vec<String> {
        let bound = self.outlet.as_ref().and_then(|outlet| outlet.bound.as_ref());
        bound.map(Held::refused).unwrap_or_default()
    }

    /// The container's place among its peers.
    pub(crate) fn member(&self) -> Option<&Member> {
        self.member.as_ref()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.bridge.taken().hosts.remove(&self.host);
    }
}

/// Has a container's service answer in its namespace, until the guard is dropped.
pub(crate) async fn start(
    service: &LocalService,
    namespace: &Namespace,
) -> Result<DropGuard, ContainerError> {
    let doing = format!("open `{}` in the container's network", service.address);
    let listener = namespace.listen(service.address).await;
    let listener = listener.and_then(tokio::net::TcpListener::from_std);
    let listener = listener.map_err(|error| cannot(doing, error))?;
    let (server, end) = (Arc::clone(&service.server), CancellationToken::new());
    let told = end.clone();
    tokio::spawn(async move { server.serve(listener, told).await });
    Ok(end.drop_guard())
}

/// Removes bridges and firewall rules of servers that are no more.
pub(crate) async fn sweep() {
    let mut stale = Vec::new();
    for number in 0..BRIDGES_MAX {
        if lock_file(number).exists()
            && let Ok(held) = lock::try_lock(&lock_file(number))
        {
            stale.push((number, held));
        }
    }
    if stale.is_empty() {
        return;
    }
    for (number, held) in stale {
        if clear(number).await.is_ok() {
            // Removed while locked: the next owner makes a new file.
            let _gone_already = fs::remove_file(lock_file(number));
        }
        drop(held);
    }
}

impl Bridge {
    /// Makes the bridge with its rules and name server. `wanted` is the first address range to
    /// try; one that is in use is skipped in favour of the next of the same size.
    pub(crate) async fn open(wanted: Subnet) -> Result<Self, ContainerError> {
        let (number, lock) = claim()?;
        let handle = connect()?;
        clear(number).await.map_err(|reason| cannot("remove an old bridge", reason))?;
        let used = used_ranges(&handle).await.map_err(|error| cannot("read the routes", error))?;
        let subnet = wanted
            .candidates(number)
            .find(|subnet| {
                let mut kept = used.iter().copied().chain(peers::spaces(wanted));
                !kept.any(|kept| kept.overlaps(*subnet))
            })
            .ok_or_else(|| {
                let reason = format!("`{wanted}` and the ranges after it are in use");
                cannot("choose addresses for isolated networks", reason)
            })?;
        let name = name(number);
        let index = make_bridge(&handle, &name, subnet).await.map_err(|error| {
            let reason = format!("{error}; it needs the capability CAP_NET_ADMIN");
            cannot("make a bridge for isolated networks", reason)
        })?;
        let mut bridge = Self {
            name,
            number,
            index,
            subnet,
            handle,
            taken: Mutex::default(),
            bounds: Bounds::default(),
            workers: Vec::new(),
            _lock: lock,
        };
        bridge.connect_outwards().await?;
        Ok(bridge)
    }

    async fn connect_outwards(&mut self) -> Result<(), ContainerError> {
        allow_forwarding()?;
        let (number, name, subnet) = (self.number, self.name.clone(), self.subnet);
        let failed = |error| {
            let address = subnet.gateway();
            cannot(format!("open the name server on `{address}`"), error)
        };
        let names = dns::Sockets::open(subnet).await.map_err(failed)?;
        let port = names.port().map_err(failed)?;
        firewall::install(number, &name, subnet, port).await?;
        self.workers = names.serve(subnet, &self.bounds);
        Ok(())
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_host(&self) -> Result<u32, ContainerError> {
        // The first is the gateway's.
        let host = self.taken().take(2, self.subnet.host_count());
        host.ok_or_else(|| no_address(self.subnet))
    }

    /// Hangs a container's namespace on the bridge.
    pub(crate) async fn attach(
        self: &Arc<Self>,
        namespace: &Namespace,
        egress: &Egress,
    ) -> Result<Outlet, ContainerError> {
        let host = self.take_host()?;
        let place = Place { bridge: Arc::clone(self), host };
        let address = self.subnet.host(host);
        // Before there is a way out.
        let bound = match egress.is_open() {
            true => {
                self.bounds.forget(address);
                None
            }
            false => {
                let bounded = Bounded { number: self.number, host, address };
                Some(self.bounds.begin(bounded, egress).await?)
            }
        };
        self.make_link(host, namespace)
            .await
            .map_err(|error| cannot("make a network device for the container", error))?;
        let configured = async {
            namespace.configure("eth0", address, self.subnet).await?;
            namespace.add_route(self.subnet.gateway()).await
        };
        configured.await.map_err(|error| cannot("set up the container's network", error))?;
        let name_server = self.subnet.gateway();
        Ok(Outlet { address, name_server, uplink: None, bound, _place: Some(place) })
    }

    async fn make_link(&self, host: u32, namespace: &Namespace) -> Result<(), rtnetlink::Error> {
        let (name, address) = (format!("{}v{host}", self.name), self.subnet.host(host));
        let pair = Pair { name: &name, bridge: self.index, device: "eth0", address };
        match pair.make(&self.handle, namespace).await {
            // Of a container that has ended, and that the kernel has not cleared away yet: nobody
            // else has this bridge.
            Err(error) if is_there_already(&error) => {
                if let Some(stale) = link_index(&self.handle, &name).await? {
                    let _gone_by_now = self.handle.link().del(stale).execute().await;
                }
                pair.make(&self.handle, namespace).await?;
            }
            made => made?,
        }
        let index = link_index(&self.handle, &name).await?;
        let index = index.ok_or(rtnetlink::Error::RequestFailed)?;
        // Ports that are isolated do not reach each other, only the bridge itself.
        let isolated = LinkBridgePort::new(index).isolated(true).learning(false).build();
        self.handle.link().set_port(isolated).execute().await?;
        // Who has which address is said here once: a container can claim another's, by what it
        // sends, and would then get what others send to that one.
        let hardware = hardware(address);
        let neighbours = self.handle.neighbours();
        let port = neighbours.add_bridge(index, &hardware).flags(NeighbourFlags::Controller);
        port.state(NeighbourState::Noarp).replace().execute().await?;
        let address = neighbours.add(self.index, address.into());
        let address = address.link_layer_address(&hardware).state(NeighbourState::Permanent);
        address.replace().execute().await
    }
}

/// Two devices that are the ends of one wire.
struct Pair<'a> {
    /// What the end at the bridge is called, and the number of that bridge.
    name: &'a str,
    bridge: u32,
    /// What the end in the container is called, and the address that it will have.
    device: &'a str,
    address: Ipv4Addr,
}

impl Pair<'_> {
    async fn make(&self, handle: &Handle, namespace: &Namespace) -> Result<(), rtnetlink::Error> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(self.device)
            .address(hardware(self.address).into())
            .setns_by_fd(namespace.file.as_raw_fd())
            .build();
        let link = LinkMessageBuilder::<LinkVeth>::new(self.name, self.device)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .controller(self.bridge)
            .up()
            .build();
        handle.link().add(link).execute().await
    }
}

/// The same address has the same hardware address, so no cache can be wrong.
fn hardware(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

impl Drop for Bridge {
    fn drop(&mut self) {
        for worker in &self.workers {
            worker.abort();
        }
        let number = self.number;
        // A thread with a loop of its own, since this one may be ending. The lock goes last.
        let cleaning = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            if let Ok(runtime) = runtime
                && let Err(error) = runtime.block_on(clear(number))
            {
                tracing::warn!(
                    number,
                    error,
                    "a bridge was left behind; the next start removes it"
                );
            } else {
                let _gone_already = fs::remove_file(lock_file(number));
            }
        });
        let _panicked = cleaning.join();
    }
}

fn name(number: u32) -> String {
    format!("{BRIDGES}{number}")
}

fn lock_file(number: u32) -> PathBuf {
    Path::new(lock::FOLDER).join(format!("bridge-{number}.lock"))
}

/// Takes the lowest number that nobody holds.
fn claim() -> Result<(u32, File), ContainerError> {
    let doing = || format!("take a bridge number in `{}`", lock::FOLDER);
    fs::create_dir_all(lock::FOLDER).map_err(|error| cannot(doing(), error))?;
    for number in 0..BRIDGES_MAX {
        match lock::try_lock(&lock_file(number)) {
            Ok(lock) => return Ok((number, lock)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => (),
            Err(error) => return Err(cannot(doing(), error)),
        }
    }
    Err(cannot(doing(), format!("{BRIDGES_MAX} other servers of this machine have one")))
}

/// Removes the bridge and the rules of a number that we hold.
async fn clear(number: u32) -> Result<(), String> {
    firewall::remove(number, &name(number)).await?;
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let removed = async {
        if let Some(index) = link_index(&handle, &name(number)).await? {
            handle.link().del(index).execute().await?;
        }
        Ok::<(), rtnetlink::Error>(())
    };
    let removed = removed.await.map_err(|error| error.to_string());
    connection.abort();
    removed
}

fn connect() -> Result<Handle, ContainerError> {
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(|error| cannot("talk to the kernel", error))?;
    // Ends when the last handle is dropped.
    tokio::spawn(connection);
    Ok(handle)
}

async fn link_index(handle: &Handle, name: &str) -> Result<Option<u32>, rtnetlink::Error> {
    match handle.link().get().match_name(name.to_owned()).execute().try_next().await {
        Ok(link) => Ok(link.map(|link| link.header.index)),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -nix::libc::ENODEV => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn is_there_already(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(message) = error else { return false };
    message.raw_code() == -nix::libc::EEXIST
}

async fn make_bridge(handle: &Handle, name: &str, subnet: Subnet) -> Result<u32, rtnetlink::Error> {
    let index = add_bridge(handle, name).await?;
    // Absent where the kernel has no IPv6.
    let _absent = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    let gateway = subnet.gateway().into();
    handle.address().add(index, gateway, subnet.prefix()).execute().await?;
    namespace::set_up(handle, index).await?;
    Ok(index)
}

async fn add_bridge(handle: &Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    handle.link().add(LinkBridge::new(name).build()).execute().await?;
    link_index(handle, name).await?.ok_or(rtnetlink::Error::RequestFailed)
}

/// The machine's own addresses.
async fn used_addresses(handle: &Handle) -> Result<Vec<Ipv4Addr>, rtnetlink::Error> {
    let mut used = Vec::new();
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await? {
        for attribute in &message.attributes {
            if let AddressAttribute::Address(std::net::IpAddr::V4(address))
            | AddressAttribute::Local(std::net::IpAddr::V4(address)) = attribute
            {
                used.push(*address);
            }
        }
    }
    Ok(used)
}

/// The ranges that the machine's addresses and routes already use.
async fn used_ranges(handle: &Handle) -> Result<Vec<Subnet>, rtnetlink::Error> {
    let mut used = Vec::new();
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await? {
        for attribute in &message.attributes {
            if let AddressAttribute::Address(std::net::IpAddr::V4(address)) = attribute {
                used.extend(Subnet::new(*address, message.header.prefix_len));
            }
        }
    }
    let all = rtnetlink::RouteMessageBuilder::<Ipv4Addr>::new().build();
    let mut routes = handle.route().get(all).execute();
    while let Some(message) = routes.try_next().await? {
        for attribute in &message.attributes {
            if let RouteAttribute::Destination(RouteAddress::Inet(address)) = attribute {
                used.extend(Subnet::new(*address, message.header.destination_prefix_length));
            }
        }
    }
    Ok(used)
}

/// Turns on the forwarding of packets, without which nothing leaves the bridge. It is left on:
/// another program may have come to rely on it meanwhile.
fn allow_forwarding() -> Result<(), ContainerError> {
    const FILE: &str = "/proc/sys/net/ipv4/ip_forward";
    let is_on = fs::read_to_string(FILE).is_ok_and(|value| value.trim() == "1");
    if is_on {
        return Ok(());
    }
    tracing::info!("turned on the forwarding of IPv4 packets for isolated networks");
    fs::write(FILE, "1").map_err(|error| {
        let reason = format!("{error}; set `net.ipv4.ip_forward = 1` with sysctl");
        cannot("turn on the forwarding of packets", reason)
    })
}

fn no_address(subnet: Subnet) -> ContainerError {
    cannot("give the container an address", format!("all of `{subnet}` are in use"))
}

fn cannot(doing: impl Into<String>, reason: impl std::fmt::Display) -> ContainerError {
    ContainerError::Setup { doing: doing.into(), reason: reason.to_string() }
}
