//! What starts runs of a task (triggers.md).

use std::time::Duration;

use control::{
    BaseImageTrigger, Schedule, SourceControl, SourceTrigger, StoredTask, TaskContext,
    TaskDefinition, TaskTriggers, TimerTrigger, TokenType,
};
use dockerfile::ContextAddress;
use serde_json::{Map, Value};

use super::cut;
use super::stored_tasks::status;
use crate::error::ApiError;

/// Timers of one task.
const TIMERS_MAX: usize = 20;
/// Source triggers of one task.
const SOURCES_MAX: usize = 20;
/// Bytes of the name of a trigger.
const NAME_MAX: usize = 64;
/// Bytes of a branch, of a token, and of what deliveries prove themselves with.
const BRANCH_MAX: usize = 255;
const TOKEN_MAX: usize = 4096;
const SECRET_SIZES: std::ops::RangeInclusive<usize> = 16..=256;
/// Seconds between two looks at a branch.
const POLL_SECONDS: std::ops::RangeInclusive<u32> = 30..=86_400;

/// `context` is that of the task, and `known` what is stored now: secrets that are left out stay.
pub(super) fn triggers(
    given: Option<api::TaskTriggers>,
    context: Option<&TaskContext>,
    known: Option<&TaskDefinition>,
) -> Result<TaskTriggers, ApiError> {
    let given = given.unwrap_or_default();
    let mut sources: Vec<SourceTrigger> = Vec::new();
    for source in given.source_triggers.unwrap_or_default() {
        let source = self::source(source, context, known)
            .map_err(|error| error.at("trigger.sourceTriggers"))?;
        let refuse = |message: String| Err(ApiError::invalid(message).at("trigger.sourceTriggers"));
        if sources.iter().any(|other| other.name.eq_ignore_ascii_case(&source.name)) {
            return refuse(format!("source trigger `{}` is there twice", source.name));
        }
        sources.push(source);
        if sources.len() > SOURCES_MAX {
            return refuse(format!("a task has at most {SOURCES_MAX} source triggers"));
        }
    }
    let base_image = given.base_image_trigger.map(base_image).transpose()?;
    let mut timers: Vec<TimerTrigger> = Vec::new();
    for timer in given.timer_triggers.unwrap_or_default() {
        let refuse = |message: String| Err(ApiError::invalid(message).at("trigger.timerTriggers"));
        let timer = self::timer(timer)?;
        if timers.iter().any(|other| other.name.eq_ignore_ascii_case(&timer.name)) {
            return refuse(format!("timer `{}` is there twice", timer.name));
        }
        if let Some(other) = timers.iter().find(|other| other.schedule == timer.schedule) {
            let (name, other) = (&timer.name, &other.name);
            return refuse(format!("timers `{other}` and `{name}` have the same schedule"));
        }
        timers.push(timer);
        if timers.len() > TIMERS_MAX {
            return refuse(format!("a task has at most {TIMERS_MAX} timers"));
        }
    }
    Ok(TaskTriggers { timers, sources, base_image })
}

fn source(
    given: api::SourceTrigger,
    context: Option<&TaskContext>,
    known: Option<&TaskDefinition>,
) -> Result<SourceTrigger, ApiError> {
    let name = name(&given.name)?;
    let refuse = |message: String| ApiError::invalid(format!("source trigger `{name}`: {message}"));
    let is_git = |context: &&TaskContext| {
        matches!(ContextAddress::of(&context.address), ContextAddress::Git(Ok(_)))
    };
    let enabled = status(given.status.as_deref())?;
    let nowhere = TaskContext { address: String::new(), token: None };
    let context = match context.filter(is_git) {
        Some(context) => context,
        // It may be there again one day.
        None if !enabled => &nowhere,
        None => {
            let message = "the task has no git repository as its context";
            return Err(refuse(message.to_owned())
                .hint("a commit or a pull request is of the repository that the task works on"));
        }
    };
    let (mut commits, mut pull_requests) = (false, false);
    for event in &given.source_trigger_events {
        match &*event.to_ascii_lowercase() {
            "commit" => commits = true,
            "pullrequest" => pull_requests = true,
            _ => {
                let message = format!("`{}` is neither `commit` nor `pullrequest`", cut(event));
                return Err(refuse(message));
            }
        }
    }
    if enabled && !commits && !pull_requests {
        return Err(refuse("it waits for nothing".to_owned())
            .hint("`sourceTriggerEvents` has `commit`, `pullrequest` or both"));
    }
    let repository = given.source_repository;
    if let Some(url) = repository.repository_url.filter(|url| !url.is_empty())
        && !context.address.is_empty()
        && repository_of(&url) != repository_of(&context.address)
    {
        let message = format!("`{}` is not the repository of the context", cut(&url));
        return Err(refuse(message)
            .hint("leave `repositoryUrl` out: the trigger is for the context's repository"));
    }
    let branch = repository.branch.filter(|branch| !branch.is_empty());
    if branch.as_ref().is_some_and(|branch| branch.len() > BRANCH_MAX || !is_branch(branch)) {
        return Err(refuse("it has no name that a branch can have".to_owned()));
    }
    // What the context says anyhow follows it.
    let branch = branch.filter(|branch| context.reference().as_ref() != Some(branch));
    if let Some(reference) = context.reference().filter(|name| branch.is_none() && is_fixed(name)) {
        let message = format!("`{}` of its context is no branch", cut(&reference));
        return Err(
            refuse(message).hint("name a branch in the context, or `sourceRepository.branch`")
        );
    }
    let control_type = repository.source_control_type.as_deref().unwrap_or("Generic");
    let control_type = SourceControl::ALL
        .into_iter()
        .find(|known| known.as_str().eq_ignore_ascii_case(control_type))
        .ok_or_else(|| refuse(format!("`{}` is no host that is known", cut(control_type))))?;
    let stored = known.and_then(|task| task.triggers.source(&name));
    let (token, token_type) =
        token(repository.source_control_auth_properties, stored).map_err(refuse)?;
    let is_same_place = known
        .and_then(|task| task.context.as_ref())
        .is_some_and(|known| known.place() == context.place());
    let stored_token = || stored.filter(|_| is_same_place)?.token.clone();
    let secret = given.webhook_secret.filter(|secret| !secret.is_empty());
    if secret.as_ref().is_some_and(|secret| !SECRET_SIZES.contains(&secret.len())) {
        let (min, max) = (SECRET_SIZES.start(), SECRET_SIZES.end());
        return Err(refuse(format!("a secret has {min} to {max} bytes")));
    }
    let poll = match given.poll_seconds {
        None => None,
        Some(seconds) if seconds == 0 || POLL_SECONDS.contains(&seconds) => {
            Some(Duration::from_secs(seconds.into()))
        }
        Some(seconds) => {
            let (min, max) = (POLL_SECONDS.start(), POLL_SECONDS.end());
            return Err(refuse(format!("{seconds} seconds are neither 0 nor {min} to {max}")));
        }
    };
    Ok(SourceTrigger {
        enabled,
        commits,
        pull_requests,
        control_type,
        branch,
        token: token.or_else(stored_token),
        token_type,
        secret: secret.or_else(|| stored?.secret.clone()),
        poll,
        name,
    })
}

/// A token for the host as it stands in an address, and of what kind it is.
fn token(
    given: Option<api::SourceControlAuth>,
    stored: Option<&SourceTrigger>,
) -> Result<(Option<String>, TokenType), String> {
    let Some(given) = given else {
        return Ok((None, stored.map(|stored| stored.token_type).unwrap_or_default()));
    };
    if given.refresh_token.is_some_and(|token| !token.is_empty()) {
        return Err("tokens are not renewed: `refreshToken` is not supported".to_owned());
    }
    let kind = match given.token_type.as_deref() {
        None => TokenType::default(),
        Some(kind) if kind.eq_ignore_ascii_case("pat") => TokenType::Pat,
        Some(kind) if kind.eq_ignore_ascii_case("oauth") => TokenType::OAuth,
        Some(kind) => {
            return Err(format!("token type `{}` is neither `PAT` nor `OAuth`", cut(kind)));
        }
    };
    let token = given.token.filter(|token| !token.is_empty());
    if token.as_ref().is_some_and(|token| token.len() > TOKEN_MAX) {
        return Err(format!("its token has more than {TOKEN_MAX} bytes"));
    }
    Ok((token.as_deref().map(super::stored_tasks::user_info), kind))
}

/// The source trigger that is meant: by its name, or the only one.
pub(crate) fn source_trigger<'a>(
    sources: &'a mut [SourceTrigger],
    name: Option<&str>,
) -> Result<&'a mut SourceTrigger, ApiError> {
    let missing = || ApiError::not_found("source trigger").hint("the task has none");
    match name {
        Some(name) => {
            let found = sources.iter_mut().find(|source| source.name.eq_ignore_ascii_case(name));
            found.ok_or_else(|| ApiError::not_found(format!("source trigger `{}`", cut(name))))
        }
        None if sources.len() > 1 => {
            let names: Vec<&str> = sources.iter().map(|source| &*source.name).collect();
            let message = format!("the task has several source triggers: {}", names.join(", "));
            Err(ApiError::invalid(message).at("sourceTriggerName"))
        }
        None => sources.first_mut().ok_or_else(missing),
    }
}

/// A repository, however its address is written.
fn repository_of(address: &str) -> String {
    let address = &address[..address.find(['#', '?']).unwrap_or(address.len())];
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    let (host, path) = address.split_once('/').unwrap_or((address, ""));
    let host = host.rsplit('@').next().unwrap_or_default();
    let path = path.trim_end_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path);
    format!("{host}/{path}").to_lowercase()
}

fn is_branch(name: &str) -> bool {
    let is_plain = |c: char| !c.is_control() && !" ~^:?*[\\".contains(c);
    name.chars().all(is_plain) && !name.contains("..") && !name.starts_with('-')
}

/// Whether a reference is a commit, a tag or a pull request, by how it is written.
fn is_fixed(name: &str) -> bool {
    let is_commit = (7..=40).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_hexdigit());
    let is_other = name.starts_with("refs/") && !name.starts_with("refs/heads/");
    is_commit || is_other || name.starts_with("pull/")
}

fn base_image(given: api::BaseImageTrigger) -> Result<BaseImageTrigger, ApiError> {
    let at = |error: ApiError| error.at("trigger.baseImageTrigger");
    let kind = given.base_image_trigger_type;
    let buildtime = match () {
        () if kind.eq_ignore_ascii_case("runtime") => false,
        () if kind.eq_ignore_ascii_case("all") => true,
        () => {
            let message = format!("type `{}` is neither `Runtime` nor `All`", cut(&kind));
            return Err(at(ApiError::invalid(message)));
        }
    };
    if given.update_trigger_endpoint.is_some_and(|endpoint| !endpoint.is_empty()) {
        let message = "nothing is sent to other places yet";
        return Err(ApiError::invalid(message).at("trigger.baseImageTrigger.updateTriggerEndpoint"));
    }
    let payload = given.update_trigger_payload_type;
    if payload.is_some_and(|payload| !payload.eq_ignore_ascii_case("default")) {
        let message = "nothing is sent to other places yet";
        let member = "trigger.baseImageTrigger.updateTriggerPayloadType";
        return Err(ApiError::invalid(message).at(member));
    }
    let name = name(&given.name).map_err(at)?;
    let enabled = status(given.status.as_deref()).map_err(at)?;
    let urgent = given.urgent.unwrap_or_default();
    Ok(BaseImageTrigger { name, enabled, buildtime, urgent })
}

fn timer(given: api::TimerTrigger) -> Result<TimerTrigger, ApiError> {
    let at = |error: ApiError| error.at("trigger.timerTriggers");
    let enabled = status(given.status.as_deref()).map_err(at)?;
    let name = name(&given.name).map_err(at)?;
    let schedule = Schedule::parse(&given.schedule, given.time_zone.as_deref());
    let schedule = schedule.map_err(|why| {
        let error = ApiError::invalid(format!("timer `{name}`: {why}"));
        at(error.hint("it looks like `0 5 * * Mon-Fri`: minute, hour, day of the month, month, day of the week"))
    })?;
    Ok(TimerTrigger { name, enabled, schedule })
}

fn name(name: &str) -> Result<String, ApiError> {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    match !name.is_empty() && name.len() <= NAME_MAX && name.bytes().all(is_fine) {
        true => Ok(name.to_owned()),
        false => Err(ApiError::invalid(format!(
            "`{}` is no name of a trigger: it has 1 to {NAME_MAX} letters, digits, `.`, `_` and `-`",
            cut(name)
        ))),
    }
}

/// Takes out of a task as it is shown what its source triggers have from its context, before that may change.
pub(crate) fn loosen_sources(task: &mut Value, known: &StoredTask) {
    let shown = task.pointer_mut("/properties/trigger/sourceTriggers");
    let shown = shown.and_then(Value::as_array_mut).into_iter().flatten();
    for (shown, source) in shown.zip(&known.definition.triggers.sources) {
        let Some(repository) = shown["sourceRepository"].as_object_mut() else { continue };
        repository.remove("repositoryUrl");
        if source.branch.is_none() {
            repository.remove("branch");
        }
    }
}

/// Merges a change of triggers: lists by `name`, others by member. Nothing is taken away
/// (azure-api.md section 6.3).
pub(super) fn merge(known: &mut Map<String, Value>, given: Map<String, Value>) {
    for (key, given) in given {
        match (known.get_mut(&key), given) {
            (_, Value::Null) => (),
            (Some(Value::Array(known)), Value::Array(given)) => {
                for item in given {
                    let name = |item: &Value| {
                        item["name"].as_str().unwrap_or_default().to_ascii_lowercase()
                    };
                    match known.iter_mut().find(|known| name(known) == name(&item)) {
                        Some(known) => super::merge(known, item),
                        None => known.push(item),
                    }
                }
            }
            (Some(known @ Value::Object(_)), given @ Value::Object(_)) => {
                super::merge(known, given);
            }
            (_, given) => drop(known.insert(key, given)),
        }
    }
}
