//! `refit serve` on a port of its own.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use crate::command::until;
use crate::user::launcher;
use crate::{Invocation, RegistryClient, Sandbox};

/// A server; killed when dropped.
pub struct Server {
    root: PathBuf,
    child: Child,
    url: String,
    log: Arc<Mutex<String>>,
    /// Present if nobody else keeps the folder.
    sandbox: Option<Sandbox>,
}

impl Server {
    /// A server in a sandbox of its own.
    #[track_caller]
    pub fn start() -> Self {
        let sandbox = Sandbox::new();
        let mut server = sandbox.server();
        server.sandbox = Some(sandbox);
        server
    }

    /// A command that uses this server.
    pub fn refit<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Invocation {
        Invocation::new(&self.root, args).on(self)
    }

    #[track_caller]
    #[expect(clippy::disallowed_methods, reason = "tests run the program itself")]
    pub(crate) fn start_in(root: &Path, args: &[&str]) -> Self {
        let launcher = launcher(root);
        // A server that comes back has to be where it was.
        let listen: &[&str] =
            if args.contains(&"--listen") { &[] } else { &["--listen", "127.0.0.1:0"] };
        let mut child = Command::new(&launcher[0])
            .args(&launcher[1..])
            .args(["serve", "--data"])
            .arg(root.join("data"))
            .args(listen)
            .args(args)
            .current_dir(root)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", root.join("home"))
            .env("XDG_RUNTIME_DIR", root.join("runtime"))
            .env("XDG_CONFIG_HOME", root.join("config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server can be started");
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = child.stderr.take().expect("stderr is a pipe");
        let written = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = written.lock().unwrap_or_else(PoisonError::into_inner);
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut server = Self { root: root.into(), child, url: String::new(), log, sandbox: None };
        server.url = until("the server's address", || server.look_for_address());
        let client = server.registry();
        until("the server", || client.is_ready().then_some(()));
        server
    }

    #[track_caller]
    fn look_for_address(&mut self) -> Option<String> {
        let log = self.log();
        if let Ok(Some(status)) = self.child.try_wait() {
            panic!("the server ended with {status}:\n{log}");
        }
        let at = log.find("http://127.0.0.1:")?;
        Some(log[at..].split_whitespace().next()?.to_owned())
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `127.0.0.1:PORT`, as references begin.
    pub fn host(&self) -> String {
        self.url.trim_start_matches("http://").to_owned()
    }

    /// A client of `/v2/` that is none of ours.
    pub fn registry(&self) -> RegistryClient {
        RegistryClient::new(&self.url)
    }

    /// What the server said so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to stop, and waits.
    #[track_caller]
    pub fn stop(mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let pid = pid.expect("a process has an id");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .expect("the server is under way");
        let status = until("the server's end", || self.child.try_wait().ok().flatten());
        assert!(status.success(), "the server ended with {status}:\n{}", self.log());
    }

    /// Kills it as a power cut would.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
