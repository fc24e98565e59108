//! Tells git hosts how the runs of their commits stand.

use std::time::Duration;

use control::{CommitReport, CommitState, NotReported, SourceHost};
use futures_util::StreamExt as _;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use remote::Post;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::state::Shared;

/// How often it is looked for what is to be told, though no run has changed.
const PERIOD: Duration = Duration::from_secs(5);
/// How long a host is left alone that was asked too often and does not say how long.
const RATE_PAUSE: Duration = Duration::from_secs(15 * 60);
/// Hosts that are told at once.
const AT_ONCE: usize = 4;

/// Tells hosts until `shutdown`.
pub(crate) async fn tell(state: Shared, shutdown: CancellationToken) {
    let (mut ended, mut queued) = (state.runs.ends(), state.runs.queue_changes());
    while !shutdown.is_cancelled() {
        ended.mark_unchanged();
        queued.mark_unchanged();
        tokio::select! {
            told = tell_all(&state) => {
                if let Err(error) = told {
                    tracing::error!(%error, "hosts could not be told of runs");
                }
            }
            () = shutdown.cancelled() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => (),
            _ = ended.changed() => (),
            _ = queued.changed() => (),
            () = shutdown.cancelled() => return,
        }
    }
}

async fn tell_all(state: &Shared) -> control::Result<()> {
    let reports = state.triggers.due_reports().await?;
    let telling = reports.into_iter().map(|report| async move {
        let answer = send(state, &report).await;
        state.triggers.reported(&report, answer).await
    });
    let told: Vec<_> =
        futures_util::stream::iter(telling).buffer_unordered(AT_ONCE).collect().await;
    told.into_iter().collect()
}

async fn send(state: &Shared, report: &CommitReport) -> Result<(), NotReported> {
    let final_error = |reason: String| NotReported { reason, is_final: true, pause: None };
    let post = post(report).ok_or_else(|| {
        final_error(format!("`{}` is no address of a repository there", report.repository))
    })?;
    let answer = state.poster.post(&post).await.map_err(|error| NotReported {
        is_final: !error.is_transient(),
        reason: error.to_string(),
        pause: None,
    })?;
    let said = String::from_utf8_lossy(&answer.body);
    // It was told before, and the answer was lost.
    if answer.is_success() || (answer.status == 400 && said.contains("Cannot transition")) {
        return Ok(());
    }
    let why = match answer.status {
        401 | 403 | 404 => ": the token may lack the right to set the status of commits",
        _ => "",
    };
    // GitHub says so too when it was asked too often.
    let is_left = |(name, value): &(String, String)| {
        name.eq_ignore_ascii_case("x-ratelimit-remaining") && value.trim() == "0"
    };
    let is_too_often = answer.retry_after.is_some() || answer.headers.iter().any(is_left);
    let is_refusal = (400..500).contains(&answer.status) && !is_too_often;
    Err(NotReported {
        reason: format!("it answers with status {}{why}", answer.status),
        is_final: is_refusal && !matches!(answer.status, 408 | 425 | 429),
        pause: answer.retry_after.or(is_too_often.then_some(RATE_PAUSE)),
    })
}

/// What the state is of: the same commit can be built for its branch and for a pull request.
fn name_of(report: &CommitReport) -> String {
    let of = if report.is_pull_request { "/pull-request" } else { "" };
    format!("refit/{}{of}", report.task)
}

/// What a host is told, and where.
fn post(report: &CommitReport) -> Option<Post> {
    let (scheme, rest) = match report.repository.split_once("://") {
        Some((scheme, rest)) => (scheme, rest),
        // `github.com/OWNER/NAME`
        None => ("https", &*report.repository),
    };
    let (authority, path) = rest.split_once('/')?;
    let authority = authority.rsplit('@').next().unwrap_or_default();
    let path = path.trim_end_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path);
    let base = format!("{scheme}://{authority}");
    let (name, commit, token) = (name_of(report), &report.commit, &report.token.0);
    let run = &report.run;
    let (state, description) = match report.state {
        CommitState::Pending => ("pending", format!("run {run} waits, or goes on")),
        CommitState::Success => ("success", format!("run {run} has succeeded")),
        CommitState::Failure => ("failure", format!("run {run} has failed")),
        CommitState::Canceled => ("error", format!("run {run} was canceled")),
    };
    let of_commit = json!({ "state": state, "context": name, "description": description });
    // The host may be below a path of its own.
    let below = |api: &str| {
        let (before, repository) = path.rsplit_once('/')?;
        let (prefix, owner) =
            before.rsplit_once('/').map_or(("", before), |(prefix, owner)| (prefix, owner));
        let prefix = if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
        Some(format!("{base}{prefix}{api}/repos/{owner}/{repository}/statuses/{commit}"))
    };
    let (address, authorization, body) = match report.host {
        SourceHost::GitHub if authority.eq_ignore_ascii_case("github.com") => {
            let address = format!("https://api.github.com/repos/{path}/statuses/{commit}");
            (address, format!("Bearer {token}"), of_commit)
        }
        SourceHost::GitHub => (below("/api/v3")?, format!("Bearer {token}"), of_commit),
        SourceHost::Gitea => (below("/api/v1")?, format!("token {token}"), of_commit),
        SourceHost::GitLab => {
            let project = utf8_percent_encode(path, NON_ALPHANUMERIC);
            let address = format!("{base}/api/v4/projects/{project}/statuses/{commit}");
            let state = match report.state {
                CommitState::Pending => "pending",
                CommitState::Success => "success",
                CommitState::Failure => "failed",
                CommitState::Canceled => "canceled",
            };
            let body = json!({ "state": state, "name": name, "description": description });
            (address, format!("Bearer {token}"), body)
        }
        _ => return None,
    };
    let headers = [
        ("authorization", authorization),
        ("accept", "application/json".to_owned()),
        ("user-agent", format!("refit/{}", env!("CARGO_PKG_VERSION"))),
    ];
    let headers = headers.map(|(name, value)| (name.to_owned(), value)).to_vec();
    Some(Post { address, headers, body: body.to_string().into() })
}

#[cfg(test)]
mod tests {
    use control::ReportToken;

    use super::*;

    fn told(host: SourceHost, repository: &str, state: CommitState) -> String {
        let report = CommitReport {
            registry: "local".parse().unwrap(),
            run: "cf1".parse().unwrap(),
            task: "build-app".parse().unwrap(),
            host,
            repository: repository.into(),
            commit: "c0ffee".into(),
            is_pull_request: false,
            state,
            token: ReportToken("hunter2".into()),
            trigger: "source".into(),
        };
        let Some(post) = post(&report) else { return "nobody".into() };
        let body: serde_json::Value = serde_json::from_slice(&post.body).unwrap();
        format!("{} {} {}", post.address, post.headers[0].1, body["state"])
    }

    #[test]
    fn each_host_is_told_where_and_as_it_wants() {
        let pending = |host, repository| told(host, repository, CommitState::Pending);
        for (expected, found) in [
            (
                "https://api.github.com/repos/o/r/statuses/c0ffee Bearer hunter2 \"pending\"",
                pending(SourceHost::GitHub, "https://github.com/o/r.git"),
            ),
            (
                "https://api.github.com/repos/o/r/statuses/c0ffee Bearer hunter2 \"pending\"",
                pending(SourceHost::GitHub, "github.com/o/r"),
            ),
            (
                "https://g.example.com/api/v3/repos/o/r/statuses/c0ffee Bearer hunter2 \"pending\"",
                pending(SourceHost::GitHub, "https://g.example.com/o/r.git"),
            ),
            (
                "http://h:3000/git/api/v1/repos/o/r/statuses/c0ffee token hunter2 \"pending\"",
                pending(SourceHost::Gitea, "http://h:3000/git/o/r.git"),
            ),
            (
                "https://gitlab.com/api/v4/projects/a%2Fb%2Fc/statuses/c0ffee Bearer hunter2 \"failed\"",
                told(SourceHost::GitLab, "https://gitlab.com/a/b/c.git", CommitState::Failure),
            ),
            (
                "https://github.com/api/v1/repos/o/r/statuses/c0ffee token hunter2 \"error\"",
                told(SourceHost::Gitea, "https://github.com/o/r", CommitState::Canceled),
            ),
            ("nobody", pending(SourceHost::Bitbucket, "https://bitbucket.org/o/r.git")),
            ("nobody", pending(SourceHost::Gitea, "https://h/r.git")),
        ] {
            assert_eq!(found, expected);
        }
    }
}
