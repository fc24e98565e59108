//! How this machine's package clients reach their registries: proxies, addresses of registries and
//! the certificates to trust, from the environment and the user's own files.
//!
//! A build gets it as secrets, so that it is in no image and no log; a user's build gets nothing of
//! it unasked. On a machine that reaches the internet directly, there is little to tell.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::Sandbox;

use crate::run;

/// Every secret has it, in a comment, so that a leak can be told.
pub(crate) const MARK: &str = "told-to-package-clients-by-this-machine";

/// Variables that clients read, by how their names begin.
const VARIABLES: &[&str] = &[
    "ALL_PROXY",
    "CARGO_HTTP_",
    "CARGO_NET_",
    "CARGO_REGISTRIES_",
    "CARGO_SOURCE_",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "NPM_CONFIG_REGISTRY",
    "PIP_DEFAULT_TIMEOUT",
    "PIP_EXTRA_INDEX_URL",
    "PIP_INDEX_URL",
    "PIP_TRUSTED_HOST",
];

/// Tables of Cargo's file that are about registries; others are about this machine's tools.
const CARGO_TABLES: &[&str] = &["http", "net", "registries", "registry", "source"];

/// What the build of an application mounts them as.
const OWN: &str = "\
export PIP_CERT=/run/secrets/ca
export PIP_CONFIG_FILE=/run/secrets/pip
export NPM_CONFIG_USERCONFIG=/run/secrets/npm
export NPM_CONFIG_CAFILE=/run/secrets/ca
export NODE_EXTRA_CA_CERTS=/run/secrets/ca
export CARGO_HTTP_CAINFO=/run/secrets/ca
export CURL_CA_BUNDLE=/run/secrets/ca
";

/// Writes the secrets into the sandbox; the flags that give them to a build.
#[track_caller]
pub(crate) fn secrets(sandbox: &Sandbox) -> Vec<String> {
    let secrets = [
        ("apt", format!("// {MARK}\n{}", apt())),
        ("ca", format!("# {MARK}\n{}", certificates())),
        ("cargo", format!("# {MARK}\n{}", cargo())),
        ("environment", format!("# {MARK}\n{}{OWN}", environment())),
        ("npm", format!("# {MARK}\n{}", of_user("NPM_CONFIG_USERCONFIG", &[".npmrc"]))),
        (
            "pip",
            format!(
                "# {MARK}\n{}",
                of_user("PIP_CONFIG_FILE", &[".config/pip/pip.conf", ".pip/pip.conf"])
            ),
        ),
    ];
    let flag = |(id, text): (&str, String)| {
        sandbox.write(&format!("secrets/{id}"), text);
        ["--secret".to_owned(), format!("id={id},src=secrets/{id}")]
    };
    secrets.into_iter().flat_map(flag).collect()
}

/// The bundle of certificates that this machine trusts.
#[track_caller]
fn certificates() -> String {
    let variables = ["REFIT_TEST_CA_BUNDLE", "SSL_CERT_FILE"];
    let named = variables.iter().find_map(env::var_os);
    let bundle = named.map_or("/etc/ssl/certs/ca-certificates.crt".into(), PathBuf::from);
    fs::read_to_string(&bundle).unwrap_or_else(|error| {
        panic!(
            "{}: {error}\nhint: install ca-certificates, or name a bundle by REFIT_TEST_CA_BUNDLE",
            bundle.display()
        )
    })
}

fn environment() -> String {
    let wanted = |name: &str| {
        let name = name.to_uppercase();
        VARIABLES.iter().any(|start| name.starts_with(start))
    };
    let variables = env::vars().filter(|(name, value)| wanted(name) && !is_local(value));
    let line = |(name, value): (String, String)| {
        format!("export {name}='{}'\n", value.replace('\'', "'\\''"))
    };
    variables.map(line).collect()
}

/// Files of this machine are none of a container.
fn is_local(value: &str) -> bool {
    value.starts_with('/')
}

/// A file that a variable names, or that lies in the user's home.
fn of_user(variable: &str, names: &[&str]) -> String {
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let named = env::var_os(variable).map(PathBuf::from);
    let mut files = named.into_iter().chain(names.iter().map(|name| home.join(name)));
    let found = files.find_map(|file| fs::read_to_string(file).ok());
    found.unwrap_or_default()
}

fn cargo() -> String {
    let home = env::var_os("CARGO_HOME").map(|home| Path::new(&home).join("config.toml"));
    let text = match home.map(fs::read_to_string) {
        Some(Ok(text)) => text,
        _ => of_user("", &[".cargo/config.toml"]),
    };
    let mut is_kept = false;
    let kept = text.lines().filter(|line| {
        if let Some(table) = line.trim().strip_prefix('[') {
            let name = table.split(['.', ']']).next().unwrap_or_default();
            is_kept = CARGO_TABLES.contains(&name);
        }
        is_kept
    });
    kept.map(|line| format!("{line}\n")).collect()
}

fn apt() -> String {
    let all = run(Command::new("apt-config").arg("dump"));
    let wanted = |line: &&str| {
        let value = line.split_once(' ').map(|(_, value)| value.trim_matches(['"', ';']));
        let names = ["Acquire::http::", "Acquire::https::", "Acquire::Check-"];
        names.iter().any(|name| line.starts_with(name))
            && value.is_some_and(|value| !value.is_empty() && !is_local(value))
    };
    all.lines().filter(wanted).map(|line| format!("{line}\n")).collect()
}
