//! How old things must be, as `--ago` says it.

use std::time::Duration;

/// Nothing is older: 150 years.
pub const AGE_MAX: Duration = Duration::from_secs(DAY * 54_750);
const DAY: u64 = 24 * 60 * 60;
/// A longer text is no duration.
const TEXT_LEN_MAX: usize = 100;

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a duration")]
pub struct DurationError(String);

impl DurationError {
    pub fn hint(&self) -> String {
        "it looks like `30d`, `12h`, `7d12h` or `1h30m`; `0d` is everything".to_owned()
    }
}

/// An age, and whether it was cut to [`AGE_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age {
    pub duration: Duration,
    pub is_cut: bool,
}

/// Reads `^(\d+d)?(duration)?$`, where a duration has numbers with units as in Go: `1h30m`, `1.5h`.
pub fn parse_age(text: &str) -> Result<Age, DurationError> {
    let shown = || text.chars().take(TEXT_LEN_MAX).collect();
    let seconds = (text.len() <= TEXT_LEN_MAX).then(|| seconds(text)).flatten();
    let seconds = seconds.ok_or_else(|| DurationError(shown()))?;
    let max = AGE_MAX.as_secs_f64();
    let is_cut = seconds > max;
    let duration = if is_cut { AGE_MAX } else { Duration::from_secs_f64(seconds) };
    Ok(Age { duration, is_cut })
}

/// A number that is beyond all bounds is one that is beyond [`AGE_MAX`].
fn seconds(text: &str) -> Option<f64> {
    if text.is_empty() {
        return None;
    }
    let days_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (days, mut rest) = match text[days_end..].strip_prefix('d') {
        Some(rest) if days_end > 0 => (text[..days_end].parse::<f64>().ok()?, rest),
        _ => (0.0, text),
    };
    let mut seconds = days * DAY as f64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number = &rest[..end];
        let is_number = number.bytes().filter(|byte| *byte == b'.').count() <= 1
            && number.bytes().any(|byte| byte.is_ascii_digit());
        if !is_number {
            return None;
        }
        // `ms` before `m`.
        let units = [
            ("ns", 1e-9),
            ("us", 1e-6),
            ("µs", 1e-6),
            ("μs", 1e-6),
            ("ms", 1e-3),
            ("s", 1.0),
            ("m", 60.0),
            ("h", 3600.0),
        ];
        let unit =
            |(name, length): (&str, f64)| rest[end..].strip_prefix(name).map(|rest| (rest, length));
        let (after, length) = units.into_iter().find_map(unit)?;
        seconds += number.parse::<f64>().ok()? * length;
        rest = after;
    }
    Some(seconds)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(texts: &[&str], expected: Expect) {
        let line = |text: &&str| match parse_age(text) {
            Ok(Age { duration, is_cut: false }) => format!("{text}: {duration:?}\n"),
            Ok(Age { duration, .. }) => format!("{text}: cut to {duration:?}\n"),
            Err(error) => format!("{text}: {error}\n"),
        };
        expected.assert_eq(&texts.iter().map(line).collect::<String>());
    }

    #[test]
    fn durations_are_days_and_what_go_takes() {
        check(
            &[
                "0d",
                "1d",
                "30d",
                "3h6m",
                "1.5h",
                "90m",
                "30s",
                "1d3h",
                "2d1.5h30s",
                "0s",
                "1.h",
                ".5h",
            ],
            expect![[r#"
                0d: 0ns
                1d: 86400s
                30d: 2592000s
                3h6m: 11160s
                1.5h: 5400s
                90m: 5400s
                30s: 30s
                1d3h: 97200s
                2d1.5h30s: 178230s
                0s: 0ns
                1.h: 3600s
                .5h: 1800s
            "#]],
        );
        check(
            &["250ms", "100us", "5ns", "1m1m"],
            expect![[r#"
                250ms: 250ms
                100us: 100µs
                5ns: 5ns
                1m1m: 120s
            "#]],
        );
    }

    #[test]
    fn nothing_is_older_than_150_years() {
        check(
            &["54750d", "54751d", "54750d1s", "99999999999999999999999d", "9999999999h"],
            expect![[r#"
                54750d: 4730400000s
                54751d: cut to 4730400000s
                54750d1s: cut to 4730400000s
                99999999999999999999999d: cut to 4730400000s
                9999999999h: cut to 4730400000s
            "#]],
        );
    }

    /// What the reference takes for 0 days, for 150 years, or cuts to whole days.
    #[test]
    fn m10_whatever_else_is_refused() {
        let texts = [
            "", "bad", "d", "abc", "10", "0", "1.5d", "-1d", "-5m", "+5m", "1h1d", "1d1d", "1dd",
            " 1d", "1d ", "1 d", "1D", "1H", "h", ".h", "1..5h", "1e3h", "1d-1h", "infd", "nan",
            "NaNh", "１d",
        ];
        for text in texts {
            assert!(parse_age(text).is_err(), "{text}");
        }
        let long = parse_age(&"1h".repeat(1000)).unwrap_err().to_string();
        assert!(long.len() < 150, "{long}");
    }

    proptest! {
        #[test]
        fn no_text_is_too_much(text in "\\PC{0,20}", other in "[0-9dhms.]{0,120}") {
            for text in [text, other] {
                if let Ok(age) = parse_age(&text) {
                    prop_assert!(age.duration <= AGE_MAX);
                }
            }
        }
    }
}
