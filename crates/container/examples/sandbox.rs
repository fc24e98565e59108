//! A server in miniature: runs one process in a directory and passes its output on.
//!
//! `sandbox ROOT STATE_DIR NETWORK PROGRAM [ARGUMENT]...`, with `none`, `isolated` or `host`.
//! It is also its own helper, as the real binary is.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use async_trait::async_trait;
use bytes::Bytes;
use container::{
    Exit, HELPER_ARG, Limits, Network, OutputSink, ProcessSpec, Rootfs, Runtime, RuntimeSettings,
    Stream, User,
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
    run().expect("a runtime")
}

#[tokio::main]
async fn run() -> Result<ExitCode, container::ContainerError> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [root, state_dir, network, args @ ..] = args.as_slice() else {
        return Ok(ExitCode::from(2));
    };
    let runtime = Runtime::new(RuntimeSettings {
        external: None,
        helper: std::env::current_exe().expect("the program has a path"),
        state_dir: PathBuf::from(state_dir),
        subnet: "10.89.0.0/24".to_owned(),
    })
    .await?;
    let spec = ProcessSpec {
        name: format!("sandbox-{}", std::process::id()),
        rootfs: Rootfs::Directory(PathBuf::from(root)),
        args: args.to_vec(),
        env: vec!["PATH=/bin".to_owned()],
        cwd: "/".to_owned(),
        user: User::default(),
        hostname: "sandbox".to_owned(),
        mounts: Vec::new(),
        extra_hosts: Vec::new(),
        network: match network.as_str() {
            "none" => Network::None,
            "host" => Network::Host,
            _ => Network::Isolated,
        },
        limits: Limits::default(),
        privileged: false,
    };
    let (exit, _usage) = runtime.run(&spec, &Passing, &CancellationToken::new()).await?;
    Ok(match exit {
        Exit::Code(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        _ => ExitCode::from(125),
    })
}
