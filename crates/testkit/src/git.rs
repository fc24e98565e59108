//! A git host: repositories behind `git http-backend`, and files, on a port of its own.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A git host. It serves as long as the test runs.
pub struct GitHost {
    folder: tempfile::TempDir,
    url: String,
    served: Arc<Served>,
}

/// What the host's threads share.
struct Served {
    root: PathBuf,
    password: Option<String>,
    requests: Mutex<Vec<Request>>,
    /// Answers with another status, by how what is asked for ends.
    statuses: Mutex<BTreeMap<String, String>>,
}

#[derive(Clone)]
struct Request {
    /// Method and target.
    line: String,
    /// Names are in lower case.
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl GitHost {
    /// A host that answers everybody.
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// A host that answers only those with this password.
    pub fn private(password: &str) -> Self {
        Self::start_with(Some(password.to_owned()))
    }

    fn start_with(password: Option<String>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let served = Arc::new(Served {
            root: folder.path().to_owned(),
            password,
            requests: Mutex::default(),
            statuses: Mutex::default(),
        });
        let shared = Arc::clone(&served);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let served = Arc::clone(&shared);
                std::thread::spawn(move || {
                    // A client may go when it likes.
                    let _ = serve(stream, &served);
                });
            }
        });
        Self { folder, url: format!("http://{address}"), served }
    }

    /// The folder of the repositories.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The same with a user and a password, or a token.
    pub fn url_with(&self, credentials: &str) -> String {
        self.url.replacen("://", &format!("://{credentials}@"), 1)
    }

    /// An empty repository, at `/NAME.git`.
    pub fn repository(&self, name: &str) -> GitRepository {
        let work = self.folder.path().join(format!("{name}.work"));
        std::fs::create_dir_all(&work).expect("a folder can be made");
        let repository =
            GitRepository { git: self.folder.path().join(format!("{name}.git")), work };
        repository.git(&["init", "--quiet", "--initial-branch=main"]);
        repository
    }

    /// The same repositories by git's own protocol: `git://127.0.0.1:PORT`.
    pub fn daemon(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let root = self.folder.path().to_owned();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut daemon = command("/usr/lib/git-core/git-daemon");
                daemon
                    .args(["--inetd", "--export-all"])
                    .arg(format!("--base-path={}", root.display()));
                let input = OwnedFd::from(stream.try_clone().expect("a socket can be copied"));
                daemon.stdin(input).stdout(OwnedFd::from(stream)).stderr(Stdio::null());
                let mut child = daemon.spawn().expect("git is installed");
                std::thread::spawn(move || child.wait());
            }
        });
        format!("git://{address}")
    }

    /// A file, at `/NAME`.
    pub fn file(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.folder.path().join(name), bytes).expect("a file can be written");
    }

    /// Answers what ends like this with a status such as `503 Service Unavailable`, from now on.
    pub fn fail(&self, end: &str, status: &str) {
        lock(&self.served.statuses).insert(end.to_owned(), status.to_owned());
    }

    /// Answers it as before.
    pub fn work_again(&self, end: &str) {
        lock(&self.served.statuses).remove(end);
    }

    /// What was asked for, such as `GET /app.git/info/refs?service=git-upload-pack`.
    pub fn requests(&self) -> Vec<String> {
        lock(&self.served.requests).iter().map(|request| request.line.clone()).collect()
    }

    /// The bodies of the requests that end like this, as text.
    pub fn bodies(&self, end: &str) -> Vec<String> {
        let requests = lock(&self.served.requests);
        let requests = requests.iter().filter(|request| request.line.ends_with(end));
        requests.map(|request| String::from_utf8_lossy(&request.body).into_owned()).collect()
    }

    /// The headers of the last request that ends like this; their names are in lower case.
    #[track_caller]
    pub fn headers(&self, end: &str) -> Vec<(String, String)> {
        let requests = lock(&self.served.requests);
        let request = requests.iter().rfind(|request| request.line.ends_with(end));
        request.unwrap_or_else(|| panic!("nobody asked for `{end}`")).headers.clone()
    }
}

/// A repository that a test fills.
pub struct GitRepository {
    git: PathBuf,
    work: PathBuf,
}

impl GitRepository {
    /// The folder of its files.
    pub fn work(&self) -> &Path {
        &self.work
    }

    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.work.join(path);
        std::fs::create_dir_all(path.parent().expect("it is in the folder"))
            .expect("a folder can be made");
        std::fs::write(path, content).expect("a file can be written");
    }

    /// Commits all files; the commit's id.
    #[track_caller]
    pub fn commit(&self, message: &str) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "--message", message]);
        self.git(&["rev-parse", "HEAD"])
    }

    /// Runs a git command; what it printed.
    #[track_caller]
    pub fn git(&self, args: &[&str]) -> String {
        self.git_with(args, b"")
    }

    /// The same, with an input.
    #[track_caller]
    pub fn git_with(&self, args: &[&str], input: &[u8]) -> String {
        let mut command = command("git");
        command
            .args(args)
            .current_dir(&self.work)
            .env("GIT_DIR", &self.git)
            .env("GIT_WORK_TREE", &self.work)
            .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_NAME"), "Test")))
            .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_EMAIL"), "test@h")))
            .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_DATE"), COMMIT_DATE)));
        let output = run(command, input);
        let (text, error) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "git {args:?} ended with {}: {error}", output.status);
        String::from_utf8_lossy(text).trim_end().to_owned()
    }
}

/// When everything is committed, in seconds since 1970 and as git has it.
pub const COMMIT_TIME: i64 = 1_600_000_000;
const COMMIT_DATE: &str = "1600000000 +0000";

#[expect(clippy::disallowed_methods, reason = "tests run git, which is not under test")]
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/nonexistent")
        .env("GIT_CONFIG_NOSYSTEM", "1");
    command
}

fn run(mut command: Command, input: &[u8]) -> std::process::Output {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("git is installed");
    let mut stdin = child.stdin.take().expect("it is a pipe");
    // A command that reads nothing may have ended.
    let _ = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().expect("it can be waited for")
}

/// Where objects of Git LFS are, if the host has some: as files `lfs-DIGEST`. What `lfs-headers`
/// has, as JSON, is asked of those who fetch them.
fn lfs_batch(root: &Path, host: &str, body: &[u8]) -> Option<String> {
    let mut files = std::fs::read_dir(root).ok()?.flatten();
    files.find(|file| file.file_name().to_string_lossy().starts_with("lfs-"))?;
    let header = std::fs::read(root.join("lfs-headers")).ok();
    let header: Option<serde_json::Value> =
        header.and_then(|header| serde_json::from_slice(&header).ok());
    let request: serde_json::Value = serde_json::from_slice(body).ok()?;
    let objects = request["objects"].as_array()?.iter().map(|object| {
        let oid = object["oid"].as_str().unwrap_or_default();
        let mut answer = object.clone();
        match root.join(format!("lfs-{oid}")).exists() {
            true => {
                let href = format!("http://{host}/lfs-{oid}?sign=signed2secret");
                let download = serde_json::json!({ "href": href, "header": header });
                answer["actions"] = serde_json::json!({ "download": download });
            }
            false => answer["error"] = serde_json::json!({ "code": 404, "message": "none" }),
        }
        answer
    });
    Some(serde_json::json!({ "objects": objects.collect::<Vec<_>>() }).to_string())
}

/// Answers one request.
fn serve(mut stream: TcpStream, served: &Served) -> std::io::Result<()> {
    let root = served.root.as_path();
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut words = request.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let header = |name: &str| {
        headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    };
    let size = header("content-length").and_then(|size| size.parse().ok()).unwrap_or(0);
    let mut body = vec![0; size];
    reader.read_exact(&mut body)?;
    let line = format!("{method} {target}");
    lock(&served.requests).push(Request { line, headers: headers.clone(), body: body.clone() });
    let answer = |mut stream: TcpStream, status: &str, headers: &str, body: &[u8]| {
        let size = body.len();
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {size}\r\nConnection: close\r\n")?;
        write!(stream, "{headers}\r\n")?;
        stream.write_all(body)
    };
    let is_allowed = served.password.as_ref().is_none_or(|password| {
        let given = header("authorization").and_then(|given| given.strip_prefix("Basic "));
        let given = given.and_then(|given| STANDARD.decode(given).ok());
        given.is_some_and(|given| given.ends_with(format!(":{password}").as_bytes()))
    });
    if !is_allowed {
        let challenge = "WWW-Authenticate: Basic realm=\"git\"\r\n";
        return answer(stream, "401 Unauthorized", challenge, b"");
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let status = lock(&served.statuses)
        .iter()
        .find(|(end, _)| path.ends_with(*end))
        .map(|(_, status)| status.clone());
    if let Some(status) = status {
        return answer(stream, &status, "", b"");
    }
    if target.ends_with("/info/lfs/objects/batch")
        && let Some(found) = lfs_batch(root, header("host").unwrap_or_default(), &body)
    {
        let kind = "Content-Type: application/vnd.git-lfs+json\r\n";
        return answer(stream, "200 OK", kind, found.as_bytes());
    }
    if let Some(moved) = path.strip_prefix("/moved") {
        let location = format!("Location: {moved}?{query}\r\n");
        return answer(stream, "301 Moved Permanently", &location, b"");
    }
    if !path.contains(".git/") {
        return match std::fs::read(root.join(path.trim_start_matches('/'))) {
            Ok(bytes) => answer(stream, "200 OK", "", &bytes),
            Err(_) => answer(stream, "404 Not Found", "", b""),
        };
    }
    let mut backend = command("/usr/lib/git-core/git-http-backend");
    backend
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_LENGTH", size.to_string())
        .env("CONTENT_TYPE", header("content-type").unwrap_or_default())
        .env("GIT_PROTOCOL", header("git-protocol").unwrap_or_default());
    let output = run(backend, &body).stdout;
    let end = output.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(0);
    let text = String::from_utf8_lossy(&output[..end]).into_owned();
    let status = text.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK");
    let rest = output.get(end + 4..).unwrap_or_default();
    let size = rest.len();
    write!(stream, "HTTP/1.1 {status}\r\n{text}\r\nContent-Length: {size}\r\n")?;
    write!(stream, "Connection: close\r\n\r\n")?;
    stream.write_all(rest)
}
