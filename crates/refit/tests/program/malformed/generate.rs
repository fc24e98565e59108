//! Requests, made of what the server says of its routes, and spoiled.

use std::collections::HashMap;
use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

use super::random::Random;
use super::wire::Sent;

/// One method of one route.
pub(super) struct Operation {
    pub(super) family: &'static str,
    pub(super) id: String,
    method: String,
    /// With its parameters in braces.
    path: String,
    query: Vec<String>,
    body: Option<Body>,
    /// Statuses of 500 and more that it is said to have.
    pub(super) faults: Vec<u16>,
}

enum Body {
    /// By its schema.
    Json(Value),
    Lines(Value),
    Form,
    Manifest,
    Bytes,
}

impl Operation {
    pub(super) fn is_deletion(&self) -> bool {
        self.method == "DELETE"
    }
}

/// The family that a path belongs to.
fn family(path: &str) -> &'static str {
    const FAMILIES: [(&str, &str); 19] = [
        ("/api/v1/accounts", "accounts"),
        ("/api/v1/roleAssignments", "accounts"),
        ("/roleAssignments", "accounts"),
        ("/api/v1/audit", "audit"),
        ("/agentPools", "agent pools"),
        ("/tokens", "tokens"),
        ("/scopeMapAssignments", "tokens"),
        ("/scopeMaps", "tokens"),
        ("/generateCredentials", "tokens"),
        ("/tasks", "tasks"),
        ("/taskRuns", "task runs"),
        ("/runs", "runs"),
        ("/scheduleRun", "runs"),
        ("/sources", "sources"),
        ("/repositories", "repositories"),
        ("/secrets", "secrets"),
        ("/webhooks", "webhooks"),
        ("/plans", "tasks"),
        ("/promotions", "tasks"),
    ];
    let below = path.strip_prefix("/api/v1/registries/{registry}").unwrap_or(path);
    if let Some((_, family)) = FAMILIES.iter().find(|(prefix, _)| below.starts_with(prefix)) {
        return family;
    }
    match below {
        "/listBuildSourceUploadUrl" => "sources",
        "/purge" | "/annotate" | "/import" | "/import/tags" => "purge, annotate, import",
        "/gc" | "/scrub" | "/api/v1/gc" | "/api/v1/scrub" => "purge, annotate, import",
        _ => "server",
    }
}

/// What the description lists, and what it does not: the protocols of others, and of agents.
pub(super) fn operations(description: &Value) -> Vec<Operation> {
    let paths = description["paths"].as_object().expect("it has paths");
    let mut all: Vec<Operation> = paths
        .iter()
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("a path has methods");
            methods.iter().map(move |(method, operation)| described(path, method, operation))
        })
        .collect();
    let agents = "/api/v1/registries/{registry}/agentPools/{name}";
    let attempt = format!("{agents}/attempts/{{run}}/{{epoch}}");
    let other = [
        ("agent pools", format!("{agents}/claim"), "POST", ""),
        ("agent pools", format!("{attempt}/renew"), "POST", ""),
        ("agent pools", format!("{attempt}/events"), "POST", ""),
        ("agent pools", format!("{attempt}/finish"), "POST", ""),
        ("agent pools", format!("{attempt}/context/{{digest}}"), "GET", ""),
        ("registry", "/v2/".into(), "GET", ""),
        ("registry", "/v2/_catalog".into(), "GET", "n last"),
        ("registry", "/v2/{name}/tags/list".into(), "GET", "n last"),
        ("registry", "/v2/{name}/manifests/{reference}".into(), "GET HEAD PUT DELETE", "tag ns"),
        ("registry", "/v2/{name}/blobs/{digest}".into(), "GET HEAD DELETE", "ns"),
        ("registry", "/v2/{name}/blobs/uploads/".into(), "POST", "mount from digest"),
        ("registry", "/v2/{name}/blobs/uploads/{upload}".into(), "GET PATCH PUT DELETE", "digest"),
        ("registry", "/v2/{name}/referrers/{digest}".into(), "GET", "artifactType n last"),
        ("metadata", "/acr/v1/_catalog".into(), "GET", "n last"),
        ("metadata", "/acr/v1/{name}".into(), "GET PATCH DELETE", ""),
        ("metadata", "/acr/v1/{name}/_tags".into(), "GET", "n last orderby digest"),
        ("metadata", "/acr/v1/{name}/_tags/{tag}".into(), "GET PATCH DELETE", ""),
        ("metadata", "/acr/v1/{name}/_manifests".into(), "GET", "n last orderby"),
        ("metadata", "/acr/v1/{name}/_manifests/{digest}".into(), "GET PATCH", ""),
        ("metadata", "/acr/v1/_deleted/_catalog".into(), "GET", "n last"),
        ("metadata", "/acr/v1/_deleted/{name}/_tags".into(), "GET", "n last"),
        ("metadata", "/acr/v1/_deleted/{name}/_manifests".into(), "GET", "n last"),
        ("metadata", "/acr/v1/_deleted/{name}/_manifests/{digest}".into(), "POST", "force"),
        ("oauth2", "/oauth2/token".into(), "GET POST", "scope service offline_token account"),
    ];
    for (family, path, methods, query) in other {
        for method in methods.split(' ') {
            let body = match (family, method) {
                ("oauth2", "POST") => Some(Body::Form),
                ("registry", "PUT") if path.contains("manifests") => Some(Body::Manifest),
                ("registry", "PUT" | "PATCH" | "POST") => Some(Body::Bytes),
                ("agent pools", "POST") => Some(Body::Json(json!({ "type": "object" }))),
                ("metadata", "POST") => Some(Body::Json(json!({
                    "type": "object", "properties": { "tag": { "type": "string" } },
                }))),
                ("metadata", "PATCH") => Some(Body::Json(json!({
                    "type": "object",
                    "properties": {
                        "readEnabled": { "type": "boolean" }, "listEnabled": { "type": "boolean" },
                    },
                }))),
                _ => None,
            };
            all.push(Operation {
                family,
                id: format!("{method} {path}"),
                method: method.to_owned(),
                path: path.clone(),
                query: query.split_whitespace().map(str::to_owned).collect(),
                body,
                faults: Vec::new(),
            });
        }
    }
    all
}

fn described(path: &str, method: &str, operation: &Value) -> Operation {
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    let in_query = parameters.filter(|parameter| parameter["in"] == "query");
    let content = operation["requestBody"]["content"].as_object();
    let body = content.and_then(|content| content.iter().next()).map(|(kind, content)| {
        let schema = content["schema"].clone();
        match kind.as_str() {
            "application/json" => Body::Json(schema),
            "application/x-ndjson" => Body::Lines(schema),
            _ => Body::Bytes,
        }
    });
    let statuses = operation["responses"].as_object().into_iter().flat_map(Map::keys);
    Operation {
        family: family(path),
        id: operation["operationId"].as_str().unwrap_or_default().to_owned(),
        method: method.to_ascii_uppercase(),
        path: path.to_owned(),
        query: in_query.filter_map(|query| Some(query["name"].as_str()?.to_owned())).collect(),
        body,
        faults: statuses
            .filter_map(|status| status.parse().ok())
            .filter(|status| *status >= 500)
            .collect(),
    }
}

/// What requests are about: things that are there.
pub(super) struct World {
    pub(super) description: Value,
    pub(super) host: String,
    /// Values of `Authorization` that are let in.
    pub(super) credentials: Vec<String>,
    pub(super) manifest: Vec<u8>,
    pub(super) digests: Vec<String>,
    pub(super) runs: Vec<String>,
    /// Of uploads and the like, as answers told.
    pub(super) ids: Mutex<HashMap<&'static str, Vec<String>>>,
}

impl World {
    /// One of the last that answers told.
    fn told(&self, kind: &str, random: &mut Random) -> String {
        let ids = self.ids.lock().expect("nobody panics with it");
        let known = ids.get(kind).map(Vec::as_slice).unwrap_or_default();
        if known.is_empty() { "none".to_owned() } else { random.pick(known).clone() }
    }

    pub(super) fn learn(&self, kind: &'static str, id: String) {
        let mut ids = self.ids.lock().expect("nobody panics with it");
        let known = ids.entry(kind).or_default();
        if known.len() >= 8 {
            known.remove(0);
        }
        known.push(id);
    }

    pub(super) fn request(&self, operation: &Operation, random: &mut Random) -> Sent {
        let mut target = Vec::new();
        let mut rest = &*operation.path;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').expect("braces are closed");
            target.extend_from_slice(before.as_bytes());
            match random.once_in(7) {
                true => target.extend(random.trash()),
                false => target.extend(self.parameter(operation, name, random).into_bytes()),
            }
            rest = after;
        }
        target.extend_from_slice(rest.as_bytes());
        self.add_query(operation, &mut target, random);
        if random.once_in(60) {
            random.spoil(&mut target);
        }
        let is_framed = !target.is_empty()
            && target[0] == b'/'
            && target.len() < 60_000
            && target.iter().all(|byte| byte.is_ascii_graphic());
        let (kind, body) = self.body(operation, random);
        let mut method = operation.method.clone();
        if random.once_in(40) {
            let other = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"];
            method = (*random.pick(&other)).to_owned();
        }
        let mut bytes = [method.as_bytes(), b" ", &target, b" HTTP/1.1\r\n"].concat();
        bytes.extend(format!("Host: {}\r\n", self.host).into_bytes());
        for (name, value) in self.headers(operation, kind, random) {
            bytes.extend([name.as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        let is_head = method == "HEAD";
        if is_framed && !random.once_in(15) {
            bytes.extend(format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes());
            bytes.extend(body);
            return Sent { bytes, is_head, is_framed };
        }
        break_frame(&mut bytes, &body, random);
        Sent { bytes, is_head, is_framed: false }
    }

    fn parameter(&self, operation: &Operation, name: &str, random: &mut Random) -> String {
        let few = random.below(4);
        match (name, operation.family) {
            ("registry", _) => "local".into(),
            ("name", "repositories" | "registry" | "metadata") => {
                random.pick(&["app", "app", "other", "team%2fapp", "team/app"]).to_string()
            }
            ("name", "agent pools") => "pool-a".into(),
            ("name" | "account", _) => format!("thing{few}"),
            ("tag", _) => "1".into(),
            ("reference", _) if few == 0 => "1".into(),
            ("reference" | "digest", _) => random.pick(&self.digests).clone(),
            ("id", "runs") | ("run", _) => random.pick(&self.runs).clone(),
            ("id", _) => self.told("source", random),
            ("upload", _) => self.told("upload", random),
            ("epoch", _) => "1".into(),
            _ => "x".into(),
        }
    }

    fn add_query(&self, operation: &Operation, target: &mut Vec<u8>, random: &mut Random) {
        let mut separator = b'?';
        for name in &operation.query {
            if random.once_in(2) {
                continue;
            }
            let mut value = match name.as_str() {
                "digest" | "mount" => random.pick(&self.digests).clone().into_bytes(),
                "from" => b"app".to_vec(),
                "orderby" => random.pick(&["timeasc", "timedesc"]).as_bytes().to_vec(),
                // What never ends is not asked for: some runs wait until the test is over.
                "follow" => b"false".to_vec(),
                "$filter" => b"Status%20eq%20'Succeeded'%20and%20RunId%20ne%20'x'".to_vec(),
                "scope" => b"repository:app:pull,push%20registry:catalog:*".to_vec(),
                "sig" => b"0123456789abcdef".to_vec(),
                _ => random.below(5).to_string().into_bytes(),
            };
            match random.below(4) {
                0 => value = random.trash(),
                1 => random.spoil(&mut value),
                _ => (),
            }
            if name == "follow" && value != b"false" {
                value = b"yes".to_vec();
            }
            target.push(separator);
            target.extend([name.as_bytes(), b"=", &value].concat());
            separator = b'&';
        }
        if random.once_in(20) {
            target.push(separator);
            target.extend(random.trash());
        }
    }

    fn headers(
        &self,
        operation: &Operation,
        kind: &'static str,
        random: &mut Random,
    ) -> Vec<(&'static str, String)> {
        let mut headers = Vec::new();
        match random.below(20) {
            // Nobody in particular.
            0..4 => (),
            4 => headers.push(("Authorization", self.wrong_credential(random))),
            // The protocol of registries has bearer tokens of its own.
            _ => {
                let few = if matches!(operation.family, "registry" | "metadata") { 2 } else { 3 };
                headers.push(("Authorization", random.pick(&self.credentials[..few]).clone()));
            }
        }
        if operation.body.is_some() {
            let kind = if random.once_in(20) { "text/\u{e4}; x" } else { kind };
            headers.push(("Content-Type", kind.to_owned()));
        }
        let printable = |random: &mut Random| random.trash().escape_ascii().to_string();
        if operation.family == "registry" && random.once_in(3) {
            let range = match random.below(4) {
                0 => printable(random),
                1 => format!("{}-{}", u64::MAX, random.below(9)),
                _ => format!("{}-{}", random.below(9), random.below(99)),
            };
            let name = if random.once_in(2) { "Range" } else { "Content-Range" };
            let range = if name == "Range" { format!("bytes={range}") } else { range };
            headers.push((name, range));
        }
        if random.once_in(8) {
            let name = random.pick(&[
                "Accept",
                "Accept-Encoding",
                "Last-Event-ID",
                "If-None-Match",
                "Origin",
                "X-Forwarded-Proto",
                "Upgrade",
                "Cookie",
                "Content-Encoding",
                "x-ms-version",
            ]);
            headers.push((name, printable(random)));
        }
        headers
    }

    fn wrong_credential(&self, random: &mut Random) -> String {
        // Passwords take long to compare.
        if random.once_in(100) {
            return format!("Basic {}", BASE64.encode("thing1:correct horse"));
        }
        let mut right = random.pick(&self.credentials).replace("Basic ", "Bearer ").into_bytes();
        random.spoil(&mut right);
        right.escape_ascii().to_string()
    }

    fn body(&self, operation: &Operation, random: &mut Random) -> (&'static str, Vec<u8>) {
        let (kind, mut bytes) = match &operation.body {
            None => return ("", Vec::new()),
            Some(Body::Json(schema)) => {
                let mut value = match example(&operation.id, &self.host) {
                    Some(example) if !random.once_in(3) => example,
                    _ => self.instance(schema, 0, random),
                };
                for _ in 0..random.below(4) {
                    random.spoil_json(&mut value);
                }
                ("application/json", value.to_string().into_bytes())
            }
            Some(Body::Lines(schema)) => {
                let mut lines = Vec::new();
                for _ in 0..random.below(4) {
                    let mut value = self.instance(schema, 0, random);
                    if random.once_in(3) {
                        random.spoil_json(&mut value);
                    }
                    lines.extend(value.to_string().into_bytes());
                    lines.push(b'\n');
                }
                ("application/x-ndjson", lines)
            }
            Some(Body::Form) => {
                let grant = random.pick(&["password", "refresh_token", "access_token", ""]);
                let user = if random.once_in(30) { "&username=thing1&password=x" } else { "" };
                let form = format!(
                    "grant_type={grant}&scope=repository:app:pull&service=x&refresh_token=a.b.c{user}"
                );
                ("application/x-www-form-urlencoded", form.into_bytes())
            }
            Some(Body::Manifest) => {
                let mut manifest = self.manifest.clone();
                let value = serde_json::from_slice(&manifest);
                if let (Ok(mut value), true) = (value, random.once_in(2)) {
                    random.spoil_json(&mut value);
                    manifest = value.to_string().into_bytes();
                }
                let kinds = [
                    "application/vnd.oci.image.manifest.v1+json",
                    "application/vnd.oci.image.manifest.v1+json",
                    "application/vnd.oci.image.index.v1+json",
                    "application/vnd.docker.distribution.manifest.v1+json",
                ];
                (*random.pick(&kinds), manifest)
            }
            Some(Body::Bytes) => {
                let mut bytes = vec![7; random.below(3000)];
                random.spoil(&mut bytes);
                ("application/octet-stream", bytes)
            }
        };
        match random.below(24) {
            0..3 => random.spoil(&mut bytes),
            3 => bytes = random.trash(),
            4 => bytes = b"[".repeat(10_000),
            5 => bytes = br#"{"properties":"#.repeat(5_000),
            _ => (),
        }
        (kind, bytes)
    }

    /// Some value of a schema, and now and then none.
    fn instance(&self, schema: &Value, depth: usize, random: &mut Random) -> Value {
        if depth > 8 || random.once_in(30) {
            return random.json_trash();
        }
        if let Some(name) = schema["$ref"].as_str() {
            let name = name.trim_start_matches('#');
            let found = self.description.pointer(name).unwrap_or(&Value::Null);
            return self.instance(found, depth, random);
        }
        if let Some(parts) = schema["allOf"].as_array() {
            let mut all = Map::new();
            for part in parts {
                if let Value::Object(members) = self.instance(part, depth + 1, random) {
                    all.extend(members);
                }
            }
            return Value::Object(all);
        }
        if let Some(choices) = schema["oneOf"].as_array().or_else(|| schema["anyOf"].as_array()) {
            let choice = random.pick(choices);
            return self.instance(choice, depth + 1, random);
        }
        if let Some(values) = schema["enum"].as_array() {
            return random.pick(values).clone();
        }
        let kind = match &schema["type"] {
            Value::Array(kinds) => random.pick(kinds).clone(),
            kind => kind.clone(),
        };
        match kind.as_str().unwrap_or_default() {
            "object" => {
                let members = schema["properties"].as_object().into_iter().flatten();
                let required = schema["required"].as_array();
                let mut all = Map::new();
                for (name, member) in members {
                    let is_required =
                        required.is_some_and(|required| required.iter().any(|own| own == name));
                    let is_wanted =
                        if is_required { !random.once_in(15) } else { random.once_in(3) };
                    if is_wanted {
                        all.insert(name.clone(), self.instance(member, depth + 1, random));
                    }
                }
                Value::Object(all)
            }
            "array" => (0..random.below(4))
                .map(|_| self.instance(&schema["items"], depth + 1, random))
                .collect(),
            "integer" | "number" => {
                let numbers = [json!(0), json!(1), json!(3), json!(-1), json!(1u64 << 40)];
                random.pick(&numbers).clone()
            }
            "boolean" => json!(random.once_in(2)),
            "string" => {
                let text = match random.below(9) {
                    0 => return json!(String::from_utf8_lossy(&random.trash())),
                    1 => random.pick(&self.digests).clone(),
                    2 => random.pick(&self.runs).clone(),
                    3 => format!("{}/app:1", self.host),
                    4 => "2031-01-01T00:00:00Z".to_owned(),
                    5 => "app:1".to_owned(),
                    6 => BASE64.encode("steps:\n- cmd: app\n"),
                    _ => format!("thing{}", random.below(4)),
                };
                json!(text)
            }
            _ => Value::Null,
        }
    }
}

/// A head and a body that do not fit together, or are no HTTP.
fn break_frame(bytes: &mut Vec<u8>, body: &[u8], random: &mut Random) {
    let lengths = [
        (body.len() + 1 + random.below(9000)).to_string(),
        (body.len() / 2).to_string(),
        "-1".to_owned(),
        "18446744073709551616".to_owned(),
        "18446744073709551615".to_owned(),
        "0x10".to_owned(),
        format!("{0}, {0}", body.len()),
    ];
    match random.below(9) {
        0 | 1 => {
            bytes.extend(format!("Content-Length: {}\r\n\r\n", random.pick(&lengths)).into_bytes());
            bytes.extend(body);
        }
        2 => {
            bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n");
            let size = *random.pick(&["zz", "ffffffffffffffff", "10000", "-1", "3"]);
            bytes.extend(format!("{size}\r\n").into_bytes());
            bytes.extend(body);
        }
        3 => {
            let length = body.len();
            let both =
                format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n");
            bytes.extend(both.into_bytes());
        }
        4 => {
            bytes.extend(b"X-Long: ");
            bytes.extend(b"y".repeat(*random.pick(&[20_000, 200_000, 700_000])));
            bytes.extend(b"\r\n\r\n");
        }
        5 => {
            for _ in 0..200 {
                bytes.extend(b"X-Many: z\r\n");
            }
            bytes.extend(b"\r\n");
        }
        6 => bytes.extend(b"Host: other\r\nX\0Y: \xff\r\n folded\r\n\r\n"),
        7 => {
            bytes.extend(b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n");
        }
        _ => {
            bytes.extend(b"\r\n");
            random.spoil(bytes);
            random.spoil(bytes);
        }
    }
}

/// A body with which an operation succeeds, or would if what it names were there.
fn example(operation: &str, host: &str) -> Option<Value> {
    let scope = "/api/v1/registries/local/scopeMaps/thing1";
    let token = "/api/v1/registries/local/tokens/thing1";
    // No agent of this pool is there, so these wait; not many may.
    let build = json!({
        "type": "DockerBuildRequest", "dockerFilePath": "Dockerfile", "platform": { "os": "Linux" },
        "agentPoolName": "pool-a", "imageNames": ["app:1"], "isPushEnabled": true,
        "arguments": [{ "name": "a", "value": "b", "isSecret": true }], "timeout": 600,
        "credentials": { "sourceRegistry": { "loginMode": "Default" }, "customRegistries": {
            "registry.invalid": { "userName": { "type": "Opaque", "value": "u" },
                "password": { "type": "Opaque", "value": "p" } } } },
    });
    let step = json!({
        "type": "EncodedTask", "encodedTaskContent": BASE64.encode("steps:\n- cmd: app\n"),
        "values": [{ "name": "a", "value": "b", "isSecret": false }],
    });
    Some(match operation {
        // One that is long enough takes long to hash.
        "createAccount" | "updateAccount" => {
            json!({ "kind": "user", "status": "enabled", "description": "x", "password": "short" })
        }
        "setAccountPassword" => json!({ "password": "short" }),
        "assignRole" | "assignServerRole" => json!({ "role": "reader" }),
        "putAgentPool" | "updateAgentPool" => {
            json!({ "name": "pool-a", "location": "x", "properties": { "count": 1, "tier": "S1", "os": "Linux" } })
        }
        "annotate" => {
            json!({ "filters": ["app:^x$"], "annotations": ["a=b"], "artifactType": "a/b", "dryRun": true })
        }
        "purge" => {
            json!({ "filters": ["app:^x.*$"], "ago": "1d2h", "keep": 1, "untagged": false, "dryRun": true })
        }
        "importImage" => json!({
            "source": { "registryUri": host, "sourceImage": "app:1" },
            "targetTags": ["app:2"], "mode": "Force",
        }),
        "listImportTags" => json!({ "registryUri": host, "sourceImage": "app" }),
        "collectGarbage" | "collectServerGarbage" => json!({ "dryRun": true }),
        "beginScrub" | "beginServerScrub" => json!({ "rate": 1000 }),
        "generateCredentials" => {
            json!({ "tokenId": token, "name": "password1", "expiry": "2031-01-01T00:00:00Z" })
        }
        "putScopeMap" | "updateScopeMap" => {
            json!({ "properties": { "actions": ["repositories/app/content/read", "repositories/team/*/metadata/read"], "description": "x" } })
        }
        "putToken" | "updateToken" => {
            json!({ "properties": { "scopeMapId": scope, "status": "enabled" } })
        }
        "putSecret" => {
            json!({ "properties": { "value": "hidden", "tasks": ["thing1"], "allRuns": false } })
        }
        // Whoever answers there, it is nobody of this machine.
        "putWebhook" | "updateWebhook" => json!({ "properties": {
            "serviceUri": "https://receiver.invalid/x", "customHeaders": { "x-key": "hidden" },
            "actions": ["push", "delete", "run_finished"], "scope": "app:*", "status": "enabled",
            "signingSecret": "hidden-hidden-hidden", "format": "cloudevents", "overdueDays": 7,
        } }),
        "updateRun" => json!({ "isArchiveEnabled": false }),
        "scheduleRun" => build,
        "putTaskRun" | "updateTaskRun" => {
            json!({ "properties": { "runRequest": build, "forceUpdateTag": "x" } })
        }
        "putTask" | "updateTask" => json!({ "location": "x", "tags": { "a": "b" }, "properties": {
            "status": "Enabled", "platform": { "os": "Linux", "architecture": "amd64" },
            "agentConfiguration": { "cpu": 2 }, "agentPoolName": "pool-a", "timeout": 600, "step": step,
        } }),
        "commitSource" => {
            json!({ "digest": "sha256:0000000000000000000000000000000000000000000000000000000000000000" })
        }
        _ => return None,
    })
}
