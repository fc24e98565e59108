//! What starts runs of a task (triggers.md).

use control::{BaseImageTrigger, Schedule, TaskTriggers, TimerTrigger};
use serde_json::{Map, Value};

use super::cut;
use super::stored_tasks::status;
use crate::error::ApiError;

/// Timers of one task.
const TIMERS_MAX: usize = 20;
/// Bytes of the name of a trigger.
const NAME_MAX: usize = 64;

pub(super) fn triggers(given: Option<api::TaskTriggers>) -> Result<TaskTriggers, ApiError> {
    let given = given.unwrap_or_default();
    if given.source_triggers.is_some_and(|sources| !sources.is_empty()) {
        let message = "source triggers are not supported yet";
        return Err(ApiError::invalid(message).at("trigger.sourceTriggers"));
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
    Ok(TaskTriggers { timers, base_image })
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
    Ok(BaseImageTrigger { name, enabled, buildtime })
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
