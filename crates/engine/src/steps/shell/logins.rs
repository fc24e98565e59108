//! `docker login`: what is kept of it is a file of the home folder, which the client reads and writes
//! in its own container. Nothing is asked of the registry.

use bytes::Bytes;
use container::Stream;
use serde_json::{Map, Value, json};

use super::docker::{LoginArgs, LogoutArgs};
use super::protocol::Message;
use super::session::Caller;
use crate::execute::Failure;
use crate::logins::{DOCKER_HUB, auth};

/// Keeps a user and a password for a registry.
pub(super) async fn login(login: &LoginArgs, caller: &Caller) -> Result<(), Failure> {
    let Some(user) = login.username.as_deref().filter(|user| !user.is_empty()) else {
        return Err(refused("`docker login` needs `--username`"));
    };
    let password = match (&login.password, login.password_stdin) {
        (_, true) => text(caller.ask(&Message::AskInput).await?, "the password")?,
        (Some(password), false) => password.clone(),
        (None, false) => return Err(refused("`docker login` needs `--password-stdin`")),
    };
    let password = password.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(refused("the password is empty"));
    }
    let file = text(caller.ask(&Message::AskLogins).await?, "the file with logins")?;
    let auth = auth(user, password);
    let file = with_login(&file, server(login.server.as_deref()), Some(&auth))?;
    caller.ask(&Message::KeepLogins(file.into())).await?;
    caller.say(Stream::Stdout, "Login Succeeded\n").await;
    Ok(())
}

/// Forgets them.
pub(super) async fn logout(logout: &LogoutArgs, caller: &Caller) -> Result<(), Failure> {
    let server = server(logout.server.as_deref());
    let file = text(caller.ask(&Message::AskLogins).await?, "the file with logins")?;
    let file = with_login(&file, server, None)?;
    caller.ask(&Message::KeepLogins(file.into())).await?;
    caller.say(Stream::Stdout, &format!("Removing login credentials for {server}\n")).await;
    Ok(())
}

fn server(given: Option<&str>) -> &str {
    match given {
        None | Some("docker.io" | "index.docker.io") => DOCKER_HUB,
        Some(server) => {
            let host = server.trim_start_matches("https://").trim_start_matches("http://");
            if server.contains("index.docker.io") { DOCKER_HUB } else { host.trim_end_matches('/') }
        }
    }
}

/// The file with a login of a server, or without; what else it has stays.
fn with_login(file: &str, server: &str, auth: Option<&str>) -> Result<String, Failure> {
    let damaged = || refused("the file with logins is not one of docker's: `config.json`");
    let mut all: Map<String, Value> = match file.trim() {
        "" => Map::new(),
        file => serde_json::from_str(file).map_err(|_| damaged())?,
    };
    let logins = all.entry("auths").or_insert_with(|| json!({}));
    let logins = logins.as_object_mut().ok_or_else(damaged)?;
    match auth {
        Some(auth) => drop(logins.insert(server.to_owned(), json!({ "auth": auth }))),
        None => drop(logins.remove(server)),
    }
    Ok(format!("{:#}\n", Value::Object(all)))
}

fn text(bytes: Bytes, what: &str) -> Result<String, Failure> {
    String::from_utf8(bytes.into()).map_err(|_| refused(&format!("{what} is not UTF-8 text")))
}

fn refused(text: &str) -> Failure {
    Failure::User(format!("error: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_kept_as_docker_keeps_it() {
        let one = with_login("", server(Some("https://r.example.com/")), Some("dTpw")).unwrap();
        assert_eq!(
            one,
            "{\n  \"auths\": {\n    \"r.example.com\": {\n      \"auth\": \"dTpw\"\n    }\n  }\n}\n"
        );
        let file = r#"{"credsStore":"x","auths":{"a":{"auth":"old"}}}"#;
        let two = with_login(file, server(None), Some("n")).unwrap();
        let read: Value = serde_json::from_str(&two).unwrap();
        assert_eq!(read["credsStore"], "x");
        assert_eq!(read["auths"]["a"]["auth"], "old");
        assert_eq!(read["auths"][DOCKER_HUB]["auth"], "n");
        let none = with_login(&two, "a", None).unwrap();
        assert!(!none.contains("old"));
        assert!(with_login("[]", "a", None).is_err());
        assert!(with_login("{\"auths\":1}", "a", None).is_err());
        assert_eq!(server(Some("docker.io")), DOCKER_HUB);
        assert_eq!(server(Some("https://index.docker.io/v1/")), DOCKER_HUB);
    }
}
