//! Stored tasks and runs of them (runs.md sections 1.4 and 2).

use std::collections::BTreeMap;

use control::{
    AccountName, BuildArgument, CHECKS_MAX, ContextSource, OutputRetention, PromotionRules,
    StoredTask, TaskContext, TaskDefinition, TaskIdentity, TaskName, TaskOverrides, TaskStep,
    TaskText, TaskValue,
};
use dockerfile::{ContextAddress, GitAddress};
use oci::{Platform, RegistryName};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::logins::logins;
use super::tasks::{self, values};
use super::triggers::{self, triggers};
use super::{
    ADDRESS_SIZE_MAX, ITEMS_MAX, argument, cut, image_name, path_in_source, platform, pool_of_run,
    timeout,
};
use crate::error::ApiError;
use crate::from_api::BuildDefaults;

/// Tags of a task, and bytes of the name and the value of each, as the managed service has it.
const TAGS_MAX: usize = 50;
const TAG_NAME_MAX: usize = 512;
const TAG_VALUE_MAX: usize = 256;

/// Accounts that one task can be.
const ACCOUNTS_MAX: usize = 20;

/// Bytes of the texts that describe a task.
const OWNER_MAX: usize = 256;
const DESCRIPTION_MAX: usize = 4096;

/// How long images of a task may be kept before they go. Who pushed what is known as long as the
/// records of runs are kept.
const RETENTION_DAYS_MAX: u32 = 3650;
const RETENTION_RUNS_MAX: u32 = 10_000;

/// Bytes of a token that a run is given to be told again.
const UPDATE_TRIGGER_TOKEN_MAX: usize = 4096;

/// What of a token may stand in an address as it is.
const TOKEN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A task as it is to be stored, but for its identity ([`wanted_identity`]). `known` is what is stored now: secrets that the request leaves
/// out stay as they are.
pub(crate) fn task_definition(
    body: api::Task,
    known: Option<&StoredTask>,
    defaults: &BuildDefaults,
) -> Result<TaskDefinition, ApiError> {
    let api::Task { tags, identity, properties, .. } = body;
    let is_nobody = wanted_identity(identity.as_ref())?.is_nobody();
    if properties.is_system_task && !is_nobody {
        return Err(ApiError::invalid("a system task has no identity").at("identity"));
    }
    refuse_of_system(&properties)?;
    let known = known.map(|task| &task.definition);
    let is_system = properties.is_system_task;
    let (context, step) = match properties.step {
        None if is_system => (None, TaskStep::System),
        Some(step) if !is_system => step_of(step, known)?,
        None => return Err(ApiError::invalid("a task needs a step").at("step")),
        Some(_) => return Err(ApiError::invalid("a system task has no step").at("step")),
    };
    let triggers = triggers(properties.trigger, context.as_ref(), known)?;
    Ok(TaskDefinition {
        enabled: status(properties.status.as_deref())?,
        platform: match &properties.platform {
            Some(given) => platform(given)?,
            None if is_system => Platform::host(),
            None => return Err(ApiError::invalid("a task needs a platform").at("platform")),
        },
        cpu: tasks::cpu(properties.agent_configuration.as_ref())?,
        timeout: timeout(properties.timeout, defaults.timeout)?,
        context,
        step,
        owner: text(properties.owner, "owner", OWNER_MAX)?,
        description: text(properties.description, "description", DESCRIPTION_MAX)?,
        expires_at: properties
            .expires_on
            .as_deref()
            .map(|text| time(text, "expiresOn"))
            .transpose()?,
        tags: checked_tags(tags.unwrap_or_default())?,
        pool: pool_of_run(properties.agent_pool_name.as_deref())?,
        logins: logins(properties.credentials, known.map(|task| &task.logins))?,
        log_template: properties.log_template.filter(|template| !template.is_empty()),
        output_retention: properties.output_retention.map(output_retention).transpose()?.flatten(),
        // Which accounts there are, whoever asks has to look up.
        identity: TaskIdentity::default(),
        egress: tasks::egress(properties.agent_configuration.as_ref())?,
        triggers,
        promotion: promotion_rules(properties.promotion.unwrap_or_default())?,
    })
}

fn promotion_rules(given: api::PromotionRules) -> Result<PromotionRules, ApiError> {
    let refuse = |error: ApiError| error.at("promotion.checks");
    if given.checks.len() > CHECKS_MAX {
        return Err(refuse(ApiError::invalid(format!("more than {CHECKS_MAX} checks"))));
    }
    let mut checks: Vec<TaskName> = Vec::new();
    for name in &given.checks {
        let name = super::task_name(name).map_err(refuse)?;
        if !checks.contains(&name) {
            checks.push(name);
        }
    }
    Ok(PromotionRules { checks, approval: given.approval_required })
}

/// Without any number there is none.
fn output_retention(given: api::OutputRetention) -> Result<Option<OutputRetention>, ApiError> {
    let api::OutputRetention { days, keep } = given;
    if days.is_none() && keep.is_none() {
        return Ok(None);
    }
    let rule = OutputRetention { days: days.unwrap_or(0), keep: keep.unwrap_or(0) };
    let refuse = |message: String| Err(ApiError::invalid(message).at("outputRetention"));
    if rule.days == 0 && rule.keep == 0 {
        return refuse("nothing that the task pushes would stay".to_owned());
    }
    if rule.days > RETENTION_DAYS_MAX || rule.keep > RETENTION_RUNS_MAX {
        return refuse(format!(
            "there are at most {RETENTION_DAYS_MAX} days and {RETENTION_RUNS_MAX} runs"
        ));
    }
    Ok(Some(rule))
}

pub(super) fn status(status: Option<&str>) -> Result<bool, ApiError> {
    match status.unwrap_or("Enabled") {
        text if text.eq_ignore_ascii_case("enabled") => Ok(true),
        text if text.eq_ignore_ascii_case("disabled") => Ok(false),
        other => {
            let message = format!("status `{}` is neither `Enabled` nor `Disabled`", cut(other));
            Err(ApiError::invalid(message).at("status"))
        }
    }
}

fn text(text: Option<String>, member: &str, max: usize) -> Result<Option<String>, ApiError> {
    match text {
        Some(text) if text.len() > max => {
            Err(ApiError::invalid(format!("it has more than {max} bytes")).at(member))
        }
        text => Ok(text.filter(|text| !text.is_empty())),
    }
}

/// A time of a member, in milliseconds since 1970.
pub(crate) fn time(text: &str, member: &'static str) -> Result<i64, ApiError> {
    let time = text.parse::<jiff::Timestamp>().map_err(|_| {
        ApiError::invalid(format!("`{}` is not a time", cut(text)))
            .at(member)
            .hint("it looks like `2030-01-31T00:00:00Z`")
    })?;
    Ok(time.as_millisecond())
}

fn checked_tags(tags: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, ApiError> {
    let fits = |(name, value): (&String, &String)| {
        !name.is_empty() && name.len() <= TAG_NAME_MAX && value.len() <= TAG_VALUE_MAX
    };
    match tags.len() <= TAGS_MAX && tags.iter().all(fits) {
        true => Ok(tags),
        false => Err(ApiError::invalid(format!(
            "there are at most {TAGS_MAX} tags, with names of 1 to {TAG_NAME_MAX} bytes and values \
             of at most {TAG_VALUE_MAX}"
        ))
        .at("tags")),
    }
}

fn step_of(
    step: api::TaskStep,
    known: Option<&TaskDefinition>,
) -> Result<(Option<TaskContext>, TaskStep), ApiError> {
    let stored = known.map(|task| &task.step);
    match step {
        api::TaskStep::Docker(step) => {
            if step.image_names.len() > ITEMS_MAX {
                return Err(ApiError::invalid(format!("more than {ITEMS_MAX} image names")));
            }
            step.image_names.iter().try_for_each(|name| image_name(name))?;
            let docker = TaskStep::Docker {
                image_names: step.image_names,
                push: step.is_push_enabled,
                no_cache: step.no_cache,
                dockerfile: path_in_source(step.docker_file_path, "dockerFilePath")?,
                target: step.target.filter(|target| !target.is_empty()),
                arguments: arguments(step.arguments, stored)?,
            };
            Ok((Some(needed(context(step.context, known)?, "builds an image")?), docker))
        }
        api::TaskStep::FileTask(step) => {
            let values_file = step.values_file_path.filter(|path| !path.is_empty());
            let values_file = values_file.map(|path| path_in_source(path, "valuesFilePath"));
            let file = TaskStep::File {
                file: TaskText::InContext(path_in_source(step.task_file_path, "taskFilePath")?),
                values_file: values_file.transpose()?.map(TaskText::InContext),
                values: stored_values(step.values, stored)?,
            };
            let needed = needed(context(step.context, known)?, "has its file in the context")?;
            Ok((Some(needed), file))
        }
        api::TaskStep::EncodedTask(step) => {
            let (file, values_file) =
                tasks::encoded_texts(&step.encoded_task_content, step.encoded_values_content)?;
            let values = stored_values(step.values, stored)?;
            Ok((context(step.context, known)?, TaskStep::File { file, values_file, values }))
        }
    }
}

fn needed(context: Option<TaskContext>, what: &str) -> Result<TaskContext, ApiError> {
    context.ok_or_else(|| {
        ApiError::invalid(format!("a task that {what} needs one"))
            .at("contextPath")
            .hint("give the address of a git repository or an archive")
    })
}

/// The context of a task, and the token for it: that of the request, or the stored one.
fn context(
    step: api::StepContext,
    known: Option<&TaskDefinition>,
) -> Result<Option<TaskContext>, ApiError> {
    let refuse = |message: &str| ApiError::invalid(message).at("contextPath");
    let path = step.context_path.unwrap_or_default();
    if path.len() > ADDRESS_SIZE_MAX {
        return Err(refuse("the address is too long"));
    }
    let (address, own) = match ContextAddress::of(&path) {
        _ if path.is_empty() => return without_context(&step.context_access_token),
        ContextAddress::Nothing => return without_context(&step.context_access_token),
        ContextAddress::Local => {
            return Err(refuse("a stored task works on a git repository or an archive elsewhere")
                .hint(
                    "uploaded contexts do not last; `refit run` and `refit task run` take them",
                ));
        }
        // What cannot be used is told here as for a run.
        remote => {
            super::SourceLocation::parse(&path).map_err(|error| error.at("contextPath"))?;
            if let ContextAddress::Git(Ok(address)) = &remote {
                refuse_ssh(address)?;
            }
            let secret = match &remote {
                ContextAddress::Git(Ok(address)) => address.secret(),
                ContextAddress::Archive(address) => address.secret(),
                _ => None,
            };
            match secret {
                Some(secret) => {
                    (path.replacen(&format!("{secret}@"), "", 1), Some(secret.to_owned()))
                }
                None => (path.clone(), None),
            }
        }
    };
    let given = step.context_access_token;
    let is_given = given.as_ref().is_some_and(|token| !token.is_empty());
    if is_given && matches!(ContextAddress::of(&path), ContextAddress::Artifact(_)) {
        return Err(refuse("an artifact comes with the login of its registry").hint(
            "leave out `contextAccessToken`; `refit task credential add` gives the task a login",
        ));
    }
    let takes_token = match ContextAddress::of(&path) {
        ContextAddress::Git(Ok(address)) => address.takes_token(),
        _ => true,
    };
    if is_given && !takes_token {
        return Err(refuse("git's own protocol has no tokens")
            .hint("use the repository's `https://` address"));
    }
    // A user alone, as some hosts have it in the addresses that they show, is no secret yet.
    if is_given && own.as_ref().is_some_and(|own| own.contains(':')) {
        return Err(refuse("the address has a token, and `contextAccessToken` another one"));
    }
    let stored = || {
        let context = known.and_then(|task| task.context.as_ref());
        context.filter(|context| context.is_same_place(&address))?.token.clone()
    };
    let token = match (own, given) {
        (Some(user), Some(token)) if is_given => {
            Some(format!("{user}:{}", utf8_percent_encode(&token, TOKEN)))
        }
        (Some(own), _) => Some(own),
        (None, Some(token)) if token.is_empty() => None,
        (None, Some(token)) => Some(user_info(&token)),
        (None, None) => stored(),
    };
    Ok(Some(TaskContext { address, token }))
}

/// Whoever stores a task is not there with an agent when it is run.
fn refuse_ssh(address: &GitAddress) -> Result<(), ApiError> {
    let message =
        || format!("`{address}` is reached over SSH, for which a stored task has no agent");
    match address.is_ssh() {
        false => Ok(()),
        true => Err(ApiError::invalid(message()).at("contextPath").hint(
            "use the repository's `https://` address, with a token if it is private: \
             `https://TOKEN@HOST/PATH.git`",
        )),
    }
}

/// A token that nothing is fetched with would be lost.
fn without_context(token: &Option<String>) -> Result<Option<TaskContext>, ApiError> {
    match token.as_ref().is_some_and(|token| !token.is_empty()) {
        false => Ok(None),
        true => Err(ApiError::invalid("there is no context that the token is for")
            .at("contextAccessToken")
            .hint("give the address of the context with it")),
    }
}

/// A token, or a user and password, as a part of an address.
pub(super) fn user_info(token: &str) -> String {
    let encoded = |text| utf8_percent_encode(text, TOKEN);
    match token.split_once(':') {
        Some((user, password)) => format!("{}:{}", encoded(user), encoded(password)),
        None => encoded(token).to_string(),
    }
}

/// Secret ones without a value keep that which is stored under their name.
fn with_stored<'a>(
    mut given: Vec<api::SetValue>,
    stored: impl Fn(&str) -> Option<&'a str>,
) -> Vec<api::SetValue> {
    for entry in given.iter_mut().filter(|entry| entry.is_secret && entry.value.is_none()) {
        entry.value = stored(&entry.name).map(str::to_owned);
    }
    given
}

fn stored_values(
    given: Vec<api::SetValue>,
    known: Option<&TaskStep>,
) -> Result<Vec<TaskValue>, ApiError> {
    let stored = |name: &str| match known {
        Some(TaskStep::File { values, .. }) => {
            let found = values.iter().find(|value| value.name == name && value.secret);
            found.map(|value| &*value.value)
        }
        _ => None,
    };
    values(with_stored(given, stored))
}

fn arguments(
    given: Vec<api::SetValue>,
    known: Option<&TaskStep>,
) -> Result<Vec<BuildArgument>, ApiError> {
    let stored = |name: &str| match known {
        Some(TaskStep::Docker { arguments, .. }) => {
            let found = arguments.iter().find(|argument| argument.name == name && argument.secret);
            found.map(|argument| &*argument.value)
        }
        _ => None,
    };
    build_arguments(with_stored(given, stored))
}

fn build_arguments(given: Vec<api::SetValue>) -> Result<Vec<BuildArgument>, ApiError> {
    let with_bounds = values(given).map_err(|error| error.at("arguments"))?;
    let arguments = with_bounds.into_iter().map(|TaskValue { name, value, secret }| {
        argument(api::Argument { name, value, is_secret: secret })
    });
    arguments.collect()
}

/// The identities that a request asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct WantedIdentity {
    /// That of the task itself.
    pub(crate) system: bool,
    /// Each once.
    pub(crate) accounts: Vec<AccountName>,
}

impl WantedIdentity {
    fn is_nobody(&self) -> bool {
        *self == Self::default()
    }
}

pub(crate) fn wanted_identity(
    given: Option<&api::IdentityProperties>,
) -> Result<WantedIdentity, ApiError> {
    let Some(given) = given else { return Ok(WantedIdentity::default()) };
    let mut wanted = WantedIdentity::default();
    let mut with_accounts = false;
    for kind in given.kind.as_deref().unwrap_or("None").split(',').map(str::trim) {
        match kind.to_ascii_lowercase().as_str() {
            "none" => (),
            "systemassigned" => wanted.system = true,
            "userassigned" => with_accounts = true,
            _ => {
                let message = format!(
                    "type `{}` is neither `None` nor `SystemAssigned`, `UserAssigned` or both",
                    cut(kind)
                );
                return Err(ApiError::invalid(message).at("identity.type"));
            }
        }
    }
    let members = given.user_assigned_identities.iter().flatten();
    for (id, _) in members.filter(|(_, value)| with_accounts && value.is_some()) {
        let name = super::account_name(id.rsplit('/').next().unwrap_or_default());
        let name = name.map_err(|error| error.at("identity.userAssignedIdentities"))?;
        if !wanted.accounts.contains(&name) {
            wanted.accounts.push(name);
        }
    }
    let refuse =
        |message: String| Err(ApiError::invalid(message).at("identity.userAssignedIdentities"));
    match wanted.accounts.len() {
        0 if with_accounts => refuse("type `UserAssigned` needs an account".to_owned()),
        count if count > ACCOUNTS_MAX => refuse(format!("more than {ACCOUNTS_MAX} accounts")),
        _ => Ok(wanted),
    }
}

/// What is declared together with a run has no identity: only stored tasks have.
pub(crate) fn refuse_identity(identity: Option<&Value>) -> Result<(), ApiError> {
    let kind = identity.and_then(|identity| identity.get("type")).and_then(Value::as_str);
    match (identity, kind) {
        (None | Some(Value::Null), _) => Ok(()),
        (Some(_), Some(kind)) if kind.eq_ignore_ascii_case("none") => Ok(()),
        _ => Err(ApiError::invalid("a task run has no identity of its own")
            .at("identity")
            .hint("give it to a stored task, and let the run request start that")),
    }
}

/// What a system task does not have is refused by name, never ignored.
fn refuse_of_system(properties: &api::TaskProperties) -> Result<(), ApiError> {
    if properties.is_system_task {
        let others = [
            ("agentConfiguration", properties.agent_configuration.is_some()),
            ("agentPoolName", properties.agent_pool_name.is_some()),
            ("credentials", properties.credentials.is_some()),
            ("outputRetention", properties.output_retention.is_some()),
            ("promotion", properties.promotion.is_some()),
            ("trigger", properties.trigger.is_some()),
        ];
        if let Some((member, _)) = others.into_iter().find(|(_, given)| *given) {
            let message = "a system task has only `status`, `timeout` and `logTemplate`";
            return Err(ApiError::invalid(message).at(member));
        }
    }
    Ok(())
}

/// Merges a `PATCH` into a task as it is: members that are given replace, others stay, `null`
/// removes (azure-api.md section 6.3). A step of another type replaces the whole step.
pub(crate) fn merge(task: &mut Value, patch: Value) {
    let (Value::Object(into), Value::Object(patch)) = (task, patch) else { return };
    for (key, given) in patch {
        match (into.get_mut(&key), given) {
            (Some(Value::Object(known)), given) if key == "trigger" => {
                if let Value::Object(given) = given {
                    triggers::merge(known, given);
                }
            }
            (_, Value::Null) => drop(into.remove(&key)),
            (Some(known @ Value::Object(_)), given @ Value::Object(_))
                if key != "step" || has_type_of(known, &given) =>
            {
                merge(known, given);
            }
            (_, given) => drop(into.insert(key, given)),
        }
    }
}

fn has_type_of(step: &Value, given: &Value) -> bool {
    given.get("type").is_none_or(|kind| step.get("type") == Some(kind))
}

/// The task that a run is asked of.
pub(crate) fn task_of_run(task_id: &str, registry: &RegistryName) -> Result<TaskName, ApiError> {
    let refuse = |message: String| ApiError::invalid(message).at("taskId");
    let mut parts = task_id.rsplit('/');
    let name = parts.next().unwrap_or_default();
    if task_id.contains('/') {
        let kind = parts.next().unwrap_or_default();
        let of = parts.next().unwrap_or_default();
        if !kind.eq_ignore_ascii_case("tasks") || !of.eq_ignore_ascii_case(registry.as_str()) {
            let message = format!("`{}` is not the id of a task of this registry", cut(task_id));
            return Err(refuse(message));
        }
    }
    name.parse().map_err(|error: control::BadTaskName| refuse(error.to_string()))
}

/// What a run does otherwise than its task. `context` is what the request's location stands for.
pub(crate) fn task_overrides(
    body: api::TaskRunRequest,
    context: Option<ContextSource>,
) -> Result<TaskOverrides, ApiError> {
    let refuse = |message: String, member: &str| Err(ApiError::invalid(message).at(member));
    let given = body.override_task_step_properties.unwrap_or_default();
    let token = given.update_trigger_token.filter(|token| !token.is_empty());
    if token.as_ref().is_some_and(|token| token.len() > UPDATE_TRIGGER_TOKEN_MAX) {
        let message = format!("it has more than {UPDATE_TRIGGER_TOKEN_MAX} bytes");
        return refuse(message, "updateTriggerToken");
    }
    // It comes in Base64; what is in it is its owner's business.
    if let Some(token) = &token {
        use base64::Engine as _;
        let decoded = base64::engine::general_purpose::STANDARD.decode(token);
        decoded.map_err(|error| {
            ApiError::invalid(format!("it is not in Base64: {error}")).at("updateTriggerToken")
        })?;
    }
    let file = given.file.filter(|file| !file.is_empty());
    Ok(TaskOverrides {
        context,
        file: file.map(|file| path_in_source(file, "file")).transpose()?,
        target: given.target.filter(|target| !target.is_empty()),
        arguments: build_arguments(given.arguments)?,
        values: values(given.values)?,
        update_trigger_token: token,
        pool: pool_of_run(body.agent_pool_name.as_deref())?,
        log_template: body.log_template,
        archived: body.is_archive_enabled,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expect_test::{Expect, expect};
    use oci::Compression;
    use serde_json::json;

    use super::*;

    fn defaults() -> BuildDefaults {
        BuildDefaults {
            timeout: Duration::from_secs(3600),
            allow_host_network: false,
            compression: Compression::default(),
        }
    }

    fn docker() -> Value {
        json!({
            "properties": {
                "platform": { "os": "Linux", "architecture": "amd64" },
                "step": {
                    "type": "Docker",
                    "contextPath": "https://example.com/app.git#main",
                    "contextAccessToken": "hunter2",
                    "imageNames": ["app:{{.Run.ID}}"],
                    "dockerFilePath": "Dockerfile",
                    "arguments": [
                        { "name": "A", "value": "1" },
                        { "name": "B", "value": "hunter3", "isSecret": true },
                    ],
                },
            },
        })
    }

    fn parse(body: Value, known: Option<&StoredTask>) -> Result<TaskDefinition, ApiError> {
        task_definition(serde_json::from_value(body).unwrap(), known, &defaults())
    }

    fn with(path: &str, value: Value) -> Value {
        let mut body = docker();
        let (parent, member) = path.rsplit_once('/').unwrap();
        body.pointer_mut(parent).unwrap()[member] = value;
        body
    }

    fn stored(definition: TaskDefinition) -> StoredTask {
        StoredTask {
            registry: RegistryName::default(),
            name: "build-app".parse().unwrap(),
            definition,
            created_at: 0,
            updated_at: 0,
            revision: 1,
            dependencies: None,
        }
    }

    #[track_caller]
    fn check_refused(body: Value, expected: Expect) {
        let error = parse(body, None).unwrap_err();
        let target = error.target.unwrap_or_default();
        let hint = error.hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
        expected.assert_eq(&format!("{target}: {}{hint}", error.message));
    }

    #[test]
    fn absent_members_have_defaults() {
        let task = parse(docker(), None).unwrap();
        assert!(task.enabled);
        assert_eq!(task.timeout, Duration::from_secs(3600));
        assert_eq!(
            format!("{:?}", task.context),
            "Some(https://example.com/app.git#main (with a token))"
        );
        let TaskStep::Docker { push, no_cache, .. } = task.step else { panic!("{:?}", task.step) };
        assert!(push && !no_cache);
    }

    #[test]
    fn secrets_that_are_left_out_stay() {
        let known = stored(parse(docker(), None).unwrap());
        // As a client sends back what it was shown.
        let mut again = docker();
        again["properties"]["step"].as_object_mut().unwrap().remove("contextAccessToken");
        again["properties"]["step"]["arguments"][1] = json!({ "name": "B", "isSecret": true });
        assert_eq!(parse(again.clone(), Some(&known)).unwrap(), known.definition);
        // In another place nobody gets the token of this one.
        again["properties"]["step"]["contextPath"] = json!("https://example.org/app.git");
        let moved = parse(again.clone(), Some(&known)).unwrap();
        assert_eq!(moved.context.unwrap().token, None);
        again["properties"]["step"]["contextPath"] = json!("https://example.com/app.git#next");
        let same = parse(again.clone(), Some(&known)).unwrap();
        assert_eq!(same.context.unwrap().token.as_deref(), Some("hunter2"));
        again["properties"]["step"]["contextAccessToken"] = json!("");
        assert_eq!(parse(again.clone(), Some(&known)).unwrap().context.unwrap().token, None);
        // There is none to stay.
        let error = parse(again, None).unwrap_err();
        assert_eq!(
            (error.target.as_deref(), &*error.message),
            (Some("arguments"), "`B` has no value")
        );
    }

    #[test]
    fn a_token_in_the_address_is_kept_apart() {
        let body = |token: Value| {
            let mut body = with(
                "/properties/step/contextPath",
                json!("https://me:p%40ss@example.com/app.git"),
            );
            body["properties"]["step"]["contextAccessToken"] = token;
            body
        };
        let context = parse(body(Value::Null), None).unwrap().context.unwrap();
        assert_eq!(context.address, "https://example.com/app.git");
        assert_eq!(context.token.as_deref(), Some("me:p%40ss"));
        check_refused(
            body(json!("other")),
            expect!["contextPath: the address has a token, and `contextAccessToken` another one"],
        );
        let body = with("/properties/step/contextAccessToken", json!("a@b/c d"));
        let context = parse(body, None).unwrap().context.unwrap();
        assert_eq!(context.token.as_deref(), Some("a%40b%2Fc%20d"));
        assert_eq!(user_info("me:p:w@"), "me:p%3Aw%40");
        let body = with("/properties/step/contextPath", json!("https://org@example.com/app.git"));
        let context = parse(body, None).unwrap().context.unwrap();
        assert_eq!(context.token.as_deref(), Some("org:hunter2"));
        let stored = json!({ "type": "EncodedTask", "encodedTaskContent": "eA==", "contextAccessToken": "t" });
        check_refused(
            with("/properties/step", stored),
            expect![
                "contextAccessToken: there is no context that the token is for (give the address of the context with it)"
            ],
        );
    }

    #[test]
    fn what_cannot_be_right_is_refused_by_name() {
        check_refused(
            with("/properties/step/contextPath", json!("source/x.tar.gz")),
            expect![
                "contextPath: a stored task works on a git repository or an archive elsewhere (uploaded contexts do not last; `refit run` and `refit task run` take them)"
            ],
        );
        let mut nothing = with("/properties/step/contextPath", json!("/dev/null"));
        nothing["properties"]["step"]["contextAccessToken"] = Value::Null;
        check_refused(
            nothing,
            expect![
                "contextPath: a task that builds an image needs one (give the address of a git repository or an archive)"
            ],
        );
        check_refused(
            with("/properties/step/contextPath", json!("git@example.com:x.git")),
            expect![
                "contextPath: `git@example.com:x.git` is reached over SSH, for which a stored task has no agent (use the repository's `https://` address, with a token if it is private: `https://TOKEN@HOST/PATH.git`)"
            ],
        );
        check_refused(
            with("/properties/step/imageNames", json!(["app:{{.Run.ID"])),
            expect!["imageNames: `app:{{.Run.ID`: template: unclosed action"],
        );
        check_refused(
            with("/properties/step/dockerFilePath", json!("../Dockerfile")),
            expect!["dockerFilePath: `../Dockerfile` is not a path inside the source"],
        );
        check_refused(
            with("/properties/timeout", json!(299)),
            expect!["timeout: timeout 299 is not between 300 and 28800 seconds"],
        );
        check_refused(
            with("/properties/status", json!("Paused")),
            expect!["status: status `Paused` is neither `Enabled` nor `Disabled`"],
        );
        check_refused(
            with("/properties/expiresOn", json!("tomorrow")),
            expect!["expiresOn: `tomorrow` is not a time (it looks like `2030-01-31T00:00:00Z`)"],
        );
        check_refused(with("/properties/step", Value::Null), expect!["step: a task needs a step"]);
        check_refused(
            with("/properties/step/arguments", json!([{ "name": "A=B", "value": "" }])),
            expect!["arguments: `A=B` is not the name of an argument"],
        );
    }

    #[test]
    fn identities_are_named_in_all_their_forms() {
        let wanted = |given: Value| {
            let given: Option<api::IdentityProperties> = serde_json::from_value(given).unwrap();
            wanted_identity(given.as_ref())
        };
        let names = |wanted: &WantedIdentity| {
            let names: Vec<_> = wanted.accounts.iter().map(ToString::to_string).collect();
            (wanted.system, names.join(" "))
        };
        let both = wanted(json!({
            "type": "systemAssigned,UserAssigned",
            "userAssignedIdentities": {
                "bot": {}, "/subscriptions/s/userAssignedIdentities/other": {}, "BOT": {}, "no": null
            },
        }));
        assert_eq!(names(&both.unwrap()), (true, "other BOT".to_owned()));
        // The type decides.
        let none = json!({ "type": "None", "userAssignedIdentities": { "bot": {} } });
        assert!(wanted(none).unwrap().is_nobody());
        assert!(wanted(Value::Null).unwrap().is_nobody());
        let refused = |given: Value| {
            let error = wanted(given).unwrap_err();
            format!("{}: {}", error.target.unwrap_or_default(), error.message)
        };
        let user = |map: Value| json!({ "type": "UserAssigned", "userAssignedIdentities": map });
        let many: serde_json::Map<_, _> =
            (0..21).map(|at| (format!("bot{at}"), json!({}))).collect();
        expect![[r#"
            identity.type: type `Managed` is neither `None` nor `SystemAssigned`, `UserAssigned` or both
            identity.userAssignedIdentities: type `UserAssigned` needs an account
            identity.userAssignedIdentities: more than 20 accounts"#]]
        .assert_eq(&[
            refused(json!({ "type": "Managed" })),
            refused(user(json!({ "bot": null }))),
            refused(user(many.into())),
        ].join("\n"));
        assert!(wanted(user(json!({ "a b": {} }))).is_err());
    }

    #[test]
    fn what_is_not_there_yet_is_refused_by_name() {
        let endpoint = json!({ "baseImageTrigger": {
            "name": "a", "baseImageTriggerType": "All", "updateTriggerEndpoint": "https://a",
        } });
        check_refused(
            with("/properties/trigger", endpoint),
            expect![
                "trigger.baseImageTrigger.updateTriggerEndpoint: nothing is sent to other places yet"
            ],
        );
        check_refused(
            with("/properties/agentPoolName", json!("a pool")),
            expect![
                "agentPoolName: `a pool` cannot name an agent pool: a name has 3 to 20 letters, digits and `-`"
            ],
        );
        check_refused(
            with("/properties/isSystemTask", json!(true)),
            expect!["step: a system task has no step"],
        );
        // What says nothing says nothing wrong.
        let nothing =
            json!({ "timerTriggers": [], "sourceTriggers": null, "baseImageTrigger": null });
        parse(with("/properties/trigger", nothing), None).unwrap();
        parse(with("/identity", json!({ "type": "None" })), None).unwrap();
    }

    #[test]
    fn timers_are_read_and_what_is_wrong_with_them_is_told() {
        let timers =
            |timers: Value| with("/properties/trigger", json!({ "timerTriggers": timers }));
        let timer = |name: &str, schedule: &str| json!({ "name": name, "schedule": schedule });
        let read = parse(
            timers(json!([
                timer("t1", "0  5 * * Mon-Fri"),
                { "name": "late", "schedule": "0 5 * * *", "status": "disabled",
                  "timeZone": "Europe/Berlin", "nextOccurrence": "2030-01-01T00:00:00Z" },
            ])),
            None,
        )
        .unwrap();
        let shown: Vec<_> = read.triggers.timers.iter().map(|timer| format!("{timer:?}")).collect();
        expect![[r#"
            TimerTrigger { name: "t1", enabled: true, schedule: 0 5 * * Mon-Fri UTC }
            TimerTrigger { name: "late", enabled: false, schedule: 0 5 * * * Europe/Berlin }"#]]
        .assert_eq(&shown.join("\n"));
        let refused = |given: Value| {
            let error = parse(timers(given), None).unwrap_err();
            format!("{}: {}", error.target.unwrap_or_default(), error.message)
        };
        expect![[r#"
            trigger.timerTriggers: timer `t1`: `7` is not a day of the week (0-6 from Sunday, or its name)
            trigger.timerTriggers: timer `t1`: there is no time zone `Berlin`
            trigger.timerTriggers: `a b` is no name of a trigger: it has 1 to 64 letters, digits, `.`, `_` and `-`
            trigger.timerTriggers: timer `T1` is there twice
            trigger.timerTriggers: timers `t1` and `t2` have the same schedule
            trigger.timerTriggers: status `on` is neither `Enabled` nor `Disabled`
            trigger.timerTriggers: a task has at most 20 timers"#]]
        .assert_eq(
            &[
                refused(json!([timer("t1", "0 5 * * 7")])),
                refused(json!([{ "name": "t1", "schedule": "* * * * *", "timeZone": "Berlin" }])),
                refused(json!([timer("a b", "* * * * *")])),
                refused(json!([timer("t1", "1 * * * *"), timer("T1", "2 * * * *")])),
                refused(json!([timer("t1", "1 * * * *"), timer("t2", "1  * * * *")])),
                refused(json!([{ "name": "t1", "schedule": "* * * * *", "status": "on" }])),
                refused((0..21).map(|n| timer(&format!("t{n}"), &format!("{n} * * * *"))).collect()),
            ]
            .join("\n"),
        );
    }

    #[test]
    fn a_patch_merges_timers_by_name_and_removes_none() {
        let timers = json!([
            { "name": "t1", "schedule": "1 * * * *", "status": "Enabled" },
            { "name": "t2", "schedule": "2 * * * *" },
        ]);
        let mut task = with("/properties/trigger", json!({ "timerTriggers": timers }));
        let mut patched = |trigger: Value| {
            merge(&mut task, json!({ "properties": { "trigger": trigger } }));
            task["properties"]["trigger"]["timerTriggers"].clone()
        };
        assert_eq!(patched(Value::Null), timers);
        assert_eq!(patched(json!({ "timerTriggers": null })), timers);
        assert_eq!(patched(json!({ "timerTriggers": [] })), timers);
        let changed = patched(json!({ "timerTriggers": [
            { "name": "T1", "status": "Disabled" },
            { "name": "t3", "schedule": "3 * * * *" },
        ] }));
        assert_eq!(changed.as_array().unwrap().len(), 3);
        assert_eq!(
            changed[0],
            json!({ "name": "T1", "schedule": "1 * * * *", "status": "Disabled" })
        );
        assert_eq!(changed[2]["name"], "t3");
        // A task that had none.
        let mut task = docker();
        let one = json!({ "timerTriggers": [{ "name": "t1", "schedule": "1 * * * *" }] });
        merge(&mut task, json!({ "properties": { "trigger": one } }));
        assert_eq!(task["properties"]["trigger"], one);
    }

    #[test]
    fn a_patch_replaces_what_it_names() {
        let mut task = docker();
        merge(
            &mut task,
            json!({
                "tags": { "team": "web" },
                "properties": {
                    "platform": {},
                    "timeout": 600,
                    "step": { "type": "Docker", "imageNames": ["other:1"], "target": "test" },
                },
            }),
        );
        let step = &task["properties"]["step"];
        assert_eq!(step["imageNames"], json!(["other:1"]));
        assert_eq!(
            (&step["target"], &step["dockerFilePath"]),
            (&json!("test"), &json!("Dockerfile"))
        );
        assert_eq!(task["properties"]["platform"]["architecture"], json!("amd64"));
        assert_eq!(
            (&task["properties"]["timeout"], &task["tags"]["team"]),
            (&json!(600), &json!("web"))
        );
        // Nothing of the old step is left in one of another type.
        let other = json!({ "type": "EncodedTask", "encodedTaskContent": "eA==" });
        merge(&mut task, json!({ "properties": { "step": other.clone(), "timeout": null } }));
        assert_eq!(task["properties"]["step"], other);
        assert_eq!(task["properties"].get("timeout"), None);
    }

    #[test]
    fn a_run_names_its_task_by_id_or_name() {
        let registry = RegistryName::default();
        for id in [
            "nightly",
            "/api/v1/registries/local/tasks/nightly",
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.ContainerRegistry/registries/local/tasks/nightly",
        ] {
            assert_eq!(task_of_run(id, &registry).unwrap().as_str(), "nightly");
        }
        for bad in ["abcd", "", "/registries/other/tasks/nightly", "/registries/local/runs/nightly"]
        {
            assert!(task_of_run(bad, &registry).is_err(), "{bad}");
        }
    }

    #[test]
    fn overrides_are_checked() {
        let overrides = |given: Value| {
            let body = json!({ "taskId": "nightly", "overrideTaskStepProperties": given });
            task_overrides(serde_json::from_value(body).unwrap(), None)
        };
        let refused = |given, expected: &str| {
            let error = overrides(given).unwrap_err();
            assert_eq!(
                format!("{}: {}", error.target.unwrap_or_default(), error.message),
                expected
            );
        };
        assert_eq!(
            overrides(json!({ "target": "", "file": "" })).unwrap(),
            TaskOverrides::default()
        );
        refused(
            json!({ "file": "/etc/passwd" }),
            "file: `/etc/passwd` is not a path inside the source",
        );
        refused(json!({ "values": [{ "name": "a" }] }), "values: `a` has no value");
        refused(
            json!({ "updateTriggerToken": "%" }),
            "updateTriggerToken: it is not in Base64: Invalid symbol 37, offset 0.",
        );
        let given = overrides(json!({ "updateTriggerToken": "eA==" })).unwrap();
        assert_eq!(given.update_trigger_token.as_deref(), Some("eA=="));
    }
}
