//! Which operations each role, and each kind of token, may ask for; and what ends with what.

use std::fmt::Write as _;

use expect_test::expect_file;
use oci::Digest;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::support::{Server, answer, build_request};
use crate::tasks::docker;

const ROLES: [&str; 5] = ["reader", "runner", "author", "owner", "admin"];

/// Somebody with a password.
struct Somebody {
    user: String,
    password: String,
}

impl Somebody {
    fn ask(&self, server: &Server, method: Method, path: &str) -> RequestBuilder {
        server.plain(method, path).basic_auth(&self.user, Some(&self.password))
    }

    async fn status(&self, server: &Server, method: Method, path: &str) -> StatusCode {
        self.ask(server, method, path).send().await.unwrap().status()
    }
}

/// An account; `role` is what it is in registry `local`.
async fn account(server: &Server, name: &str, role: Option<&str>) -> Somebody {
    let url = format!("/api/v1/accounts/{name}");
    let made = server.plain(Method::PUT, &url).bearer_auth(server.token()).json(&json!({}));
    let made = answer(made.send().await.unwrap(), StatusCode::CREATED).await;
    if let Some(role) = role {
        let assign = server.request(Method::PUT, &format!("/roleAssignments/{name}"));
        let assigned = assign.json(&json!({ "role": role })).send().await.unwrap();
        answer(assigned, StatusCode::OK).await;
    }
    let password = made["password"].as_str().unwrap().to_owned();
    Somebody { user: name.to_owned(), password }
}

/// A token of registry `local` that may do these things.
async fn token(server: &Server, name: &str, actions: &[&str]) -> Somebody {
    let put = async |path: String, properties: Value| {
        let request = server.request(Method::PUT, &path).json(&json!({ "properties": properties }));
        answer(request.send().await.unwrap(), StatusCode::OK).await
    };
    let map = format!("{name}-scope-map");
    let made = put(format!("/scopeMaps/{map}"), json!({ "actions": actions })).await;
    put(format!("/tokens/{name}"), json!({ "scopeMapId": made["id"] })).await;
    let request = server.request(Method::POST, "/generateCredentials");
    let made = request.json(&json!({ "tokenId": name, "name": "password1" })).send().await.unwrap();
    let made = answer(made, StatusCode::OK).await;
    assert_eq!(made["username"], name);
    let password = made["passwords"][0]["value"].as_str().unwrap().to_owned();
    Somebody { user: name.to_owned(), password }
}

#[tokio::test]
async fn the_table_of_roles_by_operation() {
    let server = Server::start().await;
    let mut all = vec![account(&server, "nobody", None).await];
    for role in ROLES {
        all.push(account(&server, &format!("one-{role}"), Some(role)).await);
    }
    // All there is to do on the server, too.
    let everywhere = account(&server, "governor", None).await;
    let assign = server.plain(Method::PUT, "/api/v1/roleAssignments/governor");
    let assign = assign.bearer_auth(server.token()).json(&json!({ "role": "admin" }));
    answer(assign.send().await.unwrap(), StatusCode::OK).await;
    all.push(everywhere);
    let some =
        ["content/read", "metadata/read"].map(|action| format!("repositories/nothing/{action}"));
    all.push(token(&server, "puller", &some.each_ref().map(String::as_str)).await);
    let every =
        ["content/read", "content/write", "content/delete", "metadata/read", "metadata/write"];
    let every = every.map(|action| format!("repositories/*/{action}"));
    all.push(token(&server, "everything", &every.each_ref().map(String::as_str)).await);

    let description = server.plain(Method::GET, "/api/v1/openapi.json").send().await.unwrap();
    let description = answer(description, StatusCode::OK).await;
    let mut table = format!("{:<26}", "");
    let heads = ["none"].into_iter().chain(ROLES).chain(["server", "puller", "all"]);
    for head in heads {
        write!(table, " {head:<6}").unwrap();
    }
    let mut rows = Vec::new();
    for (path, item) in description["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if operation["security"].is_null() {
                continue;
            }
            let path = path.replace("{registry}", "local");
            let path = path.split('/').map(|part| match part.starts_with('{') {
                true => "nothing",
                false => part,
            });
            let path = path.collect::<Vec<_>>().join("/");
            let method: Method = method.to_ascii_uppercase().parse().unwrap();
            let has_body = !operation["requestBody"].is_null();
            let mut row = format!("{:<26}", operation["operationId"].as_str().unwrap());
            for somebody in &all {
                let mut request = somebody.ask(&server, method.clone(), &path);
                if has_body {
                    request = request.json(&json!({}));
                }
                let response = request.send().await.unwrap();
                let status = response.status();
                let text = response.text().await.unwrap();
                assert!(!status.is_server_error(), "{method} {path}: {status} {text}");
                let mark = match status {
                    StatusCode::FORBIDDEN => "-",
                    // Where no registry is named, no token of one is known.
                    StatusCode::UNAUTHORIZED => "401",
                    _ => "yes",
                };
                write!(row, " {mark:<6}").unwrap();
            }
            let anybody = server.plain(method.clone(), &path).send().await.unwrap();
            assert_eq!(anybody.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
            rows.push(row);
        }
    }
    rows.sort();
    rows.insert(0, table);
    let lines = rows.iter().map(|row| format!("{}\n", row.trim_end())).collect::<String>();
    expect_file!["../data/roles.txt"].assert_eq(&lines);
}

#[tokio::test]
async fn who_starts_tasks_starts_them_as_they_are() {
    let server = Server::start().await;
    let runner = account(&server, "one-runner", Some("runner")).await;
    let author = account(&server, "one-author", Some("author")).await;
    let stored = server.request(Method::PUT, "/tasks/nightly").json(&docker("Dockerfile"));
    assert!(stored.send().await.unwrap().status().is_success());
    let plain = json!({ "type": "TaskRunRequest", "taskId": "nightly", "isArchiveEnabled": true });
    let with = |member: &str, value: Value| {
        let mut body = plain.clone();
        body[member] = value;
        body
    };
    let overridden =
        |member: &str, value: Value| with("overrideTaskStepProperties", json!({ (member): value }));
    let source = server.upload(b"a context").await;
    let schedule = async |who: &Somebody, body: &Value| {
        let request = who.ask(&server, Method::POST, "/api/v1/registries/local/scheduleRun");
        let response = request.json(body).send().await.unwrap();
        (response.status(), response.text().await.unwrap())
    };
    for body in [plain.clone(), overridden("updateTriggerToken", json!("again"))] {
        let (status, text) = schedule(&runner, &body).await;
        assert_ne!(status, StatusCode::FORBIDDEN, "{text}");
    }
    let value = json!([{ "name": "x", "value": "y" }]);
    for body in [
        build_request("Dockerfile", &source),
        json!({ "type": "EncodedTaskRunRequest", "encodedTaskContent": "", "platform": { "os": "Linux" } }),
        overridden("contextPath", json!(source)),
        overridden("file", json!("other")),
        overridden("target", json!("other")),
        overridden("values", value.clone()),
        overridden("arguments", value),
        with("agentPoolName", json!("pool")),
        with("logTemplate", json!("logs:1")),
    ] {
        let (status, text) = schedule(&runner, &body).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{body}: {text}");
        assert!(
            text.contains("`one-runner` needs the role `author` in registry `local`"),
            "{text}"
        );
        let (status, text) = schedule(&author, &body).await;
        assert_ne!(status, StatusCode::FORBIDDEN, "{body}: {text}");
    }
}

/// What a client gets for a scope, by the token endpoint.
async fn registry_token(server: &Server, who: &Somebody, scope: &str) -> Value {
    let path = format!("/oauth2/token?service=x&scope={scope}");
    answer(who.ask(server, Method::GET, &path).send().await.unwrap(), StatusCode::OK).await
}

#[tokio::test]
async fn a_token_opens_its_repositories_and_no_other() {
    let server = Server::start_with("[server]\nanonymous_loopback = false\n", &[]).await;
    let admin = Somebody { user: "admin".into(), password: server.secret("admin-password") };
    let everything = token(
        &server,
        "everything",
        &["repositories/*/content/read", "repositories/*/content/write"],
    );
    let everything = everything.await;
    let blob = b"a blob of the other one";
    let digest = Digest::of(blob);
    for name in ["team/app", "other"] {
        let path = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        let put = everything.ask(&server, Method::POST, &path).body(blob.to_vec());
        assert_eq!(put.send().await.unwrap().status(), StatusCode::CREATED, "{name}");
    }
    let robot = token(
        &server,
        "robot",
        &["repositories/team/*/content/read", "repositories/team/new/content/write"],
    )
    .await;
    let blob_of = |name: &str| format!("/v2/{name}/blobs/{digest}");
    // With its password, and with what it gets for that.
    assert_eq!(robot.status(&server, Method::GET, &blob_of("team/app")).await, StatusCode::OK);
    assert_eq!(robot.status(&server, Method::GET, &blob_of("other")).await, StatusCode::FORBIDDEN);
    let scope =
        "repository:team/app:pull,push&scope=repository:other:pull&scope=registry:catalog:*";
    let given = registry_token(&server, &robot, scope).await;
    let bearer = given["access_token"].as_str().unwrap();
    let by_bearer = async |method: Method, path: String| {
        server.plain(method, &path).bearer_auth(bearer).send().await.unwrap().status()
    };
    assert_eq!(by_bearer(Method::GET, blob_of("team/app")).await, StatusCode::OK);
    for (method, path) in [
        (Method::GET, blob_of("other")),
        (Method::POST, "/v2/team/app/blobs/uploads/".into()),
        (Method::DELETE, format!("/v2/team/app/manifests/{digest}")),
        (Method::GET, "/v2/_catalog".into()),
    ] {
        let status = by_bearer(method.clone(), path.clone()).await;
        let is_refused = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status);
        assert!(is_refused, "{method} {path}: {status}");
    }
    // A blob mount brings nothing that may not be pulled.
    let mount = format!("/v2/team/new/blobs/uploads/?mount={digest}&from=other");
    assert_eq!(robot.status(&server, Method::POST, &mount).await, StatusCode::ACCEPTED);
    let mount = format!("/v2/team/new/blobs/uploads/?mount={digest}&from=team/app");
    assert_eq!(robot.status(&server, Method::POST, &mount).await, StatusCode::CREATED);
    // The API knows it for its repositories only.
    let runs = "/api/v1/registries/local/runs";
    assert_eq!(robot.status(&server, Method::GET, runs).await, StatusCode::FORBIDDEN);

    // What it was given ends with it.
    let refresh = given["refresh_token"].as_str();
    assert!(refresh.is_none());
    let disable = server.request(Method::PATCH, "/tokens/robot");
    let disable = disable.json(&json!({ "properties": { "status": "disabled" } }));
    answer(disable.send().await.unwrap(), StatusCode::OK).await;
    assert_eq!(by_bearer(Method::GET, blob_of("team/app")).await, StatusCode::UNAUTHORIZED);
    let status = robot.status(&server, Method::GET, &blob_of("team/app")).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(admin.status(&server, Method::GET, "/v2/_catalog").await, StatusCode::OK);
}

#[tokio::test]
async fn accounts_use_the_registry_as_their_role_says() {
    let server = Server::start_with("[server]\nanonymous_loopback = false\n", &[]).await;
    let reader = account(&server, "one-reader", Some("reader")).await;
    let author = account(&server, "one-author", Some("author")).await;
    let nobody = account(&server, "nobody", None).await;
    let digest = Digest::of(b"{}");
    let path = format!("/v2/app/blobs/uploads/?digest={digest}");
    let put = async |who: &Somebody| {
        who.ask(&server, Method::POST, &path).body("{}").send().await.unwrap().status()
    };
    assert_eq!(put(&nobody).await, StatusCode::FORBIDDEN);
    assert_eq!(put(&reader).await, StatusCode::FORBIDDEN);
    assert_eq!(put(&author).await, StatusCode::CREATED);
    let blob = format!("/v2/app/blobs/{digest}");
    assert_eq!(reader.status(&server, Method::GET, &blob).await, StatusCode::OK);
    assert_eq!(nobody.status(&server, Method::GET, &blob).await, StatusCode::FORBIDDEN);
    assert_eq!(reader.status(&server, Method::GET, "/v2/_catalog").await, StatusCode::OK);

    // A token of the registry protocol ends with the password.
    let given = registry_token(&server, &reader, "repository:app:pull").await;
    let bearer = given["access_token"].as_str().unwrap();
    let get = async || server.plain(Method::GET, &blob).bearer_auth(bearer).send().await.unwrap();
    assert_eq!(get().await.status(), StatusCode::OK);
    let set = server.plain(Method::POST, "/api/v1/accounts/one-reader/setPassword");
    let set = set.bearer_auth(server.token()).json(&json!({ "password": "correct horse battery" }));
    let set = answer(set.send().await.unwrap(), StatusCode::OK).await;
    assert!(set["password"].is_null(), "{set}");
    assert_eq!(get().await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(reader.status(&server, Method::GET, &blob).await, StatusCode::UNAUTHORIZED);
    let renewed = Somebody { password: "correct horse battery".into(), ..reader };
    assert_eq!(renewed.status(&server, Method::GET, &blob).await, StatusCode::OK);

    // The journal knows who it was.
    let run = author.ask(&server, Method::POST, "/api/v1/registries/local/scheduleRun");
    let source = server.upload(b"a context").await;
    let run = run.json(&build_request("fine", &source)).send().await.unwrap();
    let run = answer(run, StatusCode::CREATED).await;
    assert_eq!(run["properties"]["cause"]["principal"], "one-author", "{run}");

    // Everybody sees to their own password, and to nobody else's.
    for (name, expected) in [("one-reader", StatusCode::FORBIDDEN), ("ONE-author", StatusCode::OK)]
    {
        let path = format!("/api/v1/accounts/{name}");
        assert_eq!(author.status(&server, Method::GET, &path).await, expected, "{name}");
        let set = author.ask(&server, Method::POST, &format!("{path}/setPassword"));
        let status = set.json(&json!({})).send().await.unwrap().status();
        assert_eq!(status, expected, "{name}");
    }
    let update = author.ask(&server, Method::PATCH, "/api/v1/accounts/one-author");
    let status = update.json(&json!({ "status": "enabled" })).send().await.unwrap().status();
    assert_eq!(status, StatusCode::UNAUTHORIZED, "its password is another one by now");
}
