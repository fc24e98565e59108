//! Which steps wait for which.

use std::collections::{BTreeSet, HashMap};

use crate::schema::Text;
use crate::span::{Span, TaskError};

/// The implicit node before every step.
const ROOT: &str = "acb_root";
/// In `when`: wait for nothing.
const NOTHING: &str = "-";

/// The steps of a task by their number, and those each waits for.
///
/// A step waits only for steps before it in the file, so there are no cycles.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Graph {
    predecessors: Vec<BTreeSet<usize>>,
}

impl Graph {
    /// The steps that `step` waits for; none for one that starts at once.
    pub fn predecessors(&self, step: usize) -> impl Iterator<Item = usize> {
        self.predecessors.get(step).into_iter().flatten().copied()
    }

    /// The steps that wait for `step`.
    pub fn successors(&self, step: usize) -> impl Iterator<Item = usize> {
        let waits = move |set: &BTreeSet<usize>| set.contains(&step);
        (self.predecessors.iter().enumerate()).filter(move |(_, set)| waits(set)).map(|(n, _)| n)
    }

    pub fn len(&self) -> usize {
        self.predecessors.len()
    }

    pub fn is_empty(&self) -> bool {
        self.predecessors.is_empty()
    }
}

/// Takes steps in the order of the file.
#[derive(Debug, Default)]
pub(crate) struct GraphBuilder {
    graph: Graph,
    numbers: HashMap<String, usize>,
}

impl GraphBuilder {
    pub(crate) fn add(&mut self, id: &str, at: Span, when: &[Text]) -> Result<(), TaskError> {
        if id == ROOT {
            return Err(TaskError::at(
                at,
                format!("`{ROOT}` is reserved and cannot be the id of a step"),
            ));
        }
        let number = self.graph.len();
        if self.numbers.contains_key(id) {
            let error = TaskError::at(at, format!("two steps have the id `{id}`"));
            return Err(match id.starts_with("acb_step_") {
                true => error.with_hint("steps without id are called `acb_step_` and their number"),
                false => error,
            });
        }
        let predecessors = match when {
            [] => number.checked_sub(1).into_iter().collect(),
            [only] if only.text == NOTHING => BTreeSet::new(),
            several => {
                several.iter().map(|name| self.number(id, name)).collect::<Result<_, _>>()?
            }
        };
        self.numbers.insert(id.to_owned(), number);
        self.graph.predecessors.push(predecessors);
        Ok(())
    }

    fn number(&self, id: &str, name: &Text) -> Result<usize, TaskError> {
        self.numbers.get(&name.text).copied().ok_or_else(|| {
            let wanted = &name.text;
            let message =
                format!("step `{id}` waits for `{wanted}`, which is not a step before it");
            // Sorted, so that the hint does not depend on the order of a hash map.
            let names: BTreeSet<&str> = self.numbers.keys().map(String::as_str).collect();
            TaskError::at(name.at, message).with_nearest(wanted, names)
        })
    }

    pub(crate) fn finish(self) -> Graph {
        self.graph
    }
}

/// What can be said of a `when` without knowing other steps.
pub(crate) fn check_when(id: &str, when: &[Text]) -> Result<(), TaskError> {
    if when.len() > 1
        && let Some(nothing) = when.iter().find(|name| name.text == NOTHING)
    {
        let message = format!("`-` in `when` of step `{id}` cannot be combined with other entries");
        return Err(TaskError::at(nothing.at, message)
            .with_hint("`when: [\"-\"]` starts at once; a list of ids waits for those steps"));
    }
    match when.iter().find(|name| name.text == id) {
        Some(own) => Err(TaskError::at(own.at, format!("step `{id}` waits for itself"))),
        None => Ok(()),
    }
}
