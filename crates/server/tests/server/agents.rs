//! Connections to the ssh agents of clients.

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use crate::support::{Server, answer, bounded, build_request};

async fn schedule(server: &Server, ssh: Value, expected: StatusCode) -> Value {
    let mut body = build_request("hold", &server.upload(b"a context").await);
    body["buildOptions"] = json!({ "ssh": ssh });
    let answered = server.request(Method::POST, "/scheduleRun").json(&body).send().await;
    answer(answered.unwrap(), expected).await
}

async fn attach(server: &Server, run: &str, agent: &str) -> Response {
    let request = server.request(Method::GET, &format!("/runs/{run}/agents/{agent}"));
    let request = request.header("connection", "upgrade").header("upgrade", api::AGENT_PROTOCOL);
    bounded(request.send()).await.unwrap()
}

#[tokio::test]
async fn an_agent_belongs_to_a_run_and_is_let_go_with_its_end() {
    let server = Server::start().await;
    let run = schedule(&server, json!(["default"]), StatusCode::CREATED).await;
    let id = run["name"].as_str().unwrap();
    let attached = attach(&server, id, "default").await;
    assert_eq!(attached.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut waiting = attached.upgrade().await.unwrap();

    for (run, agent) in [(id, "other"), ("czz", "default")] {
        let error = answer(attach(&server, run, agent).await, StatusCode::NOT_FOUND).await;
        assert_eq!(error["error"]["code"], "NotFound");
    }
    let path = format!("/api/v1/registries/local/runs/{id}/agents/default");
    let anonymous = server.plain(Method::GET, &path).send().await.unwrap();
    assert_eq!(anonymous.status(), StatusCode::UNAUTHORIZED);
    let plain = server.request(Method::GET, &format!("/runs/{id}/agents/default")).send().await;
    let error = answer(plain.unwrap(), StatusCode::BAD_REQUEST).await;
    assert_eq!(
        error["error"]["message"],
        "this needs a connection with `Upgrade: refit-ssh-agent`"
    );

    server.builder.hold.add_permits(1);
    assert_eq!(server.ended(id).await["status"], "Succeeded");
    assert_eq!(bounded(waiting.read(&mut [0])).await.unwrap(), 0);
    let error = answer(attach(&server, id, "default").await, StatusCode::CONFLICT).await;
    assert_eq!(error["error"]["message"], format!("run `{id}` has ended already: Succeeded"));
    server.stop().await;
}

#[tokio::test]
async fn a_run_that_is_canceled_before_it_begins_lets_its_agents_go() {
    let server = Server::start_with("[build]\nconcurrency = 1\n", &[]).await;
    server.schedule("hold").await;
    let run = schedule(&server, json!(["default"]), StatusCode::CREATED).await;
    let id = run["name"].as_str().unwrap();
    let mut waiting = attach(&server, id, "default").await.upgrade().await.unwrap();
    let cancel = server.request(Method::POST, &format!("/runs/{id}/cancel")).send().await.unwrap();
    assert_eq!(cancel.status(), StatusCode::ACCEPTED);
    assert_eq!(bounded(waiting.read(&mut [0])).await.unwrap(), 0);
    server.builder.hold.add_permits(1);
    server.stop().await;
}

#[tokio::test]
async fn agents_have_short_names_and_are_few() {
    let server = Server::start().await;
    for bad in ["", "..", "a/b", "a b", "-a", &"a".repeat(65)] {
        let error = schedule(&server, json!(["default", bad]), StatusCode::BAD_REQUEST).await;
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.ends_with("is not the id of an ssh agent"), "{message}");
    }
    let many: Vec<String> = (0..17).map(|number| format!("agent{number}")).collect();
    let error = schedule(&server, json!(many), StatusCode::BAD_REQUEST).await;
    assert_eq!(error["error"]["message"], "more than 16 ssh agents");
    server.stop().await;
}
