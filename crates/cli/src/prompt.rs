//! Questions to the user, and what comes over standard input. An interrupt ends the waiting for an
//! answer.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};

use crate::error::{Error, Result, could_not};

/// An answer, or a password on standard input, is not longer than this.
const ANSWER_LEN_MAX: u64 = 64 << 10;

/// Whether somebody is there to ask.
pub(crate) fn is_possible() -> bool {
    io::stdin().is_terminal()
}

/// Asks on the terminal.
pub(crate) async fn ask(question: &str) -> Result<String> {
    let mut shown = Shown::new(question, None);
    let answer = line().await?;
    // Its end was typed, and so shown.
    shown.is_line_open = false;
    Ok(answer)
}

/// Asks on the terminal, which does not show what is typed.
pub(crate) async fn ask_hidden(question: &str) -> Result<String> {
    let _shown = Shown::new(question, Some(Hidden::begin()?));
    line().await
}

/// All of standard input, without the end of its last line.
pub(crate) async fn all_input() -> Result<String> {
    let read = on_thread(|| {
        let mut text = String::new();
        io::stdin().lock().take(ANSWER_LEN_MAX + 1).read_to_string(&mut text)?;
        match text.len() as u64 > ANSWER_LEN_MAX {
            true => Err(io::Error::other(format!("it has more than {ANSWER_LEN_MAX} bytes"))),
            false => Ok(text),
        }
    });
    let text = read.await.map_err(could_not("read standard input"))?;
    Ok(without_line_end(&text))
}

/// Standard input as it is, up to a bound.
pub(crate) async fn all_bytes_of_input(size_max: u64) -> Result<Vec<u8>> {
    let read = on_thread(move || {
        let mut bytes = Vec::new();
        io::stdin().lock().take(size_max).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    read.await.map_err(could_not("read standard input"))
}

async fn line() -> Result<String> {
    let read = on_thread(|| {
        let mut line = String::new();
        io::stdin().lock().take(ANSWER_LEN_MAX).read_line(&mut line)?;
        Ok(line)
    });
    let line = read.await.map_err(could_not("read the answer"))?;
    Ok(without_line_end(&line))
}

fn without_line_end(text: &str) -> String {
    text.trim_end_matches(['\r', '\n']).to_owned()
}

/// Reads on a thread that nobody joins: a read of a terminal cannot be given up, and must not
/// keep the program when its answer is no longer wanted.
async fn on_thread<T: Send + 'static>(
    read: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("prompt".into()).spawn(move || {
        // An error: nobody waits any more.
        let _ = sender.send(read());
    })?;
    receiver.await.unwrap_or_else(|gone| Err(io::Error::other(gone)))
}

/// A question on stderr. Dropping it puts the terminal right, whatever ended it.
struct Shown {
    hidden: Option<Hidden>,
    is_line_open: bool,
}

impl Shown {
    fn new(question: &str, hidden: Option<Hidden>) -> Self {
        let mut stderr = io::stderr().lock();
        let question = crate::sanitize::sanitize_text(question);
        let _ = write!(stderr, "{question}").and_then(|()| stderr.flush());
        Self { hidden, is_line_open: true }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.hidden = None;
        if self.is_line_open {
            let _ = writeln!(io::stderr().lock());
        }
    }
}

/// The terminal does not echo until this is dropped.
struct Hidden {
    before: rustix::termios::Termios,
}

impl Hidden {
    fn begin() -> Result<Self> {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        if !is_possible() {
            return Err(Error::usage("nobody is there to ask"));
        }
        let before = tcgetattr(io::stdin()).map_err(could_not("hide the password"))?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &hidden)
            .map_err(could_not("hide the password"))?;
        Ok(Self { before })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        use rustix::termios::{OptionalActions, tcsetattr};
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}
