//! One run or task, line by line.

use api::{OutputRetention, Run, Task, TaskStep};
use serde_json::Value;

use super::super::quick_task::ordinal;
use super::source;
use crate::printer::Table;

/// All that people ask of a run.
pub(super) fn run(run: &Run) -> Table {
    let run = &run.properties;
    let mut fields = Fields::new();
    fields.add("run", &run.run_id);
    fields.add_some("task", run.task.as_ref());
    fields.add("type", &run.run_type);
    fields.add("status", format!("{:?}", run.status));
    if let Some(waiting) = &run.waiting {
        let soon =
            waiting.expected_seconds.map(|seconds| format!("; usually begins in {seconds} s"));
        let line = ordinal(waiting.position);
        let soon = soon.unwrap_or_default();
        fields.add("waits", format!("{}; {line} in line{soon}", waiting.reason));
    }
    fields.add_some("error", run.run_error_message.as_ref());
    if let Some(cause) = &run.cause {
        let by = cause.principal.as_ref().map(|principal| format!(", by {principal}"));
        let timer = run.timer_trigger.as_ref().map(|timer| {
            format!(" {}, due at {}", timer.timer_trigger_name, timer.schedule_occurrence)
        });
        let images = run.image_update_trigger.as_ref().map(update_line);
        let source = run.source_trigger.as_ref().map(source_line);
        let plan = run.fleet_plan.as_ref().or(run.promotion.as_ref());
        let plan = plan.map(|name| format!(" {name}"));
        let more = [plan, by, timer, images, source].into_iter().flatten().collect::<String>();
        fields.add("cause", format!("{}{more}", cause.kind));
    }
    fields.add("platform", platform(&run.platform));
    fields.add_some("pool", run.agent_pool_name.as_ref());
    fields.add_some("agent", run.agent_name.as_ref());
    fields.add("created", &run.create_time);
    fields.add_some("started", run.start_time.as_ref());
    fields.add_some("finished", run.finish_time.as_ref());
    let took = duration(run.start_time.as_deref(), run.finish_time.as_deref());
    fields.add_some("duration", took.map(|seconds| format!("{seconds:.1} s")).as_ref());
    if let Some(commit) = &run.commit_id {
        let branch = run.branch_name.as_ref().map(|branch| format!(" ({branch})"));
        fields.add("commit", format!("{commit}{}", branch.unwrap_or_default()));
    }
    for image in &run.output_images {
        let tag = image.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        fields
            .add("image", format!("{}/{}{tag}@{}", image.registry, image.repository, image.digest));
    }
    if run.output_images.is_empty() {
        fields.add_some("digest", run.output_digest.as_ref());
    }
    if let Some(image) = &run.log_artifact {
        let tag = image.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        let name = format!("{}/{}{tag}@{}", image.registry, image.repository, image.digest);
        fields.add("log artifact", name);
    }
    fields.add_some("no log artifact", run.log_artifact_error.as_ref());
    for registry in &run.custom_registries {
        fields.add("logged in to", registry);
    }
    let steps = run.cost.as_ref().and_then(|cost| cost["steps"].as_array());
    for step in steps.into_iter().flatten() {
        fields.add("step", step_line(step));
    }
    fields.add_some("definition", run.definition_digest.as_ref());
    fields.add_some("log", run.log_digest.as_ref());
    if run.is_archive_enabled {
        fields.add("kept", "for ever");
    }
    fields.table
}

/// All that people ask of a task.
pub(super) fn task(task: &Task) -> Table {
    let properties = &task.properties;
    let mut fields = Fields::new();
    fields.add("task", &task.name);
    fields.add_some("status", properties.status.as_ref());
    fields.add_some("description", properties.description.as_ref());
    fields.add_some("owner", properties.owner.as_ref());
    fields.add_some("expires", properties.expires_on.as_ref());
    fields.add_some("platform", properties.platform.as_ref().map(platform).as_ref());
    fields.add_some("pool", properties.agent_pool_name.as_ref());
    fields.add_some("timeout", properties.timeout.map(|seconds| format!("{seconds} s")).as_ref());
    let cpu = properties.agent_configuration.as_ref().and_then(|agent| agent.cpu);
    fields.add_some("processors", cpu.map(|cpu| cpu.to_string()).as_ref());
    let places = properties.agent_configuration.as_ref().map(|agent| agent.egress.join(" "));
    fields.add_some("connects to", places.filter(|places| !places.is_empty()).as_ref());
    fields.add_some("log template", properties.log_template.as_ref());
    let retention = properties.output_retention.as_ref();
    fields.add_some("images stay", retention.map(kept_outputs).as_ref());
    let promotion = properties.promotion.as_ref();
    let checks = promotion.map(|rules| rules.checks.join(" ")).filter(|checks| !checks.is_empty());
    fields.add_some("promoted after", checks.as_ref());
    let approval = promotion.is_some_and(|rules| rules.approval_required);
    fields.add_some("promoted by", approval.then_some("somebody's approval"));
    let timers = properties.trigger.as_ref().and_then(|all| all.timer_triggers.as_ref());
    for timer in timers.into_iter().flatten() {
        fields.add("timer", timer_line(timer));
    }
    let sources = properties.trigger.as_ref().and_then(|all| all.source_triggers.as_ref());
    for source in sources.into_iter().flatten() {
        fields.add("source trigger", source::line(source));
    }
    let bases = properties.trigger.as_ref().and_then(|all| all.base_image_trigger.as_ref());
    let line = |base: &api::BaseImageTrigger| {
        let status = base.status.as_deref().unwrap_or("Enabled");
        format!("{} of type {}; {status}", base.name, base.base_image_trigger_type)
    };
    fields.add_some("base trigger", bases.map(line).as_ref());
    if let Some(step) = &properties.step {
        add_step(&mut fields, step);
    }
    let credentials = properties.credentials.as_ref();
    let source = credentials.and_then(|all| all.source_registry.as_ref());
    let mode = source.and_then(|source| source.login_mode.as_ref());
    fields.add_some("own registry", mode.filter(|mode| *mode != "Default"));
    let identity = source.and_then(|source| source.identity.as_ref());
    fields.add_some("own registry as", identity);
    let registries = credentials.and_then(|all| all.custom_registries.as_ref());
    for (registry, _) in registries.into_iter().flatten().filter(|(_, login)| login.is_some()) {
        fields.add("logs in to", registry);
    }
    if let Some(identity) = &task.identity {
        fields.add_some("identity", identity.principal_id.as_ref().map(|_| "[system]"));
        for (name, _) in identity.user_assigned_identities.iter().flatten() {
            fields.add("identity", name);
        }
    }
    for (name, value) in task.tags.iter().flatten() {
        fields.add("tag", format!("{name}={value}"));
    }
    fields.add_some("created", properties.creation_date.as_ref());
    fields.add_some("changed", properties.last_updated_time.as_ref());
    fields.add_some("definition", properties.definition_digest.as_ref());
    fields.table
}

/// The images of an update, and the runs before it.
fn update_line(update: &api::ImageUpdateCause) -> String {
    let image = |image: &api::ImageDescriptor| {
        let tag = image.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        format!("{}/{}{tag}@{}", image.registry, image.repository, image.digest)
    };
    let images: Vec<_> = update.images.iter().map(image).collect();
    let chain =
        update.chain.iter().map(|link| format!(", after run {} of {}", link.run_id, link.task));
    format!(": {}{}", images.join(", "), chain.collect::<String>())
}

/// The commit or the pull request that started a run.
fn source_line(cause: &api::SourceTriggerCause) -> String {
    let number = cause.pull_request_id.as_ref().map(|number| format!(" {number} into"));
    let by = cause.provider_type.as_ref().map(|host| format!(", told by {host}"));
    let (number, by) = (number.unwrap_or_default(), by.unwrap_or_default());
    format!(
        "{number} {} of {}, at {}{by}",
        cause.branch_name, cause.repository_url, cause.commit_id
    )
}

fn timer_line(timer: &api::TimerTrigger) -> String {
    let zone = timer.time_zone.as_deref().unwrap_or("UTC");
    let next = match &timer.next_occurrence {
        Some(next) => format!("due at {next}"),
        None => timer.status.clone().unwrap_or_default(),
    };
    format!("{}: {} {zone}; {next}", timer.name, timer.schedule)
}

fn add_step(fields: &mut Fields, step: &TaskStep) {
    let (context, values) = match step {
        TaskStep::Docker(step) => {
            fields.add("builds", &step.docker_file_path);
            for name in &step.image_names {
                fields.add(if step.is_push_enabled { "pushes" } else { "names" }, name);
            }
            fields.add_some("target", step.target.as_ref());
            (&step.context, &step.arguments)
        }
        TaskStep::FileTask(step) => {
            fields.add("runs", &step.task_file_path);
            fields.add_some("values", step.values_file_path.as_ref());
            (&step.context, &step.values)
        }
        TaskStep::EncodedTask(step) => {
            fields.add("runs", "its own file");
            (&step.context, &step.values)
        }
    };
    fields.add_some("context", context.context_path.as_ref());
    for value in values {
        let text = value.value.as_deref().filter(|_| !value.is_secret).unwrap_or("***");
        fields.add("value", format!("{}={text}", value.name));
    }
    for base in context.base_image_dependencies.iter().flatten() {
        let tag = base.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        let digest = base.digest.as_ref().map(|digest| format!("@{digest}")).unwrap_or_default();
        let name = format!("{}/{}{tag}{digest}", base.registry, base.repository);
        fields.add(if base.kind == "RunTime" { "stands on" } else { "built with" }, name);
    }
}

fn kept_outputs(rule: &OutputRetention) -> String {
    let days = rule.days.filter(|days| *days > 0).map(|days| format!("{days} days"));
    let runs = rule.keep.filter(|runs| *runs > 0).map(|runs| format!("those of {runs} runs"));
    days.into_iter().chain(runs).collect::<Vec<_>>().join(", and ")
}

pub(super) fn platform(platform: &api::PlatformProperties) -> String {
    let parts = [Some(&platform.os), platform.architecture.as_ref(), platform.variant.as_ref()];
    parts.into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join("/")
}

fn step_line(step: &Value) -> String {
    let text = |member: &str| step[member].as_str().unwrap_or_default();
    let seconds = step["milliseconds"].as_f64().unwrap_or_default() / 1000.0;
    format!("{} {}, {seconds:.1} s", text("id"), text("state"))
}

/// Seconds between two times.
fn duration(from: Option<&str>, to: Option<&str>) -> Option<f64> {
    let time = |text: Option<&str>| text?.parse::<jiff::Timestamp>().ok();
    Some(time(from)?.duration_until(time(to)?).as_secs_f64())
}

struct Fields {
    table: Table,
}

impl Fields {
    fn new() -> Self {
        Self { table: Table::new(["FIELD", "VALUE"]) }
    }

    fn add(&mut self, name: &str, value: impl ToString) {
        self.table.row([name.to_owned(), value.to_string()]);
    }

    fn add_some(&mut self, name: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }
}
