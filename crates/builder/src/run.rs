//! One `RUN`: a process over the layers so far, whose changes become a layer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use container::{Egress, Exit, Network, OutputSink, Peers, ProcessSpec, Rootfs, Stream, User};
use dockerfile::{Operation, RunNetwork, RunOperation, Span};

use crate::assemble::ImageLayer;
use crate::build::{Build, BuildRequest, RunPolicy};
use crate::error::{BuildError, RunLimits};
use crate::event::{BuildEvents, StepNumber};
use crate::layers::{EarlierBlocks, LayerPlace, NewLayer};
use crate::mounts::Mounts;
use crate::user::Identity;

/// What `RUN` sees as its host's name: always the same, since it may end up in a layer.
const HOSTNAME: &str = "refit";

/// For images that set none.
pub(crate) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs the process and writes its layer.
#[expect(clippy::too_many_arguments, reason = "all that a process is run with")]
pub(crate) async fn execute(
    build: &Build<'_>,
    below: &[ImageLayer],
    operation: &Operation,
    run: &RunOperation,
    identity: Identity,
    mounts: Mounts,
    step: StepNumber,
    earlier: Option<Arc<EarlierBlocks>>,
    place: LayerPlace,
) -> Result<NewLayer, BuildError> {
    let at = operation.at;
    let Some(runtime) = &build.builder.runtime else {
        return Err(BuildError::NoRuntime { at });
    };
    let _turn = build.builder.runs.acquire().await.expect("nobody closes the semaphore");
    let layers = &build.builder.layers;
    let lowers = layers.unpacked(below, &build.stop).await?;
    let change = layers.begin_change().await?;
    let request = build.request;
    let spec = ProcessSpec {
        name: unique_name(&request.name),
        rootfs: Rootfs::Overlay {
            lowers: lowers.paths(),
            upper: change.upper(),
            work: change.work(),
        },
        args: run.args.clone(),
        env: environment(run, &identity, mounts.ssh_auth_sock.as_deref()),
        cwd: run.cwd.clone(),
        user: User {
            uid: identity.uid,
            gid: identity.gid,
            additional_gids: identity.additional_gids,
        },
        hostname: HOSTNAME.to_owned(),
        private_env: mounts.env.clone(),
        mounts: mounts.mounts.clone(),
        extra_hosts: request.extra_hosts.clone(),
        network: network(run.network, request),
        peers: peers(run, request),
        service: None,
        limits: request.limits.clone(),
        privileged: run.insecure,
    };
    let output = Output { events: build.events, step };
    let result = runtime.run(&spec, &output, build.cancel).await;
    drop(mounts);
    let command = || command_line(run);
    let (exit, usage) =
        result.map_err(|error| BuildError::Start { command: command(), error, at })?;
    match exit {
        Exit::Code(0) => (),
        Exit::Canceled => return Err(BuildError::Canceled),
        exit => {
            let limits = RunLimits::of(&request.limits, usage);
            return Err(BuildError::Run { command: command(), exit, limits, at });
        }
    }
    let layer = layers.write_change(build, change, earlier, place).await?;
    Ok(NewLayer { usage, ..layer })
}

/// The network of a `RUN`: its own flag, else the build's.
pub(crate) fn network(wanted: RunNetwork, request: &BuildRequest) -> Network {
    match wanted {
        RunNetwork::Default => request.network,
        RunNetwork::None => Network::None,
        RunNetwork::Host => Network::Host,
    }
}

/// Refuses what the server does not let a `RUN` have.
pub(crate) fn check_policy(
    policy: RunPolicy,
    egress: &Egress,
    (network, insecure): (Network, bool),
    at: Span,
) -> Result<(), BuildError> {
    let (flag, setting) = match network {
        Network::Host if !policy.host_network => ("--network=host", "build.allow_host_network"),
        _ if insecure && !policy.insecure => ("--security=insecure", "build.allow_insecure"),
        Network::Host if !egress.is_open() => return Err(unbounded("--network=host", at)),
        _ if insecure && !egress.is_open() => return Err(unbounded("--security=insecure", at)),
        _ => return Ok(()),
    };
    Err(BuildError::NotAllowed { flag, setting, at })
}

fn unbounded(flag: &'static str, at: Span) -> BuildError {
    BuildError::Unbounded { flag, at }
}

/// The others that a `RUN` reaches: none if it is to have no network, or the host's.
fn peers(run: &RunOperation, request: &BuildRequest) -> Option<Peers> {
    request.peers.clone().filter(|_| network(run.network, request) == Network::Isolated)
}

/// Passes a process's output on as events of its step.
struct Output<'a> {
    events: &'a dyn BuildEvents,
    step: StepNumber,
}

#[async_trait]
impl OutputSink for Output<'_> {
    async fn write(&self, stream: Stream, bytes: Bytes) {
        self.events.output(self.step, stream, bytes).await;
    }
}

/// The operation's environment, with `PATH`, `HOME` and the socket of an ssh agent where the image
/// sets none.
fn environment(
    run: &RunOperation,
    identity: &Identity,
    ssh_auth_sock: Option<&str>,
) -> Vec<String> {
    let mut env = run.env.clone();
    let has = |env: &[String], name: &str| env.iter().any(|entry| entry.starts_with(name));
    if !has(&env, "PATH=") {
        env.push(PATH.to_owned());
    }
    if !has(&env, "HOME=") {
        let home = identity.home.as_deref().unwrap_or("/");
        env.push(format!("HOME={home}"));
    }
    if let Some(socket) = ssh_auth_sock
        && !has(&env, "SSH_AUTH_SOCK=")
    {
        env.push(format!("SSH_AUTH_SOCK={socket}"));
    }
    env
}

/// Names of containers must differ on the whole machine while they run.
pub(crate) fn unique_name(build: &str) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let build: String = build.chars().take(20).map(letter).collect();
    format!("run-{build}-{}-{count}", std::process::id())
}

/// The command as people would write it: a shell form without its shell.
fn command_line(run: &RunOperation) -> String {
    match run.args.as_slice() {
        [shell, option, script] if option == "-c" && shell.ends_with("sh") => script.clone(),
        args => args.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &[&str], env: &[&str]) -> RunOperation {
        let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        RunOperation {
            args: own(args),
            env: own(env),
            arg_values: Vec::new(),
            user: String::new(),
            cwd: "/".to_owned(),
            mounts: Vec::new(),
            network: RunNetwork::Default,
            insecure: false,
            script: None,
        }
    }

    fn identity(home: Option<&str>) -> Identity {
        let home = home.map(str::to_owned);
        Identity { uid: 0, gid: 0, additional_gids: Vec::new(), home }
    }

    #[test]
    fn path_and_home_are_set_where_the_image_sets_none() {
        let env = |env: &[&str], home| environment(&run(&[], env), &identity(home), None);
        assert_eq!(env(&["A=1"], Some("/root")), ["A=1", PATH, "HOME=/root"]);
        assert_eq!(env(&["HOME=/h", "PATH=/p"], Some("/root")), ["HOME=/h", "PATH=/p"]);
        assert_eq!(env(&["PATH=/p"], None), ["PATH=/p", "HOME=/"]);
    }

    #[test]
    fn the_socket_of_an_agent_is_named_unless_the_image_names_one() {
        let env = |env: &[&str]| environment(&run(&[], env), &identity(None), Some("/s")).join(" ");
        assert_eq!(env(&["PATH=/p"]), "PATH=/p HOME=/ SSH_AUTH_SOCK=/s");
        assert_eq!(env(&["PATH=/p", "SSH_AUTH_SOCK=/a"]), "PATH=/p SSH_AUTH_SOCK=/a HOME=/");
    }

    #[test]
    fn commands_are_shown_without_their_shell() {
        assert_eq!(command_line(&run(&["/bin/sh", "-c", "make all"], &[])), "make all");
        assert_eq!(command_line(&run(&["/bin/ls", "-l"], &[])), "/bin/ls -l");
    }

    #[test]
    fn container_names_are_unique_and_of_the_grammar() {
        let (one, two) = (unique_name("Ca_1/é"), unique_name("Ca_1/é"));
        assert_ne!(one, two);
        assert!(one.starts_with("run-ca-1---"), "{one}");
        assert!(one.len() <= 60 && one.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
    }
}
