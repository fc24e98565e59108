//! Runs of task files (runs.md section 1.3).

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use control::{ContextSource, TaskRequest, TaskText, TaskValue};

use super::logins::logins_of_run;
use super::{ITEMS_MAX, cut, path_in_source, platform, timeout};
use crate::error::ApiError;

/// Bytes of a task file, and of a values file, as the engine takes them.
const TEXT_SIZE_MAX: usize = 1 << 20;

/// Bytes of the names and values of one run together, as the engine takes them.
const VALUES_SIZE_MAX: usize = 1 << 20;

/// Processors of one container.
const CPU: std::ops::RangeInclusive<u32> = 1..=1024;

/// A task file that is in the context, as its values file is.
pub(crate) fn file_task_request(
    body: api::FileTaskRunRequest,
    context: ContextSource,
    timeout_default: Duration,
) -> Result<TaskRequest, ApiError> {
    let file = path_in_source(body.task_file_path, "taskFilePath")?;
    let values_file = body.values_file_path.filter(|path| !path.is_empty());
    let values_file = values_file.map(|path| path_in_source(path, "valuesFilePath")).transpose()?;
    let (file, values_file) = (TaskText::InContext(file), values_file.map(TaskText::InContext));
    task_request(file, values_file, body.options, Some(context), timeout_default)
}

/// A task file that came with the request, as its values file did.
pub(crate) fn encoded_task_request(
    body: api::EncodedTaskRunRequest,
    context: Option<ContextSource>,
    timeout_default: Duration,
) -> Result<TaskRequest, ApiError> {
    let (file, values_file) =
        encoded_texts(&body.encoded_task_content, body.encoded_values_content)?;
    task_request(file, values_file, body.options, context, timeout_default)
}

/// A task file and its values file, both in Base64.
pub(super) fn encoded_texts(
    file: &str,
    values_file: Option<String>,
) -> Result<(TaskText, Option<TaskText>), ApiError> {
    if file.is_empty() {
        return Err(ApiError::invalid("the task file is empty").at("encodedTaskContent"));
    }
    let file = decoded(file, "encodedTaskContent")?;
    let values_file = values_file.filter(|content| !content.is_empty());
    let values_file = values_file.map(|content| decoded(&content, "encodedValuesContent"));
    Ok((TaskText::Inline(file), values_file.transpose()?.map(TaskText::Inline)))
}

fn task_request(
    file: TaskText,
    values_file: Option<TaskText>,
    options: api::TaskRunOptions,
    context: Option<ContextSource>,
    timeout_default: Duration,
) -> Result<TaskRequest, ApiError> {
    Ok(TaskRequest {
        logins: logins_of_run(options.credentials)?,
        file,
        values_file,
        values: values(options.values)?,
        context,
        timeout: timeout(options.timeout, timeout_default)?,
        platform: platform(&options.platform)?,
        archived: options.is_archive_enabled,
        egress: Vec::new(),
    })
}

/// The text of a member in Base64.
fn decoded(content: &str, member: &str) -> Result<String, ApiError> {
    let refuse = |message: String| ApiError::invalid(message).at(member);
    let bytes = base64::engine::general_purpose::STANDARD.decode(content);
    let bytes = bytes.map_err(|error| refuse(format!("it is not in Base64: {error}")))?;
    if bytes.len() > TEXT_SIZE_MAX {
        let refused = refuse(format!("the text has more than {TEXT_SIZE_MAX} bytes"));
        return Err(refused.hint("move scripts and data into files of the context"));
    }
    String::from_utf8(bytes).map_err(|_| refuse("it is not a text in UTF-8".to_owned()))
}

/// Each name once: the last one counts.
pub(super) fn values(values: Vec<api::SetValue>) -> Result<Vec<TaskValue>, ApiError> {
    let refuse = |message: String| ApiError::invalid(message).at("values");
    if values.len() > ITEMS_MAX {
        return Err(refuse(format!("more than {ITEMS_MAX} values")));
    }
    let mut size = 0;
    let mut by_name = BTreeMap::new();
    for api::SetValue { name, value, is_secret } in values {
        if name.is_empty() {
            return Err(refuse("a value has no name".to_owned()));
        }
        let Some(value) = value else {
            return Err(refuse(format!("`{}` has no value", cut(&name)))
                .hint("an empty value is an empty text"));
        };
        size += name.len() + value.len();
        by_name.insert(name.clone(), TaskValue { name, value, secret: is_secret });
    }
    match size > VALUES_SIZE_MAX {
        true => Err(refuse(format!("the values have more than {VALUES_SIZE_MAX} bytes"))
            .hint("put large values into a values file or the context")),
        false => Ok(by_name.into_values().collect()),
    }
}

/// Processors that the containers of a run may have.
pub(crate) fn cpu(agent: Option<&api::AgentProperties>) -> Result<Option<u32>, ApiError> {
    match agent.and_then(|agent| agent.cpu) {
        Some(cpu) if !CPU.contains(&cpu) => {
            let (least, most) = (CPU.start(), CPU.end());
            let message = format!("a run has {least} to {most} processors");
            Err(ApiError::invalid(message).at("agentConfiguration"))
        }
        cpu => Ok(cpu),
    }
}

/// Where the containers of a run may connect to.
pub(crate) fn egress(agent: Option<&api::AgentProperties>) -> Result<Vec<String>, ApiError> {
    let places = agent.map(|agent| agent.egress.clone()).unwrap_or_default();
    let checked = crate::egress::parse(&places, None);
    checked.map_err(|message| ApiError::invalid(message).at("agentConfiguration"))?;
    Ok(places)
}

pub(crate) fn task_name(text: &str) -> Result<control::TaskName, ApiError> {
    text.parse().map_err(|error: control::BadTaskName| ApiError::invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use oci::Digest;
    use serde_json::{Value, json};

    use super::*;
    use crate::from_api::SourceLocation;

    const HOUR: Duration = Duration::from_secs(3600);

    fn base64(text: impl AsRef<[u8]>) -> String {
        base64::engine::general_purpose::STANDARD.encode(text)
    }

    fn parse(body: Value) -> Result<TaskRequest, ApiError> {
        let found = |location| match location {
            SourceLocation::Upload(_) => ContextSource::Upload(Digest::of(b"")),
            SourceLocation::Remote(remote) => ContextSource::Remote(remote),
        };
        match serde_json::from_value(body).unwrap() {
            api::RunRequest::FileTaskRunRequest(body) => {
                let location = body.options.source_location.clone();
                let location = SourceLocation::needed("a task file", location.as_deref())?;
                file_task_request(body, found(location), HOUR)
            }
            api::RunRequest::EncodedTaskRunRequest(body) => {
                let location = body.options.source_location.clone();
                let location = SourceLocation::of(location.as_deref())?;
                encoded_task_request(body, location.map(found), HOUR)
            }
            other => panic!("{other:?}"),
        }
    }

    fn with(mut whole: Value, more: &Value) -> Value {
        for (key, value) in more.as_object().unwrap() {
            whole[key] = value.clone();
        }
        whole
    }

    fn file_task(more: &Value) -> Value {
        let whole = json!({
            "type": "FileTaskRunRequest",
            "taskFilePath": "acb.yaml",
            "platform": { "os": "Linux", "architecture": "amd64" },
            "sourceLocation": "source/x.tar.gz",
        });
        with(whole, more)
    }

    fn encoded_task(more: &Value) -> Value {
        let whole = json!({
            "type": "EncodedTaskRunRequest",
            "encodedTaskContent": base64("steps: []\n"),
            "platform": { "os": "Linux" },
        });
        with(whole, more)
    }

    #[track_caller]
    fn check_refused(body: Value, expected: Expect) {
        let error = parse(body).unwrap_err();
        let target = error.target.unwrap_or_default();
        let hint = error.hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
        expected.assert_eq(&format!("{target}: {}{hint}", error.message));
    }

    #[test]
    fn a_task_file_is_in_the_context_or_in_the_request() {
        let request = parse(file_task(&json!({ "valuesFilePath": "env/prod.yaml" }))).unwrap();
        assert_eq!(request.file, TaskText::InContext("acb.yaml".into()));
        assert_eq!(request.values_file, Some(TaskText::InContext("env/prod.yaml".into())));
        assert_eq!(request.context, Some(ContextSource::Upload(Digest::of(b""))));
        assert_eq!((request.timeout, request.archived), (HOUR, false));
        let values = json!({ "encodedValuesContent": base64("a: 1") });
        let request = parse(encoded_task(&values)).unwrap();
        assert_eq!(request.file, TaskText::Inline("steps: []\n".into()));
        assert_eq!(request.values_file, Some(TaskText::Inline("a: 1".into())));
        assert_eq!(request.context, None);
    }

    #[test]
    fn a_task_in_the_request_may_have_a_context_or_none() {
        for none in ["", "/dev/null", "/DEV/NULL"] {
            let request = parse(encoded_task(&json!({ "sourceLocation": none }))).unwrap();
            assert_eq!(request.context, None, "{none}");
        }
        let place = json!({ "sourceLocation": "https://me:pw@example.com/x.git#main" });
        let request = parse(encoded_task(&place)).unwrap();
        assert_eq!(request.secrets().collect::<Vec<_>>(), ["me:pw", "pw"]);
    }

    #[test]
    fn of_values_with_one_name_the_last_counts() {
        let values = json!({ "values": [
            { "name": "a", "value": "1", "isSecret": true },
            { "name": "b.c", "value": "x=y" },
            { "name": "a", "value": "" },
        ]});
        let request = parse(encoded_task(&values)).unwrap();
        assert_eq!(format!("{:?}", request.values), "[a=, b.c=x=y]");
        let values = json!({ "values": [{ "name": "a", "value": "hunter2", "isSecret": true }] });
        let request = parse(file_task(&values)).unwrap();
        assert_eq!(request.secrets().collect::<Vec<_>>(), ["hunter2"]);
    }

    #[test]
    fn members_that_clients_send_as_a_matter_of_course_are_taken() {
        let more = json!({
            "agentConfiguration": { "cpu": 2 },
            "credentials": { "sourceRegistry": { "loginMode": "default" }, "customRegistries": {} },
            "isArchiveEnabled": true,
            "timeout": 300,
        });
        for body in [file_task(&more), encoded_task(&more)] {
            let request = parse(body).unwrap();
            assert_eq!((request.timeout, request.archived), (Duration::from_secs(300), true));
        }
    }

    #[test]
    fn what_cannot_be_right_is_refused_by_name() {
        check_refused(
            file_task(&json!({ "taskFilePath": "../acb.yaml" })),
            expect!["taskFilePath: `../acb.yaml` is not a path inside the source"],
        );
        check_refused(
            file_task(&json!({ "valuesFilePath": "/etc/passwd" })),
            expect!["valuesFilePath: `/etc/passwd` is not a path inside the source"],
        );
        for none in [json!(null), json!(""), json!("/dev/null")] {
            check_refused(
                file_task(&json!({ "sourceLocation": none })),
                expect![
                    "sourceLocation: a task file needs a source (upload a context and give its `relativePath`, or give an address)"
                ],
            );
        }
        check_refused(
            encoded_task(&json!({ "encodedTaskContent": "" })),
            expect!["encodedTaskContent: the task file is empty"],
        );
        check_refused(
            encoded_task(&json!({ "encodedTaskContent": "steps: []" })),
            expect!["encodedTaskContent: it is not in Base64: Invalid symbol 93, offset 8."],
        );
        check_refused(
            encoded_task(&json!({ "encodedValuesContent": base64(b"\xff") })),
            expect!["encodedValuesContent: it is not a text in UTF-8"],
        );
        check_refused(
            encoded_task(&json!({ "encodedTaskContent": base64("x".repeat((1 << 20) + 1)) })),
            expect![
                "encodedTaskContent: the text has more than 1048576 bytes (move scripts and data into files of the context)"
            ],
        );
        check_refused(
            encoded_task(&json!({ "timeout": 28801 })),
            expect!["timeout: timeout 28801 is not between 300 and 28800 seconds"],
        );
        check_refused(
            encoded_task(&json!({ "platform": { "os": "Windows", "architecture": "arm64" } })),
            expect!["platform: this server has no agent that runs Windows"],
        );
        check_refused(
            file_task(&json!({ "sourceLocation": "oci://x" })),
            expect![
                "sourceLocation: the address `oci://x` of an artifact cannot be used: it names no registry (write it like `oci://REGISTRY/REPOSITORY:TAG`; the login is that of the registry)"
            ],
        );
    }

    #[test]
    fn values_that_cannot_be_right_are_refused() {
        let refused = |value: Value, expected| {
            check_refused(encoded_task(&json!({ "values": [value] })), expected);
        };
        refused(
            json!({ "name": "a", "value": null }),
            expect!["values: `a` has no value (an empty value is an empty text)"],
        );
        refused(
            json!({ "name": "a" }),
            expect!["values: `a` has no value (an empty value is an empty text)"],
        );
        refused(json!({ "name": "", "value": "x" }), expect!["values: a value has no name"]);
        refused(
            json!({ "name": "a", "value": "x".repeat(1 << 20) }),
            expect![
                "values: the values have more than 1048576 bytes (put large values into a values file or the context)"
            ],
        );
        let many = vec![json!({ "name": "a", "value": "" }); ITEMS_MAX + 1];
        check_refused(
            encoded_task(&json!({ "values": many })),
            expect!["values: more than 1000 values"],
        );
    }

    #[test]
    fn processors_have_bounds() {
        let given = |cpu| api::AgentProperties { cpu, ..Default::default() };
        assert_eq!(cpu(None), Ok(None));
        assert_eq!(cpu(Some(&given(Some(4)))), Ok(Some(4)));
        assert_eq!(cpu(Some(&given(None))), Ok(None));
        for bad in [0, 1025] {
            let refused = cpu(Some(&given(Some(bad)))).unwrap_err();
            assert_eq!(refused.message, "a run has 1 to 1024 processors");
        }
    }
}
