use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// A server that answers each connection with the next of `answers` and then hangs up, and
/// gives back what was asked for.
async fn serve(answers: Vec<String>) -> (Connection, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(socket.read_u8().await.unwrap());
            }
            let request = String::from_utf8(request).unwrap();
            asked.push(request.lines().next().unwrap_or_default().to_owned());
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
        asked
    });
    (Connection::to_url(url.parse().unwrap(), None, "local", None).unwrap(), server)
}

/// An answer that ends too early: its length promises more.
fn broken(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{body}")
}

fn whole(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn message(id: u64, text: &str) -> String {
    format!("{{\"id\":{id},\"at\":1,\"kind\":\"message\",\"text\":\"{text}\"}}\n")
}

const FINISHED: &str = "{\"id\":5,\"at\":2,\"kind\":\"finished\",\"status\":\"Succeeded\"}\n";

#[tokio::test]
async fn events_go_on_where_a_connection_broke() {
    let unknown = "{\"id\":3,\"at\":1,\"kind\":\"tomorrow\"}\n";
    let (connection, server) = serve(vec![
        broken(&format!("{}{}{{\"id\":4,", message(1, "one"), message(2, "two"))),
        "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".into(),
        broken(&format!("{}\n{unknown}", message(2, "again"))),
        whole(&format!("{}{FINISHED}", message(4, "four"))),
    ])
    .await;
    let mut followed = events(connection, "c01".into());
    let mut told = Vec::new();
    while let Some(next) = followed.recv().await {
        told.push(match next {
            Followed::Event(event) => event.id.to_string(),
            Followed::Lost(_) => "lost".into(),
            Followed::Failed(error) => error.to_string(),
        });
    }
    assert_eq!(told, ["1", "2", "lost", "lost", "4", "5"]);
    let path = "GET /api/v1/registries/local/runs/c01/events";
    let asked = server.await.unwrap();
    let expected = [0, 2, 2, 3].map(|id| format!("{path}?after={id}&follow=true HTTP/1.1"));
    assert_eq!(asked, expected);
}

#[tokio::test]
async fn a_run_that_is_not_there_is_not_waited_for() {
    let body = r#"{"error":{"code":"NotFound","message":"there is no run `c01`","hint":"look"}}"#;
    let answer = whole(body).replace("200 OK", "404 Not Found");
    let (connection, _server) = serve(vec![answer]).await;
    let mut followed = events(connection, "c01".into());
    let Some(Followed::Failed(error)) = followed.recv().await else { panic!("it went on") };
    assert_eq!(
        (error.kind(), error.to_string()),
        (ErrorKind::NotFound, "there is no run `c01`".into())
    );
    assert_eq!(error.hint(), Some("look"));
    assert!(followed.recv().await.is_none());
}

#[tokio::test]
async fn a_log_goes_on_where_its_connection_broke() {
    let run = serde_json::json!({
        "id": "x", "name": "c01", "type": "x",
        "properties": {
            "runId": "c01", "status": "Succeeded", "runType": "QuickBuild", "createTime": "",
            "lastUpdatedTime": "", "platform": {"os": "linux"}, "provisioningState": "Succeeded",
        },
    });
    let (connection, server) =
        serve(vec![broken("one\r\ntw"), whole("o\r\n"), whole(&run.to_string())]).await;
    let mut log = LogReader::new(connection, "c01".into(), true);
    let mut text = Vec::new();
    while let Some(bytes) = log.next().await.unwrap() {
        text.extend_from_slice(&bytes);
    }
    assert_eq!(text, b"one\r\ntwo\r\n");
    let asked = server.await.unwrap();
    assert!(asked[1].contains("offset=7&"), "{asked:?}");
}
