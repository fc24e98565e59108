//! Keys, agents that have them, and an image with programs that use those.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::command::until;
use crate::image::{PATH, busybox_layer};
use crate::{Image, Layer, Sandbox};

/// A new private key in a file of its own.
pub struct SshKey {
    pub file: PathBuf,
    /// As `ssh-add -L` shows it.
    pub public: String,
}

impl SshKey {
    #[track_caller]
    pub fn new(sandbox: &Sandbox, name: &str, passphrase: &str) -> Self {
        let file = sandbox.path(name);
        let make = ["-q", "-t", "ed25519", "-C", name, "-N", passphrase, "-f"];
        run(program("ssh-keygen").args(make).arg(&file));
        let public = std::fs::read_to_string(file.with_extension("pub"));
        Self { file, public: public.expect("the public key is beside it") }
    }
}

/// `ssh-agent`; ended when dropped.
pub struct SshAgent {
    child: Child,
    socket: PathBuf,
}

impl SshAgent {
    /// An agent whose socket is in the sandbox under this name.
    #[track_caller]
    pub fn start(sandbox: &Sandbox, name: &str, keys: &[&SshKey]) -> Self {
        let socket = sandbox.path(name);
        let mut command = program("ssh-agent");
        command.arg("-D").arg("-a").arg(&socket).stdout(Stdio::null());
        let child = command.spawn().expect("the package openssh-client is installed");
        let agent = Self { child, socket };
        until("the agent", || agent.socket.exists().then_some(()));
        for key in keys {
            run(program("ssh-add").arg("-q").arg(&key.file).env("SSH_AUTH_SOCK", &agent.socket));
        }
        agent
    }

    pub fn socket(&self) -> String {
        self.socket.display().to_string()
    }

    /// The public keys that it has.
    #[track_caller]
    pub fn keys(&self) -> String {
        run(program("ssh-add").arg("-L").env("SSH_AUTH_SOCK", &self.socket))
    }
}

impl Drop for SshAgent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Checks a signature, given in a file, of a message by a key.
#[track_caller]
pub fn verify_ssh_signature(sandbox: &Sandbox, key: &SshKey, signature: &Path, message: &str) {
    sandbox.write("signers", format!("signer {}", key.public)).write("message", message);
    let file = std::fs::File::open(sandbox.path("message")).expect("it was written just now");
    let mut command = program("ssh-keygen");
    command.args(["-Y", "verify", "-I", "signer", "-n", "test", "-f"]).arg(sandbox.path("signers"));
    run(command.arg("-s").arg(signature).stdin(file));
}

/// A base image with a shell, `ssh-add` and `ssh-keygen`: those of this machine.
#[track_caller]
pub fn ssh_image() -> Image {
    let mut layer = Layer::new();
    let mut libraries = BTreeSet::new();
    for file in ["/usr/bin/ssh-add", "/usr/bin/ssh-keygen"] {
        let content = std::fs::read(file).expect("the package openssh-client is installed");
        layer = layer.file(&file[1..], 0o755, &content);
        let listed = run(program("ldd").arg(file));
        let words = listed.split_whitespace().filter(|word| word.starts_with('/'));
        libraries.extend(words.map(str::to_owned));
    }
    for library in libraries {
        let content = std::fs::read(&library).expect("a program's library is there");
        layer = layer.file(&library[1..], 0o755, &content);
    }
    Image::new([busybox_layer(), layer]).env(PATH)
}

#[expect(clippy::disallowed_methods, reason = "programs that are not ours")]
fn program(name: &str) -> Command {
    Command::new(name)
}

#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().expect("the package openssh-client is installed");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {told}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
