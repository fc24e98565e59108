//! Functions of times. A time is the text that Go prints for it, so that it can be a value;
//! seconds since 1970 are taken for one too.

use gotmpl::Value;
use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp, Zoned};

use super::{Call, Function, Result, function};

/// How a time is printed.
const PRINTED: &str = "2006-01-02 15:04:05.999999999 -0700 MST";
const DAY: &str = "2006-01-02";

pub(super) const FUNCTIONS: &[Function] = &[
    function("now", 0, 0, |call| call.give(printed(call.surroundings.now))),
    function("date", 2, 2, |call| formatted(call, call.text(0)?, call.value(1), "UTC")),
    function("dateInZone", 3, 3, date_in_zone),
    function("date_in_zone", 3, 3, date_in_zone),
    function("htmlDate", 1, 1, |call| formatted(call, DAY, call.value(0), "UTC")),
    function("htmlDateInZone", 2, 2, |call| formatted(call, DAY, call.value(0), call.text(1)?)),
    function("dateModify", 2, 2, date_modify),
    function("date_modify", 2, 2, date_modify),
    function("toDate", 2, 2, |call| {
        let time = parse(call.text(0)?, call.text(1)?);
        let zero = DateTime::constant(1, 1, 1, 0, 0, 0, 0).to_zoned(TimeZone::UTC);
        call.give(printed(time.or_else(|| Some(zero.ok()?.timestamp())).unwrap_or_default()))
    }),
    function("unixEpoch", 1, 1, |call| {
        call.give(time(call, call.value(0)).as_second().to_string())
    }),
    function("ago", 1, 1, |call| {
        let passed = call.surroundings.now.duration_since(time(call, call.value(0)));
        call.give(duration_text(passed))
    }),
];

fn printed(time: Timestamp) -> String {
    format(PRINTED, &time.to_zoned(TimeZone::UTC))
}

/// The time that a value is; now, if it is none.
fn time(call: &Call<'_>, value: &Value) -> Timestamp {
    let time = match value {
        Value::Int(seconds) => Timestamp::from_second(*seconds).ok(),
        Value::String(text) => parse(PRINTED, text),
        _ => None,
    };
    time.unwrap_or(call.surroundings.now)
}

fn date_in_zone(call: &Call<'_>) -> Result {
    formatted(call, call.text(0)?, call.value(1), call.text(2)?)
}

fn formatted(call: &Call<'_>, layout: &str, value: &Value, zone: &str) -> Result {
    // The zones of the program itself: the same everywhere, and no disk is asked.
    let zone = TimeZoneDatabase::bundled().get(zone).unwrap_or(TimeZone::UTC);
    call.budget().check(layout.len().saturating_mul(10))?;
    call.give(format(layout, &time(call, value).to_zoned(zone)))
}

fn date_modify(call: &Call<'_>) -> Result {
    let time = time(call, call.value(1));
    let moved = duration(call.text(0)?).and_then(|duration| time.checked_add(duration).ok());
    call.give(printed(moved.unwrap_or(time)))
}

/// Reads `-1h30m`, `1.5h`, `300ms`.
fn duration(text: &str) -> Option<SignedDuration> {
    let (is_negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    let mut seconds = None;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(0);
        let (number, after) = rest.split_at(digits);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds = Some(seconds.unwrap_or(0.0) + number.parse::<f64>().ok()? * unit);
        rest = after;
    }
    let seconds: f64 = seconds?;
    SignedDuration::try_from_secs_f64(if is_negative { -seconds } else { seconds }).ok()
}

/// `1h2m3s`, to the nearest second.
fn duration_text(duration: SignedDuration) -> String {
    let seconds = (duration.as_millis() + 500).div_euclid(1000);
    let sign = if seconds < 0 { "-" } else { "" };
    let seconds = seconds.unsigned_abs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{sign}{seconds}s"),
        (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
        (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
    }
}

/// A piece of Go's layouts, in which a certain time stands for all.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Piece<'a> {
    Text(&'a str),
    /// Pieces that jiff has, by its conversion.
    Field(&'static str),
    /// A fraction of a second of this many digits, without zeros at the end if asked to.
    Fraction {
        digits: usize,
        trimmed: bool,
    },
    /// The abbreviation of the zone.
    Zone,
    /// The offset; `Z` for none if asked to.
    Offset {
        colon: bool,
        minutes: bool,
        z: bool,
    },
}

/// Longer ones before those that they begin with.
const PIECES: [(&str, Piece<'static>); 32] = {
    const fn offset(colon: bool, minutes: bool, z: bool) -> Piece<'static> {
        Piece::Offset { colon, minutes, z }
    }
    [
        ("January", Piece::Field("%B")),
        ("Jan", Piece::Field("%b")),
        ("Monday", Piece::Field("%A")),
        ("Mon", Piece::Field("%a")),
        ("MST", Piece::Zone),
        ("2006", Piece::Field("%Y")),
        ("002", Piece::Field("%j")),
        ("01", Piece::Field("%m")),
        ("02", Piece::Field("%d")),
        ("03", Piece::Field("%I")),
        ("04", Piece::Field("%M")),
        ("05", Piece::Field("%S")),
        ("06", Piece::Field("%y")),
        ("15", Piece::Field("%H")),
        ("_2", Piece::Field("%e")),
        ("PM", Piece::Field("%p")),
        ("pm", Piece::Field("%P")),
        ("-07:00:00", offset(true, true, false)),
        ("-07:00", offset(true, true, false)),
        ("-0700", offset(false, true, false)),
        ("-07", offset(false, false, false)),
        ("Z07:00", offset(true, true, true)),
        ("Z0700", offset(false, true, true)),
        ("Z07", offset(false, false, true)),
        ("1", Piece::Field("%-m")),
        ("2", Piece::Field("%-d")),
        ("3", Piece::Field("%-I")),
        ("4", Piece::Field("%-M")),
        ("5", Piece::Field("%-S")),
        (".0", Piece::Fraction { digits: 0, trimmed: false }),
        (".9", Piece::Fraction { digits: 0, trimmed: true }),
        (",0", Piece::Fraction { digits: 0, trimmed: false }),
    ]
};

fn pieces(layout: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = layout;
    let mut text_start = layout;
    while !rest.is_empty() {
        let Some((length, piece)) = piece_at(rest) else {
            let first = rest.chars().next().map_or(1, char::len_utf8);
            rest = &rest[first..];
            continue;
        };
        let text = &text_start[..text_start.len() - rest.len()];
        if !text.is_empty() {
            pieces.push(Piece::Text(text));
        }
        pieces.push(piece);
        rest = &rest[length..];
        text_start = rest;
    }
    if !text_start.is_empty() {
        pieces.push(Piece::Text(text_start));
    }
    pieces
}

fn piece_at(layout: &str) -> Option<(usize, Piece<'static>)> {
    let (text, piece) = PIECES.into_iter().find(|(text, _)| layout.starts_with(text))?;
    let Piece::Fraction { trimmed, .. } = piece else { return Some((text.len(), piece)) };
    let digit = &text[1..];
    let digits = layout[1..].len() - layout[1..].trim_start_matches(digit).len();
    let follows = layout[1 + digits..].starts_with(|c: char| c.is_ascii_digit());
    let digits_are_a_fraction = digits <= 9 && !follows;
    digits_are_a_fraction.then_some((1 + digits, Piece::Fraction { digits, trimmed }))
}

fn format(layout: &str, time: &Zoned) -> String {
    let mut out = String::new();
    for piece in pieces(layout) {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Field(conversion) => out.push_str(&time.strftime(conversion).to_string()),
            Piece::Zone => out.push_str(&time.strftime("%Z").to_string()),
            Piece::Fraction { digits, trimmed } => {
                let nanoseconds = format!("{:09}", time.subsec_nanosecond());
                let fraction = &nanoseconds[..digits];
                match trimmed {
                    true => {
                        let fraction = fraction.trim_end_matches('0');
                        out.extend([if fraction.is_empty() { "" } else { "." }, fraction]);
                    }
                    false => out.extend([".", fraction]),
                }
            }
            Piece::Offset { z: true, .. } if time.offset() == Offset::UTC => out.push('Z'),
            Piece::Offset { colon, minutes, .. } => {
                let seconds = time.offset().seconds();
                let sign = if seconds < 0 { '-' } else { '+' };
                let all = seconds.unsigned_abs() / 60;
                out.push_str(&format!("{sign}{:02}", all / 60));
                if minutes {
                    out.push_str(if colon { ":" } else { "" });
                    out.push_str(&format!("{:02}", all % 60));
                }
            }
        }
    }
    out
}

/// The time that a text says by a layout, in UTC if it has no offset.
fn parse(layout: &str, text: &str) -> Option<Timestamp> {
    let mut conversions = String::new();
    for piece in pieces(layout) {
        match piece {
            Piece::Text(text) => conversions.push_str(&text.replace('%', "%%")),
            Piece::Field(conversion) => conversions.push_str(conversion),
            Piece::Fraction { .. } => conversions.push_str("%.f"),
            // Abbreviations are ambiguous; the offset says what counts.
            Piece::Zone => (),
            Piece::Offset { colon, .. } => conversions.push_str(if colon { "%:z" } else { "%z" }),
        }
    }
    let text = match layout.ends_with("MST") {
        true => text.rsplit_once(' ').map(|(text, _)| text)?,
        false => text,
    };
    let broken = jiff::fmt::strtime::parse(conversions.trim_end(), text).ok()?;
    match broken.to_timestamp() {
        Ok(time) => Some(time),
        Err(_) => {
            let date = broken.to_date().ok()?;
            let time = broken.to_time().unwrap_or(jiff::civil::Time::midnight());
            Some(date.to_datetime(time).to_zoned(TimeZone::UTC).ok()?.timestamp())
        }
    }
}
