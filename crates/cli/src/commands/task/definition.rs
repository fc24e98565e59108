//! `refit task create` and `refit task update`: what a task is to do.

use std::path::PathBuf;

use base64::Engine as _;
use serde_json::{Map, Value, json};

use super::super::Session;
use super::super::quick_task::{AuthArgs, check_timeout, own_platform, parse_platform};
use super::super::run::command_task;
use super::super::task_input::{
    ValueArgs, is_stdin, named_values, read_task_file, read_values_file,
};
use super::identity;
use super::name::TaskArg;
use super::source::SourceArgs;
use super::timer;
use super::{print, route};
use crate::error::{Error, Result};
use crate::prompt;

/// Name of the trigger by base images, if it is given none, as with `az acr`.
const BASE_TRIGGER: &str = "defaultBaseimageTriggerName";

/// Seconds that a run has if nobody says otherwise.
const TIMEOUT_DEFAULT: u32 = 3600;

/// What `create` and `update` have in common: all but what must be there.
#[derive(Debug, clap::Args)]
pub struct SaveArgs {
    #[command(flatten)]
    task: TaskArg,

    /// The task `quicktask` without anything to do: its --timeout and --log-template are those of
    /// quick builds and quick runs that have none themselves
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    is_system_task: Option<bool>,

    #[command(flatten)]
    definition: DefinitionArgs,
}

#[derive(Debug, clap::Args)]
struct DefinitionArgs {
    /// Address of the git repository or the archive that the task works on; or /dev/null for none
    #[arg(long, short, value_name = "ADDRESS")]
    context: Option<String>,

    /// Dockerfile or task file (*.yaml, *.yml, *.toml, *.json) in the context; without a context, a
    /// task file of this machine, which is stored; - reads it from standard input
    #[arg(long, short, value_name = "FILE", conflicts_with = "cmd")]
    file: Option<PathBuf>,

    /// Image and the arguments of its command, as a task of one step
    #[arg(long, value_name = "COMMAND")]
    cmd: Option<String>,

    /// Name for the image that is built, such as app:{{.Run.ID}}; may be given several times
    #[arg(long = "image", short = 't', value_name = "NAME:TAG")]
    images: Vec<String>,

    /// Value for an `ARG` of the Dockerfile; without =VALUE it comes from the environment
    #[arg(long = "arg", visible_alias = "build-arg", value_name = "NAME[=VALUE]")]
    args: Vec<String>,

    /// The same, with a value that is not shown
    #[arg(long = "secret-arg", visible_alias = "secret-build-arg", value_name = "NAME[=VALUE]")]
    secret_args: Vec<String>,

    #[command(flatten)]
    values: ValueArgs,

    /// File with values: in the context if the task file is, else here
    #[arg(long = "values", value_name = "FILE")]
    values_file: Option<PathBuf>,

    /// Stage of the Dockerfile to stop at
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,

    /// Execute every instruction of the Dockerfile again
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    no_cache: Option<bool>,

    /// Keep the image out of the registry
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    no_push: Option<bool>,

    /// Token for the context, or USER:PASSWORD; - reads it from standard input
    #[arg(long, value_name = "TOKEN")]
    git_access_token: Option<String>,

    /// Platform to run on, OS[/ARCHITECTURE[/VARIANT]] [default: the machine's own]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,

    /// Seconds until a run is ended, 300 to 28800 [default: 3600]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,

    /// Processors that all containers of a run have together
    #[arg(long, value_name = "COUNT")]
    cpu: Option<u32>,

    /// Place that steps may connect to: a name, `*.NAME`, an address or a range, each with `:PORT`
    /// if it likes; or `registry`, or `none`; empty: where the server lets them (repeatable)
    #[arg(long, value_name = "PLACE", value_delimiter = ',')]
    egress: Vec<String>,

    /// Task that looks at an image of this one before `refit promote` moves a tag to it; empty: none
    /// (repeatable)
    #[arg(long = "check", value_name = "TASK", value_delimiter = ',')]
    checks: Vec<String>,

    /// Whether somebody has to approve that, too
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    approval: Option<bool>,

    /// When a new task starts by itself: "MINUTE HOUR DAY MONTH WEEKDAY", in UTC, or NAME:SCHEDULE; may be
    /// given several times
    #[arg(long = "schedule", value_name = "CRON")]
    schedules: Vec<String>,

    #[command(flatten)]
    source: SourceArgs,

    /// Whether a run starts when an image moves that the task was built on [default of a new task: true]
    #[arg(long, value_name = "BOOL")]
    base_image_trigger_enabled: Option<bool>,

    /// Runtime: the image that the result stands on; All: also those that only helped
    #[arg(long, value_name = "TYPE")]
    base_image_trigger_type: Option<String>,

    /// Whether the run does not wait until an image of another registry is certain to stay what it is
    #[arg(long, value_name = "BOOL")]
    base_image_trigger_urgent: Option<bool>,

    #[arg(long, hide = true)]
    base_image_trigger_name: Option<String>,

    /// Enabled or Disabled [default: Enabled]
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,

    /// Who answers for the task
    #[arg(long, value_name = "TEXT")]
    owner: Option<String>,

    /// What the task is for
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,

    /// Pool whose agents execute its runs; empty: the server does
    #[arg(long, value_name = "POOL")]
    agent_pool: Option<String>,

    /// Time from which on the task starts no runs, such as 2030-01-31T00:00:00Z; empty: never
    #[arg(long, value_name = "TIME")]
    expires_on: Option<String>,

    /// Days that images stay which runs of the task pushed; 0, without the other one: for ever
    #[arg(long, value_name = "DAYS")]
    output_retention_days: Option<u32>,

    /// Last runs of the task whose images stay in any case
    #[arg(long, value_name = "RUNS")]
    output_retention_keep: Option<u32>,

    /// Name that each run's log gets as an artifact, such as `logs:{{.Run.ID}}`; empty: none
    #[arg(long, value_name = "NAME")]
    log_template: Option<String>,

    /// Let runs prove that they are the task, or, by name, a service principal
    #[arg(long, num_args = 0.., value_name = "NAME")]
    assign_identity: Option<Vec<String>>,

    #[command(flatten)]
    auth: AuthArgs,

    #[command(flatten)]
    unsupported: Unsupported,
}

/// Flags of later versions: refused, never ignored.
#[derive(Debug, clap::Args)]
struct Unsupported {
    #[arg(long, hide = true)]
    update_trigger_endpoint: Option<String>,
    #[arg(long, hide = true)]
    update_trigger_payload_type: Option<String>,
}

impl Unsupported {
    fn refuse(&self) -> Result<()> {
        let given = [
            ("--update-trigger-endpoint", self.update_trigger_endpoint.is_some()),
            ("--update-trigger-payload-type", self.update_trigger_payload_type.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(Error::usage(format!("`{flag}` is not supported yet"))),
            None => Ok(()),
        }
    }
}

pub(super) async fn create(session: &Session<'_>, args: SaveArgs) -> Result<()> {
    let definition = &args.definition;
    if args.is_system_task == Some(true) {
        return create_system_task(session, &args).await;
    }
    let mut step = definition.step(session, None).await?;
    if step.get("type") == Some(&json!("Docker")) && definition.images.is_empty() {
        if definition.no_push == Some(false) {
            return Err(Error::usage("an image without a name cannot be pushed")
                .with_hint("give it one with `--image`"));
        }
        session.printer.note("The image gets no name (`--image`), so it is not pushed");
        step.insert("isPushEnabled".into(), json!(false));
    }
    let mut properties = definition.properties()?;
    properties.entry("platform").or_insert(json!(own_platform()));
    if definition.base_image_trigger_enabled != Some(false) {
        definition.add_base_trigger(&mut properties, true);
    }
    let context = step.get("contextPath").and_then(Value::as_str).map(str::to_owned);
    let has_token = step
        .get("contextAccessToken")
        .and_then(Value::as_str)
        .is_some_and(|token| !token.is_empty());
    definition.source.add_to_new(session, &mut properties, context.as_deref(), has_token)?;
    properties.insert("step".into(), step.into());
    let connection = session.connection()?;
    let url = route(connection, &args.task);
    let mut body = json!({ "properties": properties });
    if let Some(wanted) = &definition.assign_identity {
        body["identity"] = identity::of_new_task(wanted)?;
    }
    let request = connection.request(reqwest::Method::PUT, url).json(&body);
    let task: api::Task = connection.answer(request).await?;
    print(session, &task, std::slice::from_ref(&task))
}

/// The server refuses what a system task does not have.
async fn create_system_task(session: &Session<'_>, args: &SaveArgs) -> Result<()> {
    let definition = &args.definition;
    let has_triggers = definition.changes_base_trigger() || !definition.schedules.is_empty();
    if definition.changes_step() || definition.assign_identity.is_some() || has_triggers {
        return Err(Error::usage("a system task has nothing to do")
            .with_hint("give it `--status`, `--timeout` and `--log-template`"));
    }
    let mut properties = definition.properties()?;
    properties.insert("isSystemTask".into(), json!(true));
    let connection = session.connection()?;
    let body = json!({ "properties": properties });
    let request =
        connection.request(reqwest::Method::PUT, route(connection, &args.task)).json(&body);
    let task: api::Task = connection.answer(request).await?;
    print(session, &task, std::slice::from_ref(&task))
}

pub(super) async fn update(session: &Session<'_>, args: SaveArgs) -> Result<()> {
    let (definition, connection) = (&args.definition, session.connection()?);
    if definition.assign_identity.is_some() {
        return Err(Error::usage("`--assign-identity` is for a new task")
            .with_hint("`refit task identity assign` gives one to a task that is there"));
    }
    if !definition.schedules.is_empty() {
        return Err(Error::usage("`--schedule` is for a new task").with_hint(
            "`refit task timer` adds, changes and removes timers of a task that is there",
        ));
    }
    let url = route(connection, &args.task);
    let mut properties = definition.properties()?;
    if definition.changes_base_trigger() {
        let known: api::Task = connection.get(url.clone()).await?;
        let triggers = known.properties.trigger.as_ref();
        let is_new = triggers.is_none_or(|all| all.base_image_trigger.is_none());
        if !is_new || definition.base_image_trigger_enabled != Some(false) {
            definition.add_base_trigger(&mut properties, is_new);
        }
    }
    if definition.source.is_given() {
        let known: api::Task = connection.get(url.clone()).await?;
        definition.source.add_change(&mut properties, &known)?;
    } else if let Some(context) = definition.context_address()?
        && !matches!(dockerfile::ContextAddress::of(&context), dockerfile::ContextAddress::Git(_))
    {
        let known: api::Task = connection.get(url.clone()).await?;
        SourceArgs::leave_git(&mut properties, &known);
    }
    if definition.changes_step() || definition.timeout.is_some() {
        let known: api::Task = connection.get(url.clone()).await?;
        let is_stored = matches!(known.properties.step, Some(api::TaskStep::EncodedTask(_)));
        let has_text = definition.file.is_some() || definition.cmd.is_some();
        if is_stored && definition.timeout.is_some() && !has_text {
            return Err(Error::usage(
                "`--timeout` alone does not change a task that has its file stored: its steps have \
                 time limits of their own",
            )
            .with_hint("give the file or the command again, with `--file` or `--cmd`"));
        }
        if definition.changes_step() {
            let mut step = definition.step(session, Some(&known)).await?;
            // It was created without a name, so that there was nothing to push.
            if let Some(api::TaskStep::Docker(before)) = &known.properties.step
                && before.image_names.is_empty()
                && !definition.images.is_empty()
                && definition.no_push.is_none()
            {
                step.insert("isPushEnabled".into(), json!(true));
            }
            properties.insert("step".into(), step.into());
        }
    }
    if properties.is_empty() {
        return Err(Error::usage("there is nothing to change"));
    }
    let body = json!({ "properties": properties });
    let request = connection.request(reqwest::Method::PATCH, url).json(&body);
    let task: api::Task = connection.answer(request).await?;
    print(session, &task, std::slice::from_ref(&task))
}

/// What kind of step there is, and where its file is.
enum Kind {
    Docker(Option<String>),
    /// A task file in the context.
    File(Option<String>),
    /// A task file of its own.
    Stored(Option<String>),
}

impl DefinitionArgs {
    fn agent_configuration(&self) -> Option<Value> {
        let mut members = Map::new();
        members.extend(self.cpu.map(|cpu| ("cpu".to_owned(), json!(cpu))));
        let places: Vec<_> = self.egress.iter().filter(|place| !place.is_empty()).collect();
        // An empty one takes them away.
        members.extend((!self.egress.is_empty()).then(|| ("egress".to_owned(), json!(places))));
        (!members.is_empty()).then_some(Value::Object(members))
    }

    /// The members besides the step that are given.
    fn properties(&self) -> Result<Map<String, Value>> {
        self.unsupported.refuse()?;
        check_timeout(self.timeout)?;
        let mut members = Map::new();
        let mut add = |name: &str, value: Option<Value>| {
            members.extend(value.map(|value| (name.to_owned(), value)));
        };
        add("status", self.status.as_ref().map(|status| json!(status)));
        let platform = self.platform.as_deref().map(parse_platform).transpose()?;
        add("platform", platform.map(|platform| json!(platform)));
        add("timeout", self.timeout.map(|timeout| json!(timeout)));
        add("agentConfiguration", self.agent_configuration());
        add("agentPoolName", self.agent_pool.as_ref().map(|pool| json!(pool)));
        add("credentials", self.auth.credentials().map(|credentials| json!(credentials)));
        add("owner", self.owner.as_ref().map(|owner| json!(owner)));
        add("description", self.description.as_ref().map(|text| json!(text)));
        // An empty one takes it away.
        let or_null = |text: &String| if text.is_empty() { Value::Null } else { json!(text) };
        add("expiresOn", self.expires_on.as_ref().map(or_null));
        add("logTemplate", self.log_template.as_ref().map(or_null));
        add("outputRetention", self.output_retention());
        add("promotion", self.promotion());
        let timers = timer::of_schedules(&self.schedules);
        let trigger = json!({ "timerTriggers": timers });
        add("trigger", (!timers.is_empty()).then_some(trigger));
        Ok(members)
    }

    fn changes_base_trigger(&self) -> bool {
        self.base_image_trigger_enabled.is_some()
            || self.base_image_trigger_type.is_some()
            || self.base_image_trigger_urgent.is_some()
            || self.base_image_trigger_name.is_some()
    }

    /// Adds what is said of the trigger by base images; of a new one also what is not.
    fn add_base_trigger(&self, properties: &mut Map<String, Value>, is_new: bool) {
        let default = |text: &str| is_new.then(|| text.to_owned());
        let word = |enabled| if enabled { "Enabled" } else { "Disabled" }.to_owned();
        let members = [
            ("name", self.base_image_trigger_name.clone().or(default(BASE_TRIGGER))),
            ("baseImageTriggerType", self.base_image_trigger_type.clone().or(default("Runtime"))),
            ("status", self.base_image_trigger_enabled.map(word).or(default("Enabled"))),
        ];
        let mut members: Map<String, Value> = members
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), json!(value?))))
            .collect();
        if let Some(urgent) = self.base_image_trigger_urgent {
            members.insert("urgent".to_owned(), json!(urgent));
        }
        let trigger = properties.entry("trigger").or_insert_with(|| json!({}));
        trigger["baseImageTrigger"] = members.into();
    }

    /// What its images need before they are promoted.
    fn promotion(&self) -> Option<Value> {
        let mut members = Map::new();
        let checks: Vec<_> = self.checks.iter().filter(|name| !name.is_empty()).collect();
        // An empty one takes them away.
        members.extend((!self.checks.is_empty()).then(|| ("checks".to_owned(), json!(checks))));
        members.extend(self.approval.map(|is| ("approvalRequired".to_owned(), json!(is))));
        (!members.is_empty()).then_some(Value::Object(members))
    }

    /// Which images of its runs stay.
    fn output_retention(&self) -> Option<Value> {
        match (self.output_retention_days, self.output_retention_keep) {
            (None, None) => None,
            (None | Some(0), None | Some(0)) => Some(Value::Null),
            (days, keep) => Some(json!(api::OutputRetention { days, keep })),
        }
    }

    fn changes_step(&self) -> bool {
        self.context.is_some()
            || self.file.is_some()
            || self.cmd.is_some()
            || !self.images.is_empty()
            || !self.args.is_empty()
            || !self.secret_args.is_empty()
            || !self.values.is_empty()
            || self.values_file.is_some()
            || self.target.is_some()
            || self.no_cache.is_some()
            || self.no_push.is_some()
            || self.git_access_token.is_some()
    }

    /// The step as a request has it: all of a new one, or what changes of a known one.
    async fn step(
        &self,
        session: &Session<'_>,
        known: Option<&api::Task>,
    ) -> Result<Map<String, Value>> {
        let mut step = Map::new();
        let context = self.context_address()?;
        let known_step = known.and_then(|task| task.properties.step.as_ref());
        let stays = context.is_none().then(|| known_step.and_then(context_of)).flatten();
        let context = context.or(stays).filter(|address| !address.is_empty());
        let timeout = known.and_then(|task| task.properties.timeout);
        let kind = self.kind(context.is_some(), known_step, timeout).await?;
        step.insert("contextPath".into(), json!(context));
        let token = self.token().await?;
        step.extend(token.map(|token| ("contextAccessToken".to_owned(), json!(token))));
        let base64 = |text: String| base64::engine::general_purpose::STANDARD.encode(text);
        let values = self.values.values()?;
        match kind {
            Kind::Docker(file) => {
                self.refuse_for_docker()?;
                step.insert("type".into(), json!("Docker"));
                step.extend(file.map(|file| ("dockerFilePath".to_owned(), json!(file))));
                self.add_build(&mut step, session)?;
            }
            Kind::File(file) => {
                self.refuse_for_tasks()?;
                step.insert("type".into(), json!("FileTask"));
                step.extend(file.map(|file| ("taskFilePath".to_owned(), json!(file))));
                let path = self.values_file.as_ref().map(|file| json!(file.to_string_lossy()));
                step.extend(path.map(|path| ("valuesFilePath".to_owned(), path)));
            }
            Kind::Stored(text) => {
                self.refuse_for_tasks()?;
                step.insert("type".into(), json!("EncodedTask"));
                let text = text.map(|text| json!(base64(text)));
                step.extend(text.map(|text| ("encodedTaskContent".to_owned(), text)));
                let text = self.values_file.as_deref().map(read_values_file).transpose()?;
                let text = text.map(|text| json!(base64(text)));
                step.extend(text.map(|text| ("encodedValuesContent".to_owned(), text)));
            }
        }
        if !values.is_empty() {
            step.insert("values".into(), json!(values));
        }
        Ok(step)
    }

    /// Runs.md section 2.1: what the context and the name of the file say.
    async fn kind(
        &self,
        has_context: bool,
        known: Option<&api::TaskStep>,
        known_timeout: Option<u32>,
    ) -> Result<Kind> {
        if let Some(command) = &self.cmd {
            let timeout = self.timeout.or(known_timeout).unwrap_or(TIMEOUT_DEFAULT);
            return Ok(Kind::Stored(Some(command_task(command, Some(timeout))?)));
        }
        match (&self.file, known) {
            (Some(file), _) if has_context && !is_stdin(file) => {
                let path = file.to_string_lossy().into_owned();
                Ok(match task::is_task_file(&path) {
                    true => Kind::File(Some(path)),
                    false => Kind::Docker(Some(path)),
                })
            }
            (Some(file), _) => {
                if !is_stdin(file) && !task::is_task_file(&file.to_string_lossy()) {
                    return Err(Error::usage("a task that builds an image needs a context")
                        .with_hint("give the address of a git repository with `--context`"));
                }
                let text = read_task_file(file).await?;
                match text.is_empty() {
                    true => Err(Error::usage("the task file is empty")),
                    false => Ok(Kind::Stored(Some(text))),
                }
            }
            (None, Some(known)) => Ok(match known {
                api::TaskStep::Docker(_) => Kind::Docker(None),
                api::TaskStep::FileTask(_) => Kind::File(None),
                api::TaskStep::EncodedTask(_) => Kind::Stored(None),
            }),
            (None, None) => Err(Error::usage("a task needs a file or a command")
                .with_hint("give one with `--file` or `--cmd`")),
        }
    }

    /// The token for the context; empty: there is to be none.
    async fn token(&self) -> Result<Option<String>> {
        if self.git_access_token.as_deref() != Some("-") {
            return Ok(self.git_access_token.clone());
        }
        if self.file.as_deref().is_some_and(is_stdin) {
            return Err(Error::usage("standard input cannot be both the task file and the token"));
        }
        match prompt::all_input().await? {
            token if token.is_empty() => Err(Error::usage("there is no token on standard input")),
            token => Ok(Some(token)),
        }
    }

    /// The address that is given; empty: none is wanted.
    fn context_address(&self) -> Result<Option<String>> {
        use dockerfile::ContextAddress;
        let Some(context) = &self.context else { return Ok(None) };
        match ContextAddress::of(context) {
            ContextAddress::Nothing => Ok(Some(String::new())),
            ContextAddress::Local => Err(Error::usage(format!(
                "`{context}` is not the address of a repository or archive"
            ))
            .with_hint(
                "a stored task works on a git repository or an archive; `refit run` and \
                         `refit task run` send a folder for one run",
            )),
            _ => Ok(Some(context.clone())),
        }
    }

    fn add_build(&self, step: &mut Map<String, Value>, session: &Session<'_>) -> Result<()> {
        if !self.images.is_empty() {
            step.insert("imageNames".into(), json!(self.images));
        }
        if !self.args.is_empty() || !self.secret_args.is_empty() {
            let arguments = named_values(&self.args, &self.secret_args, session.environment)?;
            step.insert("arguments".into(), json!(arguments));
        }
        let target = self.target.as_ref().map(|target| json!(target));
        step.extend(target.map(|target| ("target".to_owned(), target)));
        step.extend(self.no_cache.map(|no_cache| ("noCache".to_owned(), json!(no_cache))));
        step.extend(self.no_push.map(|no_push| ("isPushEnabled".to_owned(), json!(!no_push))));
        Ok(())
    }

    fn refuse_for_docker(&self) -> Result<()> {
        match !self.values.is_empty() || self.values_file.is_some() {
            true => {
                Err(Error::usage("values are for task files, and this task builds a Dockerfile")
                    .with_hint("give arguments with `--arg`"))
            }
            false => Ok(()),
        }
    }

    fn refuse_for_tasks(&self) -> Result<()> {
        let given = [
            ("--image", !self.images.is_empty()),
            ("--arg", !self.args.is_empty()),
            ("--secret-arg", !self.secret_args.is_empty()),
            ("--target", self.target.is_some()),
            ("--no-cache", self.no_cache.is_some()),
            ("--no-push", self.no_push.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((flag, _)) => Err(Error::usage(format!(
                "`{flag}` is for Dockerfiles, and this task has a task file"
            ))
            .with_hint("its steps say what is built and pushed; values come with `--set`")),
        }
    }
}

fn context_of(step: &api::TaskStep) -> Option<String> {
    let context = match step {
        api::TaskStep::Docker(step) => &step.context,
        api::TaskStep::FileTask(step) => &step.context,
        api::TaskStep::EncodedTask(step) => &step.context,
    };
    context.context_path.clone()
}
