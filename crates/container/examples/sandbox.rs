//! A server in miniature: runs one process in a directory and passes its output on.
//!
//! `sandbox ROOT STATE_DIR NETWORK PROGRAM [ARGUMENT]...`, with `none`, `isolated`, `host` or
//! `only=PLACE,...`;
//! `none:/usr/sbin/runc` hands it to another runtime. It is also its own helper, as the real
//! binary is. `sandbox peers ROOT STATE_DIR NETWORK` runs two containers, of which one asks the other by
//! name. `sandbox name-server ADDRESS ANSWER` answers every question for a name with one
//! address, for the test of isolated networks; `sandbox doctor STATE_DIR` says what is wrong.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use async_trait::async_trait;
use bytes::Bytes;
use container::{
    Destination, Egress, Exit, ExternalRuntime, HELPER_ARG, Limits, Network, OutputSink, Peers,
    ProcessSpec, Rootfs, Runtime, RuntimeSettings, Stream, User, Verdict,
};
use tokio_util::sync::CancellationToken;

struct Passing;

#[async_trait]
impl OutputSink for Passing {
    async fn write(&self, stream: Stream, bytes: Bytes) {
        let written = match stream {
            Stream::Stdout => std::io::stdout().write_all(&bytes),
            Stream::Stderr => std::io::stderr().write_all(&bytes),
        };
        written.expect("the output of an example is read");
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == HELPER_ARG) {
        container::helper_main(&args.collect::<Vec<_>>());
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [command, address, answer] = args.as_slice()
        && command == "name-server"
    {
        answer_names(address, answer.parse().expect("an IPv4 address"));
    }
    if let [command, state_dir] = args.as_slice()
        && command == "doctor"
    {
        doctor(PathBuf::from(state_dir));
        return ExitCode::SUCCESS;
    }
    if let [command, root, state_dir, network] = args.as_slice()
        && command == "peers"
    {
        let (root, state_dir) = (PathBuf::from(root), PathBuf::from(state_dir));
        peers(root, state_dir, network_named(network)).expect("two containers");
        return ExitCode::SUCCESS;
    }
    run(&args).expect("a runtime")
}

fn settings(state_dir: PathBuf, external: Option<&str>) -> RuntimeSettings {
    RuntimeSettings {
        external: external.map(|program| ExternalRuntime {
            program: PathBuf::from(program),
            arguments: Vec::new(),
        }),
        helper: std::env::current_exe().expect("the program has a path"),
        state_dir,
        subnet: "10.89.0.0/24".to_owned(),
        user_namespaces: true,
        disk_reserve: 0,
    }
}

#[tokio::main]
async fn doctor(state_dir: PathBuf) {
    let limits = Limits { pids: Some(4096), ..Limits::default() };
    for check in container::diagnose(&settings(state_dir, None), &limits).await {
        if check.verdict != Verdict::Ok {
            let told = format!("{}: {:?}: {}\n", check.name, check.verdict, check.meaning);
            std::io::stdout().write_all(told.as_bytes()).expect("somebody reads");
        }
    }
}

/// Answers with the question, and one record that points back at its name.
fn answer_names(address: &str, answer: std::net::Ipv4Addr) -> ! {
    const A_RECORD: [u8; 12] = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4];
    const TYPE_A: [u8; 2] = [0, 1];
    let socket = std::net::UdpSocket::bind(address).expect("a free port");
    let mut buffer = [0; 512];
    loop {
        let (size, client) = socket.recv_from(&mut buffer).expect("a question");
        let mut reply = buffer[..size].to_vec();
        reply[2..4].copy_from_slice(&[0x81, 0x80]);
        if reply[size - 4..size - 2] == TYPE_A {
            reply[6..8].copy_from_slice(&[0, 1]);
            reply.extend(A_RECORD);
            reply.extend(answer.octets());
        }
        socket.send_to(&reply, client).expect("a client that listens");
    }
}

#[tokio::main]
async fn run(args: &[String]) -> Result<ExitCode, container::ContainerError> {
    let [root, state_dir, network, args @ ..] = args else {
        return Ok(ExitCode::from(2));
    };
    let (network, external) = match network.split_once(':') {
        Some((network, external)) if !network.contains('=') => (network, Some(external)),
        _ => (network.as_str(), None),
    };
    let runtime = Runtime::new(settings(PathBuf::from(state_dir), external)).await?;
    let rootfs = Rootfs::Directory(PathBuf::from(root));
    let mut spec = spec(rootfs, args.to_vec(), network_named(network));
    if let Some(places) = network.strip_prefix("only=") {
        spec.limits.egress = egress(places);
    }
    let (exit, _usage) = runtime.run(&spec, &Passing, &CancellationToken::new()).await?;
    Ok(match exit {
        Exit::Code(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        _ => ExitCode::from(125),
    })
}

/// Places with commas between them, with `!` before one that may be this machine's own.
fn egress(places: &str) -> Egress {
    let place = |text: &str| {
        let place = text.trim_start_matches('!').parse::<Destination>().expect("a destination");
        if text.starts_with('!') { place.own() } else { place }
    };
    Egress::only(places.split(',').filter(|text| !text.is_empty()).map(place).collect())
}

fn network_named(name: &str) -> Network {
    match name {
        "none" => Network::None,
        "host" => Network::Host,
        _ => Network::Isolated,
    }
}

fn spec(rootfs: Rootfs, args: Vec<String>, network: Network) -> ProcessSpec {
    ProcessSpec {
        name: format!("sandbox-{}", std::process::id()),
        rootfs,
        args,
        env: vec!["PATH=/bin".to_owned()],
        cwd: "/".to_owned(),
        user: User::default(),
        hostname: "sandbox".to_owned(),
        mounts: Vec::new(),
        private_env: Vec::new(),
        extra_hosts: Vec::new(),
        network,
        peers: None,
        service: None,
        limits: Limits::default(),
        privileged: false,
    }
}

#[tokio::main]
async fn peers(
    root: PathBuf,
    state_dir: PathBuf,
    network: Network,
) -> Result<(), container::ContainerError> {
    let runtime = Runtime::new(settings(state_dir.clone(), None)).await?;
    let shared = runtime.peer_network().await?;
    let member = |name: &str, script: &str| {
        let [upper, work] = ["upper", "work"].map(|part| {
            let folder = state_dir.with_extension(name).join(part);
            std::fs::create_dir_all(&folder).expect("a folder can be made");
            folder
        });
        let rootfs = Rootfs::Overlay { lowers: vec![root.clone()], upper, work };
        let args = ["sh", "-c", script].map(str::to_owned).into();
        let mut spec = spec(rootfs, args, network);
        spec.name = format!("{}-{name}", spec.name);
        spec.peers = Some(Peers { network: shared.clone(), names: vec![name.to_owned()] });
        spec
    };
    let server = member("server", "exec nc -ll -p 80 -e echo 'the server answers'");
    let client = member("client", "until nc server 80 2>/dev/null; do sleep 0.01; done");
    let (never, answered) = (CancellationToken::new(), CancellationToken::new());
    let ask = async {
        let asked = runtime.run(&client, &Passing, &never).await;
        answered.cancel();
        asked
    };
    let (served, asked) = tokio::join!(runtime.run(&server, &Passing, &answered), ask);
    assert_eq!(asked?.0, Exit::Code(0));
    assert_eq!(served?.0, Exit::Canceled);
    Ok(())
}
