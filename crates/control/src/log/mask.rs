//! Secrets do not reach a log.

/// What stands where a secret was.
const MASK: &str = "*****";

/// Lines of a longer secret that are shorter than this are not hidden by themselves: they
/// would be found everywhere.
const LINE_LEN_MIN: usize = 4;

/// Replaces secret values in text.
///
/// It works on one event at a time, and events hold whole lines where possible; a program
/// that takes a secret apart is beyond it.
#[derive(Clone, Default)]
pub struct Mask {
    /// Longest first, so that a secret within another does not leave the rest in view.
    secrets: Vec<String>,
}

impl Mask {
    pub fn new<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut secrets = Vec::new();
        for value in values {
            secrets.push(value.trim().to_owned());
            let lines = value.lines().map(str::trim);
            secrets.extend(lines.filter(|line| line.len() >= LINE_LEN_MIN).map(str::to_owned));
        }
        secrets.retain(|secret| !secret.is_empty());
        secrets.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        secrets.dedup();
        Self { secrets }
    }

    pub(super) fn apply(&self, text: &mut String) {
        for secret in &self.secrets {
            if text.contains(secret.as_str()) {
                *text = text.replace(secret.as_str(), MASK);
            }
        }
    }
}

/// Hides what it hides.
impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mask({} secrets)", self.secrets.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_whole_and_line_by_line() {
        let mask = Mask::new(["hunter", "hunter22", "-----BEGIN\nabcdef\nx\n", ""]);
        for (text, expected) in [
            ("pass hunter22, hunter", "pass *****, *****"),
            ("line abcdef end", "line ***** end"),
            ("x stays", "x stays"),
        ] {
            let mut masked = text.to_owned();
            mask.apply(&mut masked);
            assert_eq!(masked, expected);
        }
        assert_eq!(format!("{mask:?}"), "Mask(5 secrets)");
    }
}
