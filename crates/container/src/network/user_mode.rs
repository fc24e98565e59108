//! Networks without root: a program of the user passes on what a container sends.
//!
//! `slirp4netns` or `pasta` opens a device in the container's network namespace, and makes the
//! connections itself, on the machine's network, with no other rights than the user's. So a
//! container reaches what the user reaches, but for the addresses that have no route here; and
//! no bridge, address or firewall rule of the machine is needed.
//!
//! The helper starts the program and is its parent: it does not outlive the container.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use rtnetlink::packet_route::route::RouteType;
use rtnetlink::{Handle, RouteMessageBuilder};
use serde::{Deserialize, Serialize};

use super::{Namespace, Outlet, cannot, connect, used_addresses};
use crate::ContainerError;
use crate::rootless::find_program;

/// Through which a user makes network devices.
const DEVICE: &str = "/dev/net/tun";
/// What the device is called in the container.
const INTERFACE: &str = "eth0";

/// The container's place in a network that only the two of them see. These are what
/// `slirp4netns` takes by itself.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const NAMES: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// Link-local addresses, and where clouds have their metadata services.
const FORBIDDEN: [(Ipv4Addr, u8); 3] = [
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    (Ipv4Addr::new(100, 100, 100, 200), 32),
];

/// A program that gives a network namespace its way out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Uplink {
    pub(crate) program: PathBuf,
    is_pasta: bool,
}

impl Uplink {
    /// What the program is told; `namespace` is a path.
    pub(crate) fn arguments(&self, namespace: &str) -> Vec<String> {
        let text = match self.is_pasta {
            true => format!(
                "--config-net --ipv4-only --ns-ifname {INTERFACE} --address {ADDRESS} --netmask 24 \
                 --gateway {GATEWAY} --dns-forward {NAMES} --no-map-gw --tcp-ports none \
                 --udp-ports none --tcp-ns none --udp-ns none --foreground --no-netns-quit \
                 --netns-only --netns"
            ),
            false => "--configure --mtu 65520 --disable-host-loopback --netns-type path".to_owned(),
        };
        let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        words.push(namespace.to_owned());
        words.extend((!self.is_pasta).then(|| INTERFACE.to_owned()));
        words
    }
}

/// The program to use, or why there is no network. Versions of `pasta` from 2023, which Debian 12
/// has, lose the end of some connections.
pub(crate) fn find() -> Result<Uplink, String> {
    if let Err(error) = File::options().read(true).write(true).open(DEVICE) {
        return Err(format!(
            "a user's network needs the device `{DEVICE}`, which cannot be opened: {error}; give \
             users the right to it, build with `--network none`, or run the server as root"
        ));
    }
    let found =
        [("slirp4netns", false), ("pasta", true)].into_iter().find_map(|(name, is_pasta)| {
            find_program(name).map(|program| Uplink { program, is_pasta })
        });
    found.ok_or_else(|| {
        "a user's network needs `slirp4netns` or `pasta`: install the package `slirp4netns` or \
         `passt`, or build with `--network none`"
            .to_owned()
    })
}

/// Prepares a container's namespace for its uplink, which the helper starts.
pub(crate) async fn attach(namespace: &Namespace) -> Result<Outlet, ContainerError> {
    let doing = "give the container a network";
    let uplink = find().map_err(|reason| cannot(doing, reason))?;
    let own = used_addresses(&connect()?).await.map_err(|error| cannot(doing, error))?;
    close(&namespace.handle, &own).await.map_err(|error| cannot(doing, error))?;
    Ok(Outlet {
        address: ADDRESS,
        name_server: NAMES,
        uplink: Some(uplink),
        bound: None,
        _place: None,
    })
}

/// Leaves addresses without a route. The process has no rights over its network to change that.
async fn close(handle: &Handle, own: &[Ipv4Addr]) -> Result<(), rtnetlink::Error> {
    let own = own.iter().filter(|address| !address.is_loopback()).map(|address| (*address, 32));
    for (address, prefix) in FORBIDDEN.into_iter().chain(own) {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, prefix)
            .kind(RouteType::Unreachable)
            .build();
        handle.route().add(route).replace().execute().await?;
    }
    Ok(())
}
