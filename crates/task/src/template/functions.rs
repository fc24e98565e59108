//! The functions of templates: those of Sprig 2.22 but for cryptography, and Go's own ones
//! where they need a bound.
//!
//! Where values differ from Go's: texts are counted in characters, not in bytes; `keys` and
//! `values` are sorted; numbers have one integer type, `int`; times are texts, as Go
//! prints them; `semver` gives a dict; `set` and its like change a variable if that is
//! their first argument, and else give a changed copy; `env`, `expandenv` and
//! `getHostByName` give nothing, since the server's surroundings are none of a task's
//! business.

mod builtins;
mod dates;
mod dicts;
mod encodings;
mod lists;
mod numbers;
mod patterns;
mod texts;
mod values;
mod versions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gotmpl::{FuncMap, TemplateError, Value};
use jiff::Timestamp;
use ring::digest::{Digest, SHA256, digest};

use super::budget::{Budget, CALL_COST, VALUE_COST};
use super::tree::{MEMBER, NOTHING, REACH};
use super::variables::Variables;

type Result<T = Value> = std::result::Result<T, TemplateError>;

/// A function: its name, how many arguments it takes, and what it does.
struct Function {
    name: &'static str,
    arguments_min: usize,
    arguments_max: usize,
    run: fn(&Call<'_>) -> Result,
}

const fn function(
    name: &'static str,
    arguments_min: usize,
    arguments_max: usize,
    run: fn(&Call<'_>) -> Result,
) -> Function {
    Function { name, arguments_min, arguments_max, run }
}

/// For functions that take any number of arguments.
const ANY: usize = usize::MAX;

/// Functions of Go that stay as they are, since they cost nothing.
const FREE: [&str; 6] = ["and", "or", "not", "len", "index", "call"];

/// All functions, ready for one rendering.
pub(super) struct Functions {
    surroundings: Arc<Surroundings>,
    by_name: BTreeMap<&'static str, &'static Function>,
}

/// What functions may use besides their arguments.
struct Surroundings {
    budget: Arc<Budget>,
    now: Timestamp,
    /// What random numbers are made of, and how many there were.
    seed: Digest,
    drawn: AtomicU64,
}

impl Functions {
    /// For the rendering of a text, which has random numbers of its own.
    pub(super) fn new(text: &str, budget: Arc<Budget>, variables: &Variables) -> Self {
        let Variables { now, seed, .. } = variables;
        let seed = digest(&SHA256, &[&seed.0, text.as_bytes()].concat());
        let groups = [
            builtins::FUNCTIONS,
            dates::FUNCTIONS,
            dicts::FUNCTIONS,
            encodings::FUNCTIONS,
            lists::FUNCTIONS,
            numbers::FUNCTIONS,
            patterns::FUNCTIONS,
            texts::FUNCTIONS,
            values::FUNCTIONS,
            versions::FUNCTIONS,
        ];
        let all = groups.into_iter().flatten().map(|function| (function.name, function));
        let surroundings = Surroundings { budget, now: *now, seed, drawn: AtomicU64::new(0) };
        Self { surroundings: Arc::new(surroundings), by_name: all.collect() }
    }

    /// With `json`, which is another name of `toJson`.
    pub(super) fn with_json(mut self) -> Self {
        if let Some(function) = self.by_name.get("toJson") {
            self.by_name.insert("json", function);
        }
        self
    }

    pub(super) fn has(&self, name: &str) -> bool {
        FREE.contains(&name) || self.by_name.contains_key(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.by_name.keys().copied().chain(FREE)
    }

    pub(super) fn into_map(self) -> FuncMap {
        let mut map = FuncMap::new();
        for (name, function) in self.by_name {
            let surroundings = Arc::clone(&self.surroundings);
            let run = move |args: &[Value]| call(function, args, &surroundings);
            map.insert(name.to_owned(), Arc::new(run));
        }
        let budget = Arc::clone(&self.surroundings.budget);
        map.insert(REACH.to_owned(), Arc::new(move |args: &[Value]| reach(args, &budget)));
        map.insert(MEMBER.to_owned(), Arc::new(member));
        map.insert(NOTHING.to_owned(), Arc::new(|_: &[Value]| Ok(Value::Nil)));
        map
    }
}

fn call(function: &'static Function, args: &[Value], surroundings: &Surroundings) -> Result {
    let Function { name, arguments_min, arguments_max, run } = *function;
    if args.len() < arguments_min || args.len() > arguments_max {
        let wanted = match (arguments_min, arguments_max) {
            (min, ANY) => format!("at least {min}"),
            (min, max) if min == max => min.to_string(),
            (min, max) => format!("{min} to {max}"),
        };
        let message = format!("`{name}` takes {wanted} arguments, not {}", args.len());
        return Err(TemplateError::Exec(message));
    }
    surroundings.budget.spend(CALL_COST)?;
    run(&Call { name, args, surroundings })
}

/// Where execution is.
fn reach(args: &[Value], budget: &Budget) -> Result {
    let number = |index: usize| args.get(index).and_then(Value::as_int).unwrap_or_default();
    let [offset, cost] = [0, 1].map(|index| usize::try_from(number(index)).unwrap_or(usize::MAX));
    budget.reach(offset, cost).map(|()| Value::Nil)
}

/// A member of a member of a value. There must be something to take the next one of.
fn member(args: &[Value]) -> Result {
    let Some((first, names)) = args.split_first() else { return Ok(Value::Nil) };
    let mut value = first;
    for name in names.iter().filter_map(Value::as_str) {
        value = match value {
            Value::Map(entries) => entries.get(name).unwrap_or(&Value::Nil),
            Value::Nil => {
                let message = format!("there is no value to take the member `{name}` of");
                return Err(TemplateError::Exec(message));
            }
            other => {
                let message = format!("a {} has no member `{name}`", other.type_name());
                return Err(TemplateError::Exec(message));
            }
        };
    }
    Ok(value.clone())
}

/// A call of a function: its arguments, and what its result costs.
struct Call<'a> {
    name: &'static str,
    args: &'a [Value],
    surroundings: &'a Surroundings,
}

impl<'a> Call<'a> {
    /// An argument; nothing if it was left out.
    fn value(&self, index: usize) -> &'a Value {
        self.args.get(index).unwrap_or(&Value::Nil)
    }

    /// The arguments from one on.
    fn rest(&self, index: usize) -> &'a [Value] {
        self.args.get(index..).unwrap_or_default()
    }

    fn text(&self, index: usize) -> Result<&'a str> {
        self.value(index).as_str().ok_or_else(|| self.wants(index, "a string"))
    }

    fn list(&self, index: usize) -> Result<&'a [Value]> {
        match self.value(index) {
            Value::List(items) => Ok(items),
            _ => Err(self.wants(index, "a list")),
        }
    }

    fn dict(&self, index: usize) -> Result<&'a BTreeMap<Arc<str>, Value>> {
        match self.value(index) {
            Value::Map(entries) => Ok(entries),
            _ => Err(self.wants(index, "a dict")),
        }
    }

    fn flag(&self, index: usize) -> Result<bool> {
        match self.value(index) {
            Value::Bool(value) => Ok(*value),
            _ => Err(self.wants(index, "a bool")),
        }
    }

    /// An argument that must be a number.
    fn int(&self, index: usize) -> Result<i64> {
        match self.value(index) {
            number @ (Value::Int(_) | Value::Uint(_) | Value::Float(_)) => Ok(numbers::int(number)),
            _ => Err(self.wants(index, "a number")),
        }
    }

    /// A count of something, none if it is negative.
    fn count(&self, index: usize) -> Result<usize> {
        Ok(usize::try_from(self.int(index)?).unwrap_or(0))
    }

    fn display(&self, value: &Value) -> Result<String> {
        match value {
            Value::String(text) => Ok(text.to_string()),
            value => self.budget().display(value),
        }
    }

    fn budget(&self) -> &'a Budget {
        &self.surroundings.budget
    }

    fn wants(&self, index: usize, what: &str) -> TemplateError {
        let given = self.value(index).type_name();
        self.fails(format!("argument {} must be {what}, not {given}", index + 1))
    }

    fn fails(&self, message: impl std::fmt::Display) -> TemplateError {
        TemplateError::Exec(format!("`{}`: {message}", self.name))
    }

    /// A text as result.
    fn give(&self, text: impl Into<Arc<str>>) -> Result {
        let text = text.into();
        self.budget().spend(text.len())?;
        Ok(Value::String(text))
    }

    fn give_list(&self, items: Vec<Value>) -> Result {
        let value = Value::List(items.into());
        self.budget().weigh(&value)?;
        Ok(value)
    }

    fn give_texts<'t>(&self, texts: impl IntoIterator<Item = &'t str>) -> Result {
        let mut items = Vec::new();
        for text in texts {
            self.budget().spend(VALUE_COST + text.len())?;
            items.push(Value::String(text.into()));
        }
        Ok(Value::List(items.into()))
    }

    fn give_dict(&self, entries: BTreeMap<Arc<str>, Value>) -> Result {
        let value = Value::Map(Arc::new(entries));
        self.budget().weigh(&value)?;
        Ok(value)
    }

    /// The next number of the rendering's random sequence: the digests of seed and counter.
    fn random(&self) -> u64 {
        let drawn = self.surroundings.drawn.fetch_add(1, Ordering::Relaxed);
        let block = [self.surroundings.seed.as_ref(), &drawn.to_be_bytes()].concat();
        let digest = digest(&SHA256, &block);
        digest.as_ref().iter().take(8).fold(0, |number, byte| (number << 8) | u64::from(*byte))
    }

    /// A random number below `end`.
    fn random_below(&self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.random() % end).unwrap_or(0)
    }
}
