//! The firewall rules of a bridge, in chains of their own.
//!
//! They are inserted at the top of the built-in chains and decide everything about the bridge's
//! packets, so that they work where another firewall drops what it does not know. Every rule
//! in a built-in chain carries a comment by which it is found again.

use std::collections::HashSet;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use super::dns::PORT;
use super::{Subnet, cannot};
use crate::ContainerError;
use crate::egress::Rule;

/// Installs the rules of bridge `number`, whose name server listens on a port of its address.
pub(super) async fn install(
    number: u32,
    bridge: &str,
    subnet: Subnet,
    names_port: u16,
) -> Result<(), ContainerError> {
    let script = rules(number, bridge, subnet, names_port);
    blocking(move || restore(&script)).await.map_err(|reason| {
        let hint = "isolated networks need `iptables` and the right to change rules";
        cannot("install firewall rules for isolated networks", format!("{reason}; {hint}"))
    })
}

/// Removes the rules of bridge `number`, if there are any.
pub(super) async fn remove(number: u32, bridge: &str) -> Result<(), String> {
    let bridge = bridge.to_owned();
    blocking(move || remove_now(number, &bridge)).await
}

/// All rules, in the language of `iptables-restore`.
fn rules(number: u32, bridge: &str, subnet: Subnet, names_port: u16) -> String {
    let gateway = subnet.gateway();
    let tag = tag(number);
    let [forward, input, nat, names, egress] = chains(number);
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
:{egress} - [0:0]
-A {forward} -i {bridge} -d 169.254.0.0/16 -j DROP
-A {forward} -i {bridge} -d 168.63.129.16 -j DROP
-A {forward} -i {bridge} -d 100.100.100.200 -j DROP
-A {forward} -i {bridge} -o refit+ -j DROP
-A {forward} -i {bridge} -s {subnet} -j {egress}
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

fn chains(number: u32) -> [String; 5] {
    ["FORWARD", "INPUT", "NAT", "NAMES", "EGRESS"].map(|kind| format!("REFIT{number}-{kind}"))
}

/// What the names of chains begin with that bound one container each.
fn bounds(number: u32) -> String {
    format!("REFIT{number}-TO")
}

/// A container whose connections are bounded, as the rules know it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounded {
    /// Of the bridge.
    pub(super) number: u32,
    /// On the bridge.
    pub(super) host: u32,
    pub(super) address: Ipv4Addr,
}

impl Bounded {
    fn chain(self) -> String {
        format!("{}{}", bounds(self.number), self.host)
    }

    /// Lets nothing through but `rules`, from now on.
    pub(super) async fn begin(self, rules: Vec<Rule>) -> Result<(), String> {
        let (chain, [_, _, _, _, egress]) = (self.chain(), chains(self.number));
        let address = self.address;
        let begin = format!(
            "*filter
:{chain} - [0:0]
-A {chain} -p tcp -j REJECT --reject-with tcp-reset
-A {chain} -j REJECT --reject-with icmp-admin-prohibited
-A {egress} -s {address} -j {chain}
{}COMMIT
",
            self.admitting(&rules)
        );
        blocking(move || restore(&begin)).await
    }

    /// Lets more through. Blocking.
    pub(super) fn admit(self, rules: &[Rule]) -> Result<(), String> {
        restore(&format!("*filter\n{}COMMIT\n", self.admitting(rules)))
    }

    /// Forgets the container; `rules` are all that were admitted. Blocking.
    pub(super) fn end(self, rules: &HashSet<Rule>) -> Result<(), String> {
        let (chain, [_, _, _, _, egress]) = (self.chain(), chains(self.number));
        let own = rules.iter().flat_map(|rule| self.inputs(*rule));
        let own: String = own.map(|rule| format!("-D {rule}\n")).collect();
        let address = self.address;
        restore(&format!(
            "*filter\n-D {egress} -s {address} -j {chain}\n-F {chain}\n-X {chain}\n{own}COMMIT\n"
        ))
    }

    fn admitting(self, rules: &[Rule]) -> String {
        let chain = self.chain();
        let mut script = String::new();
        for rule in rules {
            for matched in matches(*rule) {
                script.push_str(&format!("-I {chain} 1{matched} -j ACCEPT\n"));
            }
            for input in self.inputs(*rule) {
                script.push_str(&format!("-I {}\n", input.replacen(' ', " 1 ", 1)));
            }
        }
        script
    }

    /// Rules by which the container reaches this machine, without what is to become of them.
    fn inputs(self, rule: Rule) -> Vec<String> {
        let [_, input, ..] = chains(self.number);
        // Never all of the machine.
        let is_own = rule.is_own && rule.range.is_some();
        let (address, matched) = (self.address, matches(rule));
        let matched = matched.iter().filter(|_| is_own);
        matched.map(|matched| format!("{input} -s {address}{matched} -j ACCEPT")).collect()
    }
}

/// What packets are like that a rule lets through.
fn matches(rule: Rule) -> Vec<String> {
    let range = rule.range.map(|range| format!(" -d {range}")).unwrap_or_default();
    match rule.port {
        Some(port) => ["tcp", "udp"].map(|kind| format!("{range} -p {kind} --dport {port}")).into(),
        None => vec![range],
    }
}

async fn blocking(
    work: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> Result<(), String> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| error.to_string()).flatten()
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
    let (chains, bounds) = (chains(number), bounds(number));
    let is_ours = |chain: &str| {
        let is_bound = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_digit());
        chains.iter().any(|own| own == chain) || chain.strip_prefix(&bounds).is_some_and(is_bound)
    };
    let mut rules = String::new();
    let mut own = Vec::new();
    for line in listing.lines() {
        let mut words = line.split(' ');
        match (words.next(), words.next()) {
            (Some("-N"), Some(chain)) if is_ours(chain) => own.push(chain),
            (Some("-A"), Some(chain)) => {
                let jumps = line.rsplit_once(" -j ").is_some_and(|(_, to)| is_ours(to));
                if jumps && !is_ours(chain) {
                    rules.push_str(&line.replacen("-A", "-D", 1));
                    rules.push('\n');
                }
            }
            _ => (),
        }
    }
    // Chains that others lead to cannot be removed before these are empty.
    rules.extend(own.iter().map(|chain| format!("-F {chain}\n")));
    rules.extend(own.iter().map(|chain| format!("-X {chain}\n")));
    rules
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
-N REFIT1-EGRESS
-N REFIT1-TO2
-N REFIT1-TOP
-A FORWARD -o refit1 -m comment --comment \"refit:1\" -j REFIT1-FORWARD
-A FORWARD -o refit11 -m comment --comment \"refit:11\" -j REFIT11-FORWARD
-A FORWARD -j DOCKER
-A REFIT1-FORWARD -i refit1 -j REFIT1-EGRESS
-A REFIT1-FORWARD -j DROP
-A REFIT1-EGRESS -s 10.89.1.2/32 -j REFIT1-TO2
";
        expect_test::expect![[r#"
            -D FORWARD -o refit1 -m comment --comment "refit:1" -j REFIT1-FORWARD
            -F REFIT1-FORWARD
            -F REFIT1-EGRESS
            -F REFIT1-TO2
            -X REFIT1-FORWARD
            -X REFIT1-EGRESS
            -X REFIT1-TO2
        "#]]
        .assert_eq(&deletions(listing, 1));
    }
}
