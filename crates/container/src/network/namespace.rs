//! Network namespaces, made without forking.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, unshare};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};

use super::{Subnet, link_index};

/// A new namespace, and a way to talk to the kernel inside it.
pub(super) struct Namespace {
    pub(super) file: OwnedFd,
    pub(super) handle: Handle,
}

/// Makes an empty network namespace.
///
/// A thread enters it, opens what is needed and ends: a namespace belongs to a thread, so the
/// rest of the server stays where it is. The thread is not one of the runtime's, which would be
/// used again.
pub(super) async fn make() -> io::Result<Namespace> {
    let runtime = tokio::runtime::Handle::current();
    let (done, made) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("network-namespace".to_owned()).spawn(move || {
        let _canceled = done.send(enter_new(&runtime));
    })?;
    made.await.map_err(|_error| io::Error::other("the thread that makes namespaces failed"))?
}

fn enter_new(runtime: &tokio::runtime::Handle) -> io::Result<Namespace> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let file = OwnedFd::from(File::open("/proc/thread-self/ns/net")?);
    for scope in ["all", "default"] {
        // Absent where the kernel has no IPv6.
        let _absent = fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1");
    }
    allow_users()?;
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

/// Gives the namespace's `eth0` its address, and all devices a route.
pub(super) async fn configure(
    handle: Handle,
    address: Ipv4Addr,
    subnet: Subnet,
) -> Result<(), rtnetlink::Error> {
    // The loopback device is always the first.
    let loopback = LinkMessageBuilder::<LinkUnspec>::new().index(1).up().build();
    handle.link().set(loopback).execute().await?;
    let index = link_index(&handle, "eth0").await?.ok_or(rtnetlink::Error::RequestFailed)?;
    let device = LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build();
    handle.link().set(device).execute().await?;
    handle.address().add(index, address.into(), subnet.prefix()).execute().await?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(subnet.gateway()).build();
    handle.route().add(route).execute().await
}
