//! The description of the API, and whether answers are as it says.

use jsonschema::Validator;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use crate::content::push;
use crate::support::{Server, answer, build_request};
use crate::tasks::docker;

struct Description(Value);

impl Description {
    async fn of(server: &Server) -> Self {
        let asked = server.plain(Method::GET, "/api/v1/openapi.json").send().await.unwrap();
        Self(answer(asked, StatusCode::OK).await)
    }

    #[track_caller]
    fn operation(&self, id: &str) -> &Value {
        let paths = self.0["paths"].as_object().unwrap().values();
        let operations = paths.flat_map(|path| path.as_object().unwrap().values());
        let mut named = operations.filter(|operation| operation["operationId"] == id);
        named.next().unwrap_or_else(|| panic!("there is no operation `{id}`"))
    }

    /// A schema of the description, with what it refers to.
    fn validator(&self, schema: &Value) -> Validator {
        let schema = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "allOf": [schema],
            "components": self.0["components"],
        });
        jsonschema::options().should_validate_formats(true).build(&schema).unwrap()
    }

    fn request(&self, operation: &str) -> Validator {
        let body = &self.operation(operation)["requestBody"];
        self.validator(&body["content"]["application/json"]["schema"])
    }

    /// Checks status, media type and body of an answer.
    async fn check(&self, operation: &str, response: Response) -> Value {
        let status = response.status();
        let media_type = response.headers().get(CONTENT_TYPE).map(|value| value.to_str().unwrap());
        let media_type = media_type.unwrap_or_default().to_owned();
        let text = response.text().await.unwrap();
        let mut described = &self.operation(operation)["responses"][status.as_str()];
        if let Some(reference) = described["$ref"].as_str() {
            described = self.0.pointer(reference.strip_prefix('#').unwrap()).unwrap();
        }
        assert!(described.is_object(), "{operation}: {status} is not described: {text}");
        let Some(content) = described["content"].as_object() else {
            assert_eq!((media_type.as_str(), text.as_str()), ("", ""), "{operation}");
            return Value::Null;
        };
        let media_type = media_type.split(';').next().unwrap_or_default();
        let schema = content.get(media_type).unwrap_or_else(|| {
            panic!("{operation}: {media_type} is not described");
        });
        let validator = self.validator(&schema["schema"]);
        let bodies: Vec<Value> = match media_type {
            "application/json" => vec![serde_json::from_str(&text).unwrap()],
            "application/x-ndjson" => {
                text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
            }
            _ => vec![Value::String(text)],
        };
        assert!(!bodies.is_empty(), "{operation}: the answer is empty");
        for body in &bodies {
            let problems = problems(&validator, body);
            assert!(problems.is_empty(), "{operation}: {body:#}\n{problems:#?}");
        }
        bodies.into_iter().next_back().unwrap_or_default()
    }
}

/// Requests whose answers are checked.
struct Checked<'a> {
    server: &'a Server,
    description: &'a Description,
}

impl Checked<'_> {
    async fn get(&self, operation: &str, path: &str) -> Value {
        self.ask(operation, self.server.request(Method::GET, path)).await
    }

    async fn delete(&self, operation: &str, path: &str) -> Value {
        self.ask(operation, self.server.request(Method::DELETE, path)).await
    }

    /// The body is checked too, and has to be as the description says.
    async fn send(&self, operation: &str, method: Method, path: &str, body: Value) -> Value {
        let problems = problems(&self.description.request(operation), &body);
        assert!(problems.is_empty(), "{operation}: {body:#}\n{problems:#?}");
        self.ask(operation, self.server.request(method, path).json(&body)).await
    }

    async fn ask(&self, operation: &str, request: RequestBuilder) -> Value {
        let response = request.send().await.unwrap();
        let succeeded = response.status().is_success();
        let body = self.description.check(operation, response).await;
        assert!(succeeded, "{operation}: {body:#}");
        body
    }
}

fn problems(schema: &Validator, value: &Value) -> Vec<String> {
    schema.iter_errors(value).map(|error| error.to_string()).collect()
}

#[tokio::test]
async fn tasks_are_as_described() {
    let server = Server::start().await;
    let description = Description::of(&server).await;
    let checked = Checked { server: &server, description: &description };
    checked.send("putTask", Method::PUT, "/tasks/nightly", docker("Dockerfile")).await;
    let encoded = json!({ "properties": {
        "platform": { "os": "Linux" },
        "step": { "type": "EncodedTask", "encodedTaskContent": "c3RlcHM6CiAgLSBjbWQ6IGJhc2gK" },
    } });
    checked.send("putTask", Method::PUT, "/tasks/encoded", encoded).await;
    let shown = checked.get("getTask", "/tasks/nightly").await;
    assert_eq!(shown["properties"]["step"]["type"], "Docker");
    // What is shown may be sent again.
    checked.send("putTask", Method::PUT, "/tasks/nightly", shown).await;
    let details = server.request(Method::POST, "/tasks/nightly/listDetails");
    checked.ask("getTaskDetails", details).await;
    let patch = json!({ "tags": null, "properties": { "status": "Disabled" } });
    checked.send("updateTask", Method::PATCH, "/tasks/nightly", patch).await;
    let page = checked.get("listTasks", "/tasks?$top=1").await;
    assert!(page["nextLink"].is_string(), "{page}");
    checked.delete("deleteTask", "/tasks/nightly").await;
}

#[tokio::test]
async fn runs_are_as_described() {
    let server = Server::start().await;
    let description = Description::of(&server).await;
    let checked = Checked { server: &server, description: &description };
    let upload = server.request(Method::POST, "/listBuildSourceUploadUrl");
    checked.ask("createSourceUpload", upload).await;
    let source = server.upload(b"a context").await;
    let body = build_request("hold", &source);
    let run = checked.send("scheduleRun", Method::POST, "/scheduleRun", body).await;
    let id = run["properties"]["runId"].as_str().unwrap();
    let path = format!("/runs/{id}");
    checked.get("getRun", &path).await;
    server.builder.hold.add_permits(1);
    server.ended(id).await;
    checked.get("getRun", &path).await;
    checked.get("getRunLog", &format!("{path}/logs")).await;
    let last = checked.get("getRunEvents", &format!("{path}/events")).await;
    assert_eq!((&last["kind"], &last["status"]), (&json!("finished"), &json!("Succeeded")));
    let archived = json!({ "isArchiveEnabled": true });
    checked.send("updateRun", Method::PATCH, &path, archived).await;
    checked.get("listRuns", "/runs?$filter=Status eq 'Succeeded'").await;
    let cancel = server.request(Method::POST, &format!("{path}/cancel")).send().await.unwrap();
    assert_eq!(cancel.status(), StatusCode::CONFLICT);
    description.check("cancelRun", cancel).await;
    let declared = json!({ "properties": { "runRequest": build_request("fine", &source) } });
    checked.send("putTaskRun", Method::PUT, "/taskRuns/nightly", declared).await;
    let task_run = checked.get("getTaskRun", "/taskRuns/nightly").await;
    assert!(task_run["properties"]["runResult"].is_object(), "{task_run}");
    checked.get("listTaskRuns", "/taskRuns").await;
    checked.delete("deleteTaskRun", "/taskRuns/nightly").await;
}

#[tokio::test]
async fn pools_are_as_described() {
    let server = Server::start().await;
    let description = Description::of(&server).await;
    let checked = Checked { server: &server, description: &description };
    let pool = json!({ "properties": { "count": 2, "tier": "S1", "os": "Linux" } });
    checked.send("putAgentPool", Method::PUT, "/agentPools/large", pool).await;
    checked.get("getAgentPool", "/agentPools/large").await;
    checked.get("listAgentPools", "/agentPools").await;
    let patch = json!({ "properties": { "count": 3 } });
    checked.send("updateAgentPool", Method::PATCH, "/agentPools/large", patch).await;
    for (operation, route) in [
        ("getAgentPoolQueueStatus", "listQueueStatus"),
        ("getAgentPoolToken", "listAgentToken"),
        ("renewAgentPoolToken", "regenerateAgentToken"),
    ] {
        let request = server.request(Method::POST, &format!("/agentPools/large/{route}"));
        checked.ask(operation, request).await;
    }
    checked.delete("deleteAgentPool", "/agentPools/large").await;
}

#[tokio::test]
async fn what_a_registry_holds_is_as_described() {
    let server = Server::start().await;
    let description = Description::of(&server).await;
    let checked = Checked { server: &server, description: &description };
    push(&server, "team/app", "1", "one").await;
    push(&server, "team/app", "2", "two").await;
    let app = "/repositories/team%2Fapp";
    checked.get("listRepositories", "/repositories").await;
    checked.get("getRepository", app).await;
    checked.get("listTags", &format!("{app}/tags?n=1")).await;
    checked.get("getTag", &format!("{app}/tags/1")).await;
    checked.get("listManifests", &format!("{app}/manifests")).await;
    checked.get("getManifest", &format!("{app}/manifests/1")).await;
    let purge =
        json!({ "filters": ["team/app:.*"], "ago": "0d", "untagged": true, "dryRun": true });
    let last = checked.send("purge", Method::POST, "/purge", purge).await;
    assert_eq!(last["finished"]["tags"], 2, "{last}");
    let source = format!("{}/team/app:1", server.host());
    let import = json!({ "source": { "sourceImage": source }, "targetTags": ["copy:1"] });
    checked.send("importImage", Method::POST, "/import", import).await;
    checked.delete("deleteTag", &format!("{app}/tags/1")).await;
    checked.delete("deleteManifest", &format!("{app}/manifests/2")).await;
    checked.send("collectGarbage", Method::POST, "/gc", json!({ "dryRun": true })).await;
    checked.send("beginScrub", Method::POST, "/scrub", json!({})).await;
    checked.get("getScrub", "/scrub").await;
}

#[tokio::test]
async fn refusals_are_as_described() {
    let server = Server::start().await;
    let description = Description::of(&server).await;
    let missing = server.request(Method::GET, "/runs/cf99").send().await.unwrap();
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);
    let missing = description.check("getRun", missing).await;
    assert_eq!(missing["error"]["code"], "NotFound");
    let wrong = server.request(Method::POST, "/scheduleRun").json(&json!({})).send().await.unwrap();
    assert_eq!(wrong.status(), StatusCode::BAD_REQUEST);
    description.check("scheduleRun", wrong).await;
    let plain = server.plain(Method::GET, "/api/v1/registries/local/runs").send().await.unwrap();
    assert_eq!(plain.status(), StatusCode::UNAUTHORIZED);
    description.check("listRuns", plain).await;
}

#[tokio::test]
async fn what_everybody_may_ask_is_as_described() {
    let server = Server::start().await;
    let description = Description::of(&server).await;
    for (operation, path) in
        [("getDescription", "/api/v1/openapi.json"), ("getVersion", "/api/v1/version")]
    {
        let asked = server.plain(Method::GET, path).send().await.unwrap();
        description.check(operation, asked).await;
    }
}

#[tokio::test]
async fn a_request_of_an_unknown_kind_is_not_as_described() {
    let server = Server::start().await;
    let description = Description::of(&server).await;
    let request = description.request("scheduleRun");
    let mut body = build_request("fine", "https://example.com/app.git");
    assert!(request.is_valid(&body));
    body["type"] = json!("PodmanBuildRequest");
    assert!(!request.is_valid(&body));
    let refused = server.request(Method::POST, "/scheduleRun").json(&body).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    let request = description.request("putTask");
    let mut body = docker("Dockerfile");
    assert!(request.is_valid(&body));
    body["properties"]["step"]["type"] = json!("Podman");
    assert!(!request.is_valid(&body));
    let request = description.request("purge");
    assert!(!request.is_valid(&json!({ "filters": ["app:.*"], "keeep": 3 })));
}
