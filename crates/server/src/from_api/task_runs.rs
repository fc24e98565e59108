//! What of a declared run request is kept (runs.md section 2.3).

use dockerfile::ContextAddress;
use serde_json::{Map, Value};

/// A run request without what must not be seen. It looks the same whatever the secrets are.
pub(crate) fn without_secrets(mut request: Value) -> Value {
    forget(&mut request);
    request
}

fn forget(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(forget),
        Value::Object(members) => {
            if is_secret(members) {
                members.remove("value");
            }
            for (name, member) in members.iter_mut() {
                match (name.as_str(), &mut *member) {
                    ("sourceLocation" | "contextPath", Value::String(address)) => {
                        *address = shown(address);
                    }
                    // Values for `RUN --mount=type=secret`.
                    ("secrets", Value::Array(secrets)) => {
                        for secret in secrets.iter_mut().filter_map(Value::as_object_mut) {
                            secret.remove("value");
                        }
                    }
                    ("customRegistries", Value::Object(registries)) => {
                        for login in registries.values_mut() {
                            match login {
                                Value::Object(login) => login.clear(),
                                other => *other = Value::Null,
                            }
                        }
                    }
                    (_, member) => forget(member),
                }
            }
        }
        _ => (),
    }
}

fn is_secret(members: &Map<String, Value>) -> bool {
    members.get("isSecret") == Some(&Value::Bool(true))
}

fn shown(address: &str) -> String {
    let parsed = ContextAddress::of(address);
    let secret = match &parsed {
        ContextAddress::Git(Ok(git)) => git.secret(),
        ContextAddress::Archive(archive) => archive.secret(),
        _ => None,
    };
    // Whatever else the address says stays: a change of it is a change.
    match secret {
        Some(secret) => address.replacen(&format!("{secret}@"), "***@", 1),
        None => address.to_owned(),
    }
}

/// Whether a request that was kept cannot be run again, since it had secrets.
pub(crate) fn lacks_secrets(request: &Value) -> bool {
    match request {
        Value::Array(items) => items.iter().any(lacks_secrets),
        Value::Object(members) => {
            is_secret(members)
                || members.iter().any(|(name, member)| match (name.as_str(), member) {
                    ("sourceLocation" | "contextPath", Value::String(address)) => {
                        address.contains("://***@")
                    }
                    ("secrets", Value::Array(secrets)) => !secrets.is_empty(),
                    ("customRegistries", Value::Object(registries)) => {
                        registries.values().any(|login| !login.is_null())
                    }
                    (_, member) => lacks_secrets(member),
                })
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_left_out_wherever_they_are() {
        let request = json!({
            "type": "DockerBuildRequest",
            "sourceLocation": "https://me:hunter2@example.com/app.git?ref=main&commit=0123456",
            "arguments": [
                { "name": "A", "value": "hunter2", "isSecret": true },
                { "name": "B", "value": "plain" },
            ],
            "buildOptions": {
                "secrets": [{ "id": "s", "value": "aHVudGVyMg==" }],
                "contexts": [{ "name": "c", "sourceLocation": "http://hunter2@h/x.tar" }],
            },
            "credentials": { "customRegistries": {
                "h": { "userName": { "value": "hunter2" }, "password": { "value": "hunter2" } },
                "odd": "hunter2",
            } },
        });
        let kept = without_secrets(request);
        let text = kept.to_string();
        assert!(!text.contains("hunter2") && !text.contains("aHVud"), "{text}");
        assert!(
            text.contains("plain")
                && text.contains("https://***@example.com/app.git?ref=main&commit=0123456")
        );
        assert!(lacks_secrets(&kept));
        assert_eq!(without_secrets(kept.clone()), kept);
        let registries = |logins: Value| json!({ "credentials": { "customRegistries": logins } });
        assert!(lacks_secrets(&without_secrets(registries(json!({ "h": { "password": {} } })))));
        assert!(!lacks_secrets(&registries(json!({ "h": null }))));
        let open = json!({
            "sourceLocation": "https://example.com/app.git",
            "values": [{ "name": "a", "value": "b", "isSecret": false }],
        });
        assert_eq!(without_secrets(open.clone()), open);
        assert!(!lacks_secrets(&open));
    }
}
