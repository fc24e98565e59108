//! Environments of steps, merged from what the step, the task and the run say.

use std::collections::{HashMap, HashSet};
use std::fmt;

use crate::schema::Text;
use crate::span::{Span, TaskError};

/// Where every container has its home, unless the task says otherwise.
const HOME: &str = "/acb/home";

/// Variables that one step may have, and the bytes of their names and values.
const ENTRIES_MAX: usize = 1000;
const BYTES_MAX: usize = 128 << 10;

/// Variables in order, each name once. Debug output has the names only.
#[derive(Clone, PartialEq, Eq)]
pub struct Environment(Vec<(String, String)>);

impl Environment {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// `HOME`, then the entries; of equal names, the last value counts.
    pub(crate) fn for_container(entries: &[Text]) -> Self {
        let mut variables = vec![("HOME".to_owned(), HOME.to_owned())];
        let mut places = HashMap::from([("HOME", 0)]);
        for (name, value) in entries.iter().filter_map(|entry| entry.text.split_once('=')) {
            match places.get(name) {
                Some(place) => value.clone_into(&mut variables[*place].1),
                None => {
                    places.insert(name, variables.len());
                    variables.push((name.to_owned(), value.to_owned()));
                }
            }
        }
        Self(variables)
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// A list of `KEY=VALUE` and after it what its parent has more (task-yaml.md section 3.1).
///
/// Entries of the parent, and only those, are split at commas.
pub(crate) fn merge(own: &[Text], parent: &[Text]) -> Result<Vec<Text>, TaskError> {
    let mut names =
        own.iter().map(|entry| name(&entry.text, entry.at)).collect::<Result<HashSet<_>, _>>()?;
    let mut entries = own.to_vec();
    for entry in parent {
        for piece in entry.text.split(',') {
            let name = name(piece, entry.at).map_err(|error| match piece == entry.text {
                true => error,
                false => error.with_hint(
                    "the task's `env` is split at commas: give a value with commas to the step",
                ),
            });
            if names.insert(name?) {
                entries.push(Text { text: piece.to_owned(), at: entry.at });
            }
        }
    }
    let bytes: usize = entries.iter().map(|entry| entry.text.len()).sum();
    if entries.len() > ENTRIES_MAX || bytes > BYTES_MAX {
        let at = entries.first().map_or(Span::default(), |entry| entry.at);
        let limits = format!("{ENTRIES_MAX} variables and {BYTES_MAX} bytes");
        return Err(TaskError::at(at, format!("an environment may have {limits} at most")));
    }
    Ok(entries)
}

fn name(text: &str, at: Span) -> Result<&str, TaskError> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(name),
        _ => Err(TaskError::at(at, format!("`{text}` in `env` is not `NAME=VALUE`"))),
    }
}
