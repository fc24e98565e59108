//! What the client reads from its environment besides its flags, read once.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// Holds secrets, so it has no `Debug`.
#[derive(Clone, Default)]
pub struct Environment {
    /// `refit` in the user's folder for settings.
    pub(crate) config_folder: Option<PathBuf>,
    /// `refit` in the user's folder for what can be found out again.
    pub(crate) cache_folder: Option<PathBuf>,
    /// Where a server of this user leaves its token.
    pub(crate) runtime_folder: Option<PathBuf>,
    pub(crate) user: u32,
    /// `TERM` names a terminal that understands cursor movement.
    pub(crate) terminal_moves: bool,
    /// `NO_COLOR` is absent.
    pub(crate) colors: bool,
    pub(crate) source_date_epoch: Option<String>,
    /// `REFIT_TOKEN`; a flag would show it to all users of the machine.
    pub(crate) token: Option<String>,
    /// For `--build-arg NAME`, which takes its value from here.
    pub(crate) variables: BTreeMap<String, String>,
}

impl Environment {
    /// The process's own; the one place of the client that reads it.
    pub fn from_process() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self::new(variables, rustix::process::getuid().as_raw())
    }

    fn new(variables: BTreeMap<String, String>, user: u32) -> Self {
        let variable = |name: &str| variables.get(name).filter(|value| !value.is_empty());
        let folder = |name: &str| variable(name).map(PathBuf::from);
        let config = folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")));
        let cache = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
        let runtime = folder("XDG_RUNTIME_DIR").map(|folder| folder.join("refit"));
        let usual_runtime = match user {
            0 => PathBuf::from("/run/refit"),
            user => PathBuf::from(format!("/tmp/refit-{user}")),
        };
        Self {
            config_folder: config.map(|folder| folder.join("refit")),
            cache_folder: cache.map(|folder| folder.join("refit")),
            runtime_folder: Some(runtime.unwrap_or(usual_runtime)),
            user,
            terminal_moves: variable("TERM").is_some_and(|term| term != "dumb"),
            colors: variable("NO_COLOR").is_none(),
            source_date_epoch: variable("SOURCE_DATE_EPOCH").cloned(),
            token: variable("REFIT_TOKEN").map(|token| token.trim().to_owned()),
            variables,
        }
    }

    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// A variable that is on or off, in the words of settings; one that is empty is off.
    pub(crate) fn flag(&self, name: &str) -> Result<bool> {
        match self.variable(name).unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" => Ok(true),
            "" | "false" | "0" | "no" => Ok(false),
            other => Err(Error::usage(format!("`{name}` is `{other}`, not `true` or `false`"))),
        }
    }

    pub fn colors(&self) -> bool {
        self.colors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)], user: u32) -> Environment {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Environment::new(variables.iter().map(own).collect(), user)
    }

    #[test]
    fn flags_are_words_of_settings() {
        let found = environment(&[("YES", "1"), ("NO", "False"), ("EMPTY", ""), ("BAD", "on!")], 0);
        for (name, expected) in [("YES", true), ("NO", false), ("EMPTY", false), ("NONE", false)] {
            assert_eq!(found.flag(name).unwrap(), expected, "{name}");
        }
        let error = found.flag("BAD").unwrap_err();
        assert_eq!(error.to_string(), "`BAD` is `on!`, not `true` or `false`");
    }

    #[test]
    fn folders_follow_the_xdg_rules() {
        let home = environment(&[("HOME", "/home/u"), ("XDG_RUNTIME_DIR", "")], 7);
        assert_eq!(home.config_folder, Some("/home/u/.config/refit".into()));
        assert_eq!(home.cache_folder, Some("/home/u/.cache/refit".into()));
        assert_eq!(home.runtime_folder, Some("/tmp/refit-7".into()));
        let xdg = environment(&[("XDG_CONFIG_HOME", "/c"), ("XDG_RUNTIME_DIR", "/r")], 0);
        assert_eq!(xdg.config_folder, Some("/c/refit".into()));
        assert_eq!(xdg.runtime_folder, Some("/r/refit".into()));
        assert_eq!(environment(&[], 0).runtime_folder, Some("/run/refit".into()));
    }
}
