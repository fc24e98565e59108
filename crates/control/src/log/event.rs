//! What a run says of itself, as records and as text.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde::{Deserialize, Deserializer, Serialize};
use store::Millis;

use crate::RunStatus;

/// One record of a run's log; also how it lies on disk, one JSON text per line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Grows by one from 1 within a run.
    pub id: u64,
    pub at: Millis,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<Sent>,
    #[serde(flatten)]
    pub kind: EventKind,
}

/// Of a record that an agent has sent: its attempt, and its id in the agent's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Sent {
    pub epoch: i64,
    pub id: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    Stdout,
    Stderr,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventKind {
    Status {
        status: RunStatus,
    },
    /// A line of the executor's own.
    Message {
        text: String,
    },
    Warning {
        text: String,
    },
    /// A numbered piece of work begins; `step` counts from 1 in a run.
    StepStarted {
        step: u32,
        name: String,
    },
    /// Output of a step, line ends kept.
    Output {
        step: u32,
        stream: Stream,
        text: String,
    },
    /// How far a transfer is, in bytes.
    Progress {
        step: u32,
        current: u64,
        total: Option<u64>,
    },
    /// Why the cache had the result of a step, or not.
    Explained {
        step: u32,
        text: String,
    },
    /// `proof`: why a result that was there already is right; none if the step was executed.
    StepFinished {
        step: u32,
        // Logs of older versions have `cached`, and not why.
        #[serde(
            default,
            alias = "cached",
            deserialize_with = "proof",
            skip_serializing_if = "Option::is_none"
        )]
        proof: Option<Proof>,
        milliseconds: u64,
        error: Option<String>,
    },
    /// An image exists; `reference` if it has a name.
    Image {
        reference: Option<String>,
        digest: String,
    },
    /// The last event.
    Finished {
        status: RunStatus,
        error: Option<String>,
        milliseconds: u64,
    },
}

/// What was found to be the same of the images that a step looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proof {
    /// It looks at none.
    Nothing,
    /// What it sees; the layers are others than those that the result was made on.
    Seen,
    /// Every layer.
    Layers,
}

fn proof<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Proof>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Stored {
        Cached(bool),
        Proof(Option<Proof>),
    }
    Ok(match Stored::deserialize(deserializer)? {
        Stored::Cached(cached) => cached.then_some(Proof::Layers),
        Stored::Proof(proof) => proof,
    })
}

impl EventKind {
    /// Whether a bound on the log may drop it: what a run can produce without end.
    pub(super) fn is_bulk(&self) -> bool {
        matches!(self, Self::Output { .. } | Self::Progress { .. })
    }

    /// Every text in it that could hold a secret.
    pub(super) fn texts_mut(&mut self) -> Vec<&mut String> {
        match self {
            Self::Message { text }
            | Self::Warning { text }
            | Self::Output { text, .. }
            | Self::Explained { text, .. } => vec![text],
            Self::Image { reference, digest } => {
                reference.iter_mut().chain(std::iter::once(digest)).collect()
            }
            Self::StepStarted { name, .. } => vec![name],
            Self::StepFinished { error: Some(error), .. }
            | Self::Finished { error: Some(error), .. } => vec![error],
            _ => Vec::new(),
        }
    }
}

/// Renders events as the text log of runs.md section 6, one after the other.
///
/// A pure fold, so the text can be made again from the records after a crash.
#[derive(Clone)]
pub(super) struct TextRenderer {
    run: String,
    names: HashMap<u32, String>,
    /// The last byte of output was not a line's end: the next own line needs one first.
    in_line: bool,
    after_carriage_return: bool,
}

/// Step names that the renderer remembers; a run with more shows numbers for the rest.
const NAMES_MAX: usize = 10_000;

impl TextRenderer {
    pub(super) fn new(run: &str) -> Self {
        Self {
            run: run.to_owned(),
            names: HashMap::new(),
            in_line: false,
            after_carriage_return: false,
        }
    }

    pub(super) fn render(&mut self, event: &Event, out: &mut String) {
        match &event.kind {
            EventKind::Status { .. } | EventKind::Progress { .. } => (),
            EventKind::Message { text } => self.lines(event.at, text, out),
            EventKind::Warning { text } => self.lines(event.at, &format!("WARNING: {text}"), out),
            EventKind::StepStarted { step, name } => {
                if self.names.len() < NAMES_MAX {
                    self.names.insert(*step, name.clone());
                }
                self.lines(event.at, &format!("#{step} {name}"), out);
            }
            EventKind::Output { text, .. } => self.output(text, out),
            EventKind::Explained { step, text } => {
                self.lines(event.at, &format!("#{step} cache {text}"), out);
            }
            EventKind::StepFinished { step, proof, milliseconds, error } => {
                let name = self.names.remove(step).unwrap_or_default();
                let text = match (error, proof) {
                    (Some(error), _) => format!("#{step} ERROR: {error}"),
                    (None, Some(Proof::Seen)) => {
                        format!("#{step} CACHED {name}: what it sees of the image is the same")
                    }
                    (None, Some(_)) => format!("#{step} CACHED {name}"),
                    (None, None) => format!("#{step} DONE {}", seconds(*milliseconds)),
                };
                self.lines(event.at, text.trim_end(), out);
            }
            EventKind::Image { reference, digest } => {
                let text = match reference {
                    Some(reference) => format!("{reference}: digest: {digest}"),
                    None => format!("image without a name: digest: {digest}"),
                };
                self.lines(event.at, &text, out);
            }
            EventKind::Finished { status, error, milliseconds } => {
                // An error of several lines is told in full, and in short at the end.
                if let Some(error) = error.as_deref().filter(|error| error.contains('\n')) {
                    self.lines(event.at, error.trim_end(), out);
                }
                self.begin_line(out);
                let run = &self.run;
                let seconds = milliseconds / 1000;
                let _ = match (status, error) {
                    (RunStatus::Succeeded, _) => {
                        write!(out, "Run ID: {run} was successful after {seconds}s\r\n")
                    }
                    (_, Some(error)) => {
                        let error = error.lines().next().unwrap_or_default();
                        write!(out, "Run ID: {run} failed after {seconds}s. Error: {error}\r\n")
                    }
                    (status, None) => {
                        write!(out, "Run ID: {run} failed after {seconds}s. Error: {status}\r\n")
                    }
                };
            }
        }
    }

    /// What the text lacks for its last line to have an end.
    pub(super) fn line_end(&self) -> &'static str {
        if self.in_line { "\r\n" } else { "" }
    }

    fn begin_line(&mut self, out: &mut String) {
        out.push_str(self.line_end());
        self.in_line = false;
        self.after_carriage_return = false;
    }

    /// Lines of the executor: each with date and time.
    fn lines(&mut self, at: Millis, text: &str, out: &mut String) {
        self.begin_line(out);
        let stamp = match jiff::Timestamp::from_millisecond(at) {
            Ok(time) => time.strftime("%Y/%m/%d %H:%M:%S").to_string(),
            Err(_) => String::from("0000/00/00 00:00:00"),
        };
        for line in text.split('\n') {
            let _ = write!(out, "{stamp} {}\r\n", line.trim_end_matches('\r'));
        }
    }

    /// Output as it came, but every line ends in CR LF.
    pub(super) fn output(&mut self, text: &str, out: &mut String) {
        for c in text.chars() {
            if c == '\n' && !self.after_carriage_return {
                out.push('\r');
            }
            out.push(c);
            self.after_carriage_return = c == '\r';
            self.in_line = c != '\n';
        }
    }
}

fn seconds(milliseconds: u64) -> String {
    format!("{}.{}s", milliseconds / 1000, milliseconds % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn render(kinds: Vec<EventKind>) -> String {
        let mut renderer = TextRenderer::new("c01");
        let mut out = String::new();
        for (index, kind) in kinds.into_iter().enumerate() {
            let id = index as u64 + 1;
            let at = 1_700_000_000_000 + id as i64 * 1000;
            renderer.render(&Event { id, at, sent: None, kind }, &mut out);
        }
        assert!(!out.replace("\r\n", "").contains('\n'));
        out.replace("\r\n", "\n")
    }

    fn output(text: &str) -> EventKind {
        EventKind::Output { step: 1, stream: Stream::Stdout, text: text.into() }
    }

    fn finished(step: u32, proof: Option<Proof>, milliseconds: u64) -> EventKind {
        EventKind::StepFinished { step, proof, milliseconds, error: None }
    }

    #[test]
    fn logs_of_older_versions_are_read() {
        let read = |member: &str| -> EventKind {
            let text = format!(
                r#"{{"id":1,"at":2,"kind":"step_finished","step":1,{member}"milliseconds":3,"error":null}}"#
            );
            serde_json::from_str::<Event>(&text).unwrap().kind
        };
        for (member, proof) in [
            (r#""cached":true,"#, Some(Proof::Layers)),
            (r#""cached":false,"#, None),
            (r#""proof":"seen","#, Some(Proof::Seen)),
            (r#""proof":null,"#, None),
            ("", None),
        ] {
            assert_eq!(read(member), finished(1, proof, 3), "{member}");
        }
    }

    #[test]
    fn the_text_log_has_dates_on_the_executors_lines_only() {
        let text = render(vec![
            EventKind::Status { status: RunStatus::Running },
            EventKind::StepStarted { step: 1, name: "[build 1/2] RUN make".into() },
            output("cc a.c\ncc b"),
            output(".c\r"),
            output("\nlinking"),
            finished(1, None, 1234),
            EventKind::StepStarted { step: 2, name: "[build 2/2] COPY . .".into() },
            finished(2, Some(Proof::Layers), 0),
            EventKind::StepStarted { step: 3, name: "[2/2] COPY a b".into() },
            finished(3, Some(Proof::Seen), 0),
            EventKind::Warning { text: "two\nlines".into() },
            EventKind::Image {
                reference: Some("localhost/app:1".into()),
                digest: "sha256:ab".into(),
            },
            EventKind::Finished { status: RunStatus::Succeeded, error: None, milliseconds: 12_999 },
        ]);
        expect![[r#"
            2023/11/14 22:13:22 #1 [build 1/2] RUN make
            cc a.c
            cc b.c
            linking
            2023/11/14 22:13:26 #1 DONE 1.2s
            2023/11/14 22:13:27 #2 [build 2/2] COPY . .
            2023/11/14 22:13:28 #2 CACHED [build 2/2] COPY . .
            2023/11/14 22:13:29 #3 [2/2] COPY a b
            2023/11/14 22:13:30 #3 CACHED [2/2] COPY a b: what it sees of the image is the same
            2023/11/14 22:13:31 WARNING: two
            2023/11/14 22:13:31 lines
            2023/11/14 22:13:32 localhost/app:1: digest: sha256:ab
            Run ID: c01 was successful after 12s
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn the_last_line_tells_why_a_run_failed() {
        let finished = |status, error: Option<&str>| EventKind::Finished {
            status,
            error: error.map(Into::into),
            milliseconds: 3000,
        };
        let text = render(vec![
            output("no line end"),
            finished(RunStatus::Failed, Some("`make` ended with 2\n  --> Dockerfile:1")),
            finished(RunStatus::Canceled, None),
        ]);
        expect![[r#"
            no line end
            2023/11/14 22:13:22 `make` ended with 2
            2023/11/14 22:13:22   --> Dockerfile:1
            Run ID: c01 failed after 3s. Error: `make` ended with 2
            Run ID: c01 failed after 3s. Error: Canceled
        "#]]
        .assert_eq(&text);
    }
}
