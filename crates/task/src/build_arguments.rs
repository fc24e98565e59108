//! The text of a `build` step: the arguments of `docker build`, read as a shell would.

use crate::span::TaskError;

/// The context where none is named.
const DEFAULT_CONTEXT: &str = ".";

/// What a build is asked to do (task-yaml.md section 7.3). Only what the task file itself
/// has to know has a field; other options are kept in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildArguments {
    pub context: String,
    /// The Dockerfile, as given.
    pub file: Option<String>,
    pub target: Option<String>,
    pub tags: Vec<String>,
    /// A build argument without value takes it from the environment of the step.
    pub build_args: Vec<(String, Option<String>)>,
    pub options: Vec<BuildOption>,
}

/// Another option of `docker build`, without its dashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildOption {
    pub name: &'static str,
    /// None for a switch that is on.
    pub value: Option<String>,
}

/// Options that take a value, by their long names.
const WITH_VALUE: [&str; 37] = [
    "add-host",
    "annotation",
    "attest",
    "build-arg",
    "build-context",
    "builder",
    "cache-from",
    "cache-to",
    "cgroup-parent",
    "cpu-period",
    "cpu-quota",
    "cpu-shares",
    "cpuset-cpus",
    "cpuset-mems",
    "file",
    "iidfile",
    "image",
    "isolation",
    "label",
    "memory",
    "memory-swap",
    "metadata-file",
    "network",
    "no-cache-filter",
    "output",
    "platform",
    "progress",
    "provenance",
    "sbom",
    "secret",
    "security-opt",
    "shm-size",
    "ssh",
    "tag",
    "target",
    "ulimit",
    "allow",
];

/// Options that are on or off.
const SWITCHES: [&str; 11] = [
    "check",
    "compress",
    "disable-content-trust",
    "force-rm",
    "load",
    "no-cache",
    "pull",
    "push",
    "quiet",
    "rm",
    "squash",
];

/// One-letter names.
const SHORT: [(char, &str); 6] = [
    ('c', "cpu-shares"),
    ('f', "file"),
    ('m', "memory"),
    ('o', "output"),
    ('q', "quiet"),
    ('t', "tag"),
];

impl BuildArguments {
    /// Reads the text of a `build` step. The error has no position.
    pub fn parse(text: &str) -> Result<Self, TaskError> {
        let words = shlex::split(text).ok_or_else(|| {
            TaskError::new("`build` has a quote or a backslash that nothing ends")
                .with_hint("close the quote, or write a quote that is meant as it is as `\\'`")
        })?;
        let mut words = words.into_iter();
        let mut contexts = Vec::new();
        let mut options = Vec::new();
        while let Some(word) = words.next() {
            if word == "--" {
                contexts.extend(words.by_ref());
            } else if word.starts_with('-') && word != "-" {
                options.push(option(&word, &mut words)?);
            } else {
                contexts.push(word);
            }
        }
        if let Some(second) = contexts.get(1) {
            let message = format!("`build` has two contexts, `{}` and `{second}`", contexts[0]);
            return Err(TaskError::new(message)
                .with_hint("quote values that have blanks, or did an option lose its dashes?"));
        }
        let context = contexts.pop().unwrap_or_else(|| DEFAULT_CONTEXT.to_owned());
        Ok(Self::from_options(context, options))
    }

    fn from_options(context: String, options: Vec<BuildOption>) -> Self {
        let mut arguments = Self {
            context,
            file: None,
            target: None,
            tags: Vec::new(),
            build_args: Vec::new(),
            options: Vec::new(),
        };
        for BuildOption { name, value } in options {
            match (name, value) {
                ("file", Some(value)) => arguments.file = Some(value),
                ("target", Some(value)) => arguments.target = Some(value),
                ("tag" | "image", Some(value)) => arguments.tags.push(value),
                ("build-arg", Some(value)) => {
                    arguments.build_args.push(match value.split_once('=') {
                        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                        None => (value, None),
                    })
                }
                (name, value) => arguments.options.push(BuildOption { name, value }),
            }
        }
        arguments
    }

    /// Whether a switch is on.
    pub fn has(&self, switch: &str) -> bool {
        let last = self.options.iter().rfind(|option| option.name == switch);
        last.is_some_and(|option| option.value.is_none())
    }
}

/// One option, with its value from the same word or the next one.
fn option(word: &str, words: &mut impl Iterator<Item = String>) -> Result<BuildOption, TaskError> {
    let (name, value) = split(word)?;
    if let Some(name) = SWITCHES.into_iter().find(|switch| *switch == name) {
        return match value.as_deref() {
            None | Some("true" | "1") => Ok(BuildOption { name, value: None }),
            Some("false" | "0") => Ok(BuildOption { name, value: Some("false".to_owned()) }),
            Some(value) => {
                let message = format!("`--{name}` is on or off, not `{value}`");
                Err(TaskError::new(message))
            }
        };
    }
    let Some(name) = WITH_VALUE.into_iter().find(|option| *option == name) else {
        return Err(TaskError::new(format!("`{word}` is not an option of `build`"))
            .with_nearest(&name, WITH_VALUE.into_iter().chain(SWITCHES)));
    };
    match value.or_else(|| words.next()) {
        Some(value) => Ok(BuildOption { name, value: Some(value) }),
        None => Err(TaskError::new(format!("`{word}` needs a value"))),
    }
}

/// `--name`, `--name=value`, `-n`, `-nvalue` and `-n=value` to the long name and the value.
fn split(word: &str) -> Result<(String, Option<String>), TaskError> {
    if let Some(long) = word.strip_prefix("--") {
        return Ok(match long.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (long.to_owned(), None),
        });
    }
    let mut letters = word[1..].chars();
    let letter = letters.next().unwrap_or_default();
    let Some((_, name)) = SHORT.into_iter().find(|(short, _)| *short == letter) else {
        return Err(TaskError::new(format!("`{word}` is not an option of `build`")));
    };
    let rest = letters.as_str();
    let value = rest.strip_prefix('=').unwrap_or(rest);
    Ok((name.to_owned(), (!rest.is_empty()).then(|| value.to_owned())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> BuildArguments {
        BuildArguments::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn the_cases_of_group_g() {
        let remote = "https://h/u/r.git#dev:sub";
        let with_file = format!("{remote} -f x/D");
        let cases = [
            ("g1", "-t a -f d/Dockerfile .", Some("d/Dockerfile"), None, "."),
            ("g2", ". -t a", None, None, "."),
            ("g3", "--no-cache -t a ./app", None, None, "./app"),
            ("g4", "-t a --no-cache ./app", None, None, "./app"),
            ("g5", "--file=x.df --target=t .", Some("x.df"), Some("t"), "."),
            ("g6", &with_file, Some("x/D"), None, remote),
            ("g7", "-t a", None, None, "."),
        ];
        for (case, text, file, target, context) in cases {
            let arguments = parse(text);
            assert_eq!(arguments.file.as_deref(), file, "{case}");
            assert_eq!(arguments.target.as_deref(), target, "{case}");
            assert_eq!(arguments.context, context, "{case}");
        }
        let g8 = parse("--build-arg \"A=b c\" .");
        assert_eq!(g8.build_args, [("A".to_owned(), Some("b c".to_owned()))], "g8");
        assert_eq!(parse("--image a:1 ."), parse("-t a:1 ."), "g9");
    }

    #[test]
    fn options_have_their_values_where_docker_has_them() {
        let arguments = parse("-ta -t=b --tag c --build-arg E --label='x y=z' --pull=false -q .");
        assert_eq!(arguments.tags, ["a", "b", "c"]);
        assert_eq!(arguments.build_args, [("E".to_owned(), None)]);
        assert!(arguments.has("quiet") && !arguments.has("pull") && !arguments.has("no-cache"));
        let label = BuildOption { name: "label", value: Some("x y=z".to_owned()) };
        assert_eq!(arguments.options[0], label);
        assert_eq!(parse("-t a -- -odd-").context, "-odd-");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let cases = [
            ("a b", "two contexts"),
            ("-t", "`-t` needs a value"),
            ("--tagg a .", "`--tagg` is not an option"),
            ("-x .", "`-x` is not an option"),
            ("--pull=maybe .", "on or off"),
            ("'open", "a quote"),
        ];
        for (text, message) in cases {
            let error = BuildArguments::parse(text).unwrap_err();
            assert!(error.message.contains(message), "{text}: {error}");
        }
        let hint = BuildArguments::parse("--tagg a .").unwrap_err().hint;
        assert_eq!(hint.as_deref(), Some("did you mean `tag`?"));
    }

    proptest! {
        #[test]
        fn quoted_words_come_back_as_they_were(words in proptest::collection::vec("[^\0-]\\PC{0,8}", 1..5)) {
            let pairs = words.iter().flat_map(|word| ["-t", word]);
            let text = shlex::try_join(pairs).unwrap();
            prop_assert_eq!(parse(&text).tags, words);
        }
    }
}
