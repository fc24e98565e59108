//! How a run logs in to registries (identity-and-secrets.md sections 1 and 2).

use std::collections::BTreeMap;

use control::{LoginText, Logins, OwnIdentity, RegistryLogin};
use oci::Reference;
use serde_json::Value;
use task::SecretAddress;
use uuid::Uuid;

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
    let (without_own, own_identity) = match credentials.source_registry {
        Some(source) => own_login(source)?,
        None => (false, None),
    };
    Ok(Logins { without_own, own_identity, others })
}

/// The logins of a run that is of no task.
pub(super) fn logins_of_run(credentials: Option<api::Credentials>) -> Result<Logins, ApiError> {
    let logins = logins(credentials, None)?;
    if logins.own_identity.is_some_and(|identity| identity != OwnIdentity::Caller) {
        return Err(ApiError::invalid(
            "a run without a task has no identity but that of its caller",
        )
        .at("credentials.sourceRegistry.identity")
        .hint("say `[caller]`, or make a task of it, and give that an identity"));
    }
    let mut others = logins.others.iter();
    match others.find(|(_, login)| matches!(login, RegistryLogin::Identity { .. })) {
        None => Ok(logins),
        Some((host, _)) => Err(ApiError::invalid("a run without a task has no identity")
            .at(format!("credentials.customRegistries.{host}"))
            .hint("make a task of it, and give that an identity")),
    }
}

/// Whether a run may not use its own registry, and as whom it uses it.
fn own_login(
    source: api::SourceRegistryCredentials,
) -> Result<(bool, Option<OwnIdentity>), ApiError> {
    let refuse = |message: String| ApiError::invalid(message).at("credentials.sourceRegistry");
    let is_caller =
        |text: &str| ["caller", "[caller]"].iter().any(|t| text.eq_ignore_ascii_case(t));
    let identity = match source.identity.as_deref().unwrap_or_default() {
        "" => None,
        text if is_caller(text) => Some(OwnIdentity::Caller),
        text => {
            let chosen = chosen(text);
            let chosen = chosen.map_err(|error| error.at("credentials.sourceRegistry.identity"))?;
            Some(chosen.map_or(OwnIdentity::System, OwnIdentity::Of))
        }
    };
    let without_own = match source.login_mode.as_deref().unwrap_or_default() {
        "" => false,
        mode if mode.eq_ignore_ascii_case("default") => false,
        mode if mode.eq_ignore_ascii_case("none") => true,
        mode => {
            let message = format!("login mode `{}` is neither `Default` nor `None`", cut(mode));
            return Err(refuse(message));
        }
    };
    if without_own && identity.is_some() {
        let message = "a run that may not use its registry has no identity for it";
        return Err(refuse(message.to_owned()).hint("leave out one of `loginMode` and `identity`"));
    }
    Ok((without_own, identity))
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
    let identity = identity.map(|identity| chosen(&identity)).transpose()?;
    let (known_user, known_password) = match known {
        Some(RegistryLogin::Password { username, password, .. }) => {
            (Some(username), Some(password))
        }
        Some(RegistryLogin::Identity { .. }) | None => (None, None),
    };
    match (kind(&user)?, kind(&password)?) {
        (Kind::Absent, Kind::Absent) if let Some(identity) = identity => {
            Ok(RegistryLogin::Identity { identity })
        }
        (
            user_kind @ (Kind::Opaque | Kind::Vault),
            password_kind @ (Kind::Opaque | Kind::Vault),
        ) => {
            let username = part((user_kind, user.value), known_user, "user name", USERNAME_MAX)?;
            let password =
                part((password_kind, password.value), known_password, "password", PASSWORD_MAX)?;
            let needs_identity = [&username, &password].into_iter().any(is_in_key_vault);
            if needs_identity && identity.is_none() {
                return Err(ApiError::invalid(
                    "a login with a secret of a vault needs an identity that may read it",
                )
                .hint("`[system]` is the task itself; the id of a client of the vault's directory is that client"));
            }
            Ok(RegistryLogin::Password { username, password, client_id: identity.flatten() })
        }
        _ => Err(ApiError::invalid(
            "it is no login: that is a user name and a password, each with a value and with \
             `Opaque` or `Vaultsecret` as its type, or an identity alone",
        )),
    }
}

/// Which identity is meant: `None` is the task itself.
fn chosen(identity: &str) -> Result<Option<Uuid>, ApiError> {
    if ["system", "[system]"].iter().any(|name| identity.eq_ignore_ascii_case(name)) {
        return Ok(None);
    }
    identity.parse().map(Some).map_err(|_| {
        ApiError::invalid(format!("identity `{}` is neither `[system]` nor an id", cut(identity)))
            .hint("`refit task identity show` lists ids")
    })
}

/// Whether it is in a vault that lets identities in by themselves.
fn is_in_key_vault(text: &LoginText) -> bool {
    let address = text.address().map(str::parse::<SecretAddress>);
    matches!(address, Some(Ok(SecretAddress::KeyVault(_))))
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
    (kind, given): (Kind, Option<String>),
    known: Option<&LoginText>,
    what: &str,
    size_max: usize,
) -> Result<LoginText, ApiError> {
    let stored = match kind {
        Kind::Vault => known.and_then(LoginText::address),
        Kind::Opaque | Kind::Absent => known.and_then(LoginText::plain),
    };
    let value = given.or_else(|| stored.map(str::to_owned)).unwrap_or_default();
    if value.is_empty() {
        return Err(ApiError::invalid(format!("the {what} is empty")));
    }
    if kind == Kind::Vault {
        let address = value.parse::<SecretAddress>();
        return match address {
            Ok(address) => Ok(LoginText::Secret { secret: address.to_string() }),
            Err(error) => Err(ApiError::invalid(format!("the {what}: {error}"))),
        };
    }
    match value.len() > size_max || is_odd(&value, what) {
        true => Err(ApiError::invalid(format!(
            "the {what} has more than {size_max} bytes, or characters that none has"
        ))),
        false => Ok(LoginText::Plain(value)),
    }
}

/// In the header of a request neither may have more than the one colon.
fn is_odd(value: &str, what: &str) -> bool {
    value.contains(|c: char| c.is_control()) || what != "password" && value.contains(':')
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
        assert_eq!(logins.others["ghcr.io"], RegistryLogin::of("me", "hunter2"));
        assert!(super::logins(None, Some(&logins)).unwrap().is_default());
    }

    #[test]
    fn what_is_left_out_stays_as_it_is() {
        let login = json!({ "userName": opaque("me"), "password": opaque("hunter2") });
        let known = parse(json!({ "customRegistries": { "ghcr.io": login } }), None).unwrap();
        let keep = json!({ "userName": opaque("you"), "password": { "type": "Opaque" } });
        let kept = parse(json!({ "customRegistries": { "ghcr.io": keep } }), Some(&known)).unwrap();
        let expected = RegistryLogin::of("you", "hunter2");
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
        let of_task =
            json!({ "userName": opaque("me"), "password": vault, "identity": "[system]" });
        let id = "0b5cb3f0-8a4c-4c6e-9b1e-0f6f0f1c2d3e";
        let of_client = json!({ "userName": opaque("me"), "password": vault, "identity": id });
        for (login, expected) in [(of_task, None), (of_client, Some(id.parse().unwrap()))] {
            let logins = parse(json!({ "customRegistries": { "ghcr.io": login } }), None).unwrap();
            let RegistryLogin::Password { password, client_id, .. } = &logins.others["ghcr.io"]
            else {
                panic!("it has a password")
            };
            let address = Some("https://v.example.net/secrets/x");
            assert_eq!((password.address(), *client_id), (address, expected));
        }
        // The registry's own secrets are for the run as it is.
        let own = json!({ "value": "store://hub", "type": "vaultsecret" });
        let own = json!({ "userName": opaque("me"), "password": own });
        assert!(parse(json!({ "customRegistries": { "ghcr.io": own } }), None).is_ok());
        let bad = json!({ "value": "hub", "type": "Vaultsecret" });
        check_refused(
            json!({ "userName": opaque("me"), "password": bad }),
            expect![
                "credentials.customRegistries.r.example.com: the password: it is no address: relative URL without a base"
            ],
        );
    }

    #[test]
    fn j16_an_identity_alone_is_a_login() {
        let login = json!({ "identity": "[system]" });
        let logins = parse(json!({ "customRegistries": { "ghcr.io": login } }), None).unwrap();
        assert_eq!(logins.others["ghcr.io"], RegistryLogin::Identity { identity: None });
        let text = serde_json::to_string(&logins).unwrap();
        assert_eq!(serde_json::from_str::<Logins>(&text).unwrap(), logins);
        check_refused(
            json!({ "identity": "me" }),
            expect![
                "credentials.customRegistries.r.example.com: identity `me` is neither `[system]` nor an id"
            ],
        );
    }

    #[test]
    fn j17_what_is_no_login_is_refused() {
        let unclassifiable = expect![
            "credentials.customRegistries.r.example.com: it is no login: that is a user name and a password, each with a value and with `Opaque` or `Vaultsecret` as its type, or an identity alone"
        ];
        check_refused(
            json!({ "userName": { "value": "me" }, "password": opaque("x") }),
            unclassifiable,
        );
        check_refused(
            json!({}),
            expect![
                "credentials.customRegistries.r.example.com: it is no login: that is a user name and a password, each with a value and with `Opaque` or `Vaultsecret` as its type, or an identity alone"
            ],
        );
        check_refused(
            json!({ "userName": opaque("me"), "password": { "value": "x", "type": "Clear" } }),
            expect![
                "credentials.customRegistries.r.example.com: type `Clear` is neither `Opaque` nor `Vaultsecret`"
            ],
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
        let own = |identity: &str| source(json!({ "identity": identity })).unwrap().own_identity;
        let id = "4c8f0b3e-5a52-4f43-8a8e-0d3a4b6f2d11";
        assert_eq!(own(""), None);
        assert_eq!(own("[System]"), Some(OwnIdentity::System));
        assert_eq!(own("caller"), Some(OwnIdentity::Caller));
        assert_eq!(own(id), Some(OwnIdentity::Of(id.parse().unwrap())));
        assert!(source(json!({ "identity": "somebody" })).is_err());
        assert!(source(json!({ "loginMode": "None", "identity": "[system]" })).is_err());
        let quick = |identity: &str| {
            let credentials = json!({ "sourceRegistry": { "identity": identity } });
            logins_of_run(Some(serde_json::from_value(credentials).unwrap()))
        };
        assert_eq!(quick("[caller]").unwrap().own_identity, Some(OwnIdentity::Caller));
        assert!(quick("[system]").is_err() && quick(id).is_err());
    }
}
