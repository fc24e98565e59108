//! What goes to the audit log, and how much of what was refused.

use std::sync::Mutex;

use control::{Audit, AuditEntry, Clock};
use http::{Method, StatusCode};
use oci::RegistryName;
use registry::Peer;
use store::Millis;

/// Refusals that are written within a minute; of more than that only their number. Anybody can be
/// refused as often as they like.
const REFUSALS_MAX: u32 = 100;
const MINUTE: Millis = 60_000;

/// Routes that bring what a run will read, which changes nothing by itself.
const UPLOADS: [&str; 3] = ["/sources", "/listBuildSourceUploadUrl", "/agents/"];

/// A request that was answered, or will be.
#[derive(Debug, Clone)]
pub(crate) struct Act {
    pub(crate) registry: Option<RegistryName>,
    /// Nothing, where nobody has proven who they are.
    pub(crate) principal: Option<String>,
    pub(crate) peer: Peer,
    pub(crate) method: Method,
    pub(crate) path: String,
}

/// Writes the audit log of a server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Auditor {
    pub(crate) log: Audit,
    clock: Clock,
    refusals: std::sync::Arc<Mutex<Refusals>>,
}

/// How many there were in the minute that began then.
#[derive(Default)]
struct Refusals {
    since: Millis,
    count: u32,
}

impl Auditor {
    pub(crate) fn new(log: Audit, clock: Clock) -> Self {
        Self { log, clock, refusals: std::sync::Arc::default() }
    }

    /// Notes what became of a request, if that is something to be remembered.
    pub(crate) async fn note(&self, act: Act, status: StatusCode) {
        let Some(action) = action(&act, status) else { return };
        let mut outcome = status.as_u16().to_string();
        if is_refusal(status) {
            match self.room() {
                None => return,
                Some(0) => (),
                Some(passed_over) => outcome.push_str(&format!(", after {passed_over} not listed")),
            }
        }
        self.append(act, action, outcome).await;
    }

    /// Notes that nobody waited for the end of a request.
    fn note_broken_off(&self, act: Act) {
        let auditor = self.clone();
        if let Some(action) = action(&act, StatusCode::OK) {
            tokio::spawn(async move { auditor.append(act, action, "broken off".into()).await });
        }
    }

    /// As long as this is there, the end of the request will be noted.
    pub(crate) fn begin(&self, act: Act) -> Noting<'_> {
        Noting { auditor: self, act: Some(act) }
    }

    async fn append(&self, act: Act, action: &'static str, outcome: String) {
        let principal = act.principal.unwrap_or_else(|| match act.peer {
            Peer::Tcp(address) => address.ip().to_string(),
            Peer::Unix | Peer::Unknown => "somebody".to_owned(),
        });
        let entry = AuditEntry {
            registry: act.registry,
            principal,
            action: action.to_owned(),
            target: format!("{} {}", act.method, act.path),
            outcome,
        };
        if let Err(error) = self.log.append(entry.clone()).await {
            tracing::error!(%error, ?entry, "not written to the audit log");
        }
    }

    /// Whether one more refusal may be written; and how many were not, before it.
    fn room(&self) -> Option<u32> {
        let now = self.clock.now();
        let mut refusals = self.refusals.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let passed_over = match (0..MINUTE).contains(&(now - refusals.since)) {
            true => 0,
            false => {
                let passed_over = refusals.count.saturating_sub(REFUSALS_MAX);
                *refusals = Refusals { since: now, count: 0 };
                passed_over
            }
        };
        refusals.count = refusals.count.saturating_add(1);
        (refusals.count <= REFUSALS_MAX).then_some(passed_over)
    }
}

/// A request whose end is not known yet.
pub(crate) struct Noting<'a> {
    auditor: &'a Auditor,
    act: Option<Act>,
}

impl Noting<'_> {
    pub(crate) async fn ended(mut self, status: StatusCode) {
        if let Some(act) = self.act.take() {
            self.auditor.note(act, status).await;
        }
    }
}

impl Drop for Noting<'_> {
    fn drop(&mut self) {
        if let Some(act) = self.act.take() {
            self.auditor.note_broken_off(act);
        }
    }
}

fn is_refusal(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// What a request is called in the log, if it is to be there.
fn action(act: &Act, status: StatusCode) -> Option<&'static str> {
    let is_read = matches!(act.method, Method::GET | Method::HEAD);
    if act.path == "/oauth2/token" {
        return Some("login");
    }
    if is_refusal(status) {
        return Some("refused");
    }
    match act.path.strip_prefix("/v2/") {
        _ if is_read => None,
        Some(path) if !path.contains("/manifests/") && act.method != Method::DELETE => None,
        Some(path) if path.contains("/blobs/uploads/") => None,
        Some(_) if status.is_success() && act.method == Method::DELETE => Some("delete"),
        Some(_) if status.is_success() => Some("push"),
        Some(_) => None,
        // The run that it made is there with all that is known of it.
        None if act.path.ends_with("/scheduleRun") => None,
        None if UPLOADS.iter().any(|part| act.path.contains(part)) => None,
        None => Some("request"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(method: Method, path: &str, status: u16) -> Option<&'static str> {
        let act = Act {
            registry: None,
            principal: None,
            peer: Peer::Unknown,
            method,
            path: path.to_owned(),
        };
        action(&act, StatusCode::from_u16(status).unwrap())
    }

    #[test]
    fn what_changes_something_and_what_is_refused_is_remembered() {
        let api = "/api/v1/registries/local";
        for (method, path, status, expected) in [
            (Method::GET, "/v2/app/manifests/1", 200, None),
            (Method::GET, "/v2/app/manifests/1", 403, Some("refused")),
            (Method::PUT, "/v2/app/manifests/1", 201, Some("push")),
            (Method::PUT, "/v2/app/manifests/1", 400, None),
            (Method::DELETE, "/v2/app/manifests/1", 202, Some("delete")),
            (Method::DELETE, "/v2/app/blobs/sha256:0", 202, Some("delete")),
            (Method::POST, "/v2/app/blobs/uploads/", 202, None),
            (Method::DELETE, "/v2/app/blobs/uploads/x", 204, None),
            (Method::GET, "/oauth2/token", 200, Some("login")),
            (Method::POST, "/oauth2/token", 401, Some("login")),
            (Method::GET, &format!("{api}/runs"), 200, None),
            (Method::PUT, &format!("{api}/tasks/a"), 200, Some("request")),
            (Method::PUT, &format!("{api}/tasks/a"), 400, Some("request")),
            (Method::POST, &format!("{api}/scheduleRun"), 201, None),
            (Method::POST, &format!("{api}/scheduleRun"), 403, Some("refused")),
            (Method::POST, &format!("{api}/sources"), 201, None),
        ] {
            assert_eq!(called(method.clone(), path, status), expected, "{method} {path} {status}");
        }
    }

    #[tokio::test]
    async fn refusals_are_bounded_and_counted() {
        let now = std::sync::Arc::new(std::sync::atomic::AtomicI64::new(1_700_000_000_000));
        let time = std::sync::Arc::clone(&now);
        let clock = Clock::new(move || time.load(std::sync::atomic::Ordering::SeqCst));
        let db = db::Db::in_memory().await.unwrap();
        let log = Audit::open(db, clock.clone()).await.unwrap();
        let auditor = Auditor::new(log, clock);
        let act = Act {
            registry: None,
            principal: None,
            peer: Peer::Tcp("192.0.2.1:1".parse().unwrap()),
            method: Method::GET,
            path: "/oauth2/token".into(),
        };
        for _ in 0..REFUSALS_MAX + 7 {
            auditor.note(act.clone(), StatusCode::UNAUTHORIZED).await;
        }
        now.fetch_add(MINUTE, std::sync::atomic::Ordering::SeqCst);
        auditor.note(act.clone(), StatusCode::OK).await;
        auditor.note(act, StatusCode::UNAUTHORIZED).await;
        let records = auditor.log.list(0, 1000).await.unwrap();
        assert_eq!(records.len() as u32, REFUSALS_MAX + 2);
        assert!(records[0].line.contains(r#""principal":"192.0.2.1","action":"login""#));
        let last = &records[records.len() - 1].line;
        assert!(last.contains(r#""outcome":"401, after 7 not listed""#), "{last}");
    }
}
