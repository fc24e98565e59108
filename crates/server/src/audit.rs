//! What goes to the audit log, and how much of what was refused.

use std::sync::{Arc, Mutex, PoisonError};

use control::{Audit, AuditEntry, Clock};
use http::{Method, StatusCode};
use oci::RegistryName;
use percent_encoding::percent_decode_str;
use registry::Peer;
use store::Millis;

/// Refusals that are written within a minute; of more than that only their number. Anybody can be
/// refused as often as they like.
const REFUSALS_MAX: u32 = 100;
const MINUTE: Millis = 60_000;

/// Routes, as templates, of which only refusals are listed: what is uploaded changes nothing by itself,
/// and a run that was queued is a record of its own.
const QUIET: [&str; 3] = [
    "/api/v1/registries/{registry}/sources",
    "/api/v1/registries/{registry}/listBuildSourceUploadUrl",
    "/api/v1/registries/{registry}/scheduleRun",
];

/// What kind of request it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// Of the API, as a template: names are whatever somebody has chosen.
    Api(String),
    /// A push, a deletion or another change, and of what.
    Registry(&'static str, String),
    Login,
    Other,
}

/// What a handler has to say of what it did, among the extensions of its response.
#[derive(Debug, Clone)]
pub(crate) struct Detail(pub(crate) String);

/// A request that was answered, or will be.
#[derive(Debug, Clone)]
pub(crate) struct Act {
    pub(crate) registry: Option<RegistryName>,
    /// Nothing, where nobody has proven who they are.
    pub(crate) principal: Option<String>,
    pub(crate) peer: Peer,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) route: Route,
    pub(crate) detail: Option<String>,
}

/// Writes the audit log of a server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Auditor {
    pub(crate) log: Audit,
    clock: Clock,
    /// Of those who have proven who they are, and of those who have not.
    refusals: Arc<[Mutex<Refusals>; 2]>,
}

/// How many there were in the minute that began then.
#[derive(Default)]
struct Refusals {
    since: Millis,
    count: u32,
}

impl Auditor {
    pub(crate) fn new(log: Audit, clock: Clock) -> Self {
        Self { log, clock, refusals: Arc::default() }
    }

    /// Notes what became of a request, if that is something to be remembered.
    pub(crate) async fn note(&self, act: Act, status: StatusCode) {
        let Some(action) = action(&act, status) else { return };
        let mut outcome = status.as_u16().to_string();
        if is_refusal(status) || act.principal.is_none() {
            match self.room(act.principal.is_some()) {
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
        // No name of anybody has a slash at this place.
        let principal = act.principal.unwrap_or_else(|| match act.peer {
            Peer::Tcp(address) => format!("address/{}", address.ip()),
            Peer::Unix | Peer::Unknown => "address/unknown".to_owned(),
        });
        let path = percent_decode_str(&act.path).decode_utf8_lossy();
        let mut target = match act.route {
            Route::Registry(_, image) => image,
            _ => format!("{} {path}", act.method),
        };
        if let Some(detail) = act.detail {
            target.push_str(&format!(" ({detail})"));
        }
        let entry = AuditEntry {
            registry: act.registry,
            principal,
            action: action.to_owned(),
            target,
            outcome,
        };
        let log = self.log.clone();
        // It comes to its end also if nobody waits for it any more.
        let appended = tokio::spawn(async move {
            if let Err(error) = log.append(entry.clone()).await {
                tracing::error!(%error, ?entry, "not written to the audit log");
            }
        });
        if let Err(error) = appended.await {
            tracing::error!(%error, "not written to the audit log");
        }
    }

    /// Whether one more refusal may be written; and how many were not, before it.
    fn room(&self, is_known: bool) -> Option<u32> {
        let now = self.clock.now();
        let refusals = &self.refusals[usize::from(is_known)];
        let mut refusals = refusals.lock().unwrap_or_else(PoisonError::into_inner);
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
    /// `detail` is what the handler has to say.
    pub(crate) async fn ended(mut self, status: StatusCode, detail: Option<Detail>) {
        if let Some(mut act) = self.act.take() {
            act.detail = detail.map(|Detail(text)| text);
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
    if act.route == Route::Login {
        return Some("login");
    }
    if is_refusal(status) || act.principal.is_none() && !status.is_success() {
        return Some("refused");
    }
    match &act.route {
        Route::Registry(deed, _) => status.is_success().then_some(*deed),
        Route::Api(template) => {
            let is_read = matches!(act.method, Method::GET | Method::HEAD);
            let is_quiet = QUIET.iter().any(|quiet| {
                let rest = template.strip_prefix(quiet);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            });
            (!is_read && !is_quiet).then_some("request")
        }
        Route::Login | Route::Other => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn act(method: Method, path: &str, route: Route) -> Act {
        let principal = Some("ann".to_owned());
        let path = path.to_owned();
        Act { registry: None, principal, peer: Peer::Unknown, method, path, route, detail: None }
    }

    #[test]
    fn what_changes_something_and_what_is_refused_is_remembered() {
        let api = |template: &str| Route::Api(format!("/api/v1/registries/{{registry}}{template}"));
        let pushed = Route::Registry("push", "app:1".into());
        for (method, route, status, expected) in [
            (Method::GET, Route::Other, 200, None),
            (Method::GET, Route::Other, 403, Some("refused")),
            (Method::PUT, pushed.clone(), 201, Some("push")),
            (Method::PUT, pushed.clone(), 400, None),
            (Method::PUT, pushed, 403, Some("refused")),
            (Method::GET, Route::Login, 200, Some("login")),
            (Method::POST, Route::Login, 401, Some("login")),
            (Method::GET, api("/runs"), 200, None),
            (Method::HEAD, api("/runs"), 200, None),
            (Method::PUT, api("/tasks/{name}"), 200, Some("request")),
            (Method::PUT, api("/tasks/{name}"), 400, Some("request")),
            (Method::POST, api("/scheduleRun"), 201, None),
            (Method::POST, api("/scheduleRun"), 403, Some("refused")),
            (Method::PUT, api("/sources/{id}/blobs/{digest}"), 201, None),
        ] {
            // What names somebody has chosen does not matter.
            for path in ["/tasks/scheduleRun", "/sources/agents/", "/v2/a/blobs/uploads/"] {
                let act = act(method.clone(), path, route.clone());
                let called = action(&act, StatusCode::from_u16(status).unwrap());
                assert_eq!(called, expected, "{method} {route:?} {status}");
            }
        }
        let busy = Act { principal: None, ..act(Method::POST, "/gc", api("/gc")) };
        assert_eq!(action(&busy, StatusCode::TOO_MANY_REQUESTS), Some("refused"));
    }

    #[tokio::test]
    async fn refusals_are_bounded_and_counted() {
        let now = std::sync::Arc::new(std::sync::atomic::AtomicI64::new(1_700_000_000_000));
        let time = std::sync::Arc::clone(&now);
        let clock = Clock::new(move || time.load(std::sync::atomic::Ordering::SeqCst));
        let db = db::Db::in_memory().await.unwrap();
        let log = Audit::open(db, clock.clone()).await.unwrap();
        let auditor = Auditor::new(log, clock);
        let peer = Peer::Tcp("192.0.2.1:1".parse().unwrap());
        let known = act(Method::GET, "/oauth2/%74oken", Route::Login);
        let act = Act { principal: None, peer, ..known.clone() };
        for _ in 0..REFUSALS_MAX + 7 {
            auditor.note(act.clone(), StatusCode::TOO_MANY_REQUESTS).await;
        }
        // Those whom everybody knows are not crowded out.
        auditor.note(Act { route: Route::Other, ..known }, StatusCode::FORBIDDEN).await;
        now.fetch_add(MINUTE, std::sync::atomic::Ordering::SeqCst);
        auditor.note(act, StatusCode::UNAUTHORIZED).await;
        let records = auditor.log.list(0, 1000).await.unwrap();
        assert_eq!(records.len() as u32, REFUSALS_MAX + 2);
        let first =
            r#""principal":"address/192.0.2.1","action":"login","target":"GET /oauth2/token""#;
        assert!(records[0].line.contains(first), "{}", records[0].line);
        let last = &records[records.len() - 1].line;
        assert!(last.contains(r#""outcome":"401, after 7 not listed""#), "{last}");
    }
}
