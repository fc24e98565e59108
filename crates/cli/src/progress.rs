//! Progress of a run, drawn from its events.
//!
//! [`plain`] and [`live`] are pure: events go in, text comes out. Only [`Display`] writes,
//! and knows the terminal and the time.

mod lines;
mod live;
mod plain;
mod words;

use std::io::{self, IsTerminal as _};
use std::time::Instant;

use crate::Printer;
use crate::environment::Environment;

use live::Live;
use plain::Plain;
pub(crate) use words::size;

/// How progress is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ProgressMode {
    /// `tty` on a terminal, else `plain`
    #[default]
    Auto,
    /// Lines that stay as they are
    Plain,
    /// Steps under way are redrawn
    Tty,
    /// Nothing
    None,
}

/// Shows a run on stderr.
pub(crate) struct Display {
    printer: Printer,
    form: Form,
}

enum Form {
    Silent,
    Plain(Plain),
    Live { live: Live, drawn: usize, last_event: Option<(i64, Instant)> },
}

impl Display {
    pub(crate) fn new(mode: ProgressMode, printer: Printer, environment: &Environment) -> Self {
        let is_terminal = io::stderr().is_terminal() && environment.terminal_moves;
        let form = match mode {
            ProgressMode::None => Form::Silent,
            ProgressMode::Auto if !is_terminal => Form::Plain(Plain::new(printer.colors())),
            ProgressMode::Plain => Form::Plain(Plain::new(printer.colors())),
            ProgressMode::Auto | ProgressMode::Tty => {
                Form::Live { live: Live::new(printer.colors()), drawn: 0, last_event: None }
            }
        };
        Self { printer, form }
    }

    pub(crate) fn event(&mut self, event: &api::Event) {
        match &mut self.form {
            Form::Silent => (),
            Form::Plain(plain) => {
                let text = plain.render(event);
                if !text.is_empty() {
                    self.printer.err(&text);
                }
            }
            Form::Live { live, last_event, .. } => {
                *last_event = Some((event.at, Instant::now()));
                let lasting = live.render(event);
                // What does not last is drawn by the next tick: a chatty step must not
                // cost a redraw per line.
                if !lasting.is_empty() {
                    self.draw(&lasting);
                }
            }
        }
    }

    /// Redraws what changes by itself. Called some ten times a second.
    pub(crate) fn tick(&mut self) {
        if matches!(self.form, Form::Live { .. }) {
            self.draw("");
        }
    }

    /// How much of the context has been sent.
    pub(crate) fn uploading(&mut self, bytes: u64) {
        if let Form::Live { live, .. } = &mut self.form {
            live.set_upload(Some(bytes));
            self.draw("");
        }
    }

    pub(crate) fn uploaded(&mut self) {
        if let Form::Live { live, .. } = &mut self.form {
            live.set_upload(None);
            self.draw("");
        }
    }

    /// A line for the user that must not tear the display.
    pub(crate) fn note(&mut self, text: &str) {
        match &self.form {
            Form::Silent => (),
            Form::Plain(_) => self.printer.note(text),
            Form::Live { .. } => self.draw(&format!("{}\n", crate::sanitize::sanitize_text(text))),
        }
    }

    /// Writes lines that last, then the live part below them.
    fn draw(&mut self, lasting: &str) {
        let Form::Live { live, drawn, last_event } = &mut self.form else { return };
        let (rows, columns) = terminal_size();
        // The server's clock counts; ours only measures what has passed since it spoke.
        let now = last_event.map_or(0, |(at, seen)| {
            at.saturating_add(i64::try_from(seen.elapsed().as_millis()).unwrap_or(i64::MAX))
        });
        let frame = live.frame(now, rows.saturating_sub(1), columns);
        let mut text = String::new();
        if *drawn > 0 {
            text.push_str(&format!("\x1b[{drawn}A"));
        }
        // Clears what was drawn; the live lines are clipped by the terminal, not wrapped,
        // so that their number is known.
        text.push_str("\r\x1b[J");
        text.push_str(lasting);
        text.push_str("\x1b[?7l");
        for line in &frame {
            text.push_str(line);
            text.push('\n');
        }
        text.push_str("\x1b[?7h");
        *drawn = frame.len();
        self.printer.err(&text);
    }

    /// Takes the live part away; what lasts stays.
    pub(crate) fn close(&mut self) {
        if let Form::Live { live, .. } = &mut self.form {
            live.clear();
            self.draw("");
        }
    }
}

/// Rows and columns; what a terminal has that does not tell.
fn terminal_size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(io::stderr()) {
        Ok(size) if size.ws_row > 1 && size.ws_col > 1 => (size.ws_row.into(), size.ws_col.into()),
        _ => (24, 80),
    }
}
