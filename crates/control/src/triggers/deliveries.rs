//! Deliveries of webhooks: what git hosts tell of commits and pull requests (triggers.md section 1).
//!
//! Only what is said is read here; that it comes from whom it says is for others to prove.

use serde::{Deserialize, Serialize};

/// Who has sent a delivery: how it is read, and where a pull request is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceHost {
    GitHub,
    GitLab,
    /// Also Forgejo and Gogs.
    Gitea,
    /// The cloud service.
    Bitbucket,
    /// Also the Data Center edition.
    BitbucketServer,
    AzureDevOps,
    /// Anybody else, in our own words.
    Generic,
}

/// What a host tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceDelivery {
    pub host: SourceHost,
    /// Ends of the path of the repository that it is about, any of them; empty: that which is meant.
    pub repositories: Vec<String>,
    pub default_branch: Option<String>,
    /// Several branches can be pushed at once.
    pub events: Vec<SourceEvent>,
}

/// What has happened in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceEvent {
    /// A branch has another commit.
    Commit {
        branch: String,
        commit: String,
        /// What it was before, where that is told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<String>,
    },
    PullRequest(PullRequest),
    /// Nothing that starts runs, in words for people.
    Other(String),
}

/// A pull request that has commits to look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullRequest {
    pub number: u64,
    /// The branch that it is to become a part of.
    pub into: String,
    /// The last one, as the host tells it: some cut it short.
    pub commit: String,
    /// Where it can be fetched.
    pub reference: String,
    pub from_fork: bool,
    /// The host tells also of changes that leave the commits as they are.
    pub may_be_known: bool,
}

/// Why a delivery means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDelivery {
    #[error("it is not what {host:?} sends for `{event}`: {reason}")]
    Body { host: SourceHost, event: String, reason: String },
    #[error("`{0}` is no commit, which has 40 hexadecimal digits")]
    Commit(String),
    #[error("`{0}` is no name of a branch or of a reference")]
    Name(String),
}

type Result<T> = std::result::Result<T, BadDelivery>;

/// Bytes of a branch or a reference.
const NAME_MAX: usize = 255;

/// Changes of one push that are looked at.
const CHANGES_MAX: usize = 1_000;

impl SourceHost {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GitHub => "GitHub",
            Self::GitLab => "GitLab",
            Self::Gitea => "Gitea",
            Self::Bitbucket => "Bitbucket",
            Self::BitbucketServer => "BitbucketServer",
            Self::AzureDevOps => "AzureDevOps",
            Self::Generic => "Generic",
        }
    }
}

impl SourceDelivery {
    /// Reads a delivery. `event` is what its headers call it; empty where hosts say it in the body.
    pub fn parse(host: SourceHost, event: &str, body: &[u8]) -> Result<Self> {
        let read = match host {
            SourceHost::GitHub | SourceHost::Gitea => github(event, body),
            SourceHost::GitLab => gitlab(body),
            SourceHost::Bitbucket => bitbucket(event, body),
            SourceHost::BitbucketServer => bitbucket_server(event, body),
            SourceHost::AzureDevOps => azure_devops(body),
            SourceHost::Generic => generic(body),
        };
        let (repositories, default_branch, events) = read.map_err(|error| match error {
            Unread::Bad(error) => error,
            Unread::Json(error) => {
                let event = shown(event);
                BadDelivery::Body { host, event, reason: error.to_string() }
            }
        })?;
        Ok(Self { host, repositories, default_branch, events })
    }

    /// Whether it is about the repository with this path, such as `/owner/name.git`.
    pub fn is_about(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let path = path.strip_suffix(".git").unwrap_or(path).to_lowercase();
        let is_it = |name: &String| {
            let name = name.trim_matches('/').to_lowercase();
            path.strip_suffix(&*name).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
        };
        self.repositories.is_empty() || self.repositories.iter().any(is_it)
    }
}

/// What is read: ends of repositories, the default branch, events.
type Read = std::result::Result<(Vec<String>, Option<String>, Vec<SourceEvent>), Unread>;

enum Unread {
    Bad(BadDelivery),
    Json(serde_json::Error),
}

impl From<BadDelivery> for Unread {
    fn from(error: BadDelivery) -> Self {
        Self::Bad(error)
    }
}

impl From<serde_json::Error> for Unread {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(error)
    }
}

fn json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> std::result::Result<T, Unread> {
    Ok(serde_json::from_slice(body)?)
}

fn other(what: impl Into<String>) -> SourceEvent {
    SourceEvent::Other(what.into())
}

/// One of several changes: what cannot be used says so, and keeps none of the others from its run.
fn or_other(event: Result<SourceEvent>) -> SourceEvent {
    event.unwrap_or_else(|error| other(error.to_string()))
}

/// What a reference that was pushed means, by its commits before and after.
fn pushed(reference: &str, before: Option<&str>, commit: Option<&str>) -> Result<SourceEvent> {
    let is_there = |commit: &&str| commit.bytes().any(|byte| byte != b'0');
    let commit = commit.filter(is_there);
    let Some(branch) = reference.strip_prefix("refs/heads/") else {
        let what = if commit.is_some() { "pushed" } else { "deleted" };
        return Ok(other(match reference.strip_prefix("refs/tags/") {
            Some(tag) => format!("tag `{}` was {what}", shown(tag)),
            None => format!("`{}` was {what}, which is no branch", shown(reference)),
        }));
    };
    let branch = name(branch)?;
    match commit {
        None => Ok(other(format!("branch `{branch}` was deleted"))),
        Some(id) => {
            let before = before.and_then(|id| commit_id(id).ok());
            Ok(SourceEvent::Commit { branch, commit: commit_id(id)?, before })
        }
    }
}

fn commit_id(text: &str) -> Result<String> {
    match text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => Ok(text.to_ascii_lowercase()),
        false => Err(BadDelivery::Commit(shown(text))),
    }
}

/// A commit that may be cut short.
fn short_id(text: &str) -> Result<String> {
    match (7..=40).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => Ok(text.to_ascii_lowercase()),
        false => Err(BadDelivery::Commit(shown(text))),
    }
}

/// A branch or a reference, by git's own rules as far as others could be misled.
fn name(text: &str) -> Result<String> {
    let is_plain = |c: char| !c.is_control() && !" ~^:?*[\\".contains(c);
    let is_fine = !text.is_empty()
        && text.len() <= NAME_MAX
        && text.chars().all(is_plain)
        && !text.contains("..")
        && !text.starts_with('-');
    match is_fine {
        true => Ok(text.to_owned()),
        false => Err(BadDelivery::Name(shown(text))),
    }
}

/// The branch of a reference.
fn branch(reference: &str) -> Result<String> {
    name(reference.strip_prefix("refs/heads/").unwrap_or(reference))
}

/// What somebody else has written, on one line and not too long.
fn shown(text: &str) -> String {
    text.chars().take(80).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[derive(Deserialize)]
struct GitHubRepository {
    full_name: String,
    #[serde(default)]
    default_branch: Option<String>,
}

fn github(event: &str, body: &[u8]) -> Read {
    #[derive(Deserialize)]
    struct Push {
        #[serde(rename = "ref")]
        reference: String,
        #[serde(default)]
        before: Option<String>,
        #[serde(default)]
        after: Option<String>,
        repository: GitHubRepository,
    }
    #[derive(Deserialize)]
    struct OfPullRequest {
        action: String,
        pull_request: Request,
        repository: GitHubRepository,
    }
    #[derive(Deserialize)]
    struct Request {
        number: u64,
        head: Side,
        base: Side,
    }
    #[derive(Deserialize)]
    struct Side {
        #[serde(rename = "ref")]
        branch: String,
        sha: String,
        /// Not there if it was deleted.
        repo: Option<GitHubRepository>,
    }
    match event {
        "push" => {
            let push: Push = json(body)?;
            let event = pushed(&push.reference, push.before.as_deref(), push.after.as_deref())?;
            Ok((vec![push.repository.full_name], push.repository.default_branch, vec![event]))
        }
        "pull_request" => {
            let OfPullRequest { action, pull_request, repository } = json(body)?;
            let Request { number, head, base } = pull_request;
            let is_news =
                matches!(&*action, "opened" | "reopened" | "synchronize" | "synchronized");
            let of = |side: &Side| side.repo.as_ref().map(|repo| repo.full_name.to_lowercase());
            let event = match is_news {
                true => SourceEvent::PullRequest(PullRequest {
                    number,
                    into: name(&base.branch)?,
                    commit: commit_id(&head.sha)?,
                    reference: format!("refs/pull/{number}/head"),
                    // Who may only read a repository of Gitea's can make requests without a fork of it.
                    from_fork: of(&head).is_none()
                        || of(&head) != of(&base)
                        || head.branch.starts_with("refs/"),
                    may_be_known: false,
                }),
                false => other(format!("pull request {number}: {}", shown(&action))),
            };
            Ok((vec![repository.full_name], repository.default_branch, vec![event]))
        }
        event => Ok((Vec::new(), None, vec![other(format!("event `{}`", shown(event)))])),
    }
}

fn gitlab(body: &[u8]) -> Read {
    #[derive(Deserialize)]
    struct Kind {
        #[serde(default)]
        object_kind: Option<String>,
        /// Of the hooks of a whole server.
        #[serde(default)]
        event_name: Option<String>,
    }
    #[derive(Deserialize)]
    struct Project {
        path_with_namespace: String,
        #[serde(default)]
        default_branch: Option<String>,
    }
    #[derive(Deserialize)]
    struct Push {
        #[serde(rename = "ref")]
        reference: String,
        #[serde(default)]
        before: Option<String>,
        #[serde(default)]
        after: Option<String>,
        project: Project,
    }
    #[derive(Deserialize)]
    struct MergeRequest {
        object_attributes: Attributes,
        project: Project,
    }
    #[derive(Deserialize)]
    struct Attributes {
        iid: u64,
        #[serde(default)]
        action: Option<String>,
        /// There if commits have come.
        #[serde(default)]
        oldrev: Option<String>,
        target_branch: String,
        source_project_id: Option<u64>,
        target_project_id: Option<u64>,
        last_commit: Option<Commit>,
    }
    #[derive(Deserialize)]
    struct Commit {
        id: String,
    }
    let kind: Kind = json(body)?;
    let kind = kind.object_kind.or(kind.event_name).unwrap_or_default();
    match &*kind {
        "push" => {
            let push: Push = json(body)?;
            let event = pushed(&push.reference, push.before.as_deref(), push.after.as_deref())?;
            let Project { path_with_namespace, default_branch } = push.project;
            Ok((vec![path_with_namespace], default_branch, vec![event]))
        }
        "merge_request" => {
            let MergeRequest { object_attributes: request, project } = json(body)?;
            let number = request.iid;
            let action = request.action.unwrap_or_default();
            let is_news = match &*action {
                "open" | "reopen" => true,
                "update" => request.oldrev.is_some(),
                _ => false,
            };
            let event = match request.last_commit.filter(|_| is_news) {
                Some(last) => SourceEvent::PullRequest(PullRequest {
                    number,
                    into: name(&request.target_branch)?,
                    commit: commit_id(&last.id)?,
                    reference: format!("refs/merge-requests/{number}/head"),
                    from_fork: request.source_project_id.is_none()
                        || request.source_project_id != request.target_project_id,
                    may_be_known: false,
                }),
                None => other(format!("merge request {number}: {}", shown(&action))),
            };
            Ok((vec![project.path_with_namespace], project.default_branch, vec![event]))
        }
        kind => Ok((Vec::new(), None, vec![other(format!("event `{}`", shown(kind)))])),
    }
}

fn bitbucket(event: &str, body: &[u8]) -> Read {
    #[derive(Deserialize)]
    struct Repository {
        full_name: String,
        #[serde(default)]
        mainbranch: Option<Named>,
    }
    #[derive(Deserialize)]
    struct Named {
        name: String,
    }
    #[derive(Deserialize)]
    struct OfPush {
        push: Push,
        repository: Repository,
    }
    #[derive(Deserialize)]
    struct Push {
        changes: Vec<Change>,
    }
    #[derive(Deserialize)]
    struct Change {
        new: Option<New>,
        old: Option<Old>,
    }
    #[derive(Deserialize)]
    struct Old {
        name: String,
        #[serde(default)]
        target: Option<Commit>,
    }
    #[derive(Deserialize)]
    struct New {
        #[serde(rename = "type")]
        kind: String,
        name: String,
        target: Commit,
    }
    #[derive(Deserialize)]
    struct Commit {
        hash: String,
    }
    #[derive(Deserialize)]
    struct OfPullRequest {
        pullrequest: Request,
        repository: Repository,
    }
    #[derive(Deserialize)]
    struct Request {
        id: u64,
        source: Side,
        destination: Side,
    }
    #[derive(Deserialize)]
    struct Side {
        branch: Named,
        commit: Option<Commit>,
        /// Not there if it was deleted.
        repository: Option<Repository>,
    }
    let main = |repository: &Repository| repository.mainbranch.as_ref().map(|it| it.name.clone());
    match event {
        "repo:push" => {
            let OfPush { push, repository } = json(body)?;
            let changes = push.changes.into_iter().take(CHANGES_MAX);
            let events = changes.map(|change| match (change.new, change.old) {
                (Some(new), old) if new.kind == "branch" => {
                    let before = old.and_then(|old| old.target).map(|target| target.hash);
                    let reference = format!("refs/heads/{}", new.name);
                    or_other(pushed(&reference, before.as_deref(), Some(&new.target.hash)))
                }
                (Some(new), _) => {
                    other(format!("{} `{}` was pushed", shown(&new.kind), shown(&new.name)))
                }
                (None, old) => {
                    let gone = old.map(|old| shown(&old.name)).unwrap_or_default();
                    other(format!("`{gone}` was deleted"))
                }
            });
            let events = events.collect();
            Ok((vec![repository.full_name.clone()], main(&repository), events))
        }
        "pullrequest:created" | "pullrequest:updated" => {
            let OfPullRequest { pullrequest: request, repository } = json(body)?;
            let of = |side: &Side| side.repository.as_ref().map(|it| it.full_name.to_lowercase());
            let from_fork =
                of(&request.source).is_none() || of(&request.source) != of(&request.destination);
            let event = match &request.source.commit {
                Some(commit) => SourceEvent::PullRequest(PullRequest {
                    number: request.id,
                    into: name(&request.destination.branch.name)?,
                    commit: short_id(&commit.hash)?,
                    // It has none of the pull request's own.
                    reference: format!("refs/heads/{}", name(&request.source.branch.name)?),
                    from_fork,
                    may_be_known: event == "pullrequest:updated",
                }),
                None => other(format!("pull request {} without commits", request.id)),
            };
            Ok((vec![repository.full_name.clone()], main(&repository), vec![event]))
        }
        event => Ok((Vec::new(), None, vec![other(format!("event `{}`", shown(event)))])),
    }
}

fn bitbucket_server(event: &str, body: &[u8]) -> Read {
    #[derive(Deserialize)]
    struct Repository {
        slug: String,
        project: Project,
    }
    #[derive(Deserialize)]
    struct Project {
        key: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Push {
        repository: Repository,
        changes: Vec<Change>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Change {
        ref_id: String,
        from_hash: String,
        to_hash: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct OfPullRequest {
        pull_request: Request,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Request {
        id: u64,
        from_ref: Side,
        to_ref: Side,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Side {
        id: String,
        latest_commit: String,
        repository: Repository,
    }
    let full = |repository: &Repository| format!("{}/{}", repository.project.key, repository.slug);
    match event {
        "repo:refs_changed" => {
            let Push { repository, changes } = json(body)?;
            let changes = changes.into_iter().take(CHANGES_MAX);
            let events = changes.map(|change| {
                let (before, after) = (Some(&*change.from_hash), Some(&*change.to_hash));
                or_other(pushed(&change.ref_id, before, after))
            });
            Ok((vec![full(&repository)], None, events.collect()))
        }
        "pr:opened" | "pr:reopened" | "pr:from_ref_updated" => {
            let OfPullRequest { pull_request: Request { id, from_ref, to_ref } } = json(body)?;
            let event = SourceEvent::PullRequest(PullRequest {
                number: id,
                into: branch(&to_ref.id)?,
                commit: commit_id(&from_ref.latest_commit)?,
                reference: format!("refs/pull-requests/{id}/from"),
                from_fork: full(&from_ref.repository).to_lowercase()
                    != full(&to_ref.repository).to_lowercase(),
                may_be_known: false,
            });
            Ok((vec![full(&to_ref.repository)], None, vec![event]))
        }
        event => Ok((Vec::new(), None, vec![other(format!("event `{}`", shown(event)))])),
    }
}

fn azure_devops(body: &[u8]) -> Read {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Kind {
        event_type: String,
    }
    #[derive(Deserialize)]
    struct Of<T> {
        resource: T,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Repository {
        name: String,
        project: Project,
        #[serde(default)]
        default_branch: Option<String>,
    }
    #[derive(Deserialize)]
    struct Project {
        name: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Push {
        #[serde(default)]
        ref_updates: Vec<Update>,
        repository: Repository,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Update {
        name: String,
        #[serde(default)]
        old_object_id: Option<String>,
        new_object_id: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Request {
        pull_request_id: u64,
        #[serde(default)]
        status: Option<String>,
        target_ref_name: String,
        #[serde(default)]
        last_merge_source_commit: Option<Commit>,
        #[serde(default)]
        fork_source: Option<serde::de::IgnoredAny>,
        repository: Repository,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Commit {
        commit_id: String,
    }
    let names = |repository: &Repository| {
        let (project, name) = (&repository.project.name, &repository.name);
        let mut names = vec![format!("{project}/_git/{name}")];
        // Such a repository is also reached without its project.
        names.extend((project == name).then(|| format!("_git/{name}")));
        names
    };
    let default = |repository: &Repository| {
        let reference = repository.default_branch.as_ref();
        reference.map(|name| name.strip_prefix("refs/heads/").unwrap_or(name).to_owned())
    };
    let kind: Kind = json(body)?;
    match &*kind.event_type {
        "git.push" => {
            let Of { resource: Push { ref_updates, repository } } = json(body)?;
            let updates = ref_updates.into_iter().take(CHANGES_MAX);
            let events = updates.map(|update| {
                let (before, after) =
                    (update.old_object_id.as_deref(), Some(&*update.new_object_id));
                or_other(pushed(&update.name, before, after))
            });
            Ok((names(&repository), default(&repository), events.collect()))
        }
        "git.pullrequest.created" | "git.pullrequest.updated" => {
            let Of { resource: request } = json::<Of<Request>>(body)?;
            let number = request.pull_request_id;
            let is_open = request.status.as_deref().is_none_or(|status| status == "active");
            let event = match request.last_merge_source_commit.filter(|_| is_open) {
                Some(last) => SourceEvent::PullRequest(PullRequest {
                    number,
                    into: branch(&request.target_ref_name)?,
                    commit: commit_id(&last.commit_id)?,
                    reference: format!("refs/pull/{number}/merge"),
                    from_fork: request.fork_source.is_some(),
                    may_be_known: kind.event_type.ends_with("updated"),
                }),
                None => {
                    let status = request.status.unwrap_or_default();
                    other(format!("pull request {number}: {}", shown(&status)))
                }
            };
            Ok((names(&request.repository), default(&request.repository), vec![event]))
        }
        kind => Ok((Vec::new(), None, vec![other(format!("event `{}`", shown(kind)))])),
    }
}

/// Our own words, for hosts without a form of theirs.
fn generic(body: &[u8]) -> Read {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Event {
        event: String,
        #[serde(default)]
        repository: Option<String>,
        #[serde(default)]
        branch: Option<String>,
        #[serde(default)]
        commit: Option<String>,
        #[serde(default)]
        number: Option<u64>,
        #[serde(default)]
        reference: Option<String>,
        /// Whoever does not say is taken for a stranger.
        #[serde(default)]
        fork: Option<bool>,
    }
    let missing = |name: &'static str| {
        let error = <serde_json::Error as serde::de::Error>::missing_field(name);
        Unread::Json(error)
    };
    let said: Event = json(body)?;
    let into = || said.branch.as_deref().ok_or_else(|| missing("branch"));
    let commit = || said.commit.as_deref().ok_or_else(|| missing("commit"));
    let event = match &*said.event {
        "commit" => {
            let (branch, commit) = (branch(into()?)?, commit_id(commit()?)?);
            SourceEvent::Commit { branch, commit, before: None }
        }
        "pullrequest" => {
            let reference = said.reference.as_deref().ok_or_else(|| missing("reference"))?;
            SourceEvent::PullRequest(PullRequest {
                number: said.number.ok_or_else(|| missing("number"))?,
                into: branch(into()?)?,
                commit: commit_id(commit()?)?,
                reference: name(reference)?,
                from_fork: said.fork.unwrap_or(true),
                may_be_known: false,
            })
        }
        event => other(format!("event `{}`", shown(event))),
    };
    Ok((said.repository.into_iter().collect(), None, vec![event]))
}
