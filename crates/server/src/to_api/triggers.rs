//! What starts runs of tasks, and what became of it.

use control::{
    Foreseen, LedgerEntry, Link, MovedBase, Pause, PauseScope, Run, RunCause, SourceTrigger,
    StoredTask, TaskName, TokenType, WatchStatus,
};
use oci::RegistryName;
use store::Millis;

use super::time;

pub(super) fn of(task: &StoredTask) -> Option<api::TaskTriggers> {
    let triggers = &task.definition.triggers;
    if triggers.is_empty() {
        return None;
    }
    let timers = triggers.timers.iter().map(|timer| api::TimerTrigger {
        name: timer.name.clone(),
        schedule: timer.schedule.text().to_owned(),
        status: Some(word(timer.enabled).into()),
        time_zone: timer.schedule.zone().map(str::to_owned),
        next_occurrence: None,
    });
    let timers: Vec<_> = timers.collect();
    let sources: Vec<_> =
        triggers.sources.iter().map(|source| self::source(task, source)).collect();
    let base_image = triggers.base_image.as_ref().map(|base| api::BaseImageTrigger {
        name: base.name.clone(),
        base_image_trigger_type: if base.buildtime { "All" } else { "Runtime" }.into(),
        status: Some(word(base.enabled).into()),
        urgent: base.urgent.then_some(true),
        update_trigger_endpoint: None,
        update_trigger_payload_type: Some("Default".into()),
    });
    Some(api::TaskTriggers {
        timer_triggers: (!timers.is_empty()).then_some(timers),
        source_triggers: (!sources.is_empty()).then_some(sources),
        base_image_trigger: base_image,
    })
}

fn source(task: &StoredTask, source: &SourceTrigger) -> api::SourceTrigger {
    let context = task.definition.context.as_ref();
    let events = [("commit", source.commits), ("pullrequest", source.pull_requests)];
    let events = events.into_iter().filter(|(_, is_waited_for)| *is_waited_for);
    let kind = match source.token_type {
        TokenType::Pat => "PAT",
        TokenType::OAuth => "OAuth",
    };
    api::SourceTrigger {
        name: source.name.clone(),
        status: Some(word(source.enabled).into()),
        source_trigger_events: events.map(|(event, _)| event.to_owned()).collect(),
        source_repository: api::SourceRepository {
            source_control_type: Some(source.control_type.as_str().into()),
            repository_url: context.map(|context| context.address.clone()),
            branch: context.and_then(|context| source.branch_of(context)),
            source_control_auth_properties: source.token.is_some().then(|| {
                api::SourceControlAuth {
                    token_type: Some(kind.into()),
                    ..api::SourceControlAuth::default()
                }
            }),
        },
        webhook_secret: None,
        webhook_path: Some(webhook_path(&task.registry, &task.name, &source.name)),
        has_webhook_secret: Some(source.secret.is_some()),
        poll_seconds: source.poll.map(|poll| poll.as_secs() as u32),
    }
}

/// Where the host of a source trigger sends its deliveries to.
pub(crate) fn webhook_path(registry: &RegistryName, task: &TaskName, trigger: &str) -> String {
    format!("/hooks/{registry}/{task}/{trigger}")
}

fn word(enabled: bool) -> &'static str {
    if enabled { "Enabled" } else { "Disabled" }
}

/// Adds when timers fire next, where they do.
pub(crate) fn with_next(
    mut shown: api::Task,
    task: &StoredTask,
    next: &[(String, Millis)],
    now: Millis,
) -> api::Task {
    let timers = shown.properties.trigger.as_mut().and_then(|all| all.timer_triggers.as_mut());
    if task.definition.asleep(now).is_none() {
        for timer in timers.into_iter().flatten() {
            let next = next.iter().find(|(name, _)| *name == timer.name);
            timer.next_occurrence = next.map(|(_, next)| time(*next));
        }
    }
    shown
}

pub(super) fn cause(run: &Run) -> api::RunCause {
    let kind = match &run.cause {
        None => "Manual",
        Some(RunCause::Timer { .. }) => "Timer",
        Some(RunCause::BaseImages { .. }) => "Image Update",
        Some(RunCause::Source(cause)) if cause.pull_request.is_some() => "Pull Request",
        Some(RunCause::Source(_)) => "Commit",
        Some(RunCause::Plan { .. }) => "Plan",
        Some(RunCause::Check { .. }) => "Check",
    };
    let principal = match &run.cause {
        Some(RunCause::Plan { by, .. } | RunCause::Check { by, .. }) => Some(by.clone()),
        _ => run.started_by.clone(),
    };
    api::RunCause { kind: kind.into(), principal }
}

pub(super) fn plan_cause(cause: &RunCause) -> Option<String> {
    let RunCause::Plan { plan, .. } = cause else { return None };
    Some(plan.clone())
}

pub(super) fn check_cause(cause: &RunCause) -> Option<String> {
    let RunCause::Check { promotion, .. } = cause else { return None };
    Some(promotion.clone())
}

pub(super) fn timer_cause(cause: &RunCause) -> Option<api::TimerCause> {
    let RunCause::Timer { name, occurrence, missed } = cause else { return None };
    Some(api::TimerCause {
        timer_trigger_name: name.clone(),
        schedule_occurrence: time(*occurrence),
        missed_occurrences: (*missed > 0).then_some(*missed as u64),
    })
}

pub(super) fn image_cause(cause: &RunCause) -> Option<api::ImageUpdateCause> {
    let RunCause::BaseImages { id, at, images, chain, .. } = cause else { return None };
    let image = |image: &MovedBase| api::ImageDescriptor {
        registry: image.registry.clone(),
        repository: image.repository.clone(),
        tag: Some(image.tag.clone()),
        digest: image.digest.to_string(),
    };
    let link = |link: &Link| api::CauseLink {
        registry: link.registry.to_string(),
        task: link.task.to_string(),
        run_id: link.run.to_string(),
    };
    Some(api::ImageUpdateCause {
        id: id.to_string(),
        timestamp: time(*at),
        images: images.iter().map(image).collect(),
        chain: chain.iter().map(link).collect(),
    })
}

pub(super) fn source_cause(cause: &RunCause) -> Option<api::SourceTriggerCause> {
    let RunCause::Source(cause) = cause else { return None };
    let is_request = cause.pull_request.is_some();
    Some(api::SourceTriggerCause {
        id: cause.id.to_string(),
        event_type: if is_request { "pullrequest" } else { "commit" }.into(),
        commit_id: cause.commit.clone(),
        pull_request_id: cause.pull_request.map(|number| number.to_string()),
        repository_url: cause.repository.clone(),
        branch_name: cause.branch.clone(),
        provider_type: cause.host.map(|host| host.as_str().to_owned()),
        source_trigger_name: cause.name.clone(),
    })
}

/// `own_host`: what the registry is called.
pub(crate) fn trigger_pause(pause: &Pause, own_host: &str) -> api::TriggerPause {
    let (task, base) = match &pause.scope {
        PauseScope::All => (None, None),
        PauseScope::Task(task) => (Some(task.to_string()), None),
        PauseScope::Base(base) => (None, Some(base.named(own_host))),
    };
    api::TriggerPause {
        task,
        base,
        reason: pause.reason.clone(),
        start_time: time(pause.since),
        end_time: pause.ends_at.map(time),
        principal: pause.by.clone(),
    }
}

pub(crate) fn simulated(foreseen: &Foreseen, own_host: &str) -> api::SimulatedDecision {
    api::SimulatedDecision {
        task: foreseen.task.to_string(),
        kind: foreseen.kind.as_str().into(),
        trigger: foreseen.trigger.clone(),
        level: foreseen.level as u64,
        decision: foreseen.decision.as_str().into(),
        reason: foreseen.reason.clone(),
        images: foreseen.images.iter().map(|image| image.named(own_host)).collect(),
    }
}

pub(crate) fn trigger_watch(watch: &WatchStatus) -> api::TriggerWatch {
    api::TriggerWatch {
        image: format!("{}/{}:{}", watch.host, watch.repository, watch.tag),
        digest: watch.digest.as_ref().map(ToString::to_string),
        settling_digest: watch.settling.as_ref().map(ToString::to_string),
        last_time: watch.asked_at.map(time),
        next_time: time(watch.next_at),
        error: watch.error.clone(),
    }
}

pub(crate) fn trigger_event(entry: &LedgerEntry) -> api::TriggerEvent {
    api::TriggerEvent {
        number: entry.number,
        time: time(entry.at),
        first_time: (entry.count > 1).then(|| time(entry.since)),
        count: entry.count,
        task: entry.task.to_string(),
        kind: entry.kind.as_str().into(),
        trigger: entry.name.clone(),
        event: entry.event.clone(),
        decision: entry.decision.as_str().into(),
        reason: entry.reason.clone(),
        run_id: entry.run.map(|run| run.to_string()),
    }
}
