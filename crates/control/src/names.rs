//! Names of what a registry keeps besides images: tasks, task runs, agent pools, webhooks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Makes a name of ASCII letters, digits and `$extra`, of which those that differ only in case are
/// one.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $bad:ident, $len:expr, $extra:expr, $rule:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// What names of one thing have in common.
            pub(crate) fn key(&self) -> String {
                self.0.to_ascii_lowercase()
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.0.eq_ignore_ascii_case(&other.0)
            }
        }

        impl Eq for $name {}

        impl std::hash::Hash for $name {
            fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
                self.key().hash(state);
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = $bad;

            fn try_from(text: String) -> Result<Self, $bad> {
                text.parse()
            }
        }

        impl FromStr for $name {
            type Err = $bad;

            fn from_str(text: &str) -> Result<Self, $bad> {
                let is_fine = |byte: u8| {
                    byte.is_ascii_alphanumeric() || $extra.contains(&byte)
                };
                match $len.contains(&text.len()) && text.bytes().all(is_fine) {
                    true => Ok(Self(text.to_owned())),
                    false => Err($bad(shown(text))),
                }
            }
        }

        #[doc = concat!("A text that is no [`", stringify!($name), "`].")]
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
        #[error($rule)]
        pub struct $bad(String);
    };
}

name!(
    /// The name of a task: 5 to 50 letters, digits, `_` and `-` (runs.md section 2). Names that
    /// differ only in case name one task.
    TaskName,
    BadTaskName,
    (5..=50),
    b"-_",
    "`{0}` cannot name a task: a name has 5 to 50 letters, digits, `_` and `-`"
);

name!(
    /// The name of a task run: 5 to 50 letters, digits and `-`. Names that differ only in case name
    /// one.
    TaskRunName,
    BadTaskRunName,
    (5..=50),
    b"-",
    "`{0}` cannot name a task run: a name has 5 to 50 letters, digits and `-`"
);

name!(
    /// The name of an agent pool: 3 to 20 letters, digits and `-` (runs.md section 9). Names that
    /// differ only in case name one.
    PoolName,
    BadPoolName,
    (3..=20),
    b"-",
    "`{0}` cannot name an agent pool: a name has 3 to 20 letters, digits and `-`"
);

name!(
    /// The name of a scope map: 5 to 100 letters, digits, `_` and `-`. Names that differ only in case
    /// name one.
    ScopeMapName,
    BadScopeMapName,
    (5..=100),
    b"-_",
    "`{0}` cannot name a scope map: a name has 5 to 100 letters, digits, `_` and `-`"
);

name!(
    /// The name of a token of a registry: 5 to 50 letters, digits and `-`. Names that differ only in
    /// case name one.
    TokenName,
    BadTokenName,
    (5..=50),
    b"-",
    "`{0}` cannot name a token: a name has 5 to 50 letters, digits and `-`"
);

name!(
    /// The name of an account: 2 to 100 letters, digits, `-`, `_`, `.`, `+` and `@`. Names that differ
    /// only in case name one.
    AccountName,
    BadAccountName,
    (2..=100),
    b"-_.+@",
    "`{0}` cannot name an account: a name has 2 to 100 letters, digits, `-`, `_`, `.`, `+` and `@`"
);

name!(
    /// The name of a secret: 1 to 127 letters, digits, `-`, `_` and `.`. Names that differ only in case
    /// name one.
    SecretName,
    BadSecretName,
    (1..=127),
    b"-_.",
    "`{0}` cannot name a secret: a name has 1 to 127 letters, digits, `-`, `_` and `.`"
);

name!(
    /// The name of a webhook: 5 to 50 letters and digits (registry.md section 5). Names that differ
    /// only in case name one.
    WebhookName,
    BadWebhookName,
    (5..=50),
    b"",
    "`{0}` cannot name a webhook: a name has 5 to 50 letters and digits"
);

/// As much of a text as an error may repeat.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_name_has_its_own_rule() {
        assert!("task_1".parse::<TaskName>().is_ok() && "task_1".parse::<TaskRunName>().is_err());
        assert!("abcd".parse::<TaskRunName>().is_err() && "abcd".parse::<PoolName>().is_ok());
        assert!("a".repeat(50).parse::<TaskName>().is_ok());
        for bad in ["ab", "a pool", "pool_1", "Größe", "a\nb", &"a".repeat(21)] {
            assert!(bad.parse::<PoolName>().is_err(), "{bad}");
        }
        assert!("hook1".parse::<WebhookName>().is_ok() && "hook-1".parse::<WebhookName>().is_err());
        let error = "a\nb".parse::<PoolName>().unwrap_err().to_string();
        assert!(error.starts_with("`ab` cannot name an agent pool"), "{error}");
    }

    #[test]
    fn case_does_not_matter() {
        let [one, other] = ["Pool-1", "pOOL-1"].map(|name| name.parse::<PoolName>().unwrap());
        assert_eq!(one, other);
        assert_eq!((one.key(), one.to_string()), (other.key(), "Pool-1".to_owned()));
    }
}
