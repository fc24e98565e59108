//! Aliases: short names that are replaced in the text of a task file (task-yaml.md section 5).

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::schema::{texts_by_name, unknown_key};
use crate::span::{TaskError, Warnings};
use crate::template::{RunVariables, TEMPLATE_MAX};
use crate::yaml::{self, Kind, Node};

/// Bytes of a file or an answer with more aliases.
const SOURCE_MAX: usize = 1 << 20;
const DEFAULT_DIRECTIVE: char = '$';
/// Run variables with an alias of the same name.
const RUN_VARIABLES: [&str; 9] = [
    "ID",
    "SharedVolume",
    "Registry",
    "RegistryName",
    "Date",
    "OS",
    "Architecture",
    "Commit",
    "Branch",
];

/// What `acr` stands for where it is no image: whoever executes the task has its commands.
pub const BUILT_IN_ACR: &str = "acr:built-in";

/// The images behind the predefined names; they have no meaning on Windows.
#[derive(Debug, Clone)]
pub struct AliasImages {
    /// The registry command line; [`BUILT_IN_ACR`] is none.
    pub acr: String,
    /// The cloud command line.
    pub az: String,
    pub bash: String,
    pub curl: String,
    /// The tools that scan and patch.
    pub cssc: String,
}

/// A file or address with more aliases, which the caller has to read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum AliasSource {
    /// Relative to the workspace.
    File(String),
    Url(String),
}

impl AliasSource {
    fn new(text: &str) -> Self {
        let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        match scheme.as_deref() {
            Some("http" | "https") => Self::Url(text.to_owned()),
            _ => Self::File(text.to_owned()),
        }
    }

    pub fn as_str(&self) -> &str {
        match self {
            Self::File(text) | Self::Url(text) => text,
        }
    }
}

/// The alias section of a task file, before its sources are read.
#[derive(Debug, Default)]
pub(crate) struct AliasSection {
    values: BTreeMap<String, String>,
    pub(crate) sources: Vec<AliasSource>,
    directive: Option<char>,
}

impl AliasSection {
    /// Reads the section, already rendered.
    pub(crate) fn parse(text: &str, warnings: &mut Warnings) -> Result<Self, TaskError> {
        let mut section = Self::default();
        let Some(root) = yaml::parse(text, warnings)? else { return Ok(section) };
        let Some(alias) = member(&root, "alias") else { return Ok(section) };
        let Kind::Map(entries) = &alias.kind else {
            let message = format!("`alias` must be a map, not {}", alias.what());
            return Err(TaskError::at(alias.at, message));
        };
        if let Some(values) = member(alias, "values") {
            section.values = names(values, "values")?;
        }
        if let Some(sources) = member(alias, "src") {
            let message = "`src` of `alias` must be a list of files and addresses";
            let Kind::List(items) = &sources.kind else {
                return Err(TaskError::at(sources.at, message));
            };
            for item in items {
                let text = item.text().ok_or_else(|| TaskError::at(item.at, message))?;
                section.sources.push(AliasSource::new(text));
            }
        }
        if let Some(directive) = member(alias, "directive") {
            section.directive = Some(character(directive)?);
        }
        let known = ["values", "src", "directive"];
        let is_known = |key: &Node| key.text().is_some_and(|name| known.contains(&name));
        for (key, _) in entries.iter().filter(|(key, _)| !is_known(key)) {
            warnings.add(|| unknown_key(key, "`alias`", &known));
        }
        Ok(section)
    }

    /// The aliases, those of the section first, then those of later sources, then those of
    /// earlier ones, then the predefined ones.
    pub(crate) fn aliases(
        self,
        loaded: &BTreeMap<AliasSource, String>,
        images: &AliasImages,
        run: &RunVariables,
    ) -> Result<Aliases, TaskError> {
        let mut values = predefined(images, run);
        for source in &self.sources {
            let name = source.as_str();
            let failed =
                |why: &dyn Display| TaskError::new(format!("alias source `{name}`: {why}"));
            let text = loaded.get(source).ok_or_else(|| failed(&"it was not read"))?;
            values.extend(source_values(text).map_err(|error| failed(&error))?);
        }
        values.extend(self.values);
        Ok(Aliases { values, directive: self.directive.unwrap_or(DEFAULT_DIRECTIVE) })
    }
}

fn source_values(text: &str) -> Result<BTreeMap<String, String>, TaskError> {
    if text.len() > SOURCE_MAX {
        return Err(TaskError::new(format!("it has more than {SOURCE_MAX} bytes")));
    }
    match yaml::parse(text, &mut Warnings::default())? {
        Some(root) if matches!(root.kind, Kind::Map(_)) => names(&root, "values"),
        Some(root) if !root.is_null() => {
            Err(TaskError::new(format!("it must be a map of names to texts, not {}", root.what())))
        }
        _ => Ok(BTreeMap::new()),
    }
}

fn member<'a>(node: &'a Node, name: &str) -> Option<&'a Node> {
    let Kind::Map(entries) = &node.kind else { return None };
    let value = entries.iter().rfind(|(key, _)| key.text() == Some(name)).map(|(_, value)| value);
    value.filter(|value| !value.is_null())
}

fn names(node: &Node, what: &str) -> Result<BTreeMap<String, String>, TaskError> {
    let mut values = BTreeMap::new();
    for (name, value) in texts_by_name(node, what)? {
        if name.text.is_empty() || !name.text.chars().all(|c| c.is_ascii_alphanumeric()) {
            let message =
                format!("the alias name `{}` may have only letters and digits", name.text);
            return Err(TaskError::at(name.at, message));
        }
        values.insert(name.text, value);
    }
    Ok(values)
}

fn character(node: &Node) -> Result<char, TaskError> {
    let mut characters = node.text().unwrap_or_default().chars();
    match (characters.next(), characters.next()) {
        (Some(only), None) if !only.is_ascii_alphanumeric() => Ok(only),
        _ => {
            let message = "`directive` must be one character that is neither a letter nor a digit";
            Err(TaskError::at(node.at, message))
        }
    }
}

fn predefined(images: &AliasImages, run: &RunVariables) -> BTreeMap<String, String> {
    let variable = |name: &&str| ((*name).to_owned(), format!("{{{{.Run.{name}}}}}"));
    let mut values: BTreeMap<String, String> = RUN_VARIABLES.iter().map(variable).collect();
    if !run.os.eq_ignore_ascii_case("windows") {
        let AliasImages { acr, az, bash, curl, cssc } = images;
        let tools = [("acr", acr), ("az", az), ("bash", bash), ("curl", curl), ("cssc", cssc)];
        values.extend(tools.map(|(name, image)| (name.to_owned(), image.clone())));
    }
    values
}

/// Names and what they stand for.
#[derive(Debug, Clone)]
pub(crate) struct Aliases {
    values: BTreeMap<String, String>,
    directive: char,
}

impl Aliases {
    /// Replaces `$name` wherever it is. What comes in its place is not looked at again.
    pub(crate) fn expand(&self, text: &str) -> Result<String, TaskError> {
        let directive = self.directive;
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once(directive) {
            out.push_str(before);
            if let Some(escaped) = after.strip_prefix(directive) {
                out.push(directive);
                rest = escaped;
                continue;
            }
            let end = after.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(after.len());
            let (name, tail) = after.split_at(end);
            rest = tail;
            if let Some(value) = self.values.get(name) {
                out.push_str(value);
            } else {
                out.push(directive);
                out.push_str(name);
                // After an unknown name, the next directive is text, not a new alias.
                if let Some(tail) = tail.strip_prefix(directive) {
                    out.push(directive);
                    rest = tail;
                }
            }
            if out.len() > TEMPLATE_MAX {
                let message =
                    format!("the task file with aliases has more than {TEMPLATE_MAX} bytes");
                return Err(TaskError::new(message));
            }
        }
        out.push_str(rest);
        Ok(out)
    }

    /// Replaces the first word of a command if it is the name of an alias.
    pub(crate) fn replace_command(&self, command: &str) -> String {
        let trimmed = command.trim();
        let end = trimmed.find([' ', '\t', '\n', '\r']).unwrap_or(trimmed.len());
        let (word, rest) = trimmed.split_at(end);
        match self.values.get(word) {
            Some(value) => format!("{value}{rest}"),
            None => command.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn aliases(directive: char) -> Aliases {
        let values = [("ID", "ca1"), ("RegistryName", "contoso"), ("r", "$ID")];
        let values = values.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Aliases { values: values.into(), directive }
    }

    #[test]
    fn names_are_replaced_as_the_cases_of_group_d_say() {
        let cases = [
            ("d02", "$RegistryName", "contoso"),
            ("d03", "$$ID", "$ID"),
            ("d04", "$nope", "$nope"),
            ("d05", "${ID}", "${ID}"),
            ("d06", "$ID_x", "ca1_x"),
            ("d07", "$IDx", "$IDx"),
            ("d08", "$ID$RegistryName", "ca1contoso"),
            ("d09", "$nope$ID", "$nope$ID"),
            ("d10", "$nope $ID", "$nope ca1"),
            ("d11", "a$", "a$"),
            ("d13", "$r", "$ID"),
            ("all of them", "$$$ID$$$nope$$$ID$", "$ca1$$nope$$ID$"),
            ("no letters of other scripts", "$IDé", "ca1é"),
        ];
        for (case, text, expected) in cases {
            assert_eq!(aliases('$').expand(text).unwrap(), expected, "{case}");
        }
        assert_eq!(aliases('&').expand("&ID $ID").unwrap(), "ca1 $ID", "d15");
        assert_eq!(aliases('§').expand("§ID§§").unwrap(), "ca1§");
    }

    #[test]
    fn the_first_word_of_a_command_is_replaced() {
        let cases = [("ID x", "ca1 x"), ("IDs x", "IDs x"), ("  ID\n y ", "ca1\n y"), ("r", "$ID")];
        for (command, expected) in cases {
            assert_eq!(aliases('$').replace_command(command), expected);
        }
        assert_eq!(aliases('$').replace_command(" other "), " other ");
    }

    #[test]
    fn expansion_has_a_bound() {
        let values = BTreeMap::from([("a".to_owned(), "x".repeat(100_000))]);
        let aliases = Aliases { values, directive: '$' };
        assert!(aliases.expand(&"$a".repeat(500_000)).is_err());
    }

    proptest! {
        #[test]
        fn text_without_the_directive_stays_as_it_is(text in "[^$]*") {
            prop_assert_eq!(aliases('$').expand(&text).unwrap(), text);
        }

        #[test]
        fn doubled_directives_come_back_single(text in "\\PC*") {
            let escaped = text.replace('$', "$$");
            prop_assert_eq!(aliases('$').expand(&escaped).unwrap(), text);
        }
    }
}
