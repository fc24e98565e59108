//! How a run logs in to registries (identity-and-secrets.md sections 1 and 2).

use std::collections::BTreeMap;

use control::{Logins, RegistryLogin};
use oci::Reference;
use serde_json::Value;

use super::cut;
use crate::error::ApiError;

/// Other registries of one task.
const REGISTRIES_MAX: usize = 50;

/// Bytes of a user name, and of a password, which may be a token.
const USERNAME_MAX: usize = 512;
const PASSWORD_MAX: usize = 16 << 10;

/// The logins that a request asks for. Values that it leaves out are those that are known.
pub(super) fn logins(
    credentials: Option<api::Credentials>,
    known: Option<&Logins>,
) -> Result<Logins, ApiError> {
    let Some(credentials) = credentials else {
        return Ok(Logins::default());
    };
    let mut others = BTreeMap::new();
    for (server, login) in credentials.custom_registries.unwrap_or_default() {
        let Some(login) = login else { continue };
        let member = format!("credentials.customRegistries.{}", cut(&server));
        let host = host(&server).map_err(|error| error.at(&member))?;
        let known = known.and_then(|known| known.others.get(&host));
        let login = registry_login(login, known).map_err(|error| error.at(&member))?;
        if others.insert(host, login).is_some() {
            return Err(ApiError::invalid("this registry has two logins").at(&member));
        }
    }
    if others.len() > REGISTRIES_MAX {
        let message = format!("more than {REGISTRIES_MAX} registries");
        return Err(ApiError::invalid(message).at("credentials.customRegistries"));
    }
    let without_own = match credentials.source_registry {
        Some(source) => without_own(source)?,
        None => false,
    };
    Ok(Logins { without_own, others })
}

fn without_own(source: api::SourceRegistryCredentials) -> Result<bool, ApiError> {
    let refuse = |message: String| ApiError::invalid(message).at("credentials.sourceRegistry");
    if source.identity.is_some_and(|identity| !identity.is_empty()) {
        return Err(refuse("identities are not supported yet".to_owned()));
    }
    match source.login_mode.as_deref().unwrap_or_default() {
        "" => Ok(false),
        mode if mode.eq_ignore_ascii_case("default") => Ok(false),
        mode if mode.eq_ignore_ascii_case("none") => Ok(true),
        mode => Err(refuse(format!("login mode `{}` is neither `Default` nor `None`", cut(mode)))),
    }
}

/// Gives the registries of a request the names under which their logins are kept. What is no host
/// stays, to be refused by its name.
pub(crate) fn name_hosts(registries: &mut Value) {
    if let Value::Object(registries) = registries {
        let named = std::mem::take(registries).into_iter();
        registries.extend(named.map(|(server, login)| (host(&server).unwrap_or(server), login)));
    }
}

/// The host of a registry as references have it.
fn host(server: &str) -> Result<String, ApiError> {
    let refuse = || {
        ApiError::invalid(format!("`{}` is not the host of a registry", cut(server)))
            .hint("it looks like `ghcr.io` or `registry.example.com:5000`")
    };
    let name = server.trim_start_matches("https://").trim_end_matches('/');
    if name.contains(['/', '@']) {
        return Err(refuse());
    }
    let reference: Reference = format!("{name}/any").parse().map_err(|_| refuse())?;
    // What is no host would be a part of the repository.
    if reference.has_host { Ok(reference.host) } else { Err(refuse()) }
}

/// How a part of a login is given.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Absent,
    Opaque,
    Vault,
}

fn registry_login(
    login: api::CustomRegistryCredentials,
    known: Option<&RegistryLogin>,
) -> Result<RegistryLogin, ApiError> {
    let (user, password) =
        (login.user_name.unwrap_or_default(), login.password.unwrap_or_default());
    let identity = login.identity.filter(|identity| !identity.is_empty());
    let no_identities = || Err(ApiError::invalid("identities are not supported yet"));
    match (kind(&user)?, kind(&password)?) {
        (Kind::Opaque, Kind::Opaque) if identity.is_some() => no_identities(),
        (Kind::Opaque, Kind::Opaque) => {
            let known_user = known.map(|known| &known.username);
            let known_password = known.map(|known| &known.password);
            Ok(RegistryLogin {
                username: part(user.value, known_user, "user name", USERNAME_MAX)?,
                password: part(password.value, known_password, "password", PASSWORD_MAX)?,
            })
        }
        (Kind::Absent, Kind::Absent) if identity.is_some() => no_identities(),
        (Kind::Vault, Kind::Opaque | Kind::Vault) | (Kind::Opaque, Kind::Vault) => {
            Err(match identity {
                Some(_) => ApiError::invalid("secrets of vaults are not supported yet"),
                None => ApiError::invalid(
                    "a login with a secret of a vault needs an identity that may read it",
                ),
            })
        }
        _ => Err(ApiError::invalid(
            "it is no login: that is a user name and a password, each with a value and with \
             `Opaque` as its type",
        )),
    }
}

fn kind(part: &api::SecretObject) -> Result<Kind, ApiError> {
    match part.kind.as_deref().unwrap_or_default() {
        "" => Ok(Kind::Absent),
        kind if kind.eq_ignore_ascii_case("opaque") => Ok(Kind::Opaque),
        kind if kind.eq_ignore_ascii_case("vaultsecret") => Ok(Kind::Vault),
        kind => {
            let message = format!("type `{}` is neither `Opaque` nor `Vaultsecret`", cut(kind));
            Err(ApiError::invalid(message))
        }
    }
}

fn part(
    given: Option<String>,
    known: Option<&String>,
    what: &str,
    size_max: usize,
) -> Result<String, ApiError> {
    let value = given.or_else(|| known.cloned()).unwrap_or_default();
    if value.is_empty() {
        return Err(ApiError::invalid(format!("the {what} is empty")));
    }
    // In the header of a request neither may have more than the one colon.
    let is_odd =
        value.contains(|c: char| c.is_control()) || what != "password" && value.contains(':');
    match value.len() > size_max || is_odd {
        true => Err(ApiError::invalid(format!(
            "the {what} has more than {size_max} bytes, or characters that none has"
        ))),
        false => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::*;

    fn parse(credentials: Value, known: Option<&Logins>) -> Result<Logins, ApiError> {
        logins(Some(serde_json::from_value(credentials).unwrap()), known)
    }

    fn opaque(value: &str) -> Value {
        json!({ "value": value, "type": "opaque" })
    }

    fn text(error: &ApiError) -> String {
        format!("{}: {}", error.target.as_deref().unwrap_or_default(), error.message)
    }

    #[track_caller]
    fn check_refused(login: Value, expected: Expect) {
        let error = parse(json!({ "customRegistries": { "r.example.com": login } }), None);
        expected.assert_eq(&text(&error.unwrap_err()));
    }

    #[test]
    fn logins_are_taken_by_the_host_that_references_have() {
        let login = || json!({ "userName": opaque("me"), "password": opaque("hunter2") });
        let all = json!({
            "customRegistries": {
                "R.example.com:5000": login(),
                "https://ghcr.io/": login(),
                "index.docker.io": login(),
                "gone.example.com": null,
            },
            "sourceRegistry": { "loginMode": "none", "identity": null },
        });
        let logins = parse(all, None).unwrap();
        assert!(logins.without_own);
        let hosts: Vec<&String> = logins.others.keys().collect();
        assert_eq!(hosts, ["docker.io", "ghcr.io", "r.example.com:5000"]);
        assert_eq!(logins.others["ghcr.io"].username, "me");
        assert_eq!(logins.others["ghcr.io"].password, "hunter2");
        assert!(super::logins(None, Some(&logins)).unwrap().is_default());
    }

    #[test]
    fn what_is_left_out_stays_as_it_is() {
        let login = json!({ "userName": opaque("me"), "password": opaque("hunter2") });
        let known = parse(json!({ "customRegistries": { "ghcr.io": login } }), None).unwrap();
        let keep = json!({ "userName": opaque("you"), "password": { "type": "Opaque" } });
        let kept = parse(json!({ "customRegistries": { "ghcr.io": keep } }), Some(&known)).unwrap();
        let expected = RegistryLogin { username: "you".into(), password: "hunter2".into() };
        assert_eq!(kept.others["ghcr.io"], expected);
    }

    #[test]
    fn j14_an_empty_password_is_refused() {
        check_refused(
            json!({ "userName": opaque("me"), "password": opaque("") }),
            expect!["credentials.customRegistries.r.example.com: the password is empty"],
        );
        check_refused(
            json!({ "userName": opaque(""), "password": opaque("x") }),
            expect!["credentials.customRegistries.r.example.com: the user name is empty"],
        );
    }

    #[test]
    fn j15_a_secret_of_a_vault_needs_an_identity() {
        let vault = json!({ "value": "https://v.example.net/secrets/x", "type": "Vaultsecret" });
        check_refused(
            json!({ "userName": opaque("me"), "password": vault }),
            expect![
                "credentials.customRegistries.r.example.com: a login with a secret of a vault needs an identity that may read it"
            ],
        );
        check_refused(
            json!({ "userName": opaque("me"), "password": vault, "identity": "[system]" }),
            expect![
                "credentials.customRegistries.r.example.com: secrets of vaults are not supported yet"
            ],
        );
    }

    #[test]
    fn j17_what_is_no_login_is_refused() {
        let unclassifiable = expect![
            "credentials.customRegistries.r.example.com: it is no login: that is a user name and a password, each with a value and with `Opaque` as its type"
        ];
        check_refused(
            json!({ "userName": { "value": "me" }, "password": opaque("x") }),
            unclassifiable,
        );
        check_refused(
            json!({}),
            expect![
                "credentials.customRegistries.r.example.com: it is no login: that is a user name and a password, each with a value and with `Opaque` as its type"
            ],
        );
        check_refused(
            json!({ "userName": opaque("me"), "password": { "value": "x", "type": "Clear" } }),
            expect![
                "credentials.customRegistries.r.example.com: type `Clear` is neither `Opaque` nor `Vaultsecret`"
            ],
        );
        check_refused(
            json!({ "identity": "[system]" }),
            expect!["credentials.customRegistries.r.example.com: identities are not supported yet"],
        );
        check_refused(
            json!({ "userName": opaque("a:b"), "password": opaque("x") }),
            expect![
                "credentials.customRegistries.r.example.com: the user name has more than 512 bytes, or characters that none has"
            ],
        );
    }

    #[test]
    fn a_change_finds_a_login_however_its_registry_is_written() {
        let mut change = json!({
            "GHCR.io": null, "https://r.example.com/": {}, "index.docker.io": null, "a b": null
        });
        name_hosts(&mut change);
        let expected =
            json!({ "ghcr.io": null, "r.example.com": {}, "docker.io": null, "a b": null });
        assert_eq!(change, expected);
    }

    #[test]
    fn hosts_and_modes_are_checked() {
        for bad in ["", "library", "ghcr.io/team", "me@ghcr.io", "http://ghcr.io", "a b.io"] {
            let login = json!({ "userName": opaque("me"), "password": opaque("x") });
            let error = parse(json!({ "customRegistries": { bad: login } }), None).unwrap_err();
            assert!(text(&error).contains("is not the host of a registry"), "{bad}");
        }
        let twice = json!({ "userName": opaque("me"), "password": opaque("x") });
        let twice = json!({ "customRegistries": { "ghcr.io": twice, "GHCR.io": twice } });
        let error = parse(twice, None).unwrap_err();
        assert!(text(&error).contains("this registry has two logins"));
        let source = |source: Value| parse(json!({ "sourceRegistry": source }), None);
        assert!(!source(json!({ "loginMode": "Default" })).unwrap().without_own);
        assert!(source(json!({ "loginMode": "Sometimes" })).is_err());
        assert!(source(json!({ "identity": "[system]" })).is_err());
    }
}
