//! Signing in with the OpenID Connect provider of a server: with a browser of this machine (RFC 8252
//! with PKCE), or with one of another by a code (RFC 8628).
//!
//! The provider's word is only carried to the server, which checks it.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use api::SignInOffer;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use oauth2::basic::{
    BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse,
    BasicTokenType,
};
use oauth2::{
    AuthUrl, AuthorizationCode, ClientId, CsrfToken, DeviceAuthorizationUrl, ExtraTokenFields,
    HttpRequest, HttpResponse, PkceCodeChallenge, RedirectUrl, RequestTokenError, Scope,
    StandardDeviceAuthorizationResponse, StandardRevocableToken, StandardTokenResponse, TokenUrl,
};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use url::Url;

use crate::connection::{provider_client, read_body};
use crate::error::{Error, Result, could_not};
use crate::printer::Printer;

/// How long somebody may take to sign in.
const PATIENCE: Duration = Duration::from_secs(10 * 60);
/// For one request to the provider.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of an answer of the provider.
const ANSWER_MAX: usize = 1 << 20;
/// A browser's request has to be here within it.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

const DONE: &str = "You are signed in. This window can be closed.\n";
const NOT_DONE: &str = "You are not signed in; see the terminal. This window can be closed.\n";

/// Where somebody's browser is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Browser {
    Here,
    /// Anywhere: a code is typed there.
    Elsewhere,
}

/// What a provider says of itself (OpenID Connect Discovery 1.0).
#[derive(Deserialize)]
struct Discovered {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    #[serde(default)]
    device_authorization_endpoint: Option<String>,
}

/// What is asked for besides the tokens of OAuth.
#[derive(Serialize, Deserialize)]
struct IdToken {
    id_token: String,
}

/// Never shows it.
impl std::fmt::Debug for IdToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IdToken")
    }
}

impl ExtraTokenFields for IdToken {}

type Answer = StandardTokenResponse<IdToken, BasicTokenType>;
type Client = oauth2::Client<
    BasicErrorResponse,
    Answer,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
>;

/// An identity token of the provider for whoever signs in.
pub(crate) async fn id_token(
    offer: &SignInOffer,
    browser: Browser,
    ca_file: Option<&Path>,
    printer: Printer,
) -> Result<String> {
    let http = provider_client(ca_file)?;
    let provider = discover(&http, &offer.issuer).await?;
    let send = async |request: HttpRequest| send(&http, request).await;
    let scopes = offer.scopes.iter().cloned().map(Scope::new);
    let client = Client::new(ClientId::new(offer.client_id.clone()))
        .set_auth_uri(endpoint(provider.authorization_endpoint, AuthUrl::new)?)
        .set_token_uri(endpoint(provider.token_endpoint, TokenUrl::new)?);
    match browser {
        Browser::Elsewhere => {
            let place = provider.device_authorization_endpoint.ok_or_else(|| {
                Error::failed("the provider has no sign-in by a code")
                    .with_hint("leave `--device` away, on a machine with a browser")
            })?;
            let client =
                client.set_device_authorization_url(endpoint(place, DeviceAuthorizationUrl::new)?);
            let asked = client.exchange_device_code().add_scopes(scopes);
            let details: StandardDeviceAuthorizationResponse =
                asked.request_async(&send).await.map_err(refused)?;
            let code = details.user_code().secret();
            printer.note(&format!(
                "Open {} in a browser, and type the code {code}",
                details.verification_uri().as_str()
            ));
            let answer = client
                .exchange_device_access_token(&details)
                .request_async(&send, tokio::time::sleep, Some(PATIENCE))
                .await
                .map_err(refused)?;
            Ok(answer.extra_fields().id_token.clone())
        }
        Browser::Here => {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await;
            let listener = listener.map_err(could_not("listen for the browser"))?;
            let address = listener.local_addr().map_err(could_not("listen for the browser"))?;
            let client =
                client.set_redirect_uri(endpoint(format!("http://{address}/"), RedirectUrl::new)?);
            let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
            let nonce = CsrfToken::new_random();
            let (place, state) = client
                .authorize_url(CsrfToken::new_random)
                .add_scopes(scopes)
                .set_pkce_challenge(challenge)
                .add_extra_param("nonce", nonce.secret())
                .url();
            printer.note(&format!("Open this in a browser of this machine, to sign in:\n{place}"));
            let code = answer_of_browser(listener, state.secret());
            let code = tokio::time::timeout(PATIENCE, code).await;
            let code =
                code.map_err(|_| Error::failed("nobody has signed in within 10 minutes"))??;
            let answer = client
                .exchange_code(AuthorizationCode::new(code))
                .set_pkce_verifier(verifier)
                .request_async(&send)
                .await
                .map_err(refused)?;
            let token = &answer.extra_fields().id_token;
            check_nonce(token, nonce.secret())?;
            Ok(token.clone())
        }
    }
}

async fn discover(http: &reqwest::Client, issuer: &str) -> Result<Discovered> {
    let place = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
    let place = secure(&place)?;
    let doing = || format!("ask the provider `{issuer}`");
    let answer = http.get(place).timeout(TIMEOUT).send().await.map_err(could_not(doing()))?;
    if !answer.status().is_success() {
        let status = answer.status();
        return Err(Error::failed(format!("the provider `{issuer}` answered {status}")));
    }
    let body = read_body(answer, ANSWER_MAX).await?;
    let found: Discovered =
        serde_json::from_slice(&body).map_err(could_not("understand the provider"))?;
    match found.issuer == issuer {
        true => Ok(found),
        false => Err(Error::failed(format!("`{issuer}` says that it is another provider"))),
    }
}

/// An address of the provider, if nobody between can read what is sent there.
fn secure(address: &str) -> Result<Url> {
    let url: Url = address.parse().map_err(could_not("read an address of the provider"))?;
    let is_local = crate::select::is_loopback(&url);
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_local => Ok(url),
        _ => Err(Error::failed(format!("the provider's address `{address}` is not an HTTPS one"))),
    }
}

fn endpoint<T>(
    address: String,
    new: impl Fn(String) -> std::result::Result<T, url::ParseError>,
) -> Result<T> {
    secure(&address)?;
    new(address).map_err(could_not("read an address of the provider"))
}

/// One request of the protocol. What it carries is for the provider alone: it follows nothing.
async fn send(
    http: &reqwest::Client,
    request: HttpRequest,
) -> std::result::Result<HttpResponse, Error> {
    let failed = || could_not("ask the provider");
    let request = reqwest::Request::try_from(request).map_err(failed())?;
    let sent = tokio::time::timeout(TIMEOUT, http.execute(request)).await;
    let answer = sent.map_err(|_| Error::failed("the provider does not answer"))?;
    let answer = answer.map_err(failed())?;
    let (status, headers) = (answer.status(), answer.headers().clone());
    let mut response = HttpResponse::new(read_body(answer, ANSWER_MAX).await?);
    (*response.status_mut(), *response.headers_mut()) = (status, headers);
    Ok(response)
}

/// What the provider has against it, in its words.
fn refused<T>(error: RequestTokenError<Error, T>) -> Error
where
    T: oauth2::ErrorResponse + std::fmt::Display + 'static,
{
    match error {
        RequestTokenError::Request(error) => error,
        RequestTokenError::ServerResponse(answer) => {
            Error::failed(format!("the provider refuses: {answer}"))
        }
        RequestTokenError::Parse(error, _) => {
            let error = Error::failed(format!("the provider's answer is none: {error}"));
            error.with_hint("`sign_in.scopes` of the server has to have `openid`")
        }
        RequestTokenError::Other(reason) => Error::failed(format!("no sign-in: {reason}")),
    }
}

/// The token has to be of this sign-in. It came from the provider itself, so its signature is for the
/// server to check.
fn check_nonce(token: &str, nonce: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Claims {
        #[serde(default)]
        nonce: Option<String>,
    }
    let claims = token.split('.').nth(1).and_then(|text| BASE64_URL_SAFE_NO_PAD.decode(text).ok());
    let claims = claims.and_then(|claims| serde_json::from_slice::<Claims>(&claims).ok());
    match claims.and_then(|claims| claims.nonce).as_deref() == Some(nonce) {
        true => Ok(()),
        false => Err(Error::failed("the provider's token is not of this sign-in")),
    }
}

/// The code that the browser brings back from the provider. What has not the state of this sign-in is
/// somebody else's.
async fn answer_of_browser(listener: TcpListener, state: &str) -> Result<String> {
    let (sender, mut answers) = mpsc::channel(1);
    loop {
        let stream = tokio::select! {
            answer = answers.recv() => return answer.unwrap_or_else(|| Err(Error::failed("no answer"))),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => return Err(could_not("listen for the browser")(error)),
            },
        };
        let (sender, state) = (sender.clone(), state.to_owned());
        tokio::spawn(async move {
            let service = service_fn(move |request: hyper::Request<Incoming>| {
                let found = code_of(request.uri(), &state);
                let (sender, failed) = (sender.clone(), matches!(found, Some(Err(_)) | None));
                async move {
                    let mut response =
                        hyper::Response::new(Full::new(Bytes::from_static(if failed {
                            NOT_DONE.as_bytes()
                        } else {
                            DONE.as_bytes()
                        })));
                    match found {
                        // One is enough.
                        Some(found) => drop(sender.try_send(found)),
                        None => *response.status_mut() = hyper::StatusCode::NOT_FOUND,
                    }
                    Ok::<_, Infallible>(response)
                }
            });
            // The answer counts, and not how the connection ends.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// What a request of the browser brings, if it is of this sign-in.
fn code_of(uri: &hyper::Uri, state: &str) -> Option<Result<String>> {
    let query: Vec<_> = url::form_urlencoded::parse(uri.query()?.as_bytes()).collect();
    let find = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| &**value);
    if uri.path() != "/" || find("state") != Some(state) {
        return None;
    }
    Some(match (find("code"), find("error")) {
        (Some(code), None) => Ok(code.to_owned()),
        (_, error) => {
            let error = error.unwrap_or("it sends no code");
            let more = find("error_description").map(|text| format!(": {text}"));
            let text = format!("{error}{}", more.unwrap_or_default());
            let shown: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
            Err(Error::failed(format!("the provider refuses: {shown}")))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(uri: &str) -> Option<std::result::Result<String, String>> {
        let uri = uri.parse().unwrap();
        code_of(&uri, "s 1").map(|found| found.map_err(|error| error.to_string()))
    }

    #[test]
    fn only_an_answer_with_the_state_of_this_sign_in_counts() {
        assert_eq!(code("/?code=a%2Fb&state=s%201"), Some(Ok("a/b".to_owned())));
        for other in ["/", "/?code=a", "/?code=a&state=s", "/favicon.ico?state=s+1", "/x?state=s+1"]
        {
            assert_eq!(code(other), None, "{other}");
        }
        let refused = code("/?error=access_denied&error_description=no%0Away&state=s+1");
        let refused = refused.unwrap().unwrap_err();
        assert_eq!(refused, "the provider refuses: access_denied: noway");
        assert!(code("/?state=s+1").unwrap().is_err());
    }

    #[test]
    fn a_token_of_another_sign_in_is_refused() {
        let token = |claims: &str| format!("e30.{}.x", BASE64_URL_SAFE_NO_PAD.encode(claims));
        assert!(check_nonce(&token(r#"{"nonce":"n"}"#), "n").is_ok());
        for other in [r#"{"nonce":"m"}"#, "{}", r#"{"nonce":null}"#, "x"] {
            assert!(check_nonce(&token(other), "n").is_err(), "{other}");
        }
        assert!(check_nonce("", "n").is_err());
    }

    #[test]
    fn nothing_is_sent_to_a_provider_in_the_clear() {
        for fine in ["https://login.example.com/x", "http://127.0.0.1:1/", "http://localhost/x"] {
            assert!(secure(fine).is_ok(), "{fine}");
        }
        for bad in ["http://login.example.com/x", "ftp://login.example.com", "x", ""] {
            assert!(secure(bad).is_err(), "{bad}");
        }
    }
}
