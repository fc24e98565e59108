//! Sizes and durations as people write them: `25MiB`, `30s`, `30d`.

use std::time::Duration;

const SIZES: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("KB", 1_000),
    ("B", 1),
    ("", 1),
];

const DURATIONS: &[(&str, u64)] =
    &[("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Bytes: a number and a unit (`B`, `KiB`, `MB`, ...; none means bytes).
pub(super) fn size(text: &str) -> Result<u64, String> {
    scaled(text, SIZES)
        .ok_or_else(|| format!("`{text}` is not a size such as `512KiB`, `25MiB` or `8GiB`"))
}

/// A number and a unit: `ms`, `s`, `m`, `h` or `d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    scaled(text, DURATIONS)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("`{text}` is not a duration such as `500ms`, `30s`, `10m` or `30d`"))
}

/// Whole numbers only: `1.5GiB` is refused rather than rounded.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let cases = [
            ("0", Some(0)),
            ("25MiB", Some(25 << 20)),
            ("8 GiB", Some(8 << 30)),
            ("10kB", Some(10_000)),
            ("1.5GiB", None),
            ("MiB", None),
            ("-1", None),
            ("99999999999TiB", None),
        ];
        for (text, expected) in cases {
            assert_eq!(size(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn durations_need_units() {
        let cases = [
            ("30s", Some(30_000)),
            ("500ms", Some(500)),
            ("10m", Some(600_000)),
            ("400d", Some(400 * 86_400_000)),
            ("30", None),
            ("s", None),
        ];
        for (text, expected) in cases {
            assert_eq!(duration(text).ok(), expected.map(Duration::from_millis), "{text}");
        }
    }
}
