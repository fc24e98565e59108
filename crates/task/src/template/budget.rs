//! How much work one rendering may do, whatever its templates ask for.
//!
//! Templates have loops, recursion and functions that multiply their input, and whoever
//! writes a task file need not be a friend. So everything costs: each node that is
//! executed, each call, each byte and each value that is made. What is spent bounds the
//! time and the memory of a rendering together.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use gotmpl::{TemplateError, Value};

/// What a rendering may spend in all; a byte of text costs one.
const WORK_MAX: u64 = 64 << 20;
/// The rendered text.
pub(super) const RENDERED_MAX: usize = 4 << 20;
/// Values inside each other.
const DEPTH_MAX: usize = 32;
/// A call, or a node of a template.
pub(super) const CALL_COST: usize = 64;
/// A value in a list or map, copied or looked at.
pub(super) const VALUE_COST: usize = 16;

#[derive(Debug)]
pub(super) struct Budget {
    left: AtomicU64,
    /// The byte offset in the template of what is executed.
    position: AtomicUsize,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { left: AtomicU64::new(WORK_MAX), position: AtomicUsize::new(0) }
    }

    pub(super) fn position(&self) -> usize {
        self.position.load(Ordering::Relaxed)
    }

    /// Notes that execution has come to a place in the template.
    pub(super) fn reach(&self, position: usize, cost: usize) -> Result<(), TemplateError> {
        self.position.store(position, Ordering::Relaxed);
        self.spend(cost)
    }

    pub(super) fn spend(&self, cost: usize) -> Result<(), TemplateError> {
        let cost = u64::try_from(cost).unwrap_or(u64::MAX);
        let less = |left: u64| left.checked_sub(cost);
        match self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) {
            Ok(_) => Ok(()),
            Err(_) => Err(too_much()),
        }
    }

    /// Fails if there is not enough left for something that is about to be made.
    pub(super) fn check(&self, cost: usize) -> Result<(), TemplateError> {
        let enough =
            u64::try_from(cost).is_ok_and(|cost| cost <= self.left.load(Ordering::Relaxed));
        if enough { Ok(()) } else { Err(too_much()) }
    }

    /// Spends what it costs to look at a value and everything in it, and gives that.
    pub(super) fn weigh(&self, value: &Value) -> Result<usize, TemplateError> {
        self.weigh_nested(value, 0)
    }

    fn weigh_nested(&self, value: &Value, depth: usize) -> Result<usize, TemplateError> {
        if depth > DEPTH_MAX {
            let message = format!("lists and dicts are nested deeper than {DEPTH_MAX} levels");
            return Err(TemplateError::Exec(message));
        }
        self.spend(VALUE_COST)?;
        let mut weight = VALUE_COST;
        match value {
            Value::List(items) => {
                for item in items.iter() {
                    weight += self.weigh_nested(item, depth + 1)?;
                }
            }
            Value::Map(entries) => {
                for item in entries.values() {
                    weight += self.weigh_nested(item, depth + 1)?;
                }
            }
            Value::String(text) => weight += text.len() / VALUE_COST,
            _ => (),
        }
        Ok(weight)
    }

    /// A value as it is printed.
    pub(super) fn display(&self, value: &Value) -> Result<String, TemplateError> {
        let mut output = Output::new(self);
        // Only the budget makes writing fail.
        fmt::write(&mut output, format_args!("{value}")).map_err(|_| too_much())?;
        Ok(output.text)
    }
}

pub(super) fn too_much() -> TemplateError {
    TemplateError::Exec(format!(
        "the template does too much: it may spend {WORK_MAX} units of work"
    ))
}

/// Text that is written at the cost of a budget.
pub(super) struct Output<'a> {
    pub(super) text: String,
    /// Whether writing failed because there is too much of it.
    pub(super) is_full: bool,
    budget: &'a Budget,
}

impl<'a> Output<'a> {
    pub(super) fn new(budget: &'a Budget) -> Self {
        Self { text: String::new(), is_full: false, budget }
    }
}

impl fmt::Write for Output<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.is_full |= self.text.len() + text.len() > RENDERED_MAX;
        if self.is_full {
            return Err(fmt::Error);
        }
        self.budget.spend(text.len()).map_err(|_| fmt::Error)?;
        self.text.push_str(text);
        Ok(())
    }
}
