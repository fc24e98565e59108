//! Output comes in pieces, people read lines.

/// A line longer than this is cut in two.
const LINE_LEN_MAX: usize = 16 << 10;

/// Joins pieces of output and parts them at line ends.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pending: String,
}

impl Lines {
    pub(super) fn push(&mut self, text: &str) -> Vec<String> {
        let mut lines = Vec::new();
        for piece in text.split_inclusive('\n') {
            self.pending.push_str(piece);
            if piece.ends_with('\n') || self.pending.len() > LINE_LEN_MAX {
                lines.extend(self.finish());
            }
        }
        lines
    }

    /// The line that has no end yet.
    pub(super) fn finish(&mut self) -> Option<String> {
        let pending = std::mem::take(&mut self.pending);
        (!pending.is_empty()).then(|| visible(&pending).to_owned())
    }
}

/// What a terminal would show in the end: a progress bar overwrites itself by carriage
/// returns, only its last state counts.
fn visible(line: &str) -> &str {
    let line = line.trim_end_matches(['\n', '\r']);
    line.rsplit('\r').find(|part| !part.is_empty()).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_lines_and_progress_bars_their_last_state() {
        let mut lines = Lines::default();
        assert_eq!(lines.push("a\nb"), ["a"]);
        assert_eq!(lines.push("c\r\n\n10%\r20%"), ["bc", ""]);
        assert_eq!(lines.push("\r100%\r"), [""; 0]);
        assert_eq!(lines.finish().as_deref(), Some("100%"));
        assert_eq!(lines.finish(), None);
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let mut lines = Lines::default();
        let cut = lines.push(&"x".repeat(LINE_LEN_MAX + 1));
        assert_eq!(cut.len(), 1);
        assert_eq!(lines.finish(), None);
    }
}
