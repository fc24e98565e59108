//! What templates can read: the run, values, secrets (task-yaml.md sections 6.2 and 6.3).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use gotmpl::Value;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::json::{json, shell_quoted};
use crate::secret::{SecretText, Seed};
use crate::span::{TaskError, Warnings};
use crate::yaml::{self, Kind, Node, Scalar};

/// Bytes of a values file.
const VALUES_FILE_MAX: usize = 1 << 20;
/// Bytes of names and values that are set for a run.
const SET_MAX: usize = 1 << 20;

/// `.Run`: what the system knows about a run. What is not known is empty.
#[derive(Debug, Clone, Default)]
pub struct RunVariables {
    pub id: String,
    /// The login server.
    pub registry: String,
    pub started: Timestamp,
    pub commit: String,
    pub branch: String,
    pub repository: String,
    pub git_tag: String,
    pub triggered_by: String,
    pub task_name: String,
    pub shared_volume: String,
    pub os: String,
    pub os_version: String,
    pub architecture: String,
}

impl RunVariables {
    fn value(&self) -> Value {
        let name = self.registry.split('.').next().unwrap_or_default();
        let date = self.started.to_zoned(TimeZone::UTC).strftime("%Y%m%d-%H%M%Sz").to_string();
        map([
            ("ID", text(&self.id)),
            ("Registry", text(&self.registry)),
            ("RegistryName", text(name)),
            ("Date", text(&date)),
            ("Commit", text(&self.commit)),
            ("Branch", text(&self.branch)),
            ("Repository", text(&self.repository)),
            ("GitTag", text(&self.git_tag)),
            ("TriggeredBy", text(&self.triggered_by)),
            ("TaskName", text(&self.task_name)),
            ("SharedVolume", text(&self.shared_volume)),
            ("OS", text(&self.os)),
            ("OSVersion", text(&self.os_version)),
            ("Architecture", text(&self.architecture)),
        ])
    }
}

/// `.Values`: what a values file says, and over it what is set for the run.
#[derive(Clone, Default)]
pub struct Values {
    file: BTreeMap<Arc<str>, Value>,
    set: BTreeMap<String, String>,
    set_bytes: usize,
    secrets: Vec<SecretText>,
}

impl Values {
    /// Reads a values file. Its scalars keep their types, its maps may be nested.
    pub fn from_file(file: &str) -> Result<Self, TaskError> {
        if file.len() > VALUES_FILE_MAX {
            let message = format!("the values file has more than {VALUES_FILE_MAX} bytes");
            return Err(TaskError::new(message));
        }
        let root =
            yaml::parse(file, &mut Warnings::default()).map_err(|error| error.shown_in(file))?;
        let file = match root.map(|root| (value(&root), root)) {
            None => BTreeMap::new(),
            Some((Value::Map(entries), _)) => (*entries).clone(),
            Some((Value::Nil, _)) => BTreeMap::new(),
            Some((_, root)) => {
                let message = format!("a values file must be a map, not {}", root.what());
                return Err(TaskError::at(root.at, message).shown_in(file));
            }
        };
        Ok(Self { file, ..Self::default() })
    }

    /// Takes `name=value`; the value may have more `=`. The last one of a name counts.
    pub fn set(&mut self, entry: &str) -> Result<(), TaskError> {
        let (name, value) = entry.split_once('=').ok_or_else(|| {
            TaskError::new(format!("`{entry}` is not `NAME=VALUE`"))
                .with_hint(format!("an empty value is `{entry}=`"))
        })?;
        self.set_value(name, value)
    }

    /// The same with a value that no error shows.
    pub fn set_secret(&mut self, name: &str, value: &SecretText) -> Result<(), TaskError> {
        self.secrets.push(value.clone());
        self.set_value(name, value.expose())
    }

    /// Sets a value, which stays a text whatever it looks like.
    pub fn set_value(&mut self, name: &str, value: &str) -> Result<(), TaskError> {
        if name.is_empty() {
            return Err(TaskError::new("a value needs a name before `=`"));
        }
        self.set_bytes = self.set_bytes.saturating_add(name.len()).saturating_add(value.len());
        if self.set_bytes > SET_MAX {
            return Err(TaskError::new(format!("the values have more than {SET_MAX} bytes"))
                .with_hint("put large values into a values file or the context"));
        }
        self.set.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    fn value(&self) -> Value {
        let mut values = self.file.clone();
        values.extend(self.set.iter().map(|(name, value)| (name.as_str().into(), text(value))));
        Value::Map(Arc::new(values))
    }
}

/// Names only: values may be secret.
impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.keys().map(|name| &**name);
        f.debug_set().entries(file.chain(self.set.keys().map(String::as_str))).finish()
    }
}

/// All that a rendering depends on besides its text and its secrets.
#[derive(Debug, Clone, Default)]
pub struct Variables {
    pub run: RunVariables,
    pub values: Values,
    /// What `now` gives.
    pub now: Timestamp,
    /// The same seed and template give the same random texts.
    pub seed: Seed,
}

/// Secrets by their ids.
pub type Secrets = BTreeMap<String, SecretText>;

impl Variables {
    /// The data of a template.
    pub(super) fn data(&self, secrets: &Secrets) -> Value {
        let (run, values) = (self.run.value(), self.values.value());
        let secrets =
            secrets.iter().map(|(id, secret)| (id.as_str().into(), text(secret.expose())));
        map([
            ("RunJSON", text(&shell_quoted(&json(&run, false)))),
            ("ValuesJSON", text(&shell_quoted(&json(&values, false)))),
            ("Build", map([("ID", text(&self.run.id))])),
            ("Run", run),
            ("Values", values),
            ("Secrets", Value::Map(Arc::new(secrets.collect()))),
        ])
    }

    /// What no error may show, the longest first: secrets and secret values, also as Base64.
    pub(crate) fn hidden(&self, secrets: &Secrets) -> Vec<String> {
        let mut hidden = Vec::new();
        for secret in secrets.values().chain(&self.values.secrets) {
            let secret = secret.expose();
            // Errors show single lines.
            hidden.extend(secret.lines().map(str::to_owned));
            hidden.push(BASE64_STANDARD.encode(secret));
        }
        hidden.retain(|line| !line.trim().is_empty());
        hidden.sort_unstable_by(|one, other| (other.len(), other).cmp(&(one.len(), one)));
        hidden.dedup();
        hidden
    }
}

fn text(text: &str) -> Value {
    Value::String(text.into())
}

fn map<const N: usize>(entries: [(&str, Value); N]) -> Value {
    Value::Map(Arc::new(entries.map(|(name, value)| (name.into(), value)).into()))
}

fn value(node: &Node) -> Value {
    match &node.kind {
        Kind::Scalar { .. } => match node.scalar() {
            None | Some(Scalar::Null) => Value::Nil,
            Some(Scalar::Bool(value)) => Value::Bool(value),
            Some(Scalar::Int(number)) => Value::Int(number),
            Some(Scalar::Float(number)) => Value::Float(number),
            Some(Scalar::Text(written)) => text(written),
        },
        Kind::List(items) => Value::List(items.iter().map(value).collect()),
        Kind::Map(entries) => {
            let entry = |(name, node): &(Node, Node)| Some((name.text()?.into(), value(node)));
            Value::Map(Arc::new(entries.iter().filter_map(entry).collect()))
        }
    }
}
