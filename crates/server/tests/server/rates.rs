//! Who asks too often, or is wrong too often, is told when to come back.

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::support::{Server, answer};

/// An answer that tells to come back, within a minute.
async fn refused(response: Response) -> Value {
    let wait = response.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    answer(response, StatusCode::TOO_MANY_REQUESTS).await
}

#[tokio::test]
async fn a_principal_that_asks_too_often_waits() {
    // A bound that is met whatever the time takes.
    let server = Server::start_with("[limits]\nwrite_rate = 1\nread_rate = 100\n", &[]).await;
    let put = || {
        let secret = json!({ "properties": { "value": "hidden", "allRuns": true } });
        server.request(Method::PUT, "/secrets/thing").json(&secret).send()
    };
    answer(put().await.unwrap(), StatusCode::OK).await;
    let told = refused(put().await.unwrap()).await;
    assert_eq!(told["error"]["code"], "TooManyRequests", "{told}");
    assert_eq!(told["error"]["message"], "too many requests within a minute");
    // Other classes go on, and the registry's requests count too.
    server.get("/secrets/thing").await;
    let begin = |user: Option<&str>| {
        let request = server.plain(Method::POST, "/v2/app/blobs/uploads/");
        let with = user.map(|user| (user, Some(server.token())));
        match with {
            Some((user, token)) => request.basic_auth(user, token),
            None => request,
        }
        .send()
    };
    let told = refused(begin(Some("anyone")).await.unwrap()).await;
    assert_eq!(told["errors"][0]["code"], "TOOMANYREQUESTS", "{told}");
    // Whoever has no name is counted by address.
    assert_eq!(begin(None).await.unwrap().status(), StatusCode::ACCEPTED);
    refused(begin(None).await.unwrap()).await;
    let metrics = server.plain(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("\nrefit_requests_refused_total 3\n"), "{metrics}");
    server.stop().await;
}

#[tokio::test]
async fn who_guesses_waits_and_who_is_known_does_not() {
    let server = Server::start_with("[limits]\nguess_rate = 1\n", &[]).await;
    let made = async |name: &str| {
        let body = json!({ "password": "correct horse battery" });
        let path = format!("/api/v1/accounts/{name}");
        let put = server.plain(Method::PUT, &path).bearer_auth(server.token()).json(&body);
        answer(put.send().await.unwrap(), StatusCode::CREATED).await;
    };
    made("ann").await;
    made("bob").await;
    let shown = |name: &'static str, password: &'static str| {
        let path = format!("/api/v1/accounts/{name}");
        server.plain(Method::GET, &path).basic_auth(name, Some(password)).send()
    };
    let right = "correct horse battery";
    assert_eq!(shown("ann", right).await.unwrap().status(), StatusCode::OK);
    // Nobody has signed in as this one.
    assert_eq!(shown("bob", "a guess").await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let told = refused(shown("bob", right).await.unwrap()).await;
    assert_eq!(told["error"]["code"], "TooManyRequests", "{told}");
    let token = |name: &'static str, password: &'static str| {
        server.plain(Method::GET, "/oauth2/token").basic_auth(name, Some(password)).send()
    };
    let told = refused(token("bob", "another").await.unwrap()).await;
    assert_eq!(told["errors"][0]["code"], "TOOMANYREQUESTS", "{told}");
    // The address has been wrong five times then, also with tokens of all kinds.
    for number in 0..4 {
        let path = ["/v2/", "/api/v1/accounts/ann"][number % 2];
        let wrong = server.plain(Method::GET, path).bearer_auth("a.guess.too").send().await;
        assert_eq!(wrong.unwrap().status(), StatusCode::UNAUTHORIZED, "{number}");
    }
    let form = [("grant_type", "refresh_token"), ("refresh_token", "a.guess.too")];
    let post = server.plain(Method::POST, "/oauth2/token").form(&form).send();
    refused(post.await.unwrap()).await;
    // Whoever signed in from there is let in, and so is what nobody can guess.
    assert_eq!(shown("ann", right).await.unwrap().status(), StatusCode::OK);
    assert_eq!(token("ann", right).await.unwrap().status(), StatusCode::OK);
    server.get("/runs").await;
    server.stop().await;
}
