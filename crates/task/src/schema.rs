//! A task file as it is written: every field may be missing, nothing is checked yet but types.
//!
//! Lenient as task-yaml.md section 1 asks: unknown keys are named in a warning and ignored,
//! of equal keys the last one counts, nothing and the empty text are the same as no value.

use std::collections::HashMap;

use crate::span::{Span, TaskError, Warning, Warnings};
use crate::yaml::{Kind, Node, Scalar};

/// A text and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Text {
    pub(crate) text: String,
    pub(crate) at: Span,
}

/// A number and where it stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Int {
    pub(crate) value: i64,
    pub(crate) at: Span,
}

#[derive(Debug, Default)]
pub(crate) struct Task {
    pub(crate) version: Option<Text>,
    pub(crate) step_timeout: Option<Int>,
    pub(crate) retryable: bool,
    pub(crate) working_directory: Option<Text>,
    pub(crate) env: Vec<Text>,
    pub(crate) secrets: Vec<Secret>,
    pub(crate) networks: Vec<Network>,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) steps: Vec<Step>,
}

#[derive(Debug)]
pub(crate) struct Secret {
    pub(crate) at: Span,
    pub(crate) id: Option<Text>,
    pub(crate) key_vault: Option<Text>,
    pub(crate) client_id: Option<Text>,
}

#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) at: Span,
    pub(crate) name: Option<Text>,
    pub(crate) driver: Option<Text>,
    pub(crate) ipv6: bool,
    pub(crate) skip_creation: bool,
    pub(crate) is_default: bool,
}

#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) at: Span,
    pub(crate) name: Option<Text>,
    pub(crate) secret: Option<Vec<(Text, String)>>,
}

#[derive(Debug)]
pub(crate) struct Mount {
    pub(crate) at: Span,
    pub(crate) name: Option<Text>,
    pub(crate) mount_path: Option<Text>,
}

#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) at: Span,
    pub(crate) id: Option<Text>,
    pub(crate) cmd: Option<Text>,
    pub(crate) build: Option<Text>,
    pub(crate) push: Vec<Text>,
    pub(crate) when: Vec<Text>,
    pub(crate) timeout: Option<Int>,
    pub(crate) start_delay: Option<Int>,
    pub(crate) retries: Option<Int>,
    pub(crate) retry_delay: Option<Int>,
    pub(crate) retry_on_errors: Vec<Text>,
    pub(crate) repeat: Option<Int>,
    pub(crate) ignore_errors: bool,
    pub(crate) detach: bool,
    pub(crate) keep: bool,
    pub(crate) pull: bool,
    pub(crate) cmd_download_retries: Option<Int>,
    pub(crate) cmd_download_retry_delay: Option<Int>,
    pub(crate) entry_point: Option<Text>,
    pub(crate) working_directory: Option<Text>,
    pub(crate) disable_working_directory_override: bool,
    pub(crate) env: Vec<Text>,
    pub(crate) ports: Vec<Text>,
    pub(crate) expose: Vec<Text>,
    pub(crate) network: Option<Text>,
    pub(crate) privileged: bool,
    pub(crate) user: Option<Text>,
    pub(crate) isolation: Option<Text>,
    pub(crate) cpus: Option<Text>,
    pub(crate) cache: Option<Text>,
    pub(crate) volume_mounts: Vec<Mount>,
}

impl Task {
    pub(crate) fn read(root: Option<&Node>, warnings: &mut Warnings) -> Result<Self, TaskError> {
        let Some(root) = root else { return Ok(Self::default()) };
        let mut fields = Fields::new(root, "the task file", warnings)?;
        let task = Self {
            version: fields.text("version")?,
            step_timeout: fields.int("stepTimeout")?,
            retryable: fields.flag("retryable")?,
            working_directory: fields.text("workingDirectory")?,
            env: fields.texts("env")?,
            secrets: fields.each("secrets", Secret::read)?,
            networks: fields.each("networks", Network::read)?,
            volumes: fields.each("volumes", Volume::read)?,
            steps: fields.each("steps", Step::read)?,
        };
        fields.ignore("alias", "works only with `version: v1.1.0` at the start of a line");
        fields.finish();
        Ok(task)
    }
}

impl Secret {
    fn read(node: &Node, warnings: &mut Warnings) -> Result<Self, TaskError> {
        let mut fields = Fields::new(node, "a secret", warnings)?;
        let secret = Self {
            at: node.at,
            id: fields.text("id")?,
            key_vault: fields.text("keyvault")?,
            client_id: fields.text("clientID")?,
        };
        fields.finish();
        Ok(secret)
    }
}

impl Network {
    fn read(node: &Node, warnings: &mut Warnings) -> Result<Self, TaskError> {
        let mut fields = Fields::new(node, "a network", warnings)?;
        let network = Self {
            at: node.at,
            name: fields.text("name")?,
            driver: fields.text("driver")?,
            ipv6: fields.flag("ipv6")?,
            skip_creation: fields.flag("skipCreation")?,
            is_default: fields.flag("isDefault")?,
        };
        fields.finish();
        Ok(network)
    }
}

impl Volume {
    fn read(node: &Node, warnings: &mut Warnings) -> Result<Self, TaskError> {
        let mut fields = Fields::new(node, "a volume", warnings)?;
        let volume = Self {
            at: node.at,
            name: fields.text("name")?,
            secret: fields.node("secret").map(|node| texts_by_name(node, "secret")).transpose()?,
        };
        fields.finish();
        Ok(volume)
    }
}

impl Mount {
    fn read(node: &Node, warnings: &mut Warnings) -> Result<Self, TaskError> {
        let mut fields = Fields::new(node, "a volume mount", warnings)?;
        let mount =
            Self { at: node.at, name: fields.text("name")?, mount_path: fields.text("mountPath")? };
        fields.finish();
        Ok(mount)
    }
}

impl Step {
    fn read(node: &Node, warnings: &mut Warnings) -> Result<Self, TaskError> {
        let mut fields = Fields::new(node, "a step", warnings)?;
        let step = Self {
            at: node.at,
            id: fields.text("id")?,
            cmd: fields.text("cmd")?,
            build: fields.text("build")?,
            push: fields.texts("push")?,
            when: fields.texts("when")?,
            timeout: fields.int("timeout")?,
            start_delay: fields.int("startDelay")?,
            retries: fields.int("retries")?,
            retry_delay: fields.int("retryDelay")?,
            retry_on_errors: fields.texts("retryOnErrors")?,
            repeat: fields.int("repeat")?,
            ignore_errors: fields.flag("ignoreErrors")?,
            detach: fields.flag("detach")?,
            keep: fields.flag("keep")?,
            pull: fields.flag("pull")?,
            cmd_download_retries: fields.int("cmdDownloadRetries")?,
            cmd_download_retry_delay: fields.int("cmdDownloadRetryDelay")?,
            entry_point: fields.text("entryPoint")?,
            working_directory: fields.text("workingDirectory")?,
            disable_working_directory_override: fields.flag("disableWorkingDirectoryOverride")?,
            env: fields.texts("env")?,
            ports: fields.texts("ports")?,
            expose: fields.texts("expose")?,
            network: fields.text("network")?,
            privileged: fields.flag("privileged")?,
            user: fields.text("user")?,
            isolation: fields.text("isolation")?,
            cpus: fields.text("cpus")?,
            cache: fields.text("cache")?,
            volume_mounts: fields.each("volumeMounts", Mount::read)?,
        };
        for name in ["exitedWith", "exitedWithout"] {
            fields.ignore(name, "has no effect");
        }
        fields.finish();
        Ok(step)
    }
}

/// The keys of a map: typed values for those that are asked for, a warning for the others.
struct Fields<'a, 'w> {
    what: &'static str,
    entries: Vec<(&'a Node, &'a Node)>,
    /// The last entry of each name.
    by_name: HashMap<&'a str, usize>,
    known: Vec<&'static str>,
    warnings: &'w mut Warnings,
}

impl<'a, 'w> Fields<'a, 'w> {
    fn new(
        node: &'a Node,
        what: &'static str,
        warnings: &'w mut Warnings,
    ) -> Result<Self, TaskError> {
        let mut fields = Self {
            what,
            entries: Vec::new(),
            by_name: HashMap::new(),
            known: Vec::new(),
            warnings,
        };
        if node.is_null() {
            return Ok(fields);
        }
        let Kind::Map(entries) = &node.kind else {
            return Err(TaskError::at(
                node.at,
                format!("{what} must be a map, not {}", node.what()),
            ));
        };
        for (index, (key, value)) in entries.iter().enumerate() {
            fields.entries.push((key, value));
            if let Some(name) = key.text()
                && fields.by_name.insert(name, index).is_some()
            {
                let message = || format!("`{name}` is there twice in {what}, the last one counts");
                fields.warnings.add(|| Warning::at(key.at, message()));
            }
        }
        Ok(fields)
    }

    /// The value of a key, if there is one.
    fn node(&mut self, name: &'static str) -> Option<&'a Node> {
        self.known.push(name);
        let (_, value) = self.entries[*self.by_name.get(name)?];
        (!value.is_null()).then_some(value)
    }

    fn text(&mut self, name: &'static str) -> Result<Option<Text>, TaskError> {
        let Some(node) = self.node(name) else { return Ok(None) };
        let text = node.text().ok_or_else(|| expected(name, "a text", node))?;
        Ok((!text.is_empty()).then(|| Text { text: text.to_owned(), at: node.at }))
    }

    fn int(&mut self, name: &'static str) -> Result<Option<Int>, TaskError> {
        let Some(node) = self.node(name) else { return Ok(None) };
        let value = match node.scalar() {
            Some(Scalar::Int(value)) => value,
            #[expect(clippy::cast_possible_truncation, reason = "truncation is the rule here")]
            Some(Scalar::Float(value)) if value.abs() < i64::MAX as f64 => value as i64,
            _ => return Err(expected(name, "a whole number", node)),
        };
        Ok(Some(Int { value, at: node.at }))
    }

    fn flag(&mut self, name: &'static str) -> Result<bool, TaskError> {
        let Some(node) = self.node(name) else { return Ok(false) };
        match node.scalar() {
            Some(Scalar::Bool(value)) => Ok(value),
            _ => Err(expected(name, "`true` or `false`", node)),
        }
    }

    fn list(&mut self, name: &'static str) -> Result<&'a [Node], TaskError> {
        let Some(node) = self.node(name) else { return Ok(&[]) };
        match &node.kind {
            Kind::List(items) => Ok(items),
            _ => Err(expected(name, "a list", node)),
        }
    }

    fn texts(&mut self, name: &'static str) -> Result<Vec<Text>, TaskError> {
        let item = |node: &Node| match node.is_null() {
            true => Ok(Text { text: String::new(), at: node.at }),
            false => {
                let text = node.text().ok_or_else(|| expected(name, "a list of texts", node))?;
                Ok(Text { text: text.to_owned(), at: node.at })
            }
        };
        self.list(name)?.iter().map(item).collect()
    }

    fn each<T>(
        &mut self,
        name: &'static str,
        read: fn(&Node, &mut Warnings) -> Result<T, TaskError>,
    ) -> Result<Vec<T>, TaskError> {
        self.list(name)?.iter().map(|node| read(node, self.warnings)).collect()
    }

    /// A key that is known, and does nothing here.
    fn ignore(&mut self, name: &'static str, why: &str) {
        self.known.push(name);
        if let Some(index) = self.by_name.get(name) {
            let message = format!("`{name}` of {} {why}", self.what);
            self.warnings.add(|| Warning::at(self.entries[*index].0.at, message));
        }
    }

    fn finish(self) {
        for (key, _) in self.entries {
            let name = key.text().unwrap_or_default();
            if !self.known.contains(&name) {
                self.warnings.add(|| unknown_key(key, self.what, &self.known));
            }
        }
    }
}

pub(crate) fn unknown_key(key: &Node, what: &str, known: &[&str]) -> Warning {
    let name = key.text().unwrap_or_default();
    Warning::at(key.at, format!("`{name}` is not a key of {what} and is ignored"))
        .with_nearest(name, known.iter().copied())
}

fn expected(name: &str, what: &str, node: &Node) -> TaskError {
    TaskError::at(node.at, format!("`{name}` must be {what}, not {}", node.what()))
}

/// A map from names to texts, in which nothing is the empty text.
pub(crate) fn texts_by_name(node: &Node, what: &str) -> Result<Vec<(Text, String)>, TaskError> {
    let entries = match &node.kind {
        Kind::Map(entries) => entries,
        _ => return Err(expected(what, "a map of names to texts", node)),
    };
    let mut texts: Vec<(Text, String)> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for (key, value) in entries {
        let name = key.text().ok_or_else(|| expected(what, "a map of names to texts", key))?;
        let text = match value.is_null() {
            true => "",
            false => value.text().ok_or_else(|| expected(name, "a text", value))?,
        };
        let entry = (Text { text: name.to_owned(), at: key.at }, text.to_owned());
        match places.insert(name, texts.len()) {
            Some(place) => {
                places.insert(name, place);
                texts[place] = entry;
            }
            None => texts.push(entry),
        }
    }
    Ok(texts)
}
