//! Files by address, into the store.
//!
//! Whoever writes a Dockerfile chooses the address and mostly also the server, so neither is
//! trusted. Names are resolved here, each answer is checked, and only what passed is connected
//! to; redirects are followed by hand and checked alike. What an address says of users and
//! passwords goes to its own server and into no message.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use oci::{Algorithm, Digest, Hasher};
use reqwest::header::{
    AUTHORIZATION, ETAG, HeaderMap, HeaderName, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED,
    LOCATION, RETRY_AFTER,
};
use reqwest::{RequestBuilder, Response, StatusCode};
use store::BlobStore;
use tokio_util::task::TaskTracker;
use url::{Host, Url};

use crate::Credentials;
use crate::auth;
use crate::client::{REDIRECTS_MAX, RETRY_DELAY, RETRY_DELAY_MAX, chain};
use crate::pull::Pace;
use crate::reach::{Reach, Refused, refused};

/// How to fetch files.
#[derive(Debug, Clone)]
pub struct DownloadSettings {
    /// A file is at most this large, in bytes.
    pub size_max: u64,
    /// Which servers may be asked.
    pub reach: Reach,
    /// The keys of hosts that are asked over SSH, in the form of `ssh_known_hosts`.
    pub known_hosts: PathBuf,
    pub connect_timeout: Duration,
    /// A server that sends nothing for this long is given up.
    pub idle_timeout: Duration,
    /// One slower than this many bytes a second, over [`Self::idle_timeout`], is given up.
    pub rate_min: u64,
    /// Bound on one file, whatever the pace.
    pub timeout: Duration,
    /// Attempts in all for one file.
    pub attempts: u32,
}

impl Default for DownloadSettings {
    fn default() -> Self {
        Self {
            size_max: 10 << 30,
            reach: Reach::default(),
            known_hosts: PathBuf::from("/etc/ssh/ssh_known_hosts"),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            rate_min: 1024,
            timeout: Duration::from_secs(60 * 60),
            attempts: 3,
        }
    }
}

/// What a server said of a file, to be asked whether it still is that file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Validators {
    pub etag: Option<String>,
    pub last_modified: Option<String>,
}

/// A file that was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Downloaded {
    /// By sha256, as the store has it.
    pub digest: Digest,
    pub size: u64,
    pub validators: Validators,
    /// Seconds since 1970, if the server said when it last changed.
    pub modified: Option<i64>,
}

/// What to fetch.
pub struct Download<'a> {
    /// With the user and password that may be in it.
    pub address: &'a str,
    /// Answer with nothing if it still is what these are of.
    pub known: Option<&'a Validators>,
    pub expected: Option<&'a Digest>,
}

/// Why a file was not fetched. `Display` is the user's sentence; it shows neither credentials
/// nor queries.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    #[error("the address is not valid: {reason}")]
    BadAddress { reason: String },
    /// Builds may not ask there.
    #[error("`{host}` is {what}, which builds may not reach")]
    Forbidden { host: String, what: &'static str },
    #[error("`{address}` could not be fetched: {reason}")]
    Unreachable { address: String, reason: String },
    #[error("`{address}` could not be fetched: its server answered with status {status}")]
    Status { address: String, status: u16 },
    #[error("`{address}` could not be fetched: {reason}")]
    BadAnswer { address: String, reason: &'static str },
    #[error("`{address}` is larger than {max} bytes")]
    TooLarge { address: String, max: u64 },
    #[error("`{address}` comes too slowly: less than {floor} bytes a second over {seconds} s")]
    TooSlow { address: String, floor: u64, seconds: u64 },
    #[error("`{address}` took longer than {} s", timeout.as_secs())]
    TimedOut { address: String, timeout: Duration },
    #[error("`{address}` is another file than expected: its digest is {actual}, not {expected}")]
    WrongDigest { address: String, expected: Digest, actual: Digest },
    #[error(transparent)]
    Store(#[from] store::StoreError),
}

impl DownloadError {
    /// What the user can do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Forbidden { .. } => {
                Some("the server's operator can allow it with `build.allow_addresses`".to_owned())
            }
            Self::TooLarge { .. } => Some("its bound is `limits.download_size_max`".to_owned()),
            Self::WrongDigest { actual, .. } => {
                Some(format!("if that is the file you want: `--checksum={actual}`"))
            }
            _ => None,
        }
    }

    /// Whether the cause is the user's input, or what it names, so that trying again would not
    /// help.
    pub fn is_users(&self) -> bool {
        let is_ours = matches!(self, Self::Store(_) | Self::TooSlow { .. } | Self::TimedOut { .. });
        !is_ours && !self.is_transient()
    }

    /// Whether trying again can help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..=599),
            _ => false,
        }
    }
}

/// Fetches files and git repositories. Connections are shared; cheap to clone.
#[derive(Clone)]
pub struct Downloads {
    pub(crate) http: reqwest::Client,
    pub(crate) settings: DownloadSettings,
    /// Blocking work, which notices only after a while that nobody waits for it.
    pub(crate) git_work: TaskTracker,
}

impl fmt::Debug for Downloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Downloads").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Downloads {
    pub fn new(settings: DownloadSettings) -> Result<Self, crate::RemoteError> {
        // The process-wide provider may be set already; either way it is `ring`.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .user_agent(concat!("refit/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(settings.connect_timeout)
            .read_timeout(settings.idle_timeout)
            .redirect(reqwest::redirect::Policy::none())
            .dns_resolver(settings.reach.clone())
            .build()
            .map_err(|error| crate::RemoteError::Settings {
                host: "TLS".to_owned(),
                reason: chain(&error),
            })?;
        Ok(Self { http, settings, git_work: TaskTracker::new() })
    }

    /// Fetches a file into the store; nothing if it is still the one that is known.
    /// `progress` is told of bytes as they come.
    pub async fn fetch(
        &self,
        download: &Download<'_>,
        blobs: &dyn BlobStore,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Option<Downloaded>, DownloadError> {
        let url = Target::parse(download.address)?;
        let timeout = self.settings.timeout;
        let fetching = self.fetch_with_retries(&url, download, blobs, progress);
        tokio::time::timeout(timeout, fetching)
            .await
            .unwrap_or_else(|_| Err(DownloadError::TimedOut { address: url.to_string(), timeout }))
    }

    async fn fetch_with_retries(
        &self,
        target: &Target,
        download: &Download<'_>,
        blobs: &dyn BlobStore,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Option<Downloaded>, DownloadError> {
        let mut delay = RETRY_DELAY;
        for attempt in 1.. {
            let mut wait = None;
            let error = match self.request(target, download.known, &mut wait).await {
                Ok(None) => return Ok(None),
                Ok(Some(response)) => {
                    match self.store(target, response, download, blobs, progress).await {
                        Ok(stored) => return Ok(Some(stored)),
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            if attempt >= self.settings.attempts || !error.is_transient() {
                return Err(error);
            }
            delay = wait.unwrap_or(delay).min(RETRY_DELAY_MAX);
            tracing::debug!(%error, attempt, "trying again");
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY_DELAY_MAX);
        }
        unreachable!("the loop ends by returning")
    }

    /// Asks for a file, wherever the answers lead; none if it has not changed.
    async fn request(
        &self,
        first: &Target,
        known: Option<&Validators>,
        wait: &mut Option<Duration>,
    ) -> Result<Option<Response>, DownloadError> {
        let following = self.follow(first, first.clone(), |target| {
            let mut request = self.http.get(target.url.clone());
            if let Some(credentials) = &target.credentials {
                request = request.header(AUTHORIZATION, auth::basic(credentials));
            }
            let conditions = known.into_iter().flat_map(|known| {
                [(IF_NONE_MATCH, &known.etag), (IF_MODIFIED_SINCE, &known.last_modified)]
            });
            for (name, value) in conditions {
                if let Some(value) = value {
                    request = request.header(name, value);
                }
            }
            request
        });
        let (response, _) = following.await?;
        let status = response.status();
        if status == StatusCode::NOT_MODIFIED && known.is_some() {
            return Ok(None);
        }
        if status.is_success() {
            return Ok(Some(response));
        }
        *wait = retry_after(&response);
        let (address, status) = (first.to_string(), status.as_u16());
        Err(DownloadError::Status { address, status })
    }

    /// Asks for something, wherever the answers lead, and says where that was. Errors show
    /// `shown`.
    pub(crate) async fn follow(
        &self,
        shown: &Target,
        mut target: Target,
        mut request: impl FnMut(&Target) -> RequestBuilder,
    ) -> Result<(Response, Target), DownloadError> {
        for _ in 0..=REDIRECTS_MAX {
            let request = request(&target);
            let response = self.ask_once(shown, &target, request).await?;
            match redirect_of(&response, &target) {
                Some(next) => target = target.redirected(next, shown)?,
                None => return Ok((response, target)),
            }
        }
        let reason = "its server redirects without end";
        Err(DownloadError::BadAnswer { address: shown.to_string(), reason })
    }

    /// Sends a request to a server that may be asked.
    pub(crate) async fn ask_once(
        &self,
        shown: &Target,
        target: &Target,
        request: RequestBuilder,
    ) -> Result<Response, DownloadError> {
        self.check(target)?;
        request.send().await.map_err(|error| failed(shown, &error.without_url()))
    }

    /// Whether a server may be asked, as far as its address tells. Names are checked when they
    /// are resolved.
    fn check(&self, target: &Target) -> Result<(), DownloadError> {
        let host = target.url.host().ok_or_else(|| bad_address("it has no host"))?;
        self.check_host(&host.to_owned())
    }

    fn check_host(&self, host: &Host) -> Result<(), DownloadError> {
        self.settings.reach.check(host).map_err(forbidden)
    }

    /// The addresses of a server that may be asked without HTTP, for a resource of that name.
    pub(crate) async fn addresses(
        &self,
        host: &Host,
        port: u16,
        shown: &str,
    ) -> Result<Vec<SocketAddr>, DownloadError> {
        self.check_host(host)?;
        let name = match host {
            Host::Ipv4(address) => return Ok(vec![(*address, port).into()]),
            Host::Ipv6(address) => return Ok(vec![(*address, port).into()]),
            Host::Domain(name) => name,
        };
        match self.settings.reach.resolve(name, port).await {
            Ok(found) => found.map_err(forbidden),
            Err(error) => {
                let (address, reason) = (shown.to_owned(), error.to_string());
                Err(DownloadError::Unreachable { address, reason })
            }
        }
    }

    /// Streams an answer into the store.
    async fn store(
        &self,
        target: &Target,
        mut response: Response,
        download: &Download<'_>,
        blobs: &dyn BlobStore,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Downloaded, DownloadError> {
        let max = self.settings.size_max;
        let too_large = || DownloadError::TooLarge { address: target.to_string(), max };
        if response.content_length().is_some_and(|size| size > max) {
            return Err(too_large());
        }
        let last_modified = text(response.headers(), LAST_MODIFIED);
        let modified = last_modified.as_deref().and_then(http_date);
        let validators = Validators { etag: text(response.headers(), ETAG), last_modified };
        // The store names files by sha256; another digest is reckoned beside.
        let other = download.expected.filter(|digest| digest.algorithm() != Algorithm::Sha256);
        let mut other_hasher = other.map(|digest| Hasher::new(digest.algorithm()));
        let mut upload = blobs.begin_upload(Algorithm::Sha256).await?;
        let mut size = 0;
        let mut pace = Pace::start(self.settings.idle_timeout, self.settings.rate_min);
        while let Some(chunk) = response.chunk().await.map_err(|error| failed(target, &error))? {
            size += chunk.len() as u64;
            if size > max {
                return Err(too_large());
            }
            if let Some(seconds) = pace.is_too_slow(chunk.len() as u64) {
                let (address, floor) = (target.to_string(), self.settings.rate_min);
                return Err(DownloadError::TooSlow { address, floor, seconds });
            }
            if let Some(hasher) = &mut other_hasher {
                hasher.update(&chunk);
            }
            progress(chunk.len() as u64);
            upload.write(chunk).await?;
        }
        let wrong = |expected: &Digest, actual| DownloadError::WrongDigest {
            address: target.to_string(),
            expected: expected.clone(),
            actual,
        };
        if let (Some(expected), Some(hasher)) = (other, other_hasher) {
            let actual = hasher.finish();
            if actual != *expected {
                return Err(wrong(expected, actual));
            }
        }
        let expected = download.expected.filter(|digest| digest.algorithm() == Algorithm::Sha256);
        match upload.commit(expected).await {
            Ok(stored) => Ok(Downloaded { digest: stored.digest, size, validators, modified }),
            Err(store::StoreError::DigestMismatch { expected, actual }) => {
                Err(wrong(&expected, actual))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Where a request goes. Shows no credentials and no query: the one of a redirect may be a
/// signature that nobody here has seen before.
#[derive(Clone)]
pub(crate) struct Target {
    /// Without credentials.
    url: Url,
    credentials: Option<Credentials>,
}

impl Target {
    pub(crate) fn parse(address: &str) -> Result<Self, DownloadError> {
        let mut url = Url::parse(address).map_err(|error| bad_address(&error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(bad_address("it is neither http nor https"));
        }
        let decoded = |text: &str| percent_decoded(text);
        let credentials = (!url.username().is_empty() || url.password().is_some()).then(|| {
            let password = url.password().map(decoded).unwrap_or_default();
            Credentials { username: decoded(url.username()), password }
        });
        // Neither can fail for these schemes.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        url.set_fragment(None);
        Ok(Self { url, credentials })
    }

    /// A git repository. A user without password is a token (contexts.md section 2.1).
    pub(crate) fn of_git(address: &str) -> Result<Self, DownloadError> {
        let mut target = Self::parse(address)?;
        if let Some(credentials) = &mut target.credentials
            && credentials.password.is_empty()
        {
            let token = std::mem::replace(&mut credentials.username, "dummy".to_owned());
            credentials.password = token;
        }
        Ok(target)
    }

    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    pub(crate) fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    /// A resource of a repository, such as `info/refs?service=...`.
    pub(crate) fn below(&self, suffix: &str) -> Result<Self, DownloadError> {
        let (path, query) = suffix.split_once('?').map_or((suffix, None), |(p, q)| (p, Some(q)));
        let mut below = self.clone();
        below.url.set_path(&format!("{}/{path}", self.url.path().trim_end_matches('/')));
        below.url.set_query(query);
        Ok(below)
    }

    /// A resource of the Git LFS server that a repository has.
    pub(crate) fn lfs(&self, suffix: &str) -> Result<Self, DownloadError> {
        let mut repository = self.clone();
        let path = self.url.path().trim_end_matches('/');
        if !path.ends_with(".git") {
            repository.url.set_path(&format!("{path}.git"));
        }
        repository.below(&format!("info/lfs/{suffix}"))
    }

    /// The repository of such a resource.
    pub(crate) fn above(&self, suffix: &str) -> Option<Self> {
        let path = suffix.split('?').next().unwrap_or_default();
        let mut above = self.clone();
        let repository = self.url.path().strip_suffix(path)?.trim_end_matches('/').to_owned();
        above.url.set_path(&repository);
        above.url.set_query(None);
        Some(above)
    }

    /// Another repository as `.gitmodules` of this one names it. Credentials stay with the
    /// server that they are for.
    pub(crate) fn submodule(&self, url: &str) -> Option<Self> {
        let is_relative = url.starts_with("./") || url.starts_with("../");
        let address = match is_relative {
            true => {
                let mut base = self.url.clone();
                base.set_path(&format!("{}/", self.url.path().trim_end_matches('/')));
                base.join(url).ok()?
            }
            false => Url::parse(url).ok()?,
        };
        let mut target = Self::of_git(address.as_str()).ok()?;
        let is_same = self.url.origin() == target.url.origin();
        if target.credentials.is_none() && is_same {
            target.credentials.clone_from(&self.credentials);
        }
        Some(target)
    }

    /// Where an answer leads. Credentials stay with the server that they are for.
    pub(crate) fn redirected(
        &self,
        next: Option<Url>,
        first: &Self,
    ) -> Result<Self, DownloadError> {
        let refuse = |reason| DownloadError::BadAnswer { address: first.to_string(), reason };
        let next = next.ok_or_else(|| refuse("its server redirects to what is no address"))?;
        match (self.url.scheme(), next.scheme()) {
            ("https", "http") => {
                return Err(refuse("its server redirects from HTTPS to plain HTTP"));
            }
            (_, "http" | "https") => (),
            _ => return Err(refuse("its server redirects to what is neither http nor https")),
        }
        let mut next = Self::parse(next.as_str())?;
        let is_same = self.url.origin() == next.url.origin();
        next.credentials = self.credentials.clone().filter(|_| is_same);
        Ok(next)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.url.clone();
        shown.set_query(None);
        f.write_str(shown.as_str())
    }
}

/// Where an answer leads, if it leads on; nothing inside if that is no address.
pub(crate) fn redirect_of(response: &Response, target: &Target) -> Option<Option<Url>> {
    let location = response.headers().get(LOCATION)?;
    let leads_on = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    leads_on.then(|| location.to_str().ok().and_then(|next| target.url.join(next).ok()))
}

pub(crate) fn percent_decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

pub(crate) fn bad_address(reason: &str) -> DownloadError {
    DownloadError::BadAddress { reason: reason.to_owned() }
}

/// For how long a server asks to be left alone.
pub(crate) fn retry_after(response: &Response) -> Option<Duration> {
    let text = text(response.headers(), RETRY_AFTER)?;
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(&text).ok()?;
    Some(until.duration_since(crate::tag::now()).unwrap_or_default())
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

/// What an HTTP client's error comes to: a name that was refused is no trouble of the network.
pub(crate) fn failed(target: &Target, error: &reqwest::Error) -> DownloadError {
    match refused(error) {
        Some(Refused { host, what }) => DownloadError::Forbidden { host: host.clone(), what },
        None => DownloadError::Unreachable { address: target.to_string(), reason: chain(error) },
    }
}

fn forbidden(Refused { host, what }: Refused) -> DownloadError {
    DownloadError::Forbidden { host, what }
}

/// Seconds since 1970 of a date in the form that servers must send (RFC 9110, *Date/Time
/// Formats*): `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, date) = text.trim().split_once(", ")?;
    let mut words = date.split(' ');
    let number = |text: &str, max: i64| {
        let is_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<i64>().ok().filter(|number| is_digits && *number <= max)
    };
    let day = number(words.next()?, 31)?;
    let month = words.next()?;
    let month = MONTHS.iter().position(|name| *name == month)? as i64 + 1;
    let year = number(words.next()?, 9999)?;
    let mut clock = words.next()?.split(':');
    let (hour, minute, second) = (clock.next()?, clock.next()?, clock.next()?);
    if words.next()? != "GMT" || words.next().is_some() || clock.next().is_some() || day == 0 {
        return None;
    }
    // Days from a civil date, after Howard Hinnant: eras of 400 years that begin in March.
    let shifted = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (shifted.div_euclid(400), shifted.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    Some(days * 86_400 + number(hour, 23)? * 3_600 + number(minute, 59)? * 60 + number(second, 60)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_servers_are_read() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date("Tue, 29 Feb 2000 12:34:56 GMT"), Some(951_827_696));
        for bad in [
            "",
            "yesterday",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Sun, 06 Nov 1994 24:49:37 GMT",
            "Sun, -6 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 19940 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 GMT GMT",
        ] {
            assert_eq!(http_date(bad), None, "{bad}");
        }
    }

    #[test]
    fn credentials_and_queries_are_not_shown() {
        let target = Target::parse("https://me:hunter%2B2%40@h/p?token=abc#x").unwrap();
        assert_eq!(target.to_string(), "https://h/p");
        let credentials = target.credentials.as_ref().unwrap();
        assert_eq!((&*credentials.username, &*credentials.password), ("me", "hunter+2@"));
        let same = target.redirected(target.url.join("/q?sign=1").ok(), &target).unwrap();
        assert!(same.credentials.is_some());
        for (next, is_fine) in [
            ("https://other/q", true),
            ("https://h:444/q", true),
            ("https://you:secret@other/q", true),
            ("http://h/q", false),
            ("file:///etc/passwd", false),
        ] {
            match target.redirected(Url::parse(next).ok(), &target) {
                Ok(next) => assert!(is_fine && next.credentials.is_none()),
                Err(_) => assert!(!is_fine, "{next}"),
            }
        }
        assert!(Target::parse("https://u:pa#ss@h/").is_err());
        assert!(Target::parse("ftp://h/").is_err());
    }

    #[test]
    fn credentials_go_to_submodules_of_their_own_server_only() {
        let base = Target::of_git("https://token@h/team/app.git").unwrap();
        let credentials = base.credentials().unwrap();
        assert_eq!((&*credentials.username, &*credentials.password), ("dummy", "token"), "i16");
        for (url, expected, has_credentials) in [
            ("../lib.git", Some("https://h/team/lib.git"), true),
            ("../../other/lib.git", Some("https://h/other/lib.git"), true),
            ("./lib.git", Some("https://h/team/app.git/lib.git"), true),
            ("https://h/x.git", Some("https://h/x.git"), true),
            ("https://other/x.git", Some("https://other/x.git"), false),
            ("http://h/x.git", Some("http://h/x.git"), false),
            ("git@h:x.git", None, false),
            ("file:///etc", None, false),
            ("/etc", None, false),
        ] {
            let target = base.submodule(url);
            assert_eq!(target.as_ref().map(Target::to_string).as_deref(), expected, "{url}");
            let found = target.is_some_and(|target| target.credentials().is_some());
            assert_eq!(found, has_credentials, "{url}");
        }
        let refs = base.below("info/refs?service=x").unwrap();
        assert_eq!(refs.url().as_str(), "https://h/team/app.git/info/refs?service=x");
        assert_eq!(refs.above("info/refs?service=x").unwrap().url(), base.url());
        assert!(refs.above("git-upload-pack").is_none());
        for (address, expected) in [
            ("https://h/r.git", "https://h/r.git/info/lfs/x"),
            ("https://h/r/", "https://h/r.git/info/lfs/x"),
        ] {
            let lfs = Target::of_git(address).unwrap().lfs("x").unwrap();
            assert_eq!(lfs.url().as_str(), expected);
        }
    }

    #[test]
    fn servers_that_builds_may_not_reach_are_refused_before_they_are_asked() {
        let downloads = Downloads::new(DownloadSettings {
            reach: Reach { proxies: ["proxy.example".to_owned()].into(), ..Reach::default() },
            ..DownloadSettings::default()
        });
        let downloads = downloads.unwrap();
        let check = |address: &str| downloads.check(&Target::parse(address).unwrap());
        for refused in [
            "http://127.0.0.1/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://127.1:80/",
            "http://[::1]/",
            "http://[::ffff:7f00:1]/",
            "http://LOCALHOST./",
            "http://x.localhost/",
            "http://169.254.169.254/latest/meta-data/",
            "http://Proxy.example:3128/",
        ] {
            assert!(check(refused).is_err(), "{refused}");
        }
        check("https://example.com/x").unwrap();
    }
}
