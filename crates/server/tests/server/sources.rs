//! The upload by which only missing files travel, and clients that lie.

use futures_util::{StreamExt, stream};
use oci::Digest;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE};
use reqwest::{Body, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::support::{Server, answer, build_request};

const TWO: &str = "[registry.local]\n[registry.other]\n";

fn file(path: &str, bytes: &str) -> Value {
    let digest = Digest::of(bytes.as_bytes()).to_string();
    json!({ "path": path, "type": "file", "mode": 420, "size": bytes.len(), "digest": digest })
}

fn list(entries: &[Value]) -> String {
    entries.iter().map(|entry| format!("{entry}\n")).collect()
}

/// A pack of files, under the digests of others if they lie.
fn pack(files: &[(&str, &str)]) -> String {
    let head = files
        .iter()
        .map(|(said, bytes)| json!({ "digest": Digest::of(said.as_bytes()), "size": bytes.len() }));
    let bytes: String = files.iter().map(|(_, bytes)| *bytes).collect();
    format!("{}\n{bytes}", Value::from_iter(head))
}

async fn begin(server: &Server, base: Option<&str>, list: &str) -> (String, Vec<String>) {
    let base = base.map(|base| format!("?base={base}")).unwrap_or_default();
    let path = format!("/sources{base}");
    let sent = server.request(Method::POST, &path).body(list.to_owned()).send().await.unwrap();
    let begun = answer(sent, StatusCode::CREATED).await;
    (begun["id"].as_str().unwrap().to_owned(), missing(&begun, list))
}

/// The digests of the files that a server wants.
fn missing(begun: &Value, list: &str) -> Vec<String> {
    let lines = list.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let files: Vec<Value> = lines.filter(|line| line["type"] == "file").collect();
    let rows: Vec<(usize, usize)> = serde_json::from_value(begun["missing"].clone()).unwrap();
    let files = rows.iter().flat_map(|(first, count)| &files[*first..first + count]);
    files.map(|file| file["digest"].as_str().unwrap().to_owned()).collect()
}

fn send_pack(server: &Server, id: &str, pack: String) -> RequestBuilder {
    server.request(Method::POST, &format!("/sources/{id}/packs")).body(pack)
}

fn commit(server: &Server, id: &str, list: &str) -> RequestBuilder {
    let body = json!({ "digest": Digest::of(list.as_bytes()) });
    server.request(Method::POST, &format!("/sources/{id}/commit")).json(&body)
}

async fn refused(request: RequestBuilder, status: StatusCode, text: &str) {
    let body = answer(request.send().await.unwrap(), status).await;
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains(text), "`{text}` is not in `{message}`");
}

#[tokio::test]
async fn only_missing_files_travel_and_an_upload_goes_on_where_it_broke_off() {
    let server = Server::start().await;
    let one = list(&[file("a", "aaa"), file("b", "bb"), file("copy", "aaa")]);
    let (id, missing) = begin(&server, None, &one).await;
    assert_eq!(missing, [Digest::of(b"aaa").to_string(), Digest::of(b"bb").to_string()]);
    refused(commit(&server, &id, &one), StatusCode::CONFLICT, "3 files of this source").await;
    let sent = send_pack(&server, &id, pack(&[("aaa", "aaa")])).send().await.unwrap();
    assert_eq!(sent.status(), StatusCode::CREATED);
    refused(commit(&server, &id, &one), StatusCode::CONFLICT, "1 files of this source").await;

    // The client comes back, after the server did.
    let server = Server::start_in(server.stop().await, "", &[]).await;
    let (id, missing) = begin(&server, Some(&id), &one).await;
    assert_eq!(missing, [Digest::of(b"bb").to_string()]);
    let path = format!("/sources/{id}/blobs/{}", Digest::of(b"bb"));
    let sent = server.request(Method::PUT, &path).body("bb").send().await.unwrap();
    assert_eq!(sent.status(), StatusCode::CREATED);
    let committed = answer(commit(&server, &id, &one).send().await.unwrap(), StatusCode::OK).await;
    let location = committed["relativePath"].as_str().unwrap();
    assert_eq!(location, format!("source/{id}.list"));
    // As often as one likes, and then nothing more comes.
    answer(commit(&server, &id, &one).send().await.unwrap(), StatusCode::OK).await;
    let more = send_pack(&server, &id, pack(&[("x", "x")]));
    refused(more, StatusCode::CONFLICT, "takes no more files").await;
    let run = build_request("Dockerfile", location);
    let run = server.request(Method::POST, "/scheduleRun").json(&run).send().await.unwrap();
    answer(run, StatusCode::CREATED).await;

    let two = list(&[file("a", "aaa"), file("b", "changed")]);
    let (changed, missing) = begin(&server, Some(&id), &two).await;
    assert_eq!(missing, [Digest::of(b"changed").to_string()]);
    refused(commit(&server, &changed, &one), StatusCode::CONFLICT, "another list").await;
    server.stop().await;
}

#[tokio::test]
async fn of_a_body_that_stalls_the_answer_says_to_try_again() {
    let server = Server::start_with("[limits]\nbody_stall = \"200ms\"\n", &[]).await;
    let (id, _) = begin(&server, None, &list(&[file("a", "aaa")])).await;
    let place = server.request(Method::POST, "/listBuildSourceUploadUrl").json(&json!({}));
    let place = answer(place.send().await.unwrap(), StatusCode::OK).await;
    let stalled = || {
        let begun = stream::iter([Ok::<_, std::io::Error>("{")]);
        Body::wrap_stream(begun.chain(stream::pending()))
    };
    let requests = [
        server.request(Method::POST, "/sources"),
        server.request(Method::POST, &format!("/sources/{id}/packs")),
        server.plain(Method::PUT, place["uploadUrl"].as_str().unwrap()),
    ];
    for request in requests {
        refused(request.body(stalled()), StatusCode::REQUEST_TIMEOUT, "nothing came").await;
    }
    let run = server.request(Method::POST, "/scheduleRun");
    let run = run.header(CONTENT_TYPE, "application/json").body(stalled());
    refused(run, StatusCode::REQUEST_TIMEOUT, "nothing came").await;
    // What is no archive does not become one by being sent again.
    let broken = send_pack(&server, &id, "no archive".into()).header(CONTENT_ENCODING, "gzip");
    refused(broken, StatusCode::BAD_REQUEST, "gzip").await;
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_lies_is_refused() {
    let server = Server::start().await;
    let honest = list(&[file("a", "aaa")]);
    let (id, _) = begin(&server, None, &honest).await;
    let send = |pack: String| send_pack(&server, &id, pack);
    refused(send(pack(&[("aaa", "bbb")])), StatusCode::CONFLICT, "were sent as").await;
    refused(send("no head".into()), StatusCode::BAD_REQUEST, "a line that lists its files").await;
    let cut = pack(&[("aaa", "aaa")]);
    refused(send(cut[..cut.len() - 1].into()), StatusCode::BAD_REQUEST, "ends before").await;
    refused(send(format!("{cut}x")), StatusCode::BAD_REQUEST, "goes on").await;
    let size = cut.replace("\"size\":3", "\"size\":99999999999");
    refused(send(size), StatusCode::PAYLOAD_TOO_LARGE, "what a pack holds").await;
    let path = format!("/sources/{id}/blobs/{}", Digest::of(b"aaa"));
    let wrong = server.request(Method::PUT, &path).body("aab");
    refused(wrong, StatusCode::CONFLICT, "were sent as").await;
    // The right bytes of another file are not the file.
    let other = send_pack(&server, &id, pack(&[("other", "other")])).send().await.unwrap();
    assert_eq!(other.status(), StatusCode::CREATED);
    refused(commit(&server, &id, &honest), StatusCode::CONFLICT, "1 files").await;

    let lists = [
        (list(&[file("../a", "x")]), "no path inside a context"),
        (list(&[file("/etc/a", "x")]), "no path inside a context"),
        (list(&[file("a", "x"), file("a/b", "x")]), "not listed before it as a folder"),
        (
            list(&[json!({ "path": "a", "type": "symlink", "target": "/etc" }), file("a/b", "x")]),
            "not listed before it as a folder",
        ),
        (list(&[file("a", "x"), file("a", "y")]), "listed twice"),
        ("what\n".into(), "line 1 of the context's list"),
    ];
    for (list, text) in lists {
        let sent = server.request(Method::POST, "/sources").body(list);
        refused(sent, StatusCode::BAD_REQUEST, text).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_context_has_bounds() {
    let limits = "[limits]\ncontext_entries_max = 2\ncontext_size_max = \"1KiB\"\n";
    let server = Server::start_with(limits, &[]).await;
    let many = list(&[file("a", "x"), file("b", "x"), file("c", "x")]);
    let sent = server.request(Method::POST, "/sources").body(many);
    refused(sent, StatusCode::BAD_REQUEST, "more than 2 files and folders").await;
    let large = list(&[file("a", &"x".repeat(1025))]);
    let sent = server.request(Method::POST, "/sources").body(large);
    refused(sent, StatusCode::BAD_REQUEST, "files of more than 1024 bytes").await;
    let endless = format!("{{\"path\":\"{}", "x".repeat(4096));
    let sent = server.request(Method::POST, "/sources").body(endless);
    refused(sent, StatusCode::PAYLOAD_TOO_LARGE, "the context's list").await;
    server.stop().await;
}

/// Knowing a digest is not having the file.
#[tokio::test]
async fn files_of_others_are_not_given_out() {
    let server = Server::start_with(TWO, &[]).await;
    let one = list(&[file("secret", "of somebody")]);
    let (id, _) = begin(&server, None, &one).await;
    let sent = send_pack(&server, &id, pack(&[("of somebody", "of somebody")]));
    assert_eq!(sent.send().await.unwrap().status(), StatusCode::CREATED);
    answer(commit(&server, &id, &one).send().await.unwrap(), StatusCode::OK).await;

    // Without the source's id, with one that is guessed, and in another registry.
    let lacks = [Digest::of(b"of somebody").to_string()];
    assert_eq!(begin(&server, None, &one).await.1, lacks);
    assert_eq!(begin(&server, Some(&"0".repeat(32)), &one).await.1, lacks);
    let other = |path: &str| {
        let path = format!("/api/v1/registries/other{path}");
        server.plain(Method::POST, &path).bearer_auth(server.token())
    };
    let begun = other(&format!("/sources?base={id}")).body(one.clone()).send().await.unwrap();
    assert_eq!(missing(&answer(begun, StatusCode::CREATED).await, &one), lacks);
    let body = json!({ "digest": Digest::of(one.as_bytes()) });
    let stolen = other(&format!("/sources/{id}/commit")).json(&body);
    refused(stolen, StatusCode::NOT_FOUND, "not found").await;
    // Nor is it there for who may not use the API.
    let path = "/api/v1/registries/local/sources";
    let anonymous = server.plain(Method::POST, path).body(one).send().await.unwrap();
    assert_eq!(anonymous.status(), StatusCode::UNAUTHORIZED);
    server.stop().await;
}
