//! Stored tasks over the API: what is kept, what is shown, what is run.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Server, answer, wait_for};

/// A task with secrets.
pub(crate) fn docker(dockerfile: &str) -> Value {
    json!({
        "location": "here",
        "tags": { "team": "web" },
        "properties": {
            "status": "Enabled",
            "platform": { "os": "Linux", "architecture": "amd64" },
            "agentConfiguration": { "cpu": 2 },
            "step": {
                "type": "Docker",
                "contextPath": "https://example.com/app.git#main:src",
                "contextAccessToken": "hunter21",
                "imageNames": ["app:{{.Run.ID}}"],
                "dockerFilePath": dockerfile,
                "arguments": [
                    { "name": "A", "value": "1" },
                    { "name": "B", "value": "hunter22", "isSecret": true },
                ],
            },
            "owner": "web@example.com",
            "description": "the web shop",
        },
    })
}

async fn send(
    server: &Server,
    method: Method,
    path: &str,
    body: &Value,
    status: StatusCode,
) -> Value {
    let response = server.request(method, path).json(body).send().await.unwrap();
    answer(response, status).await
}

async fn get(server: &Server, path: &str) -> Value {
    answer(server.request(Method::GET, path).send().await.unwrap(), StatusCode::OK).await
}

/// The id of a run of a task.
async fn run_task(server: &Server, name: &str, overrides: Value) -> String {
    let body = json!({
        "type": "TaskRunRequest",
        "taskId": name,
        "overrideTaskStepProperties": overrides,
    });
    let run = send(server, Method::POST, "/scheduleRun", &body, StatusCode::CREATED).await;
    run["name"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_task_is_kept_and_its_secrets_are_not_shown() {
    let server = Server::start().await;
    let put =
        send(&server, Method::PUT, "/tasks/build-app", &docker("Dockerfile"), StatusCode::OK).await;
    let shown = get(&server, "/tasks/Build-App").await;
    let details =
        send(&server, Method::POST, "/tasks/build-app/listDetails", &json!({}), StatusCode::OK)
            .await;
    let listed = get(&server, "/tasks").await;
    for task in [&put, &shown, &details, &listed["value"][0]] {
        assert_eq!(*task, put);
    }
    assert!(!put.to_string().contains("hunter"), "{put}");
    assert_eq!(put["id"], "/api/v1/registries/local/tasks/build-app");
    assert_eq!(put["type"], "Microsoft.ContainerRegistry/registries/tasks");
    assert_eq!(put["tags"], json!({ "team": "web" }));
    let properties = &put["properties"];
    assert_eq!(properties["provisioningState"], "Succeeded");
    assert_eq!((&properties["timeout"], &properties["status"]), (&json!(3600), &json!("Enabled")));
    assert_eq!(properties["owner"], "web@example.com");
    let step = &properties["step"];
    assert_eq!(step["type"], "Docker");
    assert_eq!(step["contextPath"], "https://example.com/app.git#main:src");
    let hidden = json!({ "name": "B", "value": null, "isSecret": true });
    assert_eq!(step["arguments"], json!([{ "name": "A", "value": "1" }, hidden]));
    // What is shown can be put back, and is the same task.
    let again = send(&server, Method::PUT, "/tasks/build-app", &shown, StatusCode::OK).await;
    assert_eq!(again["properties"]["definitionDigest"], properties["definitionDigest"]);
    server.stop().await;
}

#[tokio::test]
async fn a_run_of_a_task_is_what_the_task_says_and_is_asked_otherwise() {
    let server = Server::start().await;
    let task =
        send(&server, Method::PUT, "/tasks/build-app", &docker("fail"), StatusCode::OK).await;
    let overrides = json!({ "file": "Dockerfile", "updateTriggerToken": "dG9rZW4=", "values": [{ "name": "v", "value": "" }] });
    let id = run_task(&server, task["id"].as_str().unwrap(), overrides).await;
    let run = server.ended(&id).await;
    assert_eq!((&run["status"], &run["runType"]), (&json!("Succeeded"), &json!("AutoBuild")));
    assert_eq!(
        (&run["task"], &run["updateTriggerToken"]),
        (&json!("build-app"), &json!("dG9rZW4="))
    );
    assert_eq!(run["definitionDigest"], task["properties"]["definitionDigest"]);
    let log = server.request(Method::GET, &format!("/runs/{id}/logs")).send().await.unwrap();
    let log = log.text().await.unwrap();
    assert!(log.contains("`values` of this run is ignored"), "{log}");
    // That was for one run only.
    let failed = run_task(&server, "BUILD-APP", json!({})).await;
    assert_eq!(server.ended(&failed).await["status"], "Failed");
    server.stop().await;
}

#[tokio::test]
async fn l11_failed_runs_of_a_task_are_listed_newest_first() {
    let server = Server::start().await;
    for (name, dockerfile) in [("build-app", "fail"), ("t1234", "fail")] {
        let path = format!("/tasks/{name}");
        send(&server, Method::PUT, &path, &docker(dockerfile), StatusCode::OK).await;
    }
    let first = run_task(&server, "t1234", json!({})).await;
    let others = [
        run_task(&server, "t1234", json!({ "file": "Dockerfile" })).await,
        run_task(&server, "build-app", json!({})).await,
        server.schedule("fail").await,
    ];
    let second = run_task(&server, "t1234", json!({})).await;
    for id in others.iter().chain([&first, &second]) {
        server.ended(id).await;
    }
    let listed =
        get(&server, "/runs?$filter=TaskName eq 'T1234' and Status eq 'Failed'&$top=5").await;
    let ids: Vec<_> = listed["value"].as_array().unwrap().iter().map(|run| &run["name"]).collect();
    assert_eq!(ids, [second.as_str(), first.as_str()]);
    assert_eq!(listed.get("nextLink"), None);
    server.stop().await;
}

#[tokio::test]
async fn a_change_names_what_changes() {
    let server = Server::start().await;
    send(&server, Method::PUT, "/tasks/build-app", &docker("Dockerfile"), StatusCode::OK).await;
    let change = json!({ "properties": { "timeout": 600, "status": "Disabled", "step": { "type": "Docker", "target": "test" } } });
    let task = send(&server, Method::PATCH, "/tasks/build-app", &change, StatusCode::OK).await;
    let step = &task["properties"]["step"];
    assert_eq!((&task["properties"]["timeout"], &step["target"]), (&json!(600), &json!("test")));
    assert_eq!(step["imageNames"], json!(["app:{{.Run.ID}}"]));
    // A disabled task starts no runs, nor does one that has expired.
    let body = json!({ "type": "TaskRunRequest", "taskId": "build-app" });
    let refused = send(&server, Method::POST, "/scheduleRun", &body, StatusCode::CONFLICT).await;
    assert_eq!(refused["error"]["message"], "task `build-app` is disabled");
    let change =
        json!({ "properties": { "status": "Enabled", "expiresOn": "2020-01-01T00:00:00Z" } });
    send(&server, Method::PATCH, "/tasks/build-app", &change, StatusCode::OK).await;
    let refused = send(&server, Method::POST, "/scheduleRun", &body, StatusCode::CONFLICT).await;
    assert_eq!(refused["error"]["message"], "task `build-app` has expired");
    // Null removes.
    let change = json!({ "properties": { "expiresOn": null } });
    send(&server, Method::PATCH, "/tasks/build-app", &change, StatusCode::OK).await;
    let id = run_task(&server, "build-app", json!({})).await;
    assert_eq!(server.ended(&id).await["status"], "Succeeded");
    for (change, status) in [
        (json!([]), StatusCode::BAD_REQUEST),
        (
            json!({ "properties": { "step": { "type": "Docker", "imageNames": "app" } } }),
            StatusCode::BAD_REQUEST,
        ),
        (json!({ "properties": { "timeout": 1 } }), StatusCode::BAD_REQUEST),
    ] {
        send(&server, Method::PATCH, "/tasks/build-app", &change, status).await;
    }
    send(&server, Method::PATCH, "/tasks/other", &json!({}), StatusCode::NOT_FOUND).await;
    server.stop().await;
}

#[tokio::test]
async fn changes_at_the_same_time_are_all_kept() {
    let server = Server::start().await;
    send(&server, Method::PUT, "/tasks/build-app", &docker("Dockerfile"), StatusCode::OK).await;
    let changes = (0..3).map(|number| {
        let change = json!({ "tags": { format!("tag{number}"): "x" } });
        let request = server.request(Method::PATCH, "/tasks/build-app").json(&change);
        async { assert_eq!(request.send().await.unwrap().status(), StatusCode::OK) }
    });
    futures_util::future::join_all(changes).await;
    let task = get(&server, "/tasks/build-app").await;
    assert_eq!(task["tags"], json!({ "team": "web", "tag0": "x", "tag1": "x", "tag2": "x" }));
    server.stop().await;
}

#[tokio::test]
async fn a_task_that_is_deleted_takes_its_waiting_runs_along() {
    let server = Server::start().await;
    send(&server, Method::PUT, "/tasks/build-app", &docker("hold"), StatusCode::OK).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(run_task(&server, "build-app", json!({})).await);
    }
    // Two of one registry are executed at once.
    for id in &ids[..2] {
        wait_for(async || {
            get(&server, &format!("/runs/{id}")).await["properties"]["status"] == "Running"
        })
        .await;
    }
    let deleted = server.request(Method::DELETE, "/tasks/build-app").send().await.unwrap();
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    let canceled = server.ended(&ids[2]).await;
    assert_eq!(canceled["status"], "Canceled");
    assert_eq!(canceled["runErrorMessage"], "the task was deleted");
    assert_eq!(canceled.get("startTime"), None);
    server.builder.hold.add_permits(2);
    for id in &ids[..2] {
        let run = server.ended(id).await;
        assert_eq!((&run["status"], &run["task"]), (&json!("Succeeded"), &json!("build-app")));
    }
    let gone = server.request(Method::DELETE, "/tasks/build-app").send().await.unwrap();
    assert_eq!(gone.status(), StatusCode::NOT_FOUND);
    let body = json!({ "type": "TaskRunRequest", "taskId": "build-app" });
    send(&server, Method::POST, "/scheduleRun", &body, StatusCode::NOT_FOUND).await;
    server.stop().await;
}

#[tokio::test]
async fn tasks_are_listed_page_by_page() {
    let server = Server::start().await;
    for name in ["task-c", "task-A", "task-b"] {
        let path = format!("/tasks/{name}");
        send(&server, Method::PUT, &path, &docker("Dockerfile"), StatusCode::OK).await;
    }
    let first = get(&server, "/tasks?$top=2").await;
    let names = |page: &Value| -> Vec<String> {
        let tasks = page["value"].as_array().unwrap().iter();
        tasks.map(|task| task["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&first), ["task-A", "task-b"]);
    let next = first["nextLink"].as_str().unwrap();
    let next = get(&server, next.strip_prefix("/api/v1/registries/local").unwrap()).await;
    assert_eq!(names(&next), ["task-c"]);
    assert_eq!(next.get("nextLink"), None);
    let refused =
        send(&server, Method::PUT, "/tasks/abcd", &docker("x"), StatusCode::BAD_REQUEST).await;
    assert!(refused["error"]["message"].as_str().unwrap().contains("5 to 50"), "{refused}");
    server.stop().await;
}

#[tokio::test]
async fn a_run_is_kept_for_ever_when_it_is_asked_for() {
    let server = Server::start().await;
    let id = server.schedule("Dockerfile").await;
    server.ended(&id).await;
    let path = format!("/runs/{id}");
    let run =
        send(&server, Method::PATCH, &path, &json!({ "isArchiveEnabled": true }), StatusCode::OK)
            .await;
    assert_eq!(run["properties"]["isArchiveEnabled"], true);
    let listed = get(&server, "/runs?$filter=IsArchiveEnabled eq true").await;
    assert_eq!(listed["value"].as_array().unwrap().len(), 1);
    send(&server, Method::PATCH, &path, &json!({}), StatusCode::BAD_REQUEST).await;
    send(
        &server,
        Method::PATCH,
        "/runs/c99",
        &json!({ "isArchiveEnabled": true }),
        StatusCode::NOT_FOUND,
    )
    .await;
    server.stop().await;
}

fn declared(dockerfile: &str, tag: &str) -> Value {
    json!({
        "properties": {
            "runRequest": {
                "type": "DockerBuildRequest",
                "sourceLocation": "https://me:hunter22@example.com/app.git",
                "imageNames": ["app:1"],
                "dockerFilePath": dockerfile,
                "platform": { "os": "Linux" },
                "arguments": [{ "name": "B", "value": "hunter22", "isSecret": true }],
            },
            "forceUpdateTag": tag,
        },
    })
}

#[tokio::test]
async fn a_declared_run_is_made_once() {
    let server = Server::start().await;
    let path = "/taskRuns/first-run";
    let put = send(&server, Method::PUT, path, &declared("Dockerfile", "1"), StatusCode::OK).await;
    let run = &put["properties"]["runResult"]["properties"];
    assert_eq!((&run["runId"], &run["runType"]), (&json!("c01"), &json!("QuickBuild")));
    server.ended("c01").await;
    assert!(!put.to_string().contains("hunter22"), "{put}");
    // The same again, at the same time and later, is the same run.
    let again = (0..3).map(|_| async {
        let again =
            send(&server, Method::PUT, path, &declared("Dockerfile", "1"), StatusCode::OK).await;
        assert_eq!(again["properties"]["runResult"]["name"], "c01");
        assert_eq!(again["properties"]["provisioningState"], "Succeeded");
    });
    futures_util::future::join_all(again).await;
    let at_once = (0..3).map(|_| async {
        let path = "/taskRuns/second-run";
        let put =
            send(&server, Method::PUT, path, &declared("Dockerfile", ""), StatusCode::OK).await;
        put["properties"]["runResult"]["name"].clone()
    });
    let at_once = futures_util::future::join_all(at_once).await;
    assert_eq!(at_once, [json!("c02"), json!("c02"), json!("c02")]);
    // Whatever changes makes another one.
    let put = send(&server, Method::PUT, path, &declared("Dockerfile", "2"), StatusCode::OK).await;
    assert_eq!(put["properties"]["runResult"]["name"], "c03");
    let put = send(&server, Method::PUT, path, &declared("fail", "2"), StatusCode::OK).await;
    assert_eq!(put["properties"]["runResult"]["name"], "c04");
    assert_eq!(server.ended("c04").await["status"], "Failed");
    let shown = get(&server, "/taskRuns/First-Run").await;
    assert_eq!(shown["properties"]["provisioningState"], "Failed");
    let listed = get(&server, "/taskRuns").await;
    assert_eq!(listed["value"].as_array().unwrap().len(), 2);
    assert_eq!(listed["value"][0], shown);

    // Its secrets are not kept, so it cannot be made again without them.
    let change = json!({ "properties": { "forceUpdateTag": "3" } });
    let refused = send(&server, Method::PATCH, path, &change, StatusCode::BAD_REQUEST).await;
    assert_eq!(refused["error"]["message"], "the secrets of the run request are not kept");
    let request = json!({ "type": "EncodedTaskRunRequest", "encodedTaskContent": "c3RlcHM6IFtdCg==", "platform": { "os": "Linux" } });
    let change = json!({ "properties": { "runRequest": request } });
    let patched = send(&server, Method::PATCH, path, &change, StatusCode::OK).await;
    assert_eq!(patched["properties"]["runResult"]["properties"]["runType"], "QuickRun");
    let change = json!({ "properties": { "forceUpdateTag": "3" } });
    let patched = send(&server, Method::PATCH, path, &change, StatusCode::OK).await;
    assert_eq!(patched["properties"]["runResult"]["name"], "c06");

    let deleted = server.request(Method::DELETE, path).send().await.unwrap();
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    assert_eq!(
        server.request(Method::GET, path).send().await.unwrap().status(),
        StatusCode::NOT_FOUND
    );
    assert_eq!(server.ended("c06").await["status"], "Succeeded");
    for (path, body) in [
        ("/taskRuns/under_score", declared("Dockerfile", "")),
        ("/taskRuns/third-run", json!({ "properties": {} })),
        ("/taskRuns/third-run", json!({ "properties": { "runRequest": { "type": "Other" } } })),
    ] {
        send(&server, Method::PUT, path, &body, StatusCode::BAD_REQUEST).await;
    }
    server.stop().await;
}
