//! Which operations each role, and each kind of token, may ask for; and what ends with what.

use std::fmt::Write as _;

use expect_test::{expect, expect_file};
use oci::Digest;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::content::push;
use crate::support::{Server, answer, bounded, build_request};
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
    let (mut rows, mut open) = (Vec::new(), Vec::new());
    for (path, item) in description["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if operation["security"].is_null() {
                open.push(operation["operationId"].as_str().unwrap());
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
    open.sort_unstable();
    let known = [
        "checkHealth",
        "checkReadiness",
        "deliver",
        "getDescription",
        "getIssuer",
        "getIssuerKeys",
        "getMetrics",
        "getSignIn",
        "getVersion",
        "signIn",
        "uploadSource",
    ];
    assert_eq!(open, known, "everybody may ask for these, and for nothing else");
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
    let form = format!("grant_type=password&username=robot&password={}", robot.password);
    let token_request = async |form: String| {
        let request = server.plain(Method::POST, "/oauth2/token");
        request.header("content-type", "application/x-www-form-urlencoded").body(form).send().await
    };
    let given = answer(token_request(form).await.unwrap(), StatusCode::OK).await;
    let refresh = format!(
        "grant_type=refresh_token&refresh_token={}",
        given["refresh_token"].as_str().unwrap()
    );
    assert_eq!(token_request(refresh.clone()).await.unwrap().status(), StatusCode::OK);
    let disable = server.request(Method::PATCH, "/tokens/robot");
    let disable = disable.json(&json!({ "properties": { "status": "disabled" } }));
    answer(disable.send().await.unwrap(), StatusCode::OK).await;
    assert_eq!(by_bearer(Method::GET, blob_of("team/app")).await, StatusCode::UNAUTHORIZED);
    assert_eq!(token_request(refresh).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let status = robot.status(&server, Method::GET, &blob_of("team/app")).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(admin.status(&server, Method::GET, "/v2/_catalog").await, StatusCode::OK);
}

#[tokio::test]
async fn metadata_opens_with_the_scopes_that_clients_of_the_managed_service_ask_for() {
    let server = Server::start().await;
    push(&server, "team/app", "1", "one").await;
    push(&server, "team/app", "2", "two").await;
    let server =
        Server::start_in(server.stop().await, "[server]\nanonymous_loopback = false\n", &[]).await;
    let actions = ["content/read", "metadata/read", "metadata/write"];
    let actions = actions.map(|action| format!("repositories/team/app/{action}"));
    let robot = token(&server, "robot", &actions.each_ref().map(String::as_str)).await;
    let admin = Somebody { user: "admin".into(), password: server.secret("admin-password") };
    let bearer = async |who: &Somebody, scope: &str| {
        let given = registry_token(&server, who, scope).await;
        given["access_token"].as_str().unwrap().to_owned()
    };
    let ask = async |token: &str, method: Method, path: &str, body: Value| {
        let request = server.plain(method, path).bearer_auth(token);
        request.json(&body).send().await.unwrap().status()
    };
    let app = "/acr/v1/team/app";
    let tag = "/acr/v1/team/app/_tags/1";
    let lock = json!({ "writeEnabled": false });
    let reading = bearer(&robot, "repository:team/app:metadata_read").await;
    assert_eq!(ask(&reading, Method::GET, app, Value::Null).await, StatusCode::OK);
    let refused = StatusCode::UNAUTHORIZED;
    assert_eq!(ask(&reading, Method::PATCH, tag, lock.clone()).await, refused);
    let writing = bearer(&robot, "repository:team/app:metadata_write,metadata_read").await;
    assert_eq!(ask(&writing, Method::PATCH, tag, lock).await, StatusCode::OK);
    let unlock = json!({ "writeEnabled": true });
    assert_eq!(ask(&writing, Method::PATCH, tag, unlock).await, StatusCode::OK);
    // A tag is removed by who may change it; a repository is not.
    assert_eq!(ask(&writing, Method::DELETE, tag, Value::Null).await, StatusCode::ACCEPTED);
    let all = bearer(&robot, "repository:team/app:delete,metadata_read").await;
    assert_eq!(ask(&all, Method::DELETE, app, Value::Null).await, StatusCode::FORBIDDEN);
    // What was deleted.
    let change = json!({ "softDeletePolicy": { "status": "enabled" } });
    let change = server.request(Method::PATCH, "/policies").json(&change).send().await.unwrap();
    answer(change, StatusCode::OK).await;
    let deleting = bearer(&admin, "repository:team/app:delete,metadata_read").await;
    assert_eq!(ask(&deleting, Method::DELETE, app, Value::Null).await, StatusCode::ACCEPTED);
    let catalog = "/acr/v1/_deleted/_catalog";
    let listing = bearer(&admin, "registry:deleted_catalog:*").await;
    assert_eq!(ask(&listing, Method::GET, catalog, Value::Null).await, StatusCode::OK);
    let robots = bearer(&robot, "registry:deleted_catalog:*").await;
    assert_eq!(ask(&robots, Method::GET, catalog, Value::Null).await, StatusCode::FORBIDDEN);
    let tags = "/acr/v1/_deleted/team/app/_tags";
    let restoring = "repository:team/app:deleted_read,deleted_restore";
    let (robots, admins) = (bearer(&robot, restoring).await, bearer(&admin, restoring).await);
    assert_eq!(ask(&robots, Method::GET, tags, Value::Null).await, StatusCode::OK);
    let found = server.plain(Method::GET, tags).bearer_auth(&admins).send().await.unwrap();
    let found = answer(found, StatusCode::OK).await;
    let digest = found["tags"][0]["digest"].as_str().unwrap();
    let restore = format!("/acr/v1/_deleted/team/app/_manifests/{digest}");
    let body = json!({ "tag": "2" });
    assert_eq!(ask(&robots, Method::POST, &restore, body.clone()).await, StatusCode::FORBIDDEN);
    assert_eq!(ask(&admins, Method::POST, &restore, body).await, StatusCode::OK);
    let log = server.plain(Method::GET, "/api/v1/audit?after=0").bearer_auth(server.token());
    let log = log.send().await.unwrap().text().await.unwrap();
    for noted in [
        r#""action":"update","target":"team/app:1 (writeEnabled: false)""#.to_owned(),
        r#""action":"delete","target":"team/app:1""#.to_owned(),
        r#""action":"delete","target":"team/app""#.to_owned(),
        format!(r#""action":"restore","target":"team/app@{digest} (tag 2)""#),
    ] {
        assert!(log.contains(&noted), "{noted} is not in {log}");
    }
    server.stop().await;
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

#[tokio::test]
async fn who_may_not_unlock_deletes_nothing_that_is_locked() {
    let server = Server::start().await;
    let author = account(&server, "one-author", Some("author")).await;
    let owner = account(&server, "one-owner", Some("owner")).await;
    push(&server, "app", "1", "one").await;
    let lock = json!({ "changeableAttributes": { "deleteEnabled": false } });
    let tag = "/api/v1/registries/local/repositories/app/tags/1";
    let patch = async |who: &Somebody| {
        who.ask(&server, Method::PATCH, tag).json(&lock).send().await.unwrap().status()
    };
    assert_eq!(patch(&author).await, StatusCode::FORBIDDEN);
    assert_eq!(patch(&owner).await, StatusCode::OK);
    let purge = async |who: &Somebody, include_locked: bool| {
        let body = json!({ "filters": ["app:.*"], "ago": "0d", "includeLocked": include_locked });
        let request = who.ask(&server, Method::POST, "/api/v1/registries/local/purge");
        let response = request.json(&body).send().await.unwrap();
        (response.status(), response.text().await.unwrap())
    };
    let gone = |(_, text): (StatusCode, String)| text.contains(r#""tags":1"#);
    assert!(!gone(purge(&author, false).await));
    assert_eq!(purge(&author, true).await.0, StatusCode::FORBIDDEN);
    assert_eq!(author.status(&server, Method::GET, tag).await, StatusCode::OK);
    // What was locked just now is young.
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    assert!(gone(purge(&owner, true).await));
    assert_eq!(author.status(&server, Method::GET, tag).await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_right_in_one_registry_is_none_in_another() {
    let file = "[registry.first]\nlogin_server = \"first.test\"\n\
                [registry.second]\nlogin_server = \"second.test\"\n";
    let server = Server::start_with(file, &[]).await;
    let mut somebody = Vec::new();
    for registry in ["first", "second"] {
        let name = format!("admin-{registry}");
        let who = account(&server, &name, None).await;
        let path = format!("/api/v1/registries/{registry}/roleAssignments/{name}");
        let assign = server.plain(Method::PUT, &path).bearer_auth(server.token());
        let assign = assign.json(&json!({ "role": "admin" })).send().await.unwrap();
        answer(assign, StatusCode::OK).await;
        somebody.push(who);
    }
    let [first, second] = &somebody[..] else { panic!("{} accounts", somebody.len()) };
    // The second one has an image that the first one would like to have.
    let digest = Digest::of(b"a secret");
    let blob = format!("/v2/secret/blobs/{digest}");
    let put = |who: &Somebody, path: String| {
        who.ask(&server, Method::POST, &path).header("host", "second.test").body("a secret")
    };
    let upload = format!("/v2/secret/blobs/uploads/?digest={digest}");
    let status = put(second, upload.clone()).send().await.unwrap().status();
    assert_eq!(status, StatusCode::CREATED);
    let status = put(first, upload).send().await.unwrap().status();
    assert_eq!(status, StatusCode::FORBIDDEN);
    let get = |who: &Somebody| who.ask(&server, Method::GET, &blob).header("host", "second.test");
    assert_eq!(get(second).send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(get(first).send().await.unwrap().status(), StatusCode::FORBIDDEN);

    let other = "/api/v1/registries/second";
    for (method, path, body) in [
        (Method::GET, format!("{other}/runs"), json!({})),
        (Method::HEAD, format!("{other}/runs"), json!({})),
        (Method::GET, format!("{other}/repositories/team%2Fapp"), json!({})),
        (Method::PUT, format!("{other}/roleAssignments/admin-first"), json!({ "role": "admin" })),
        (Method::PUT, "/api/v1/roleAssignments/admin-first".into(), json!({ "role": "admin" })),
        (Method::POST, format!("{other}/generateCredentials"), json!({ "tokenId": "robot" })),
        // What all registries share belongs to none of them.
        (Method::POST, "/api/v1/registries/first/gc".into(), json!({})),
        (Method::GET, "/api/v1/registries/first/scrub".into(), json!({})),
        (Method::GET, "/api/v1/audit".into(), json!({})),
        (
            Method::POST,
            "/api/v1/registries/first/import".into(),
            json!({
                "source": { "registryUri": "second.test", "sourceImage": "secret:1" },
                "targetTags": ["mine:1"],
            }),
        ),
        (
            Method::POST,
            "/api/v1/registries/first/import/tags".into(),
            json!({ "registryUri": "second.test", "sourceImage": "secret" }),
        ),
    ] {
        let request = first.ask(&server, method.clone(), &path).json(&body);
        let response = request.send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path}: {text}");
    }
    let import = json!({
        "source": { "registryUri": "second.test", "sourceImage": "secret:1" },
        "targetTags": ["mine:1"],
    });
    let path = format!("{other}/import");
    let status = second.ask(&server, Method::POST, &path).json(&import).send().await.unwrap();
    assert_eq!(status.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn what_is_done_and_refused_is_in_the_audit_log() {
    let server = Server::start_with("[server]\nanonymous_loopback = false\n", &[]).await;
    let reader = account(&server, "one-reader", Some("reader")).await;
    let (digest, wrong) =
        (Digest::of(b"{}"), Somebody { user: "eve".into(), password: "x".into() });
    let upload = format!("/v2/app/blobs/uploads/?digest={digest}");
    assert_eq!(reader.status(&server, Method::POST, &upload).await, StatusCode::FORBIDDEN);
    assert_eq!(wrong.status(&server, Method::GET, "/v2/").await, StatusCode::UNAUTHORIZED);
    let runs = "/api/v1/registries/local/runs";
    assert_eq!(wrong.status(&server, Method::GET, runs).await, StatusCode::UNAUTHORIZED);
    assert_eq!(reader.status(&server, Method::GET, runs).await, StatusCode::OK);
    registry_token(&server, &reader, "repository:app:pull").await;
    let id = server.schedule("fine").await;
    server.ended(&id).await;

    let log = async |query: &str| {
        let asked = server.plain(Method::GET, &format!("/api/v1/audit{query}"));
        let text = asked.bearer_auth(server.token()).send().await.unwrap().text().await.unwrap();
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let records = log("?after=0").await;
    let told = records.iter().map(|record| {
        let text = |member: &str| record[member].as_str().unwrap().to_owned();
        let target = text("target").replace(&digest.to_string(), "DIGEST");
        format!("{} {} {target}: {}\n", text("principal"), text("action"), text("outcome"))
    });
    expect![[r#"
        token request PUT /api/v1/accounts/one-reader: 201
        token request PUT /api/v1/registries/local/roleAssignments/one-reader (reader): 200
        one-reader refused POST /v2/app/blobs/uploads/: 403
        address/127.0.0.1 refused GET /v2/: 401
        address/127.0.0.1 refused GET /api/v1/registries/local/runs: 401
        one-reader login GET /oauth2/token: 200
        token run.queued c01: QuickBuild
        token run.ended c01: Succeeded
    "#]]
    .assert_eq(&told.collect::<String>());
    for (before, record) in records.iter().zip(&records[1..]) {
        assert_eq!(before["digest"], record["previous"], "{record}");
        assert_eq!(before["number"].as_i64().unwrap() + 1, record["number"].as_i64().unwrap());
    }
    let last = log("?n=1").await;
    assert_eq!(last, records[records.len() - 1..]);
    assert!(log(&format!("?after={}", last[0]["number"])).await.is_empty());
}

#[tokio::test]
async fn who_may_not_any_longer_follows_no_log() {
    let server = Server::start_with("", &[("server.shutdown_grace", "100ms")]).await;
    let reader = account(&server, "ann", Some("reader")).await;
    let other = account(&server, "bob", Some("reader")).await;
    let id = server.schedule("hold").await;
    let follow = |somebody: &Somebody| {
        let path = format!("/api/v1/registries/local/runs/{id}/logs?follow=true");
        somebody.ask(&server, Method::GET, &path).send()
    };
    let (mut log, mut still) = (follow(&reader).await.unwrap(), follow(&other).await.unwrap());
    bounded(log.chunk()).await.unwrap();
    bounded(still.chunk()).await.unwrap();
    let gone = server.request(Method::DELETE, "/roleAssignments/ann").send().await.unwrap();
    assert!(gone.status().is_success());
    // Broken off: it is not taken for the whole log.
    let end = bounded(async {
        loop {
            match log.chunk().await {
                Ok(Some(_)) => (),
                end => break end,
            }
        }
    });
    assert!(end.await.is_err());
    assert_eq!(follow(&reader).await.unwrap().status(), StatusCode::FORBIDDEN);
    server.builder.hold.add_permits(1);
    server.ended(&id).await;
    while bounded(still.chunk()).await.unwrap().is_some() {}
    server.stop().await;
}
