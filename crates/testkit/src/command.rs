//! The real binary, with nothing of the tester's own environment.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Server;
use crate::Terminal;
use crate::filters::Filters;
use crate::user::launcher;

/// A command that takes longer hangs, unless it was given more time.
const PATIENCE: Duration = Duration::from_secs(60);

/// A command that is about to be run.
pub struct Invocation {
    program: PathBuf,
    args: Vec<String>,
    folder: PathBuf,
    environment: BTreeMap<String, String>,
    stdin: Option<Vec<u8>>,
    terminal: Option<OwnedFd>,
    patience: Duration,
    filters: Filters,
}

impl Invocation {
    /// `root`: the sandbox's folder.
    pub(crate) fn new<'a>(folder: &Path, args: impl IntoIterator<Item = &'a str>) -> Self {
        let root = folder.display().to_string();
        let environment = [
            ("HOME", format!("{root}/home")),
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin".into()),
            ("XDG_CONFIG_HOME", format!("{root}/config")),
            ("XDG_DATA_HOME", format!("{root}/share")),
            ("XDG_RUNTIME_DIR", format!("{root}/runtime")),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value));
        let mut words = launcher(folder).into_iter();
        Self {
            program: words.next().map(PathBuf::from).expect("a program has a name"),
            args: words.chain(args.into_iter().map(str::to_owned)).collect(),
            folder: folder.to_owned(),
            environment: environment.into(),
            stdin: None,
            terminal: None,
            patience: PATIENCE,
            filters: Filters::new(&root),
        }
    }

    #[must_use]
    pub fn arg(mut self, arg: impl ToString) -> Self {
        self.args.push(arg.to_string());
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.insert(name.into(), value.to_string());
        self
    }

    /// Uses a server instead of the data folder.
    #[must_use]
    pub fn on(mut self, server: &Server) -> Self {
        self.environment.remove("REFIT_DATA");
        self.env("REFIT_SERVER", server.url())
    }

    /// The working directory, relative to the sandbox.
    #[must_use]
    pub fn in_folder(mut self, name: &str) -> Self {
        self.folder = self.folder.join(name);
        self
    }

    #[must_use]
    pub fn stdin(mut self, text: impl AsRef<[u8]>) -> Self {
        self.stdin = Some(text.as_ref().to_vec());
        self
    }

    /// Starts it as `nohup` would: with a signal, such as `HUP`, ignored.
    #[must_use]
    pub fn ignoring(self, signal: &str) -> Self {
        self.after(&format!("trap '' {signal}"))
    }

    /// Lets it use one processor only, however many there are.
    #[must_use]
    pub fn on_one_processor(self) -> Self {
        self.after("taskset -cp 0 $$ > /dev/null")
    }

    /// Starts it in a shell that has done something before.
    fn after(mut self, script: &str) -> Self {
        let script = format!("{script} && exec \"$0\" \"$@\"");
        let program = std::mem::replace(&mut self.program, PathBuf::from("/bin/sh"));
        let own = ["-c".to_owned(), script, program.display().to_string()];
        self.args.splice(0..0, own);
        self
    }

    /// Runs it as `"$@"` of a shell script, in network and mount namespaces of its own.
    #[must_use]
    pub fn in_namespaces(mut self, script: &str) -> Self {
        let program = std::mem::replace(&mut self.program, PathBuf::from("unshare"));
        let own = ["--mount", "--net", "sh", "-c", script, "sh"].map(str::to_owned);
        self.args.splice(0..0, own.into_iter().chain([program.display().to_string()]));
        self
    }

    /// Lets it read from a terminal.
    #[must_use]
    pub fn on_terminal(mut self, terminal: &Terminal) -> Self {
        self.terminal = Some(terminal.for_program());
        self
    }

    /// Gives it more time before it counts as hanging.
    #[must_use]
    pub fn within(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Starts it; the test goes on meanwhile.
    #[track_caller]
    #[expect(clippy::disallowed_methods, reason = "tests run the program itself")]
    pub fn start(self) -> Running {
        let mut command = Command::new(&self.program);
        let stdin = match self.terminal {
            Some(terminal) => terminal.into(),
            None if self.stdin.is_some() => Stdio::piped(),
            None => Stdio::null(),
        };
        command
            .args(&self.args)
            .current_dir(&self.folder)
            .env_clear()
            .envs(&self.environment)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program can be started");
        if let (Some(text), Some(mut stdin)) = (self.stdin, child.stdin.take()) {
            // A program that refuses early reads nothing.
            let _ = std::io::Write::write_all(&mut stdin, &text);
        }
        let stdout = collect(child.stdout.take().expect("stdout is a pipe"));
        let stderr = collect(child.stderr.take().expect("stderr is a pipe"));
        Running {
            so_far: Arc::clone(&stderr.so_far),
            child,
            stdout: Some(stdout),
            stderr: Some(stderr),
            patience: self.patience,
            filters: self.filters,
        }
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run(self) -> Outcome {
        self.start().wait()
    }

    /// Runs it to its end, which is a success.
    #[track_caller]
    pub fn succeeds(self) -> Outcome {
        self.run().success()
    }
}

/// What comes out of a pipe, read by a thread of its own.
struct Collected {
    so_far: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Collected {
    /// All of it, when the pipe is closed.
    fn text(self) -> String {
        let _ = self.reader.join();
        text_of(&self.so_far)
    }
}

fn text_of(bytes: &Mutex<Vec<u8>>) -> String {
    let bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn collect(mut pipe: impl Read + Send + 'static) -> Collected {
    let so_far = Arc::new(Mutex::new(Vec::new()));
    let bytes = Arc::clone(&so_far);
    let reader = std::thread::spawn(move || {
        let mut piece = [0; 8192];
        while let Ok(length @ 1..) = pipe.read(&mut piece) {
            let mut bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
            bytes.extend_from_slice(&piece[..length]);
        }
    });
    Collected { so_far, reader }
}

/// A command under way; killed when dropped.
pub struct Running {
    child: Child,
    stdout: Option<Collected>,
    stderr: Option<Collected>,
    /// Of stderr.
    so_far: Arc<Mutex<Vec<u8>>>,
    patience: Duration,
    filters: Filters,
}

impl Running {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, such as Ctrl-C's.
    #[track_caller]
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let pid = pid.expect("a process has an id");
        rustix::process::kill_process(pid, signal).expect("it is under way");
    }

    /// Waits until stderr has a text.
    #[track_caller]
    pub fn wait_for_stderr(&self, text: &str) {
        let has = || text_of(&self.so_far).contains(text).then_some(());
        until(&format!("`{text}` on stderr"), has);
    }

    /// A line of stderr that begins so, once it is there as a whole.
    #[track_caller]
    pub fn line_of_stderr(&self, begin: &str) -> String {
        until(begin, || {
            let shown = text_of(&self.so_far);
            let whole = shown.rsplit_once('\n').map_or("", |(whole, _)| whole);
            whole.lines().find(|line| line.starts_with(begin)).map(str::to_owned)
        })
    }

    #[track_caller]
    pub fn interrupt(&self) {
        self.signal(rustix::process::Signal::INT);
    }

    #[track_caller]
    pub fn wait(mut self) -> Outcome {
        let deadline = Instant::now() + self.patience;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                break status;
            }
            assert!(Instant::now() < deadline, "the command hangs");
            std::thread::sleep(Duration::from_millis(5));
        };
        let text = |pipe: Option<Collected>| pipe.map(Collected::text).unwrap_or_default();
        Outcome {
            code: status.code(),
            stdout: text(self.stdout.take()),
            stderr: text(self.stderr.take()),
            filters: std::mem::take(&mut self.filters),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    /// Absent if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    filters: Filters,
}

impl Outcome {
    #[track_caller]
    pub fn success(self) -> Self {
        self.code(0)
    }

    #[track_caller]
    pub fn code(self, expected: i32) -> Self {
        assert_eq!(self.code, Some(expected), "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// The whole outcome as text, without what differs from run to run.
    pub fn snapshot(&self) -> String {
        let code = self.code.map_or("a signal".into(), |code| code.to_string());
        let text =
            format!("exit: {code}\n-- stdout --\n{}-- stderr --\n{}", self.stdout, self.stderr);
        self.filters.apply(&text)
    }

    /// The same of stdout alone.
    pub fn filtered_stdout(&self) -> String {
        self.filters.apply(&self.stdout)
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}\n{}", self.stdout, self.stderr))
    }

    /// The digest of the image that `refit build` printed.
    #[track_caller]
    pub fn digest(&self) -> String {
        let at = self
            .stdout
            .find("sha256:")
            .unwrap_or_else(|| panic!("no digest:\n{}\n{}", self.stdout, self.stderr));
        self.stdout[at..].chars().take("sha256:".len() + 64).collect()
    }

    #[track_caller]
    pub fn stderr_has(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "`{text}` is not in:\n{}", self.stderr);
        self
    }

    #[track_caller]
    pub fn stderr_lacks(self, text: &str) -> Self {
        assert!(!self.stderr.contains(text), "`{text}` is in:\n{}", self.stderr);
        self
    }
}

/// Waits for a condition, and tells for what if it never comes.
#[track_caller]
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Running {
    /// Waits until a file appears.
    #[track_caller]
    pub fn until_exists(&self, file: &Path) {
        until(&file.display().to_string(), || file.exists().then_some(()));
    }
}
