//! Network namespaces, made without forking.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::BindToDevice;
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};

use super::{Subnet, cannot, link_index};
use crate::ContainerError;

/// A new namespace, and a way to talk to the kernel inside it.
pub(crate) struct Namespace {
    pub(super) file: OwnedFd,
    pub(super) handle: Handle,
}

/// The loopback device is always the first.
const LOOPBACK: u32 = 1;

/// Makes a network namespace that has a loopback device and nothing else.
pub(crate) async fn make() -> Result<Namespace, ContainerError> {
    let doing = "make a network namespace";
    let namespace = make_empty().await.map_err(|error| cannot(doing, error))?;
    set_up(&namespace.handle, LOOPBACK).await.map_err(|error| cannot(doing, error))?;
    Ok(namespace)
}

/// A thread enters the namespace, opens what is needed and ends: a namespace belongs to a thread, so the
/// rest of the server stays where it is. The thread is not one of the runtime's, which would be
/// used again.
async fn make_empty() -> io::Result<Namespace> {
    let runtime = tokio::runtime::Handle::current();
    in_thread(move || enter_new(&runtime)).await
}

async fn in_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (done, made) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("network-namespace".to_owned()).spawn(move || {
        let _canceled = done.send(work());
    })?;
    made.await.map_err(|_error| io::Error::other("the thread that enters namespaces failed"))?
}

fn enter_new(runtime: &tokio::runtime::Handle) -> io::Result<Namespace> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let file = OwnedFd::from(File::open("/proc/thread-self/ns/net")?);
    for scope in ["all", "default"] {
        // Absent where the kernel has no IPv6.
        let _absent = fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1");
    }
    allow_users()?;
    // The kernel gives a namespace what the machine has. A container with two networks would then
    // pass on what one sends for the other.
    fs::write("/proc/sys/net/ipv4/ip_forward", "0")?;
    let _entered = runtime.enter();
    let (connection, handle, _) = rtnetlink::new_connection()?;
    runtime.spawn(connection);
    Ok(Namespace { file, handle })
}

/// The highest group that the kernel takes here.
const GROUP_MAX: u32 = i32::MAX.unsigned_abs();

/// Lets everybody in this thread's network namespace use low ports and `ping`, as Docker does. The
/// namespace is the machine's, not the container's own root's, who could not otherwise.
pub(crate) fn allow_users() -> io::Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")?;
    let last = crate::rootless::last_group().min(GROUP_MAX);
    fs::write("/proc/sys/net/ipv4/ping_group_range", format!("0 {last}"))
}

impl Namespace {
    /// Sets a device up, with its address.
    pub(super) async fn configure(
        &self,
        device: &str,
        address: Ipv4Addr,
        subnet: Subnet,
    ) -> Result<(), rtnetlink::Error> {
        let index = link_index(&self.handle, device).await?;
        let index = index.ok_or(rtnetlink::Error::RequestFailed)?;
        set_up(&self.handle, index).await?;
        self.handle.address().add(index, address.into(), subnet.prefix()).execute().await
    }

    /// Opens a port at an address that only the namespace itself has.
    pub(super) async fn listen(&self, address: SocketAddrV4) -> io::Result<TcpListener> {
        let own = self.handle.address().add(LOOPBACK, (*address.ip()).into(), 32);
        own.execute().await.map_err(io::Error::other)?;
        let namespace = self.file.try_clone()?;
        in_thread(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            let listener = TcpListener::bind(address)?;
            // Nobody reaches it from outside, whatever routes they make.
            setsockopt(&listener, BindToDevice, &"lo".into())?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
        .await
    }

    /// Sends what is for nobody here to `gateway`.
    pub(super) async fn add_route(&self, gateway: Ipv4Addr) -> Result<(), rtnetlink::Error> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
        self.handle.route().add(route).execute().await
    }
}

/// Sets the device with this number up.
pub(super) async fn set_up(handle: &Handle, index: u32) -> Result<(), rtnetlink::Error> {
    let up = LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build();
    handle.link().set(up).execute().await
}
