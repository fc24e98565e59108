//! The firewall rules of a bridge, in chains of their own.
//!
//! They are inserted at the top of the built-in chains and decide everything about the bridge's
//! packets, so that they work where another firewall drops what it does not know. Every rule
//! in a built-in chain carries a comment by which it is found again.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::dns::PORT;
use super::{Subnet, cannot};
use crate::ContainerError;

/// Installs the rules of bridge `number`, whose name server listens on a port of its address.
pub(super) async fn install(
    number: u32,
    bridge: &str,
    subnet: Subnet,
    names_port: u16,
) -> Result<(), ContainerError> {
    let script = rules(number, bridge, subnet, names_port);
    let installed = tokio::task::spawn_blocking(move || restore(&script)).await;
    installed.map_err(|error| error.to_string()).flatten().map_err(|reason| {
        let hint = "isolated networks need `iptables` and the right to change rules";
        cannot("install firewall rules for isolated networks", format!("{reason}; {hint}"))
    })
}

/// Removes the rules of bridge `number`, if there are any.
pub(super) async fn remove(number: u32, bridge: &str) -> Result<(), String> {
    let bridge = bridge.to_owned();
    let removed = tokio::task::spawn_blocking(move || remove_now(number, &bridge)).await;
    removed.map_err(|error| error.to_string()).flatten()
}

/// All rules, in the language of `iptables-restore`.
fn rules(number: u32, bridge: &str, subnet: Subnet, names_port: u16) -> String {
    let gateway = subnet.gateway();
    let tag = tag(number);
    let [forward, input, nat, names] = chains(number);
    let redirect = match names_port {
        PORT => String::new(),
        port => format!(
            "\
:{names} - [0:0]
-A {names} -d {gateway} -p udp --dport {PORT} -j REDIRECT --to-ports {port}
-A {names} -d {gateway} -p tcp --dport {PORT} -j REDIRECT --to-ports {port}
-I PREROUTING 1 -i {bridge} {tag} -j {names}
"
        ),
    };
    format!(
        "*filter
:{forward} - [0:0]
:{input} - [0:0]
-A {forward} -i {bridge} -d 169.254.0.0/16 -j DROP
-A {forward} -i {bridge} -d 168.63.129.16 -j DROP
-A {forward} -i {bridge} -d 100.100.100.200 -j DROP
-A {forward} -i {bridge} -o refit+ -j DROP
-A {forward} -i {bridge} -s {subnet} -j ACCEPT
-A {forward} -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A {forward} -j DROP
-A {input} -s {subnet} -d {gateway} -p udp --dport {names_port} -j ACCEPT
-A {input} -s {subnet} -d {gateway} -p tcp --dport {names_port} -j ACCEPT
-A {input} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A {input} -j DROP
-I FORWARD 1 -i {bridge} {tag} -j {forward}
-I FORWARD 1 -o {bridge} {tag} -j {forward}
-I INPUT 1 -i {bridge} {tag} -j {input}
COMMIT
*nat
:{nat} - [0:0]
-A {nat} -s {subnet} -j MASQUERADE
-I POSTROUTING 1 -s {subnet} ! -o {bridge} {tag} -j {nat}
{redirect}COMMIT
"
    )
}

fn chains(number: u32) -> [String; 4] {
    ["FORWARD", "INPUT", "NAT", "NAMES"].map(|kind| format!("REFIT{number}-{kind}"))
}

fn tag(number: u32) -> String {
    format!("-m comment --comment refit:{number}")
}

fn restore(script: &str) -> Result<(), String> {
    let mut child = command("iptables-restore")
        .args(["--noflush", "-w", "10"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("`iptables-restore` does not start: {error}"))?;
    let written = match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(script.as_bytes()),
        None => Ok(()),
    };
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    if output.status.success() && written.is_ok() {
        return Ok(());
    }
    Err(first_line(&output.stderr))
}

/// Deletes in one script what the listings show of ours.
fn remove_now(number: u32, bridge: &str) -> Result<(), String> {
    let mut script = String::new();
    for table in ["filter", "nat"] {
        let listing = match listing(table) {
            Ok(listing) => listing,
            // Where there is no such program there are no rules of ours.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        let deletions = deletions(&listing, number);
        if !deletions.is_empty() {
            script.push_str(&format!("*{table}\n{deletions}COMMIT\n"));
        }
    }
    if script.is_empty() {
        return Ok(());
    }
    restore(&script).map_err(|error| format!("the rules of `{bridge}` stay: {error}"))
}

/// What removes our rules from a listing in the form of `iptables -S`.
fn deletions(listing: &str, number: u32) -> String {
    let chains = chains(number);
    let mut rules = String::new();
    let mut own = String::new();
    for line in listing.lines() {
        let mut words = line.split(' ');
        match (words.next(), words.next()) {
            (Some("-N"), Some(chain)) if chains.iter().any(|own| own == chain) => {
                own.push_str(&format!("-F {chain}\n-X {chain}\n"));
            }
            (Some("-A"), Some(_)) => {
                let jumps = chains.iter().any(|own| line.ends_with(&format!(" -j {own}")));
                if jumps {
                    rules.push_str(&line.replacen("-A", "-D", 1));
                    rules.push('\n');
                }
            }
            _ => (),
        }
    }
    rules + &own
}

pub(crate) fn listing(table: &str) -> std::io::Result<String> {
    let output = command("iptables").args(["-w", "10", "-t", table, "-S"]).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(std::io::Error::other(first_line(&output.stderr)))
}

#[expect(clippy::disallowed_methods, reason = "the firewall's own tool, with fixed arguments")]
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
    command
}

fn first_line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).lines().next().unwrap_or("no reason given").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rules_of_the_number_are_removed() {
        let listing = "-P FORWARD DROP
-N DOCKER
-N REFIT1-FORWARD
-N REFIT11-FORWARD
-A FORWARD -o refit1 -m comment --comment \"refit:1\" -j REFIT1-FORWARD
-A FORWARD -o refit11 -m comment --comment \"refit:11\" -j REFIT11-FORWARD
-A FORWARD -j DOCKER
-A REFIT1-FORWARD -j DROP
";
        expect_test::expect![[r#"
            -D FORWARD -o refit1 -m comment --comment "refit:1" -j REFIT1-FORWARD
            -F REFIT1-FORWARD
            -X REFIT1-FORWARD
        "#]]
        .assert_eq(&deletions(listing, 1));
    }
}
