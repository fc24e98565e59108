//! Repositories, tags and manifests over the API.

use oci::Digest;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Server, answer, wait_for};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Pushes an image with one small layer, and returns its digest.
pub(crate) async fn push(server: &Server, repository: &str, tag: &str, content: &str) -> String {
    let config =
        br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let mut descriptors = Vec::new();
    let layer_type = "application/vnd.oci.image.layer.v1.tar";
    for (media_type, bytes) in [
        ("application/vnd.oci.image.config.v1+json", &config[..]),
        (layer_type, content.as_bytes()),
    ] {
        let digest = Digest::of(bytes).to_string();
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        let put = server.plain(Method::POST, &path).body(bytes.to_vec()).send().await.unwrap();
        assert_eq!(put.status(), StatusCode::CREATED, "{}", put.text().await.unwrap());
        descriptors.push(json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() }));
    }
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptors[0], "layers": [descriptors[1]],
    })
    .to_string();
    let put = server
        .plain(Method::PUT, &format!("/v2/{repository}/manifests/{tag}"))
        .header("content-type", MANIFEST)
        .body(manifest.clone())
        .send()
        .await
        .unwrap();
    assert_eq!(put.status(), StatusCode::CREATED, "{}", put.text().await.unwrap());
    Digest::of(manifest.as_bytes()).to_string()
}

fn names(page: &Value, member: &str) -> Vec<String> {
    let items = page["value"].as_array().unwrap().iter();
    items.map(|item| item[member].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn what_was_pushed_is_listed_shown_and_deleted() {
    let server = Server::start().await;
    let first = push(&server, "team/app", "1", "one").await;
    push(&server, "team/app", "latest", "one").await;
    let second = push(&server, "team/app", "2", "two").await;
    push(&server, "other", "1", "one").await;

    let page = server.get("/repositories").await;
    assert_eq!(names(&page, "imageName"), ["other", "team/app"]);
    let app = server.get("/repositories/team%2Fapp").await;
    assert_eq!((&app["manifestCount"], &app["tagCount"]), (&json!(2), &json!(3)));

    let tags = server.get("/repositories/team%2Fapp/tags").await;
    assert_eq!(names(&tags, "name"), ["1", "2", "latest"]);
    let tag = server.get("/repositories/team%2Fapp/tags/latest").await;
    assert_eq!(tag["digest"], json!(first));
    let manifests = server.get("/repositories/team%2Fapp/manifests").await;
    assert_eq!(manifests["value"].as_array().unwrap().len(), 2);
    let shown = server.get("/repositories/team%2Fapp/manifests/2").await;
    assert_eq!(
        (&shown["digest"], &shown["manifest"]["schemaVersion"]),
        (&json!(second), &json!(2))
    );

    let delete = async |path: &str| {
        let path = format!("/repositories/team%2Fapp{path}");
        let deleted = server.request(Method::DELETE, &path).send().await.unwrap();
        let deleted = answer(deleted, StatusCode::ACCEPTED).await;
        (deleted["manifestsDeleted"].clone(), deleted["tagsDeleted"].clone())
    };
    assert_eq!(delete("/tags/latest").await, (json!(0), json!(1)));
    assert_eq!(delete("/manifests/1").await, (json!(1), json!(1)));
    assert_eq!(delete("").await, (json!(1), json!(1)));
    for gone in ["", "/tags", "/tags/1", "/manifests/2"] {
        let path = format!("/repositories/team%2Fapp{gone}");
        let found = server.request(Method::GET, &path).send().await.unwrap();
        assert_eq!(found.status(), StatusCode::NOT_FOUND, "{gone}");
    }
    server.stop().await;
}

#[tokio::test]
async fn locks_are_shown_changed_and_noted() {
    let server = Server::start().await;
    let digest = push(&server, "team/app", "1", "one").await;
    let all = |locked: &[&str]| {
        let names = ["deleteEnabled", "writeEnabled", "readEnabled", "listEnabled"];
        let values = names.map(|name| (name.to_owned(), json!(!locked.contains(&name))));
        Value::Object(values.into_iter().collect())
    };
    let tag = "/repositories/team%2Fapp/tags/1";
    let manifest = format!("/repositories/team%2Fapp/manifests/{digest}");
    let patch = async |path: &str, attributes: Value, status| {
        let body = json!({ "changeableAttributes": attributes });
        let patch = server.request(Method::PATCH, path).json(&body).send().await.unwrap();
        answer(patch, status).await
    };
    let delete = async |path: &str| server.request(Method::DELETE, path).send().await.unwrap();
    for (path, locked) in [
        (tag, "writeEnabled"),
        (&manifest, "readEnabled"),
        ("/repositories/team%2Fapp", "deleteEnabled"),
    ] {
        assert_eq!(server.get(path).await["changeableAttributes"], all(&[]));
        let changed = patch(path, json!({ locked: false }), StatusCode::OK).await;
        assert_eq!(changed["changeableAttributes"], all(&[locked]), "{path}");
        assert_eq!(server.get(path).await["changeableAttributes"], all(&[locked]), "{path}");
    }
    let tags = server.get("/repositories/team%2Fapp/tags").await;
    assert_eq!(tags["value"][0]["changeableAttributes"], all(&["writeEnabled"]));
    // The text of a manifest is read, too.
    let shown = server.get(&manifest).await;
    assert_eq!((&shown["digest"], &shown["manifest"]), (&json!(digest), &Value::Null));
    let refused = answer(delete(tag).await, StatusCode::METHOD_NOT_ALLOWED).await;
    let error = &refused["error"];
    assert_eq!(error["code"], "Locked", "{refused}");
    assert_eq!(error["message"], "tag `team/app:1` is locked: its `writeEnabled` is false");
    let unlocking = "`refit repository update --image team/app:1 --write-enabled true` unlocks it";
    assert_eq!(error["hint"], unlocking);
    for path in [&manifest, "/repositories/team%2Fapp"] {
        answer(delete(path).await, StatusCode::METHOD_NOT_ALLOWED).await;
    }
    patch(tag, json!({ "writeEnabled": true }), StatusCode::OK).await;
    patch(tag, json!({ "locked": true }), StatusCode::BAD_REQUEST).await;
    patch("/repositories/other", json!({}), StatusCode::NOT_FOUND).await;
    answer(delete(tag).await, StatusCode::ACCEPTED).await;

    let log = server.plain(Method::GET, "/api/v1/audit?after=0").bearer_auth(server.token());
    let log = log.send().await.unwrap().text().await.unwrap();
    let noted = "PATCH /api/v1/registries/local/repositories/team/app/tags/1 (writeEnabled: false)";
    assert!(log.contains(noted), "{log}");
    server.stop().await;
}

#[tokio::test]
async fn n8_n9_what_loses_its_last_tag_goes_within_seconds_if_that_is_wanted() {
    let server = Server::start().await;
    let (before, after) =
        (push(&server, "app", "1", "one").await, push(&server, "app", "2", "two").await);
    let policies = server.get("/policies").await;
    let policy = json!({ "type": "UntaggedManifests", "status": "disabled", "days": 7 });
    assert_eq!(policies["retentionPolicy"], policy);
    let patch = async |policy: Value, status| {
        let body = json!({ "retentionPolicy": policy });
        let patch = server.request(Method::PATCH, "/policies").json(&body).send().await.unwrap();
        answer(patch, status).await["retentionPolicy"].clone()
    };
    let untag = async |tag: &str| {
        let path = format!("/repositories/app/tags/{tag}");
        let deleted = server.request(Method::DELETE, &path).send().await.unwrap();
        answer(deleted, StatusCode::ACCEPTED).await;
    };
    let status = async |digest: &str| {
        let path = format!("/v2/app/manifests/{digest}");
        server.plain(Method::GET, &path).send().await.unwrap().status()
    };
    untag("1").await;
    let changed = patch(json!({ "status": "enabled", "days": 0 }), StatusCode::OK).await;
    assert_eq!((&changed["status"], &changed["days"]), (&json!("enabled"), &json!(0)));
    patch(json!({ "days": 366 }), StatusCode::BAD_REQUEST).await;
    untag("2").await;
    wait_for(|| async { status(&after).await == StatusCode::NOT_FOUND }).await;
    assert_eq!(status(&before).await, StatusCode::OK);
    // It outlives the server.
    let data = server.stop().await;
    let server = Server::start_in(data, "", &[]).await;
    assert_eq!(server.get("/policies").await["retentionPolicy"], changed);
    server.stop().await;
}

#[tokio::test]
async fn n10_n11_what_is_deleted_is_listed_and_restored() {
    let server = Server::start().await;
    let policies = server.get("/policies").await;
    let policy = json!({ "status": "disabled", "retentionDays": 7 });
    assert_eq!(policies["softDeletePolicy"], policy);
    let send = async |method: Method, path: &str, body: Value, status| {
        let request = server.request(method, path).json(&body).send().await.unwrap();
        answer(request, status).await
    };
    let change = async |body: Value, status| send(Method::PATCH, "/policies", body, status).await;
    for days in [0, 91] {
        let refused = json!({ "softDeletePolicy": { "retentionDays": days } });
        let refused = change(refused, StatusCode::BAD_REQUEST).await;
        assert_eq!(refused["error"]["message"], "days are 1 to 90");
        assert_eq!(refused["error"]["target"], "softDeletePolicy.retentionDays");
    }
    let enable = json!({ "softDeletePolicy": { "status": "enabled", "retentionDays": 30 } });
    let changed = change(enable, StatusCode::OK).await;
    assert_eq!(changed["softDeletePolicy"]["retentionDays"], 30);
    let both = json!({ "retentionPolicy": { "status": "enabled" } });
    let refused = change(both, StatusCode::CONFLICT).await;
    assert_eq!(
        refused["error"]["message"],
        "retention of untagged manifests cannot be enabled while soft delete is"
    );
    let hint = "`refit config soft-delete update --status disabled` comes first";
    assert_eq!(refused["error"]["hint"], hint);

    let first = push(&server, "team/app", "1", "one").await;
    push(&server, "team/app", "2", "one").await;
    push(&server, "other", "1", "other").await;
    let app = "/repositories/team%2Fapp";
    let get = async |path: &str| server.get(&format!("{app}{path}")).await;
    assert_eq!(get("/deletedTags").await, json!({ "value": [] }));
    let deleted = server.request(Method::DELETE, app).send().await.unwrap();
    answer(deleted, StatusCode::ACCEPTED).await;
    for gone in ["", "/tags", "/manifests/1", &format!("/manifests/{first}")] {
        let found = server.request(Method::GET, &format!("{app}{gone}")).send().await.unwrap();
        answer(found, StatusCode::NOT_FOUND).await;
    }
    assert_eq!(names(&server.get("/repositories").await, "imageName"), ["other"]);
    let found = server.get("/deletedRepositories").await;
    let expected = json!([{ "imageName": "team/app", "manifestCount": 1, "tagCount": 2 }]);
    assert_eq!(found["value"], expected);
    let found = &get("/deletedManifests").await["value"][0];
    assert_eq!((&found["digest"], &found["tags"]), (&json!(first), &json!(["1", "2"])));
    assert!(found["expiryTime"].as_str() > found["deletedTime"].as_str(), "{found}");
    // A page after the other.
    let page = get("/deletedTags?n=1").await;
    assert_eq!(names(&page, "name"), ["1"]);
    let next = server.plain(Method::GET, page["nextLink"].as_str().unwrap());
    let next = answer(next.bearer_auth(server.token()).send().await.unwrap(), StatusCode::OK).await;
    assert_eq!((names(&next, "name"), &next["nextLink"]), (vec!["2".to_owned()], &Value::Null));

    // Pushing the same again is no way to get it back.
    let text = server.plain(Method::GET, "/v2/other/manifests/1").send().await.unwrap();
    let other = text.bytes().await.unwrap();
    let restore = format!("{app}/restore");
    let restored = send(Method::POST, &restore, json!({ "tag": "1" }), StatusCode::OK).await;
    assert_eq!(restored, json!({ "digest": first, "tag": "1", "manifestRestored": true }));
    let deleted = server.request(Method::DELETE, "/repositories/other").send().await.unwrap();
    answer(deleted, StatusCode::ACCEPTED).await;
    let put = server.plain(Method::PUT, "/v2/other/manifests/1").header("content-type", MANIFEST);
    let put = put.body(other.clone()).send().await.unwrap();
    let refused = answer(put, StatusCode::CONFLICT).await;
    let digest = Digest::of(&other);
    assert_eq!(
        refused["errors"][0]["message"],
        format!(
            "manifest {digest} of repository `other` is soft-deleted; `refit manifest restore \
             other@{digest}` brings it back"
        )
    );
    assert_eq!(refused["errors"][0]["code"], "DENIED");

    // The second tag, once something else has its name.
    let second = push(&server, "team/app", "2", "two").await;
    let refused = send(Method::POST, &restore, json!({ "tag": "2" }), StatusCode::CONFLICT).await;
    assert_eq!(refused["error"]["message"], "there is a `team/app:2` by now");
    let forced = json!({ "tag": "2", "digest": first, "force": true });
    send(Method::POST, &restore, forced, StatusCode::OK).await;
    let found = get("/deletedTags").await;
    assert_eq!(found["value"][0]["digest"], json!(second));
    for (body, status) in [
        (json!({}), StatusCode::BAD_REQUEST),
        (json!({ "tag": "9" }), StatusCode::NOT_FOUND),
        (json!({ "tag": "?" }), StatusCode::NOT_FOUND),
        (json!({ "digest": second }), StatusCode::NOT_FOUND),
        (json!({ "digest": "second" }), StatusCode::NOT_FOUND),
        (json!({ "name": "2" }), StatusCode::BAD_REQUEST),
    ] {
        send(Method::POST, &restore, body, status).await;
    }
    for path in ["/repositories/none/deletedTags", "/repositories/none/deletedManifests"] {
        let found = server.request(Method::GET, path).send().await.unwrap();
        answer(found, StatusCode::NOT_FOUND).await;
    }
    for malformed in ["deletedTags?last=2", "deletedTags?last=2@1@x", "deletedManifests?last=x"] {
        let found = server.request(Method::GET, &format!("{app}/{malformed}"));
        answer(found.send().await.unwrap(), StatusCode::BAD_REQUEST).await;
    }

    let log = server.plain(Method::GET, "/api/v1/audit?after=0").bearer_auth(server.token());
    let log = log.send().await.unwrap().text().await.unwrap();
    for noted in [
        "PATCH /api/v1/registries/local/policies (soft delete enabled, 30 days)".to_owned(),
        format!("POST /api/v1/registries/local/repositories/team/app/restore (tag 1 of {first})"),
    ] {
        assert!(log.contains(&noted), "{noted} is not in {log}");
    }
    // It outlives the server.
    let data = server.stop().await;
    let server = Server::start_in(data, "", &[]).await;
    assert_eq!(
        names(&server.get("/deletedRepositories").await, "imageName"),
        ["other", "team/app"]
    );
    server.stop().await;
}

#[tokio::test]
async fn listings_page_through() {
    let server = Server::start().await;
    for name in ["a", "b", "c"] {
        push(&server, name, "1", "x").await;
    }
    for tag in ["t1", "t2", "t3"] {
        push(&server, "a", tag, "x").await;
    }
    for (path, member, expected) in [
        ("/repositories", "imageName", vec!["a", "b", "c"]),
        ("/repositories/a/tags", "name", vec!["1", "t1", "t2", "t3"]),
    ] {
        let mut found = Vec::new();
        let mut page = server.get(&format!("{path}?n=2")).await;
        loop {
            found.extend(names(&page, member));
            let Some(next) = page["nextLink"].as_str() else { break };
            let next = server.plain(Method::GET, next).bearer_auth(server.token());
            page = answer(next.send().await.unwrap(), StatusCode::OK).await;
        }
        assert_eq!(found, expected);
    }
    server.stop().await;
}

#[tokio::test]
async fn garbage_is_told_before_it_is_collected() {
    let server = Server::start_with("[store]\ngarbage_grace = \"0s\"", &[]).await;
    push(&server, "app", "1", "a layer of its own").await;
    let deleted = server.request(Method::DELETE, "/repositories/app").send().await.unwrap();
    assert_eq!(deleted.status(), StatusCode::ACCEPTED);
    // Times have milliseconds, and what is deleted in this one is not older than nothing.
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    let collect = async |dry_run: bool| {
        let request = server.request(Method::POST, "/gc").json(&json!({ "dryRun": dry_run }));
        answer(request.send().await.unwrap(), StatusCode::OK).await
    };
    let told = collect(true).await;
    assert_eq!(told["blobs"].as_array().unwrap().len(), 3, "{told}");
    let collected = collect(false).await;
    assert_eq!(collected["bytes"], told["bytes"]);
    assert_eq!(collect(false).await["blobs"], json!([]));
    server.stop().await;
}

#[tokio::test]
async fn the_host_selects_the_registry() {
    let file = "[registry.first]\nlogin_server = \"first.example.com\"\n\
                [registry.second]\nlogin_server = \"second.example.com\"";
    let server = Server::start_with(file, &[]).await;
    let password = server.secret("admin-password");
    let status = async |host: &str| {
        let get = server.plain(Method::GET, "/v2/_catalog").header("host", host);
        get.basic_auth("admin", Some(&password)).send().await.unwrap().status()
    };
    assert_eq!(status("first.example.com").await, StatusCode::OK);
    assert_eq!(status("second.example.com").await, StatusCode::OK);
    assert_eq!(status("third.example.com").await, StatusCode::NOT_FOUND);
    let version = server.plain(Method::GET, "/api/v1/version").send().await.unwrap();
    let version = answer(version, StatusCode::OK).await;
    assert_eq!(version["registries"][1]["loginServer"], "second.example.com");
    server.stop().await;
}

#[tokio::test]
async fn what_goes_by_rule_takes_no_member_that_it_does_not_know() {
    let server = Server::start().await;
    let purge = json!({ "filters": ["app:.*"], "ago": "0d", "dry_run": true });
    for route in ["/purge", "/annotate"] {
        let refused = server.request(Method::POST, route).json(&purge).send().await.unwrap();
        let refused = answer(refused, StatusCode::BAD_REQUEST).await;
        assert!(refused["error"]["message"].as_str().unwrap().contains("unknown"), "{refused}");
    }
    server.stop().await;
}
