//! `$filter` of a listing of runs (runs.md section 5).

use control::{RunFilter, TimeRange};
use oci::{Digest, RepositoryName};

use super::cut;
use crate::error::ApiError;

/// Bytes of a filter.
const FILTER_MAX: usize = 4096;

/// Reads `TaskName eq 'nightly' and CreateTime ge 2026-01-01T00:00:00Z` and the like.
pub(crate) fn run_filter(text: &str) -> Result<RunFilter, ApiError> {
    if text.len() > FILTER_MAX {
        return Err(refuse(format!("it has more than {FILTER_MAX} bytes")));
    }
    let (mut filter, mut seen) = (RunFilter::default(), Vec::new());
    for term in terms(text)? {
        take(&mut filter, &term)?;
        // Times have two ends.
        let is_time = term.field.ends_with("time");
        if !is_time && seen.contains(&term.field) {
            return Err(refuse(format!("there are two conditions on `{}`", cut(&term.field))));
        }
        seen.push(term.field);
    }
    Ok(filter)
}

fn refuse(message: String) -> ApiError {
    ApiError::invalid(message).at("$filter")
}

/// A condition: field, operator, value. `contains(FIELD, 'VALUE')` has that operator.
#[derive(Debug, PartialEq, Eq)]
struct Term {
    field: String,
    operator: String,
    value: String,
}

fn terms(text: &str) -> Result<Vec<Term>, ApiError> {
    let tokens = tokens(text)?;
    let mut terms = Vec::new();
    let mut rest = tokens.as_slice();
    while !rest.is_empty() {
        let (term, after) = term(rest).ok_or_else(|| {
            let shown: Vec<&str> = rest.iter().map(Token::text).collect();
            refuse(format!("`{}` is not of the form `FIELD eq 'VALUE'`", cut(&shown.join(" "))))
                .hint("conditions are joined by `and`")
        })?;
        terms.push(term);
        rest = match after {
            [] => after,
            [Token::Word(and), more @ ..]
                if and.eq_ignore_ascii_case("and") && !more.is_empty() =>
            {
                more
            }
            [other, ..] => {
                let message =
                    format!("`{}` does not join conditions, only `and`", cut(other.text()));
                return Err(refuse(message));
            }
        };
    }
    Ok(terms)
}

fn term(tokens: &[Token]) -> Option<(Term, &[Token])> {
    let of = |field: &str, operator: &str, value: &str| Term {
        field: field.to_ascii_lowercase(),
        operator: operator.to_ascii_lowercase(),
        value: value.to_owned(),
    };
    match tokens {
        [
            Token::Word(contains),
            Token::Sign('('),
            Token::Word(field),
            Token::Sign(','),
            Token::Quoted(value),
            Token::Sign(')'),
            rest @ ..,
        ] if contains.eq_ignore_ascii_case("contains") => {
            Some((of(field, "contains", value), rest))
        }
        [Token::Word(field), Token::Word(operator), Token::Quoted(value), rest @ ..]
        | [Token::Word(field), Token::Word(operator), Token::Word(value), rest @ ..] => {
            Some((of(field, operator, value), rest))
        }
        _ => None,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Quoted(String),
    Sign(char),
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Self::Word(text) | Self::Quoted(text) => text,
            Self::Sign('(') => "(",
            Self::Sign(')') => ")",
            Self::Sign(_) => ",",
        }
    }
}

/// A quote inside of quotes is written twice.
fn tokens(text: &str) -> Result<Vec<Token>, ApiError> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => (),
            '(' | ')' | ',' => tokens.push(Token::Sign(c)),
            '\'' => {
                let mut value = String::new();
                loop {
                    match chars.next() {
                        Some('\'') if chars.next_if_eq(&'\'').is_none() => break,
                        Some(c) => value.push(c),
                        None => return Err(refuse("a quote is not closed".to_owned())),
                    }
                }
                tokens.push(Token::Quoted(value));
            }
            first => {
                let mut word = String::from(first);
                let is_part = |c: &char| !c.is_whitespace() && !matches!(c, '(' | ')' | ',' | '\'');
                while let Some(c) = chars.next_if(is_part) {
                    word.push(c);
                }
                tokens.push(Token::Word(word));
            }
        }
    }
    Ok(tokens)
}

fn take(filter: &mut RunFilter, term: &Term) -> Result<(), ApiError> {
    let Term { field, operator, value } = term;
    let wrong = |error: &dyn std::fmt::Display| refuse(error.to_string());
    match (field.as_str(), operator.as_str()) {
        ("createtime", operator) => return take_time(&mut filter.created, operator, value),
        ("finishtime", operator) => return take_time(&mut filter.finished, operator, value),
        ("status", "eq") => filter.status = Some(value.parse().map_err(|error| wrong(&error))?),
        ("runtype", "eq") => filter.kind = Some(value.parse().map_err(|error| wrong(&error))?),
        ("taskname", "eq") => filter.task = Some(value.parse().map_err(|error| wrong(&error))?),
        ("runid", "eq") => {
            let id = value.parse();
            let id = id.map_err(|_| refuse(format!("`{}` is not the id of a run", cut(value))))?;
            filter.id = Some(id);
        }
        ("isarchiveenabled", "eq") => {
            let archived = value.to_ascii_lowercase().parse();
            let wrong = |_| refuse(format!("`{}` is neither `true` nor `false`", cut(value)));
            filter.archived = Some(archived.map_err(wrong)?);
        }
        ("outputimagemanifests", "contains") => filter.image = Some(image(value)?),
        ("outputimagemanifests", _) => {
            return Err(refuse(format!("`{field}` is asked for by `contains`"))
                .hint("such as `contains(OutputImageManifests, 'app@sha256:...')`"));
        }
        ("agentpoolname", "eq") => {
            filter.pool = Some(value.parse().map_err(|error| wrong(&error))?);
        }
        (
            "status" | "runtype" | "taskname" | "runid" | "isarchiveenabled" | "agentpoolname",
            operator,
        ) => {
            let message = format!("operator `{}` is not known here, only `eq`", cut(operator));
            return Err(refuse(message));
        }
        (other, _) => {
            return Err(refuse(format!("runs have no field `{}`", cut(other))).hint(
                "the fields are RunId, RunType, Status, CreateTime, FinishTime, \
                 OutputImageManifests, IsArchiveEnabled, TaskName and AgentPoolName",
            ));
        }
    }
    Ok(())
}

/// Several conditions on one time all hold.
fn take_time(range: &mut TimeRange, operator: &str, value: &str) -> Result<(), ApiError> {
    let wrong = |_| {
        refuse(format!("`{}` is not a time", cut(value))).hint("such as `2026-01-31T00:00:00Z`")
    };
    let at = value.parse::<jiff::Timestamp>().map_err(wrong)?.as_millisecond();
    let from = |range: &mut TimeRange, at| {
        range.from = Some(range.from.map_or(at, |known: i64| known.max(at)));
    };
    let until = |range: &mut TimeRange, at| {
        range.until = Some(range.until.map_or(at, |known: i64| known.min(at)));
    };
    match operator {
        "ge" => from(range, at),
        "gt" => from(range, at.saturating_add(1)),
        "lt" => until(range, at),
        "le" => until(range, at.saturating_add(1)),
        "eq" => {
            from(range, at);
            until(range, at.saturating_add(1));
        }
        other => {
            let message = format!("operator `{}` is not one of ge, gt, le, lt, eq", cut(other));
            return Err(refuse(message));
        }
    }
    Ok(())
}

/// `repository@digest`
fn image(text: &str) -> Result<(RepositoryName, Digest), ApiError> {
    let parts = text
        .split_once('@')
        .and_then(|(repository, digest)| Some((repository.parse().ok()?, digest.parse().ok()?)));
    parts.ok_or_else(|| refuse(format!("`{}` is not `REPOSITORY@DIGEST`", cut(text))))
}

#[cfg(test)]
mod tests {
    use control::{RunKind, RunStatus};
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn conditions_are_joined_and_compare_without_case() {
        let filter = run_filter("Status eq 'failed' and RUNID EQ 'c0a'").unwrap();
        assert_eq!(filter.status, Some(RunStatus::Failed));
        assert_eq!(filter.id.unwrap().as_str(), "c0a");
        assert_eq!(run_filter(" ").unwrap(), RunFilter::default());
        let filter = run_filter("TaskName eq 't1234' and RunType eq 'autobuild'").unwrap();
        assert_eq!(filter.task.unwrap().as_str(), "t1234");
        assert_eq!(filter.kind, Some(RunKind::AutoBuild));
        assert_eq!(run_filter("IsArchiveEnabled eq true").unwrap().archived, Some(true));
    }

    #[test]
    fn times_have_bounds() {
        let filter = run_filter(
            "CreateTime ge 1970-01-01T00:00:01Z and CreateTime lt '1970-01-01T00:00:02Z' and \
             FinishTime le 1970-01-01T00:00:03Z and CreateTime gt 1970-01-01T00:00:00Z",
        )
        .unwrap();
        assert_eq!(filter.created, TimeRange { from: Some(1000), until: Some(2000) });
        assert_eq!(filter.finished, TimeRange { from: None, until: Some(3001) });
    }

    #[test]
    fn images_are_asked_for_by_digest() {
        let digest = Digest::of(b"x");
        let filter =
            run_filter(&format!("contains(OutputImageManifests, 'a/b@{digest}')")).unwrap();
        assert_eq!(filter.image, Some(("a/b".parse().unwrap(), digest)));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let mut told = String::new();
        for bad in [
            "status",
            "status eq",
            "status ne 'Failed'",
            "status eq 'Failed' or status eq 'Error'",
            "status eq 'Failed' and",
            "status eq 'Done'",
            "status eq 'Failed",
            "color eq 'red'",
            "runId eq 'x'",
            "taskName eq 'abcd'",
            "runType eq 'Slow'",
            "createTime ge 'today'",
            "createTime ne 1970-01-01T00:00:00Z",
            "isArchiveEnabled eq maybe",
            "contains(OutputImageManifests, 'a:b')",
            "contains(OutputImageManifests 'a')",
            "outputImageManifests eq 'a'",
            "agentPoolName eq 'p'",
            "status eq 'Failed' and Status eq 'Error'",
        ] {
            told.push_str(&format!("{}\n", run_filter(bad).unwrap_err().message));
        }
        expect![[r#"
            `status` is not of the form `FIELD eq 'VALUE'`
            `status eq` is not of the form `FIELD eq 'VALUE'`
            operator `ne` is not known here, only `eq`
            `or` does not join conditions, only `and`
            `and` does not join conditions, only `and`
            `Done` is not a run status: Queued, Started, Running, Succeeded, Failed, Canceled, Error or Timeout
            a quote is not closed
            runs have no field `color`
            `x` is not the id of a run
            `abcd` cannot name a task: a name has 5 to 50 letters, digits, `_` and `-`
            `Slow` is not a kind of run: QuickBuild, QuickRun, AutoBuild or AutoRun
            `today` is not a time
            operator `ne` is not one of ge, gt, le, lt, eq
            `maybe` is neither `true` nor `false`
            `a:b` is not `REPOSITORY@DIGEST`
            `contains ( OutputImageManifests a )` is not of the form `FIELD eq 'VALUE'`
            `outputimagemanifests` is asked for by `contains`
            `p` cannot name an agent pool: a name has 3 to 20 letters, digits and `-`
            there are two conditions on `status`
        "#]]
        .assert_eq(&told);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[ 'a-zA-Z(),0-9:TZé-]{0,60}") {
            let _ = run_filter(&text);
        }

        #[test]
        fn quoted_texts_come_back(text in ".{0,40}") {
            let quoted = format!("'{}'", text.replace('\'', "''"));
            prop_assert_eq!(tokens(&quoted).unwrap(), [Token::Quoted(text)]);
        }
    }
}
