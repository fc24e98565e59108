//! Progress as lines that stay: for files, CI and `--progress plain`.

use std::collections::HashMap;
use std::fmt::Write as _;

use api::{Event, EventKind, Proof};

use super::lines::Lines;
use super::words::{SEEN, Tally, duration};
use crate::sanitize::{Colors, sanitize};

/// A fold over events.
pub(super) struct Plain {
    colors: Colors,
    steps: HashMap<u32, Step>,
    /// The step whose lines were printed last: a change is marked by an empty line.
    current: Option<u32>,
    tally: Tally,
}

struct Step {
    name: String,
    started_at: i64,
    output: Lines,
}

impl Plain {
    pub(super) fn new(colors: Colors) -> Self {
        Self { colors, steps: HashMap::new(), current: None, tally: Tally::default() }
    }

    pub(super) fn render(&mut self, event: &Event) -> String {
        self.tally.count(event);
        let mut out = String::new();
        match &event.kind {
            EventKind::Status { .. } | EventKind::Progress { .. } => (),
            EventKind::Message { text } => self.own_lines("", text, &mut out),
            EventKind::Warning { text } => self.own_lines("warning: ", text, &mut out),
            EventKind::StepStarted { step, name } => {
                let name = sanitize(name, Colors::Never);
                let state =
                    Step { name: name.clone(), started_at: event.at, output: Lines::default() };
                self.steps.insert(*step, state);
                self.begin(*step, &mut out);
            }
            EventKind::Output { step, text, .. } => {
                let Some(state) = self.steps.get_mut(step) else { return out };
                let lines = state.output.push(text);
                self.output(*step, event.at, &lines, &mut out);
            }
            EventKind::Explained { step, text } => {
                self.begin(*step, &mut out);
                let _ = writeln!(out, "#{step} cache {}", sanitize(text, Colors::Never));
            }
            EventKind::StepFinished { step, cached, proof, milliseconds, error } => {
                self.finish(*step, event.at, &mut out);
                let ending = match error {
                    Some(error) => {
                        let first = error.lines().next().unwrap_or_default();
                        format!("ERROR {}", sanitize(first, Colors::Never))
                    }
                    None if *proof == Some(Proof::Seen) => format!("CACHED: {SEEN}"),
                    None if *cached => "CACHED".to_owned(),
                    None => format!("DONE {}", duration(*milliseconds)),
                };
                self.begin(*step, &mut out);
                let _ = writeln!(out, "#{step} {ending}");
                self.steps.remove(step);
            }
            EventKind::Image { reference, digest } => {
                let name = reference.as_deref().map(|name| format!("{name}@")).unwrap_or_default();
                self.own_lines("image ", &format!("{name}{digest}"), &mut out);
            }
            // What went wrong is the command's error, not progress.
            EventKind::Finished { status, .. } => {
                self.own_lines("", &self.tally.summary(*status, event.at), &mut out);
            }
        }
        out
    }

    fn own_lines(&mut self, label: &str, text: &str, out: &mut String) {
        if self.current.take().is_some() {
            out.push('\n');
        }
        for line in text.lines() {
            let _ = writeln!(out, "{label}{}", sanitize(line, Colors::Never));
        }
    }

    /// Says which step the next lines are of, unless the last were of the same.
    fn begin(&mut self, step: u32, out: &mut String) {
        if self.current == Some(step) {
            return;
        }
        if self.current.is_some() {
            out.push('\n');
        }
        self.current = Some(step);
        if let Some(state) = self.steps.get(&step) {
            let _ = writeln!(out, "#{step} {}", state.name);
        }
    }

    fn finish(&mut self, step: u32, at: i64, out: &mut String) {
        let last = self.steps.get_mut(&step).and_then(|state| state.output.finish());
        self.output(step, at, last.as_slice(), out);
    }

    fn output(&mut self, step: u32, at: i64, lines: &[String], out: &mut String) {
        if lines.is_empty() {
            return;
        }
        self.begin(step, out);
        let started_at = self.steps.get(&step).map_or(at, |state| state.started_at);
        let elapsed = u64::try_from(at.saturating_sub(started_at)).unwrap_or(0);
        for line in lines {
            let time = format!("{}.{:03}", elapsed / 1000, elapsed % 1000);
            let line = format!("#{step} {time} {}", sanitize(line, self.colors));
            let _ = writeln!(out, "{}", line.trim_end());
        }
    }
}

#[cfg(test)]
mod tests {
    use api::{OutputStream, RunStatus};
    use expect_test::{Expect, expect};

    use super::*;

    #[track_caller]
    fn check(kinds: Vec<(i64, EventKind)>, expected: Expect) {
        let mut plain = Plain::new(Colors::Never);
        let events = (1..).zip(kinds).map(|(id, (at, kind))| Event { id, at, kind });
        let text: String = events.map(|event| plain.render(&event)).collect();
        expected.assert_eq(&text);
    }

    fn started(step: u32, name: &str) -> EventKind {
        EventKind::StepStarted { step, name: name.into() }
    }

    fn output(step: u32, text: &str) -> EventKind {
        EventKind::Output { step, stream: OutputStream::Stdout, text: text.into() }
    }

    fn finished(step: u32, cached: bool, milliseconds: u64, error: Option<&str>) -> EventKind {
        let error = error.map(Into::into);
        EventKind::StepFinished { step, cached, proof: None, milliseconds, error }
    }

    #[test]
    fn steps_that_take_turns_are_told_apart() {
        check(
            vec![
                (0, EventKind::Message { text: "Started by hand".into() }),
                (0, EventKind::Status { status: RunStatus::Running }),
                (10, started(1, "[build 1/2] FROM base")),
                (20, finished(1, true, 0, None)),
                (30, started(2, "[build 2/2] RUN make")),
                (342, output(2, "cc a.c\ncc ")),
                (400, started(3, "[test 1/1] RUN check")),
                (450, output(2, "b.c\n")),
                (500, output(3, "\x1b[2Jok\n")),
                (1_230, output(2, "no line end")),
                (1_234, finished(2, false, 1_204, None)),
                (1_300, EventKind::Warning { text: "slow\ndisk".into() }),
                (1_310, finished(3, false, 910, None)),
                (
                    1_320,
                    EventKind::Image {
                        reference: Some("app:1".into()),
                        digest: "sha256:ab".into(),
                    },
                ),
                (1_330, EventKind::Finished { status: RunStatus::Succeeded, error: None }),
            ],
            expect![[r#"
                Started by hand
                #1 [build 1/2] FROM base
                #1 CACHED

                #2 [build 2/2] RUN make
                #2 0.312 cc a.c

                #3 [test 1/1] RUN check

                #2 [build 2/2] RUN make
                #2 0.420 cc b.c

                #3 [test 1/1] RUN check
                #3 0.100 ok

                #2 [build 2/2] RUN make
                #2 1.204 no line end
                #2 DONE 1.2s

                warning: slow
                warning: disk
                #3 [test 1/1] RUN check
                #3 DONE 0.9s

                image app:1@sha256:ab
                Run succeeded after 1.3s: 3 steps, 1 cached
            "#]],
        );
    }

    #[test]
    fn a_step_that_is_proven_by_what_it_sees_says_so() {
        let finished = |step, proof| {
            let (cached, proof, milliseconds, error) = (true, Some(proof), 0, None);
            EventKind::StepFinished { step, cached, proof, milliseconds, error }
        };
        check(
            vec![
                (0, started(1, "[2/3] COPY a a")),
                (1, finished(1, Proof::Layers)),
                (2, started(2, "[3/3] COPY b b")),
                (3, finished(2, Proof::Seen)),
            ],
            expect![[r#"
                #1 [2/3] COPY a a
                #1 CACHED

                #2 [3/3] COPY b b
                #2 CACHED: what it sees of the image is the same
            "#]],
        );
    }

    #[test]
    fn a_failed_step_says_so() {
        check(
            vec![
                (0, started(1, "[1/1] RUN false")),
                (50, finished(1, false, 50, Some("`false` ended with 1\nmore"))),
                (60, EventKind::Finished { status: RunStatus::Failed, error: Some("why".into()) }),
            ],
            expect![[r#"
                #1 [1/1] RUN false
                #1 ERROR `false` ended with 1

                Run failed after 0.0s: 1 step
            "#]],
        );
    }

    #[test]
    fn events_of_unknown_steps_do_no_harm() {
        check(
            vec![(0, output(9, "lost\n")), (1, finished(9, false, 1, None))],
            expect![[r#"
                #9 DONE 0.0s
            "#]],
        );
    }
}
