//! Runs over the API: sources, scheduling, logs, cancelling.

use expect_test::{Expect, expect};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{CHATTY_LINES, Server, answer, bounded, build_request, wait_for};

#[tokio::test]
async fn a_build_is_uploaded_scheduled_and_followed() {
    let server = Server::start().await;
    let id = server.schedule("Dockerfile").await;
    assert_eq!(id, "c01");
    let run = server.ended(&id).await;
    assert_eq!(run["status"], "Succeeded");
    assert_eq!(run["runType"], "QuickBuild");
    assert_eq!(run["provisioningState"], "Succeeded");
    assert_eq!(run["platform"]["architecture"], "amd64");
    for time in ["createTime", "startTime", "finishTime", "lastUpdatedTime"] {
        assert!(run[time].as_str().unwrap().ends_with('Z'), "{time}");
    }
    let id = server.schedule("fail").await;
    let run = server.ended(&id).await;
    assert_eq!(
        (&run["status"], &run["runErrorMessage"]),
        (&json!("Failed"), &json!("`make` ended with 2"))
    );
    server.stop().await;
}

#[tokio::test]
async fn a_task_file_is_run_from_a_source_or_from_the_request() {
    let server = Server::start().await;
    let source = server.upload(b"a context").await;
    let bodies = [
        json!({
            "type": "FileTaskRunRequest",
            "taskFilePath": "acb.yaml",
            "platform": { "os": "Linux", "architecture": "arm64" },
            "sourceLocation": source,
            "values": [{ "name": "token", "value": "hunter22", "isSecret": true }],
        }),
        json!({
            "type": "EncodedTaskRunRequest",
            "encodedTaskContent": "c3RlcHM6IFtdCg==",
            "platform": { "os": "Linux", "architecture": "arm64" },
            "isArchiveEnabled": true,
        }),
    ];
    for body in bodies {
        let run = server.request(Method::POST, "/scheduleRun").json(&body).send().await.unwrap();
        let run = answer(run, StatusCode::CREATED).await;
        assert_eq!(run["properties"]["runType"], "QuickRun");
        assert!(!run.to_string().contains("hunter22"), "{run}");
        let run = server.ended(run["name"].as_str().unwrap()).await;
        assert_eq!((&run["status"], &run["runType"]), (&json!("Succeeded"), &json!("QuickRun")));
        assert_eq!(run["platform"]["architecture"], "arm64");
        assert_eq!(run["isArchiveEnabled"], body["isArchiveEnabled"] == true);
    }
    let body = json!({
        "type": "FileTaskRunRequest",
        "taskFilePath": "acb.yaml",
        "platform": { "os": "Linux" },
        "sourceLocation": "source/00000000000000000000000000000000.tar.gz",
    });
    let refused = server.request(Method::POST, "/scheduleRun").json(&body).send().await.unwrap();
    let refused = answer(refused, StatusCode::BAD_REQUEST).await;
    assert_eq!(
        refused["error"]["message"],
        "there is no uploaded source `source/00000000000000000000000000000000.tar.gz`"
    );
    server.stop().await;
}

#[tokio::test]
async fn the_log_comes_as_text_records_and_server_sent_events() {
    let server = Server::start().await;
    let id = server.schedule("fail").await;
    server.ended(&id).await;
    let text = server.request(Method::GET, &format!("/runs/{id}/logs")).send().await.unwrap();
    assert_eq!(text.headers()["content-type"], "text/plain; charset=utf-8");
    let text = text.text().await.unwrap();
    assert!(text.ends_with("Error: `make` ended with 2\r\n"), "{text}");

    let offset = text.find("making").unwrap();
    let path = format!("/runs/{id}/logs?offset={offset}");
    let rest = server.request(Method::GET, &path).send().await.unwrap().text().await.unwrap();
    assert_eq!(rest, text[offset..]);

    let lines = server.request(Method::GET, &format!("/runs/{id}/events?after=1")).send().await;
    let lines = lines.unwrap().text().await.unwrap();
    let events: Vec<api::Event> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.first().unwrap().id, 2);
    assert!(matches!(
        &events.last().unwrap().kind,
        api::EventKind::Finished { status: api::RunStatus::Failed, error: Some(_) }
    ));

    let last_seen = events[events.len() - 2].id;
    let stream = server
        .request(Method::GET, &format!("/runs/{id}/logs?follow=true"))
        .header("accept", "text/event-stream")
        .header("last-event-id", last_seen)
        .send()
        .await
        .unwrap();
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let text = stream.text().await.unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next().unwrap(), format!("id: {}", last_seen + 1));
    assert_eq!(lines.next().unwrap(), "event: finished");
    assert!(lines.next().unwrap().contains("\"status\":\"Failed\""));
    server.stop().await;
}

#[tokio::test]
async fn a_follower_sees_output_while_the_run_goes_on() {
    let server = Server::start().await;
    let id = server.schedule("hold").await;
    let path = format!("/runs/{id}/logs?follow=true");
    let mut log = server.request(Method::GET, &path).send().await.unwrap();
    let mut seen = String::new();
    while !seen.contains("making\r\n") {
        let chunk = bounded(log.chunk()).await.unwrap().unwrap();
        seen.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    assert_eq!(server.get(&format!("/runs/{id}")).await["properties"]["status"], "Running");
    server.builder.hold.add_permits(1);
    let rest = bounded(log.text()).await.unwrap();
    assert!(rest.contains("was successful"), "{rest}");
    server.stop().await;
}

#[tokio::test]
async fn a_run_is_cancelled_once() {
    let server = Server::start().await;
    let id = server.schedule("hold").await;
    let cancel = || server.request(Method::POST, &format!("/runs/{id}/cancel")).send();
    assert_eq!(cancel().await.unwrap().status(), StatusCode::ACCEPTED);
    let run = server.ended(&id).await;
    assert_eq!(run["status"], "Canceled");
    let error = answer(cancel().await.unwrap(), StatusCode::CONFLICT).await;
    assert_eq!(error["error"]["message"], "run `c01` has ended already: Canceled");
    server.stop().await;
}

#[tokio::test]
async fn l4_a_run_that_is_cancelled_while_it_waits_has_never_started() {
    let server = Server::start().await;
    let held = [server.schedule("hold").await, server.schedule("hold").await];
    let id = server.schedule("ok").await;
    assert_eq!(server.get(&format!("/runs/{id}")).await["properties"]["status"], "Queued");
    let cancel = server.request(Method::POST, &format!("/runs/{id}/cancel")).send();
    assert_eq!(cancel.await.unwrap().status(), StatusCode::ACCEPTED);
    let run = server.ended(&id).await;
    assert_eq!((&run["status"], run.get("startTime")), (&json!("Canceled"), None));
    server.builder.hold.add_permits(2);
    for id in &held {
        assert!(server.ended(id).await["startTime"].is_string());
    }
    server.stop().await;
}

#[tokio::test]
async fn e13_l1_l5_l7_requests_are_taken_or_refused_with_400() {
    let server = Server::start().await;
    let (taken, refused) = (StatusCode::CREATED, StatusCode::BAD_REQUEST);
    let linux = |architecture: &str, variant: Value| json!({ "platform": { "os": "linux", "architecture": architecture, "variant": variant } });
    for (case, more, status) in [
        ("e13", json!({ "values": [{ "name": "", "value": "x" }] }), refused),
        ("e13", json!({ "values": [{ "value": "x" }] }), refused),
        ("l1", json!({ "timeout": 299 }), refused),
        ("l1", json!({ "timeout": 300 }), taken),
        ("l1", json!({ "timeout": 28800 }), taken),
        ("l1", json!({ "timeout": 28801 }), refused),
        ("l5", linux("arm64", json!("v8")), taken),
        ("l7", linux("sparc", Value::Null), refused),
    ] {
        let mut body = json!({
            "type": "EncodedTaskRunRequest",
            "encodedTaskContent": "c3RlcHM6IFtdCg==",
            "platform": { "os": "linux" },
        });
        for (member, value) in more.as_object().unwrap() {
            body[member] = value.clone();
        }
        let answered = server.request(Method::POST, "/scheduleRun").json(&body).send().await;
        let answered = answered.unwrap();
        assert_eq!(answered.status(), status, "{case} {more}: {}", answered.text().await.unwrap());
    }
    server.stop().await;
}

#[tokio::test]
async fn listings_page_and_filter() {
    let server = Server::start().await;
    for dockerfile in ["ok", "fail", "ok"] {
        let id = server.schedule(dockerfile).await;
        server.ended(&id).await;
    }
    let ids = |page: &Value| -> Vec<String> {
        let runs = page["value"].as_array().unwrap().iter();
        runs.map(|run| run["name"].as_str().unwrap().to_owned()).collect()
    };
    // Who says how many is offered no more: some clients print all that they are offered.
    let page = server.get("/runs?$top=2").await;
    assert_eq!(ids(&page), ["c03", "c02"]);
    assert!(page.get("nextLink").is_none());
    let page = server.get("/runs?$top=2&$skiptoken=c02").await;
    assert_eq!(ids(&page), ["c01"]);
    for number in 4..=101 {
        assert_eq!(server.schedule("ok").await, format!("c{}", base36(number)));
    }
    let page = server.get("/runs").await;
    assert_eq!(ids(&page).len(), 100);
    let next = page["nextLink"].as_str().unwrap();
    let next = server.plain(Method::GET, next).bearer_auth(server.token()).send().await.unwrap();
    let page = answer(next, StatusCode::OK).await;
    assert_eq!(ids(&page), ["c01"]);
    assert!(page.get("nextLink").is_none());
    let failed = server.get("/runs?$filter=status%20eq%20'failed'").await;
    assert_eq!(ids(&failed), ["c02"]);
    server.stop().await;
}

/// As the ids of runs are counted.
fn base36(number: u32) -> String {
    let digit = |value: u32| char::from_digit(value, 36).unwrap();
    String::from_iter([digit(number / 36), digit(number % 36)])
}

#[track_caller]
fn check_error(error: &Value, expected: &Expect) {
    let error = &error["error"];
    let text = |member: &str| error[member].as_str().unwrap_or("-").to_owned();
    let shown =
        format!("{} {}: {} ({})", text("code"), text("target"), text("message"), text("hint"));
    expected.assert_eq(&shown);
}

#[tokio::test]
async fn errors_have_one_envelope() {
    let server = Server::start().await;
    let get = async |path: &str, status: StatusCode, expected: Expect| {
        let response = server.request(Method::GET, path).send().await.unwrap();
        check_error(&answer(response, status).await, &expected);
    };
    get("/runs/czz", StatusCode::NOT_FOUND, expect!["NotFound -: run `czz` not found (-)"]).await;
    get(
        "/runs/../x",
        StatusCode::NOT_FOUND,
        expect![
            "NotFound -: this route not found (the API begins at `/api/v1/registries/REGISTRY/`)"
        ],
    )
    .await;
    get(
        "/nothing",
        StatusCode::NOT_FOUND,
        expect![
            "NotFound -: this route not found (the API begins at `/api/v1/registries/REGISTRY/`)"
        ],
    )
    .await;
    get(
        "/runs?$filter=color%20eq%20'red'",
        StatusCode::BAD_REQUEST,
        expect!["InvalidRequest $filter: runs have no field `color` (the fields are RunId, RunType, Status, CreateTime, FinishTime, OutputImageManifests, IsArchiveEnabled, TaskName and AgentPoolName)"],
    )
    .await;
    get("/runs?$top=many", StatusCode::BAD_REQUEST, expect!["InvalidRequest -: Failed to deserialize query string: $top: invalid digit found in string (-)"]).await;

    let post = async |body: Value, status: StatusCode, expected: Expect| {
        let request = server.request(Method::POST, "/scheduleRun").json(&body);
        check_error(&answer(request.send().await.unwrap(), status).await, &expected);
    };
    post(
        build_request("Dockerfile", "source/00000000000000000000000000000000.tar.gz"),
        StatusCode::BAD_REQUEST,
        expect!["InvalidRequest -: there is no uploaded source `source/00000000000000000000000000000000.tar.gz` (upload it first: `POST .../listBuildSourceUploadUrl`, then `PUT`)"],
    )
    .await;
    post(
        json!({ "type": "TaskRunRequest" }),
        StatusCode::BAD_REQUEST,
        expect!["InvalidRequest -: Failed to deserialize the JSON body into the target type: missing field `taskId` (-)"],
    )
    .await;
    let huge = json!({ "type": "x".repeat(5 << 20) });
    post(
        huge,
        StatusCode::PAYLOAD_TOO_LARGE,
        expect!["TooLarge -: Failed to buffer the request body: length limit exceeded (-)"],
    )
    .await;
    server.stop().await;
}

#[tokio::test]
async fn an_upload_address_is_good_once_and_for_its_registry() {
    let server = Server::start().await;
    let created = server.request(Method::POST, "/listBuildSourceUploadUrl").send().await.unwrap();
    let created = answer(created, StatusCode::OK).await;
    let url = created["uploadUrl"].as_str().unwrap().to_owned();
    let put = async |url: &str| {
        server.plain(Method::PUT, url).body("context").send().await.unwrap().status()
    };
    let (address, _) = url.split_once('?').unwrap();
    assert_eq!(put(address).await, StatusCode::NOT_FOUND);
    assert_eq!(
        put(&format!("{address}?sig=00000000000000000000000000000000")).await,
        StatusCode::NOT_FOUND
    );
    assert_eq!(put(&url.replace("/local/", "/other/")).await, StatusCode::NOT_FOUND);
    assert_eq!(put(&url).await, StatusCode::CREATED);
    assert_eq!(put(&url).await, StatusCode::NOT_FOUND);
    server.stop().await;
}

#[tokio::test]
async fn an_upload_has_a_bound_whether_announced_or_not() {
    let server = Server::start_with("[limits]\nsource_size_max = \"1MiB\"", &[]).await;
    for announced in [true, false] {
        let created =
            server.request(Method::POST, "/listBuildSourceUploadUrl").send().await.unwrap();
        let url = answer(created, StatusCode::OK).await["uploadUrl"].as_str().unwrap().to_owned();
        let bytes = vec![0u8; (1 << 20) + 1];
        let body = match announced {
            true => reqwest::Body::from(bytes),
            false => reqwest::Body::wrap_stream(futures_util::stream::iter(
                bytes
                    .chunks(64 << 10)
                    .map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec()))
                    .collect::<Vec<_>>(),
            )),
        };
        let put = server.plain(Method::PUT, &url).body(body).send().await.unwrap();
        let error = answer(put, StatusCode::PAYLOAD_TOO_LARGE).await;
        check_error(
            &error,
            &expect![
                "TooLarge -: the build context is larger than 1048576 bytes (leave files out with `.dockerignore`, or raise `limits.source_size_max`)"
            ],
        );
    }
    server.stop().await;
}

#[tokio::test]
async fn a_run_interrupted_by_an_orderly_stop_is_taken_up_again() {
    let server = Server::start_with("", &[("server.shutdown_grace", "50ms")]).await;
    let id = server.schedule("hold").await;
    wait_for(|| async {
        server.get(&format!("/runs/{id}")).await["properties"]["status"] == "Running"
    })
    .await;
    let data = server.stop().await;
    let server = Server::start_in(data, "", &[]).await;
    server.builder.hold.add_permits(1);
    let run = server.ended(&id).await;
    assert_eq!(run["status"], "Succeeded");
    assert_eq!(run["cost"]["attempts"], 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_followers_see_every_byte_and_one_that_stalls_costs_nothing() {
    let server = Server::start().await;
    // Nothing runs yet: all follow from the first byte on.
    let held = [server.schedule("hold").await, server.schedule("hold").await];
    let id = server.schedule("chatty").await;
    let follow = || server.request(Method::GET, &format!("/runs/{id}/logs?follow=true")).send();
    let mut stalled = follow().await.unwrap();
    let followers: Vec<_> = futures_util::future::join_all((0..20).map(|_| follow())).await;
    server.builder.hold.add_permits(2);
    for id in &held {
        server.ended(id).await;
    }
    // Whoever reads nothing keeps nobody.
    assert_eq!(bounded(server.ended(&id)).await["status"], "Succeeded");
    let texts =
        followers.into_iter().map(async |follower| follower.unwrap().bytes().await.unwrap());
    let texts = bounded(futures_util::future::join_all(texts)).await;
    let lines = |text: &[u8]| -> Vec<usize> {
        let text = std::str::from_utf8(text).unwrap().lines();
        let numbered = text.filter_map(|line| line.split_once("line ")?.1.split(' ').next());
        numbered.map(|number| number.parse().unwrap()).collect()
    };
    assert!(lines(&texts[0]).into_iter().eq(0..CHATTY_LINES), "{}", texts[0].len());
    assert!(texts.iter().all(|text| *text == texts[0]));
    let whole = server.request(Method::GET, &format!("/runs/{id}/logs")).send().await.unwrap();
    assert_eq!(whole.bytes().await.unwrap(), texts[0]);
    // It can go on where it was, although the log is compressed by now.
    let mut late = Vec::new();
    while let Some(chunk) = bounded(stalled.chunk()).await.unwrap() {
        late.extend_from_slice(&chunk);
    }
    assert!(late == texts[0], "{} of {}", late.len(), texts[0].len());
    server.stop().await;
}
