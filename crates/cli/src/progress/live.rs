//! Progress on a terminal: finished steps scroll away above, those under way are redrawn
//! below with the tail of their output.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

use api::{Event, EventKind, Proof, RunStatus};

use super::lines::Lines;
use super::words::{SEEN, Tally, duration, size, transfer};
use crate::sanitize::{Colors, sanitize};

/// Lines of output shown below a step under way.
const TAIL_LEN: usize = 6;
/// Lines of output kept for the case that the step fails.
const KEPT_LINES_MAX: usize = 200;

/// A fold over events, and a picture of its state.
pub(super) struct Live {
    colors: Colors,
    steps: BTreeMap<u32, Step>,
    tally: Tally,
    /// Bytes of the context that were sent, while they are.
    upload: Option<u64>,
    is_over: bool,
}

struct Step {
    name: String,
    started_at: i64,
    output: Lines,
    kept: VecDeque<String>,
    transfer: Option<String>,
    explanation: Option<String>,
}

impl Step {
    fn keep(&mut self, lines: impl IntoIterator<Item = String>) {
        self.kept.extend(lines);
        let excess = self.kept.len().saturating_sub(KEPT_LINES_MAX);
        self.kept.drain(..excess);
    }
}

impl Live {
    pub(super) fn new(colors: Colors) -> Self {
        Self {
            colors,
            steps: BTreeMap::new(),
            tally: Tally::default(),
            upload: None,
            is_over: false,
        }
    }

    /// Takes an event; the answer is text that lasts.
    pub(super) fn render(&mut self, event: &Event) -> String {
        self.tally.count(event);
        match &event.kind {
            EventKind::Status { .. } => String::new(),
            EventKind::Message { text } => own_lines("", text),
            EventKind::Warning { text } => own_lines("warning: ", text),
            EventKind::StepStarted { step, name } => {
                let state = Step {
                    name: sanitize(name, Colors::Never),
                    started_at: event.at,
                    output: Lines::default(),
                    kept: VecDeque::new(),
                    transfer: None,
                    explanation: None,
                };
                self.steps.insert(*step, state);
                String::new()
            }
            EventKind::Output { step, text, .. } => {
                if let Some(state) = self.steps.get_mut(step) {
                    let lines = state.output.push(text);
                    state.keep(lines);
                }
                String::new()
            }
            EventKind::Progress { step, current, total } => {
                if let Some(state) = self.steps.get_mut(step) {
                    state.transfer = Some(transfer(*current, *total));
                }
                String::new()
            }
            EventKind::Explained { step, text } => {
                if let Some(state) = self.steps.get_mut(step) {
                    state.explanation = Some(sanitize(text, Colors::Never));
                }
                String::new()
            }
            EventKind::StepFinished { step, cached, proof, milliseconds, error } => {
                let Some(mut state) = self.steps.remove(step) else { return String::new() };
                let last = state.output.finish();
                state.keep(last);
                match error {
                    Some(_) => self.failed(&state, *milliseconds),
                    None => {
                        let mark = if *cached { "CACHED " } else { "" };
                        let color = if *cached { "36" } else { "34" };
                        let line = format!(" => {mark}{}", state.name);
                        let line = self.timed(color, &line, &duration(*milliseconds));
                        let seen = (*proof == Some(Proof::Seen)).then(|| SEEN.to_owned());
                        let explanation = state.explanation.map(|text| format!("cache {text}"));
                        let below = seen.into_iter().chain(explanation);
                        line + &below.map(|text| format!(" => => {text}\n")).collect::<String>()
                    }
                }
            }
            EventKind::Image { reference, digest } => {
                let name = reference.as_deref().map(|name| format!("{name}@")).unwrap_or_default();
                own_lines(" => image ", &format!("{name}{digest}"))
            }
            EventKind::Finished { status, .. } => {
                self.clear();
                let color = if *status == RunStatus::Succeeded { "32" } else { "31" };
                format!("{}\n", self.painted(color, &self.tally.summary(*status, event.at)))
            }
        }
    }

    /// The steps under way, at most `rows` lines of at most `columns` characters.
    pub(super) fn frame(&self, now: i64, rows: usize, columns: usize) -> Vec<String> {
        if let Some(bytes) = self.upload {
            return vec![clipped(&format!(" => sending context {}", size(bytes)), columns)];
        }
        if self.is_over || self.tally.started == 0 {
            return Vec::new();
        }
        let Tally { started, finished, .. } = self.tally;
        let elapsed = duration(self.tally.elapsed(now));
        let mut lines = vec![format!("[+] Building {elapsed} ({finished}/{started})")];
        // Few steps share much room for their output, many share little.
        let free = rows.saturating_sub(1 + self.steps.len());
        let tail = (free / self.steps.len().max(1)).min(TAIL_LEN);
        for step in self.steps.values() {
            let elapsed = u64::try_from(now.saturating_sub(step.started_at)).unwrap_or(0);
            let transfer =
                step.transfer.as_ref().map(|text| format!(" {text}")).unwrap_or_default();
            let line = format!(" => {}{transfer}", step.name);
            lines.push(padded(&line, &duration(elapsed), columns));
            let skipped = step.kept.len().saturating_sub(tail);
            for line in step.kept.iter().skip(skipped) {
                let line =
                    format!(" => => {}", sanitize(line, Colors::Never).replace('\t', "    "));
                lines.push(clipped(&line, columns));
            }
        }
        lines.truncate(rows);
        lines
    }

    pub(super) fn set_upload(&mut self, bytes: Option<u64>) {
        self.upload = bytes;
    }

    /// Nothing is under way any more.
    pub(super) fn clear(&mut self) {
        self.is_over = true;
        self.steps.clear();
    }

    /// A step that failed shows all its output that is still known.
    fn failed(&self, step: &Step, milliseconds: u64) -> String {
        let mut out =
            self.timed("31", &format!(" => ERROR {}", step.name), &duration(milliseconds));
        if step.kept.is_empty() {
            return out;
        }
        let _ = writeln!(out, "------\n > {}:", step.name);
        for line in &step.kept {
            let _ = writeln!(out, "{}", sanitize(line, self.colors));
        }
        out.push_str("------\n");
        out
    }

    fn timed(&self, color: &str, line: &str, time: &str) -> String {
        format!("{}\n", self.painted(color, &format!("{line} {time}")))
    }

    fn painted(&self, color: &str, text: &str) -> String {
        match self.colors {
            Colors::Keep => format!("\x1b[{color}m{text}\x1b[0m"),
            Colors::Never => text.to_owned(),
        }
    }
}

fn own_lines(label: &str, text: &str) -> String {
    text.lines().map(|line| format!("{label}{}\n", sanitize(line, Colors::Never))).collect()
}

fn clipped(line: &str, columns: usize) -> String {
    line.chars().take(columns).collect()
}

/// The line with `right` at the right edge.
fn padded(line: &str, right: &str, columns: usize) -> String {
    let room = columns.saturating_sub(right.len() + 1);
    format!("{:<room$} {right}", clipped(line, room))
}

#[cfg(test)]
mod tests {
    use api::OutputStream;
    use expect_test::expect;

    use super::*;

    /// Marks where lines begin, for some begin with a blank.
    fn marked(text: &str) -> String {
        text.lines().map(|line| format!("|{line}\n")).collect()
    }

    fn event(at: i64, kind: EventKind) -> Event {
        Event { id: 1, at, kind }
    }

    fn started(at: i64, step: u32, name: &str) -> Event {
        event(at, EventKind::StepStarted { step, name: name.into() })
    }

    fn output(at: i64, step: u32, text: &str) -> Event {
        event(at, EventKind::Output { step, stream: OutputStream::Stderr, text: text.into() })
    }

    fn finished(at: i64, step: u32, proof: Option<Proof>, error: Option<&str>) -> Event {
        let (cached, milliseconds, error) = (proof.is_some(), 1500, error.map(Into::into));
        event(at, EventKind::StepFinished { step, cached, proof, milliseconds, error })
    }

    #[test]
    fn finished_steps_last_and_the_rest_is_a_picture() {
        let mut live = Live::new(Colors::Never);
        let mut lasting = String::new();
        assert!(live.frame(0, 24, 40).is_empty());
        for event in [
            started(0, 1, "[1/3] FROM base"),
            finished(10, 1, Some(Proof::Layers), None),
            started(10, 2, "[2/3] RUN make"),
            output(20, 2, "one\n\x1b[31mtwo\x1b[0m\nthree\n4\n5\n6\n7\nhalf"),
            started(1000, 3, "[other 1/1] FROM a-very-long-name-that-does-not-fit"),
            event(
                1500,
                EventKind::Progress { step: 3, current: 1_500_000, total: Some(3_000_000) },
            ),
        ] {
            lasting.push_str(&live.render(&event));
        }
        expect![[r#"
            | => CACHED [1/3] FROM base 1.5s
        "#]]
        .assert_eq(&marked(&lasting));
        expect![[r#"
            |[+] Building 2.5s (1/3)
            | => [2/3] RUN make                  2.4s
            | => => two
            | => => three
            | => => 4
            | => => 5
            | => => 6
            | => => 7
            | => [other 1/1] FROM a-very-long-na 1.5s
        "#]]
        .assert_eq(&marked(&live.frame(2500, 24, 40).join("\n")));
        expect![[r#"
            |[+] Building 2.5s (1/3)
            | => [2/3] RUN make  2.4s
            | => [other 1/1] FRO 1.5s
        "#]]
        .assert_eq(&marked(&live.frame(2500, 3, 24).join("\n")));
    }

    #[test]
    fn a_step_that_is_proven_by_what_it_sees_says_so() {
        let mut live = Live::new(Colors::Never);
        let mut lasting = String::new();
        for event in [
            started(0, 1, "[2/2] COPY a a"),
            event(5, EventKind::Explained { step: 1, text: "hit: made by run c1".into() }),
            finished(10, 1, Some(Proof::Seen), None),
        ] {
            lasting.push_str(&live.render(&event));
        }
        expect![[r#"
            | => CACHED [2/2] COPY a a 1.5s
            | => => what it sees of the image is the same
            | => => cache hit: made by run c1
        "#]]
        .assert_eq(&marked(&lasting));
    }

    #[test]
    fn a_failed_step_shows_its_output() {
        let mut live = Live::new(Colors::Never);
        let mut lasting = String::new();
        for event in [
            started(0, 1, "[1/1] RUN make"),
            output(20, 1, "cc a.c\na.c:1: no\n"),
            finished(1500, 1, None, Some("`make` ended with 2")),
            event(1600, EventKind::Finished { status: RunStatus::Failed, error: None }),
        ] {
            lasting.push_str(&live.render(&event));
        }
        expect![[r#"
            | => ERROR [1/1] RUN make 1.5s
            |------
            | > [1/1] RUN make:
            |cc a.c
            |a.c:1: no
            |------
            |Run failed after 1.6s: 1 step
        "#]]
        .assert_eq(&marked(&lasting));
        assert!(live.frame(9000, 24, 40).is_empty());
    }
}
