//! Receivers of posts that do as they like.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use remote::{Post, PostError, Poster, PosterSettings, Reach};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Answers each connection with some bytes, keeps it open if it is to stall, and notes requests.
struct Receiver {
    address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Receiver {
    async fn start(answer: impl Into<Vec<u8>>, stalls: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (noted, answer) = (Arc::clone(&requests), answer.into());
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = vec![0; 64 << 10];
                let mut len = 0;
                while !request[..len].ends_with(b"}") {
                    match stream.read(&mut request[len..]).await.unwrap() {
                        0 => break,
                        read => len += read,
                    }
                }
                noted.lock().unwrap().push(String::from_utf8_lossy(&request[..len]).into_owned());
                let _ = stream.write_all(&answer).await;
                if stalls {
                    kept.push(stream);
                }
            }
        });
        Self { address, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn poster(timeout: u64, answer_size_max: usize) -> Poster {
    let allowed = vec!["127.0.0.1".parse().unwrap()];
    let reach = Reach { allowed, ..Reach::default() };
    let timeout = Duration::from_millis(timeout);
    Poster::new(PosterSettings { reach, timeout, answer_size_max }).unwrap()
}

fn post(address: String, headers: &[(&str, &str)]) -> Post {
    let headers =
        headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Post { address, headers, body: Bytes::from_static(b"{\"a\":1}") }
}

#[tokio::test]
async fn a_post_is_told_with_the_callers_headers_and_answered() {
    let answer =
        "HTTP/1.1 503 Busy\r\nretry-after: 7\r\nX-More: y\r\ncontent-length: 4\r\n\r\nwhat";
    let receiver = Receiver::start(answer, false).await;
    let address = format!("http://me:pass@{}/hook?key=k", receiver.address);
    let answer = poster(5000, 100).post(&post(address.clone(), &[("X-Own", "one")])).await.unwrap();
    assert_eq!((answer.status, answer.is_success(), answer.is_cut), (503, false, false));
    assert_eq!(
        (&answer.body[..], answer.retry_after),
        (&b"what"[..], Some(Duration::from_secs(7)))
    );
    assert!(answer.headers.contains(&("x-more".to_owned(), "y".to_owned())));
    let request = receiver.requests()[0].to_lowercase();
    assert!(request.starts_with("post /hook?key=k http/1.1\r\n"), "{request}");
    for expected in ["x-own: one", "content-type: application/json", "authorization: basic "] {
        assert!(request.contains(expected), "{request}");
    }
    let own = [("content-type", "text/x"), ("Authorization", "Bearer t")];
    poster(5000, 100).post(&post(address, &own)).await.unwrap();
    let request = receiver.requests()[1].to_lowercase();
    assert!(request.contains("content-type: text/x") && request.contains("bearer t"), "{request}");
    assert!(!request.contains("application/json") && !request.contains("basic"), "{request}");
}

#[tokio::test]
async fn answers_are_bounded_in_size_and_time_and_lead_nowhere() {
    let large = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(100_000));
    let large = Receiver::start(large, false).await;
    let answer = poster(5000, 1000).post(&post(format!("http://{}/", large.address), &[])).await;
    let answer = answer.unwrap();
    assert_eq!((answer.status, answer.body.len(), answer.is_cut), (200, 1000, true));

    let slow = Receiver::start("HTTP/1.1 201 Created\r\ncontent-length: 9\r\n\r\nhalf", true).await;
    let answer = poster(300, 1000).post(&post(format!("http://{}/", slow.address), &[])).await;
    let answer = answer.unwrap();
    assert_eq!((answer.status, &answer.body[..], answer.is_cut), (201, &b"half"[..], true));

    let silent = Receiver::start("", true).await;
    let error = poster(300, 1000).post(&post(format!("http://{}/", silent.address), &[])).await;
    let error = error.unwrap_err();
    assert!(matches!(error, PostError::TimedOut { .. }) && error.is_transient(), "{error}");

    let leading = format!("HTTP/1.1 302 Found\r\nlocation: http://{}/\r\n\r\n", large.address);
    let leading = Receiver::start(leading, false).await;
    let answer = poster(5000, 1000).post(&post(format!("http://{}/", leading.address), &[])).await;
    assert_eq!(answer.unwrap().status, 302);
    assert_eq!(large.requests().len(), 1);
}

#[tokio::test]
async fn receivers_that_users_may_not_reach_are_not_asked() {
    let poster = Poster::new(PosterSettings::default()).unwrap();
    for address in ["http://127.0.0.1:1/secret", "http://169.254.169.254/secret", "http://[::1]/"] {
        let error = poster.post(&post(address.to_owned(), &[])).await.unwrap_err();
        assert_eq!(poster.check(address, &[]), Err(error.clone()));
        assert!(matches!(error, PostError::Forbidden { .. }), "{error}");
        assert!(error.hint().unwrap().contains("build.allow_addresses"));
        assert!(!error.is_transient() && !error.to_string().contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn what_cannot_be_posted_is_refused_without_telling_secrets() {
    let poster = poster(5000, 1000);
    let check = |address: &str, name: &str, value: &str| {
        let headers = [(name.to_owned(), value.to_owned())];
        poster.check(address, &headers).map_err(|error| error.to_string())
    };
    let fine = "https://u:hunter2@example.com/hunter2?hunter2";
    check(fine, "X-Key", "hunter2").unwrap();
    for (address, name, value, expected) in [
        ("hunter2", "a", "b", "the address is not valid"),
        ("ftp://h/hunter2", "a", "b", "neither http nor https"),
        (fine, "Host", "hunter2", "the header `Host` is set by the server itself"),
        (fine, "content-length", "0", "is set by the server itself"),
        (fine, "a b", "hunter2", "has a name that no header can have"),
        (fine, "a", "hunter2\r\nb: c", "the header `a` has a value that is not one line of text"),
        (fine, "a", &"hunter2".repeat(3000), "the headers are larger than 16384 bytes"),
        (&format!("http://h/{}", "x".repeat(5000)), "a", "b", "longer than 4096 bytes"),
    ] {
        let error = check(address, name, value).unwrap_err();
        assert!(error.contains(expected) && !error.contains("hunter2"), "{error}");
    }
    // Nothing listens there.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let address = format!("http://u:hunter2@{gone}/hunter2?hunter2");
    let error = poster.post(&post(address, &[("x", "hunter2")])).await.unwrap_err();
    assert!(matches!(error, PostError::Unreachable { .. }), "{error:?}");
    assert!(!format!("{error:?} {error}").contains("hunter2"), "{error:?}");
}
