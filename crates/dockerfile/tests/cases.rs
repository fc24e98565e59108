//! BuildKit's own tables of cases, as far as they are data: `REFIT_CASES` names the folder that
//! has them (`dockerfile/*.jsonl`). They are not a part of this repository.
//!
//! What is compared is what is accepted and what it means; the words of errors are ours.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write;
use std::path::PathBuf;

use dockerfile::HereDocument;
use dockerfile::cases::{self, Arguments, Statement};
use dockerfile::ignore::IgnoreFile;
use serde_json::Value;

/// The cases of a table; none where there are no tables, which CI does not let pass.
fn table(name: &str) -> Vec<Value> {
    #[expect(
        clippy::disallowed_methods,
        reason = "where test data lies is told by the environment"
    )]
    let variable = |name: &str| std::env::var_os(name);
    let Some(folder) = variable("REFIT_CASES") else {
        assert!(variable("CI").is_none(), "REFIT_CASES must name the folder of the tables");
        return Vec::new();
    };
    let path = PathBuf::from(folder).join(format!("dockerfile/{name}.jsonl"));
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let cases: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!cases.is_empty());
    cases
}

/// Holds every case of a table to a check, and shows all that differ.
fn check(name: &str, differs: impl Fn(&Value) -> Option<String>) {
    let mut failed = String::new();
    for case in table(name) {
        if let Some(actual) = differs(&case) {
            writeln!(failed, "{case}\n  is {actual}").unwrap();
        }
    }
    assert!(failed.is_empty(), "{name}:\n{failed}");
}

fn input(case: &Value) -> &str {
    case["input"].as_str().unwrap()
}

fn is_error(case: &Value) -> bool {
    case["expected_error"] == Value::Bool(true)
}

/// Whether a result is what a case expects, an error for an error.
fn compare<T: std::fmt::Debug>(
    case: &Value,
    actual: Result<T, String>,
    same: impl FnOnce(&T) -> bool,
) -> Option<String> {
    let agrees = match &actual {
        Err(_) => is_error(case),
        Ok(actual) => !is_error(case) && same(actual),
    };
    (!agrees).then(|| format!("{actual:?}"))
}

fn env(case: &Value) -> Vec<(String, String)> {
    let entries = case["env"].as_array().unwrap().iter();
    entries
        .map(|entry| {
            let (name, value) = entry.as_str().unwrap().split_once('=').unwrap();
            (name.to_owned(), value.to_owned())
        })
        .collect()
}

#[test]
fn words_expand_as_they_should() {
    check("word", |case| {
        compare(case, cases::expand(input(case), &env(case)), |actual| {
            case["expected"].as_str() == Some(actual)
        })
    });
}

#[test]
fn words_split_as_they_should() {
    check("words", |case| {
        let expected: Vec<String> = serde_json::from_value(case["expected"].clone()).unwrap();
        match cases::expand_words(input(case), &env(case)) {
            Err(_) if expected == ["error"] => None,
            Ok(actual) if actual == expected => None,
            actual => Some(format!("{actual:?}")),
        }
    });
}

#[test]
fn patterns_are_the_same_regular_expressions() {
    check("pattern_regex", |case| {
        compare(case, cases::pattern(input(case)), |actual| {
            Some(actual.trim_start_matches("(?s)")) == case["expected"].as_str()
        })
    });
}

#[test]
fn ports_are_read_as_they_should() {
    check("expose", |case| {
        let specs: Vec<String> = serde_json::from_value(case["input"].clone()).unwrap();
        let ports: Result<Vec<Vec<String>>, String> =
            specs.iter().map(|spec| cases::ports(spec)).collect();
        compare(case, ports, |actual| {
            let expected: Vec<String> = serde_json::from_value(case["expected"].clone()).unwrap();
            actual.concat() == expected
        })
    });
}

#[test]
fn quoted_words_are_kept_whole() {
    check("parse_words", |case| {
        let source = format!("ARG {}", input(case));
        let arguments = |(statements, _): (Vec<Statement>, char)| words(&statements[0].arguments);
        let actual = cases::statements(&source).map(arguments).map_err(|error| error.message);
        compare(case, actual, |actual| {
            let expected: Vec<String> = serde_json::from_value(case["expected"].clone()).unwrap();
            *actual == expected
        })
    });
}

#[test]
fn lists_are_json_of_strings() {
    check("json_args", |case| {
        let source = format!("CMD {}", input(case));
        let actual = cases::statements(&source).map_err(|error| error.message);
        compare(case, actual, |(statements, _)| {
            let expected: Vec<String> = serde_json::from_value(case["expected"].clone()).unwrap();
            statements[0].arguments == Arguments::List(expected)
        })
    });
}

#[test]
fn ignore_patterns_match_what_they_should() {
    check("ignore", |case| {
        let patterns: Vec<String> = serde_json::from_value(case["patterns"].clone()).unwrap();
        let file = IgnoreFile::parse(&patterns.join("\n")).map_err(|error| error.to_string());
        let path = case["path"].as_str().or(case["input"].as_str()).unwrap();
        let actual = file.map(|file| file.is_excluded(path));
        compare(case, actual, |actual| Some(*actual) == case["expected"].as_bool())
    });
}

#[test]
fn here_documents_are_found_where_they_are() {
    check("heredoc_token", |case| {
        compare(case, cases::here_document(input(case)), |actual| {
            let name = actual.as_ref().map_or("none", |document| document.name.as_str());
            case["expected"].as_str() == Some(name)
        })
    });
    check("heredoc_names", |case| {
        compare(case, cases::here_documents(input(case)), |actual| {
            let names: Vec<&str> = actual.iter().map(|document| &*document.name).collect();
            let expected: Option<Vec<String>> =
                serde_json::from_value(case["expected"].clone()).unwrap();
            names == expected.unwrap_or_default()
        })
    });
}

/// Arguments as one flat list, as the reference has them.
fn words(arguments: &Arguments) -> Vec<String> {
    match arguments {
        Arguments::Nothing => Vec::new(),
        Arguments::Text(word) => vec![word.text.clone()],
        Arguments::Words(words) => words.iter().map(|word| word.text.clone()).collect(),
        Arguments::List(words) => words.clone(),
        Arguments::Pairs(pairs) => (pairs.iter())
            .flat_map(|pair| {
                let delimiter = if pair.is_old_form { "" } else { "=" };
                [pair.name.text.clone(), pair.value.text.clone(), delimiter.to_owned()]
            })
            .collect(),
        Arguments::Kind(kind, rest) => {
            let mut all = vec![kind.text.clone()];
            all.extend(words(rest));
            all
        }
        Arguments::Nested(_) => Vec::new(),
    }
}

/// A text in Go's quotes.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c.is_control() => write!(out, "\\x{:02x}", u32::from(c)).unwrap(),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A statement as an S-expression, as the reference shows it.
fn dump(statement: &Statement) -> String {
    let mut out = format!("({}", statement.keyword.text.to_lowercase());
    if !statement.flags.is_empty() {
        let flags: Vec<String> = statement.flags.iter().map(|flag| quoted(&flag.text)).collect();
        write!(out, " [{}]", flags.join(" ")).unwrap();
    }
    if let Arguments::Nested(nested) = &statement.arguments {
        write!(out, " {}", dump(nested)).unwrap();
    }
    for word in words(&statement.arguments) {
        write!(out, " {}", quoted(&word)).unwrap();
    }
    out.push(')');
    out
}

#[test]
fn good_files_are_split_as_they_should() {
    check("parser_ok", |case| {
        let actual = cases::statements(input(case)).map_err(|error| error.message);
        compare(case, actual, |(statements, escape)| {
            let dumped: Vec<String> = statements.iter().map(dump).collect();
            let lines: Vec<u64> = case["lines"]
                .as_array()
                .unwrap()
                .iter()
                .map(|range| range[0].as_u64().unwrap())
                .collect();
            let starts: Vec<u64> = statements.iter().map(|s| s.at.line.into()).collect();
            let expected = case["expected_dump"].as_str().unwrap().trim();
            if dumped.join("\n") != expected {
                eprintln!("{}\n{}\n---\n{expected}", case["name"], dumped.join("\n"));
            }
            dumped.join("\n") == expected
                && starts == lines
                && case["escape"].as_str() == Some(escape.to_string().as_str())
        })
    });
}

#[test]
fn bad_files_are_refused() {
    check("parser_negative", |case| {
        let actual = dockerfile::parse(input(case)).map_err(|error| error.message);
        compare(case, actual.map(|_| ()), |()| true)
    });
    check("instruction_error", |case| {
        let source = format!("FROM scratch\n{}", input(case));
        let actual = dockerfile::parse(&source).map_err(|error| error.message);
        compare(case, actual.map(|_| ()), |()| true)
    });
}

#[test]
fn here_documents_have_the_lines_that_are_theirs() {
    // The cases are the lines of one file: each with the line it stands in and what follows it.
    for case in table("heredoc") {
        let Some(expected) = case["expected"].as_array() else {
            let documents = cases::here_documents(input(&case));
            let keyword = input(&case).split(' ').next().unwrap();
            assert!(keyword != "RUN" || documents == Ok(Vec::new()), "{case}");
            continue;
        };
        let mut source = format!("FROM scratch\n{}\n", input(&case));
        for document in expected {
            let (content, name) = (&document["Content"], &document["Name"]);
            writeln!(source, "{}{}", content.as_str().unwrap(), name.as_str().unwrap()).unwrap();
        }
        let (statements, _) = cases::statements(&source).unwrap();
        let shown = |document: &HereDocument| {
            serde_json::json!({
                "Name": document.name,
                "FileDescriptor": document.descriptor,
                "Expand": document.expand,
                "Chomp": document.strip_tabs,
                "Content": document.content,
            })
        };
        let actual: Vec<Value> = statements[1].documents.iter().map(shown).collect();
        assert_eq!(&actual, expected, "{source}");
    }
}
