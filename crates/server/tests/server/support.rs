//! A server in a temporary folder, and requests to it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use control::{Attempt, End, EventKind, Executor, Outcome, Stream};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use server::{App, ServeError, Settings, Sources};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How much a run named `chatty` says.
pub(crate) const CHATTY_LINES: usize = 4096;
const CHATTY_WIDTH: usize = 4096;

/// What a run's Dockerfile path makes the fake builder do.
pub(crate) struct FakeBuilder {
    /// Runs named `hold` go on when the test gives a permit.
    pub(crate) hold: Semaphore,
}

#[async_trait]
impl Executor for FakeBuilder {
    async fn execute(&self, attempt: &Attempt) -> Outcome {
        attempt.running(true).await.unwrap().unwrap();
        let output = |text: &str| EventKind::Output {
            step: 1,
            stream: Stream::Stdout,
            text: text.to_owned(),
        };
        attempt.log.append(EventKind::StepStarted { step: 1, name: "RUN make".into() }).await;
        attempt.log.append(output("making\n")).await;
        let dockerfile = attempt.run.request.build().map(|build| build.dockerfile.as_str());
        let end = match dockerfile.unwrap_or_default() {
            "fail" => End::Failed("`make` ended with 2".into()),
            "chatty" => {
                for number in 0..CHATTY_LINES {
                    let line = format!("line {number} {}\n", "x".repeat(CHATTY_WIDTH));
                    attempt.log.append(output(&line)).await;
                }
                End::Succeeded
            }
            "hold" => tokio::select! {
                permit = self.hold.acquire() => {
                    permit.unwrap().forget();
                    End::Succeeded
                }
                () = attempt.cancel.cancelled() => End::Canceled,
            },
            _ => End::Succeeded,
        };
        Outcome::of(end)
    }
}

pub(crate) struct Server {
    pub(crate) data: TempDir,
    runtime_folder: TempDir,
    pub(crate) url: String,
    pub(crate) builder: Arc<FakeBuilder>,
    client: reqwest::Client,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<Result<(), ServeError>>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with("", &[]).await
    }

    /// With a settings file and flags.
    pub(crate) async fn start_with(file: &str, flags: &[(&str, &str)]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), file, flags).await
    }

    pub(crate) async fn start_in(data: TempDir, file: &str, flags: &[(&str, &str)]) -> Self {
        let runtime_folder = tempfile::tempdir().unwrap();
        let settings = settings(data.path(), runtime_folder.path(), file, flags).unwrap();
        let builder = Arc::new(FakeBuilder { hold: Semaphore::new(0) });
        let executor = Arc::clone(&builder) as Arc<dyn Executor>;
        let app = App::build_with(settings, executor).await.unwrap();
        let url = app.url().or_else(|| app.tls_url()).unwrap();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(app.serve(shutdown.clone()));
        let client = client();
        Self { data, runtime_folder, url, builder, client, shutdown, serving }
    }

    /// Asks it to stop, as a signal does.
    pub(crate) fn ask_to_stop(&self) {
        self.shutdown.cancel();
    }

    /// Stops in order and gives the data folder back.
    pub(crate) async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        bounded(self.serving).await.unwrap().unwrap();
        self.data
    }

    pub(crate) fn token(&self) -> String {
        self.secret("api-token")
    }

    pub(crate) fn secret(&self, name: &str) -> String {
        let file = self.data.path().join("keys").join(name);
        std::fs::read_to_string(file).unwrap().trim().to_owned()
    }

    pub(crate) fn published_token(&self, host: &str) -> PathBuf {
        self.runtime_folder.path().join("refit").join(api::token_file_name(host))
    }

    /// `HOST:PORT`.
    pub(crate) fn host(&self) -> String {
        self.url.split_once("://").unwrap().1.to_owned()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        server::socket_path(self.data.path())
    }

    /// A request without credentials.
    pub(crate) fn plain(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    /// A request to the API of registry `local`, with the token.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let path = format!("/api/v1/registries/local{path}");
        self.plain(method, &path).bearer_auth(self.token())
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        answer(self.request(Method::GET, path).send().await.unwrap(), StatusCode::OK).await
    }

    pub(crate) async fn upload(&self, bytes: &[u8]) -> String {
        let created = self.request(Method::POST, "/listBuildSourceUploadUrl").send().await.unwrap();
        let created = answer(created, StatusCode::OK).await;
        let url = created["uploadUrl"].as_str().unwrap();
        let put = self.plain(Method::PUT, url).body(bytes.to_vec()).send().await.unwrap();
        assert_eq!(put.status(), StatusCode::CREATED);
        created["relativePath"].as_str().unwrap().to_owned()
    }

    /// Queues a build; `dockerfile` tells the fake what to do.
    pub(crate) async fn schedule(&self, dockerfile: &str) -> String {
        let source = self.upload(b"a context").await;
        let body = build_request(dockerfile, &source);
        let run = self.request(Method::POST, "/scheduleRun").json(&body).send().await.unwrap();
        let run = answer(run, StatusCode::CREATED).await;
        run["properties"]["runId"].as_str().unwrap().to_owned()
    }

    /// Follows a run to its end and returns its record.
    pub(crate) async fn ended(&self, id: &str) -> Value {
        let path = format!("/runs/{id}/logs?follow=true");
        let log = bounded(self.request(Method::GET, &path).send()).await.unwrap();
        bounded(log.text()).await.unwrap();
        self.get(&format!("/runs/{id}")).await["properties"].clone()
    }
}

pub(crate) fn build_request(dockerfile: &str, source: &str) -> Value {
    json!({
        "type": "DockerBuildRequest",
        "dockerFilePath": dockerfile,
        "platform": { "os": "Linux" },
        "sourceLocation": source,
        "imageNames": ["app:1"],
    })
}

pub(crate) fn settings(
    data: &Path,
    runtime_folder: &Path,
    file: &str,
    flags: &[(&str, &str)],
) -> Result<Settings, server::SettingsError> {
    let config = data.join("refit.toml");
    std::fs::create_dir_all(data).unwrap();
    std::fs::write(&config, file).unwrap();
    let mut all = vec![
        ("server.data".to_owned(), data.display().to_string()),
        ("server.listen".to_owned(), "127.0.0.1:0".to_owned()),
        ("server.shutdown_grace".to_owned(), "2s".to_owned()),
    ];
    all.extend(flags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let environment = vec![("XDG_RUNTIME_DIR".to_owned(), runtime_folder.display().to_string())];
    Settings::resolve(&Sources {
        file: Some(config),
        environment,
        flags: all,
        ..Sources::default()
    })
}

pub(crate) fn client() -> reqwest::Client {
    // Another test may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().tls_certs_only([]).build().unwrap()
}

pub(crate) fn socket_client(socket: &Path) -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().tls_certs_only([]).unix_socket(socket).build().unwrap()
}

#[track_caller]
fn check_status(actual: StatusCode, expected: StatusCode, text: &str) {
    assert_eq!(actual, expected, "{text}");
}

/// The JSON of an answer that must have this status.
pub(crate) async fn answer(response: Response, expected: StatusCode) -> Value {
    let status = response.status();
    let text = response.text().await.unwrap();
    check_status(status, expected, &text);
    serde_json::from_str(&text).unwrap()
}

pub(crate) async fn bounded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

/// Polls until a condition holds.
pub(crate) async fn wait_for<F: Future<Output = bool>>(condition: impl Fn() -> F) {
    bounded(async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
