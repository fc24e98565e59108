//! Takes out of a text what differs from run to run.

use regex::Regex;

#[derive(Debug, Default, Clone)]
pub(crate) struct Filters {
    rules: Vec<(Regex, &'static str)>,
}

impl Filters {
    pub(crate) fn new(root: &str) -> Self {
        let mut rules = vec![rule(&regex::escape(root), "[SANDBOX]")];
        rules.extend(COMMON.iter().map(|(pattern, name)| rule(pattern, name)));
        Self { rules }
    }

    pub(crate) fn apply(&self, text: &str) -> String {
        self.rules.iter().fold(text.to_owned(), |text, (pattern, name)| {
            pattern.replace_all(&text, *name).into_owned()
        })
    }
}

const COMMON: &[(&str, &str)] = &[
    (r"sha256:[0-9a-f]{64}", "sha256:[DIGEST]"),
    (r"\b20\d\d-\d\d-\d\dT[0-9:.]+Z", "[TIME]"),
    (r"\b\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\b", "[TIME]"),
    (r"\b\d+m\d\ds\b|\b\d+\.\ds\b|\bafter \d+s\b", "[DURATION]"),
    (r"(?m)^(#\d+) \d+\.\d{3}\b", "$1 [ELAPSED]"),
    (r"(127\.0\.0\.1|localhost):\d+", "$1:[PORT]"),
    (r"([Rr]un `|ID: )c[0-9a-z]{2,}", "$1[RUN]"),
];

fn rule(pattern: &str, name: &'static str) -> (Regex, &'static str) {
    (Regex::new(pattern).expect("the pattern is ours"), name)
}

/// A text without ids, digests, times and ports.
pub fn filtered(text: &str) -> String {
    Filters { rules: COMMON.iter().map(|(pattern, name)| rule(pattern, name)).collect() }
        .apply(text)
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_differs_is_named() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let text = format!("run `c01` at 127.0.0.1:4321 made {digest} in 1.2s\n#3 0.123 line");
        let expected =
            "run `[RUN]` at 127.0.0.1:[PORT] made sha256:[DIGEST] in [DURATION]\n#3 [ELAPSED] line";
        assert_eq!(super::filtered(&text), expected);
    }
}
