//! What `refit run` and `refit render` take: a task file, a values file, values.

use std::io::{self, Read as _};
use std::path::Path;

use api::SetValue;

use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::prompt;

/// Bytes of a task file, and of a values file, as the server takes them.
const TEXT_SIZE_MAX: u64 = 1 << 20;

/// Values for one run.
#[derive(Debug, clap::Args)]
pub(super) struct ValueArgs {
    /// Value for `.Values` of the task file; without =VALUE it is empty
    #[arg(long = "set", value_name = "NAME[=VALUE]")]
    set: Vec<String>,

    /// The same, with a value that is not shown
    #[arg(long = "set-secret", value_name = "NAME[=VALUE]")]
    set_secret: Vec<String>,
}

impl ValueArgs {
    pub(super) fn is_empty(&self) -> bool {
        self.set.is_empty() && self.set_secret.is_empty()
    }

    /// In the order in which they count: the last one of a name does.
    pub(super) fn values(&self) -> Result<Vec<SetValue>> {
        let plain = self.set.iter().map(|entry| ("--set", entry, false));
        let secret = self.set_secret.iter().map(|entry| ("--set-secret", entry, true));
        let values = plain.chain(secret).map(|(flag, entry, is_secret)| {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            match name.is_empty() {
                // A value may be secret.
                true => Err(Error::usage(format!("a value of `{flag}` has no name"))
                    .with_hint(format!("write it like `{flag} NAME=VALUE`"))),
                false => {
                    Ok(SetValue { name: name.to_owned(), value: Some(value.to_owned()), is_secret })
                }
            }
        });
        values.collect()
    }
}

/// Values for `ARG`s: `NAME=VALUE`, or the name of a variable of the environment. One that is not
/// set leaves the default of the `ARG`.
pub(super) fn named_values(
    plain: &[String],
    secret: &[String],
    environment: &Environment,
) -> Result<Vec<SetValue>> {
    let plain = plain.iter().map(|text| (text, false));
    let secret = secret.iter().map(|text| (text, true));
    let values = plain.chain(secret).filter_map(|(text, is_secret)| {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text.as_str(), environment.variable(text)),
        };
        if name.is_empty() {
            return Some(Err(Error::usage("a build argument has no name")
                .with_hint("write it like `NAME=VALUE`")));
        }
        let value = Some(value?.to_owned());
        Some(Ok(SetValue { name: name.to_owned(), value, is_secret }))
    });
    values.collect()
}

/// Whether a task file is to be read from standard input.
pub(super) fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == "-"
}

/// The text of a task file of this machine; `-` is standard input.
pub(super) async fn read_task_file(file: &Path) -> Result<String> {
    if !is_stdin(file) {
        return read("task file", file);
    }
    let bytes = prompt::all_bytes_of_input(TEXT_SIZE_MAX + 1).await?;
    text("task file", file, bytes)
}

/// The text of a values file of this machine.
pub(super) fn read_values_file(file: &Path) -> Result<String> {
    read("values file", file)
}

/// The text of a file of this machine with more aliases.
pub(super) fn read_alias_file(file: &Path) -> Result<String> {
    read("alias source", file)
}

fn read(what: &str, file: &Path) -> Result<String> {
    let bytes = read_bounded(file).map_err(|error| {
        Error::usage(format!("the {what} `{}` cannot be read", file.display())).caused_by(&error)
    })?;
    text(what, file, bytes)
}

/// One byte more than the bound shows that it was met.
fn read_bounded(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(file)?.take(TEXT_SIZE_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn text(what: &str, file: &Path, bytes: Vec<u8>) -> Result<String> {
    let shown = file.display();
    if bytes.len() as u64 > TEXT_SIZE_MAX {
        return Err(Error::usage(format!("the {what} `{shown}` is larger than 1 MiB"))
            .with_hint("move scripts and data into files of the context"));
    }
    String::from_utf8(bytes)
        .map_err(|_| Error::usage(format!("the {what} `{shown}` is not a text in UTF-8")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_split_at_their_first_equals_sign_and_may_be_empty() {
        let own = |entries: &[&str]| entries.iter().map(|entry| (*entry).to_owned()).collect();
        let args =
            ValueArgs { set: own(&["a=1,b=2", "url=x=y", "flag"]), set_secret: own(&["t=pw"]) };
        let values = args.values().unwrap();
        assert_eq!(format!("{values:?}"), "[a=1,b=2, url=x=y, flag=, t=(hidden)]");
        let error = ValueArgs { set: vec![], set_secret: own(&["=pw"]) }.values().unwrap_err();
        assert_eq!(error.to_string(), "a value of `--set-secret` has no name");
    }

    #[test]
    fn texts_have_a_bound() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("acb.yaml");
        std::fs::write(&file, "x".repeat(1 << 20)).unwrap();
        assert_eq!(read("task file", &file).unwrap().len(), 1 << 20);
        std::fs::write(&file, "x".repeat((1 << 20) + 1)).unwrap();
        assert!(read("task file", &file).unwrap_err().to_string().contains("larger than 1 MiB"));
        std::fs::write(&file, b"\xff").unwrap();
        assert!(read("task file", &file).unwrap_err().to_string().contains("UTF-8"));
    }
}
