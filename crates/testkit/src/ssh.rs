//! Keys, agents that have them, and an image with programs that use those.

use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
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
        Self::of_kind(sandbox, name, &["-t", "ed25519", "-N", passphrase])
    }

    /// A key of another kind, as the arguments of `ssh-keygen` say.
    #[track_caller]
    pub fn of_kind(sandbox: &Sandbox, name: &str, kind: &[&str]) -> Self {
        let file = sandbox.path(name);
        run(program("ssh-keygen").args(["-q", "-C", name]).args(kind).arg("-f").arg(&file));
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
        // The socket is there a moment before the agent listens.
        until("the agent", || UnixStream::connect(&agent.socket).ok());
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

/// `sshd` on a port of its own, for the user of the test; ended when dropped.
pub struct SshServer {
    child: Child,
    port: u16,
    user: String,
    host_key: SshKey,
}

/// Whatever a client wants to run, only repositories are given out.
const ONLY_GIT: &str = "\
#!/bin/sh
case \"$SSH_ORIGINAL_COMMAND\" in
  \"git-upload-pack '\"*) eval \"exec $SSH_ORIGINAL_COMMAND\" ;;
esac
exit 1
";

impl SshServer {
    /// A server whose files are in the sandbox, for whoever has one of these keys. An old one
    /// does not hear which version of git's protocol is wanted.
    #[track_caller]
    pub fn start(sandbox: &Sandbox, keys: &[&SshKey], is_old: bool) -> Self {
        let host_key = SshKey::new(sandbox, "host-key", "");
        let keys: String = keys.iter().map(|key| key.public.as_str()).collect();
        sandbox.write("authorized-keys", keys).write_executable("only-git", ONLY_GIT);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("a listener has an address").port();
        drop(listener);
        let folder = sandbox.path("").display().to_string();
        let folder = folder.trim_end_matches('/');
        let environment = if is_old { "" } else { "AcceptEnv GIT_PROTOCOL\n" };
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host-key\nPidFile none\n\
             AuthorizedKeysFile {folder}/authorized-keys\nStrictModes no\nUsePAM no\n\
             AuthenticationMethods publickey\nPermitRootLogin prohibit-password\n\
             ForceCommand {folder}/only-git\n{environment}"
        );
        sandbox.write("sshd-config", config);
        if rustix::process::geteuid().is_root() {
            // Where it shuts itself in; with systemd it is there.
            std::fs::create_dir_all("/run/sshd").expect("root can make it");
        }
        let mut command = program("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(sandbox.path("sshd-config"));
        let log = std::fs::File::create(sandbox.path("sshd-log")).expect("a file can be made");
        let child = command.stderr(log).spawn().expect("the package openssh-server is installed");
        let user = run(program("id").arg("-un")).trim().to_owned();
        let server = Self { child, port, user, host_key };
        until("the ssh server", || TcpStream::connect(("127.0.0.1", port)).ok());
        server
    }

    /// `ssh://USER@127.0.0.1:PORT`, for the path of a file of this machine.
    pub fn url(&self) -> String {
        format!("ssh://{}@127.0.0.1:{}", self.user, self.port)
    }

    /// The line of `ssh_known_hosts` that says that a key is this server's.
    pub fn known_by(&self, key: &SshKey) -> String {
        format!("[127.0.0.1]:{} {}", self.port, key.public)
    }

    /// The same with the key that it has.
    pub fn known(&self) -> String {
        self.known_by(&self.host_key)
    }
}

impl Drop for SshServer {
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
    image_with(&["/usr/bin/ssh-add", "/usr/bin/ssh-keygen"])
}

/// A base image with a shell, and programs of this machine by their paths.
#[track_caller]
pub fn image_with(programs: &[&str]) -> Image {
    let mut layer = Layer::new();
    let mut libraries = BTreeSet::new();
    for file in programs {
        let content = std::fs::read(file).expect("its package is installed");
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
