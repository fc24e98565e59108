//! What starts runs of tasks, and what became of it.

use control::{LedgerEntry, Run, RunCause, StoredTask, TaskTriggers};
use store::Millis;

use super::time;

pub(super) fn of(triggers: &TaskTriggers) -> Option<api::TaskTriggers> {
    if triggers.is_empty() {
        return None;
    }
    let timers = triggers.timers.iter().map(|timer| api::TimerTrigger {
        name: timer.name.clone(),
        schedule: timer.schedule.text().to_owned(),
        status: Some(if timer.enabled { "Enabled" } else { "Disabled" }.into()),
        time_zone: timer.schedule.zone().map(str::to_owned),
        next_occurrence: None,
    });
    let timers: Vec<_> = timers.collect();
    Some(api::TaskTriggers {
        timer_triggers: (!timers.is_empty()).then_some(timers),
        ..api::TaskTriggers::default()
    })
}

/// Adds when timers fire next, where they do.
pub(crate) fn with_next(mut shown: api::Task, task: &StoredTask, now: Millis) -> api::Task {
    let timers = shown.properties.trigger.as_mut().and_then(|all| all.timer_triggers.as_mut());
    if task.definition.asleep(now).is_none() {
        for (shown, timer) in timers.into_iter().flatten().zip(&task.definition.triggers.timers) {
            let next = timer.schedule.next_after(now).filter(|_| timer.enabled);
            shown.next_occurrence = next.map(time);
        }
    }
    shown
}

pub(super) fn cause(run: &Run) -> api::RunCause {
    let kind = match &run.cause {
        None => "Manual",
        Some(RunCause::Timer { .. }) => "Timer",
    };
    api::RunCause { kind: kind.into(), principal: run.started_by.clone() }
}

pub(super) fn timer_cause(cause: &RunCause) -> api::TimerCause {
    let RunCause::Timer { name, occurrence, missed } = cause;
    api::TimerCause {
        timer_trigger_name: name.clone(),
        schedule_occurrence: time(*occurrence),
        missed_occurrences: (*missed > 0).then_some(*missed as u64),
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
