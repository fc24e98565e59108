//! When a timer fires (triggers.md section 2): five fields, of which days of the month and of the week
//! both have to fit.
//!
//! The words of the managed service (`J` for January, `5/20`, `9-5`) are read here; which time comes
//! next, also where clocks are set back or forth, is `croner`'s to say.

use std::fmt;
use std::sync::OnceLock;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use serde::{Deserialize, Serialize};
use store::Millis;

/// Bytes of a schedule and of the name of a time zone.
const TEXT_MAX: usize = 256;

/// Five-field cron in a time zone. Two are equal if they read alike, whatever blanks they were written
/// with.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "Text", into = "Text")]
pub struct Schedule {
    text: String,
    /// A name of the IANA database; absent: UTC.
    zone_name: Option<String>,
    cron: Cron,
    zone: TimeZone,
}

/// As tables have it.
#[derive(Debug, Serialize, Deserialize)]
struct Text {
    text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
}

/// Why a text is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSchedule {
    #[error("a schedule has five fields, minute hour day month weekday, and this has {0}")]
    Fields(usize),
    #[error("`{text}` is not {field}")]
    Field { field: &'static str, text: String },
    #[error("there is no time zone `{0}`")]
    Zone(String),
    #[error("there is no such day in any year")]
    Never,
    #[error("it has more than {TEXT_MAX} bytes")]
    TooLong,
}

/// What one of the five fields may hold.
struct Field {
    /// For people.
    what: &'static str,
    min: u8,
    max: u8,
    names: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field { what: "a minute (0-59)", min: 0, max: 59, names: &[] },
    Field { what: "an hour (0-23)", min: 0, max: 23, names: &[] },
    Field { what: "a day of the month (1-31)", min: 1, max: 31, names: &[] },
    Field {
        what: "a month (1-12 or its name)",
        min: 1,
        max: 12,
        names: &[
            "january",
            "february",
            "march",
            "april",
            "may",
            "june",
            "july",
            "august",
            "september",
            "october",
            "november",
            "december",
        ],
    },
    Field {
        what: "a day of the week (0-6 from Sunday, or its name)",
        min: 0,
        max: 6,
        names: &["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"],
    },
];

impl Schedule {
    /// Reads the five fields. `zone` is a name of the IANA database; without one, or empty, it is UTC.
    pub fn parse(text: &str, zone: Option<&str>) -> Result<Self, BadSchedule> {
        let zone_name = zone.filter(|zone| !zone.is_empty());
        if text.len() > TEXT_MAX || zone_name.is_some_and(|zone| zone.len() > TEXT_MAX) {
            return Err(BadSchedule::TooLong);
        }
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        if words.len() != FIELDS.len() {
            return Err(BadSchedule::Fields(words.len()));
        }
        let fields = FIELDS.iter().zip(&words).map(|(field, word)| field.plain(word));
        let plain = fields.collect::<Result<Vec<_>, _>>()?.join(" ");
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .dom_and_dow(true)
            .build();
        let text = words.join(" ");
        // Each field is right by now; should it not be for the library, then the whole is not.
        let wrong = || BadSchedule::Field { field: "a schedule", text: text.clone() };
        let cron = parser.parse(&plain).map_err(|_| wrong())?;
        let zone = match zone_name {
            None => TimeZone::UTC,
            Some(name) => {
                zones().get(name).map_err(|_| BadSchedule::Zone(name.escape_debug().to_string()))?
            }
        };
        let zone_name = zone_name.map(str::to_owned);
        let schedule = Self { text, zone_name, cron, zone };
        schedule.next_after(0).ok_or(BadSchedule::Never)?;
        Ok(schedule)
    }

    /// The five fields, with one blank between them.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The time zone, if it is not UTC by default.
    pub fn zone(&self) -> Option<&str> {
        self.zone_name.as_deref()
    }

    /// The first time after this one. A fixed time that a day does not have, as clocks are set forth,
    /// is the first one after it; one that a day has twice is the first of them.
    pub fn next_after(&self, time: Millis) -> Option<Millis> {
        let time = Timestamp::from_millisecond(time).ok()?.to_zoned(self.zone.clone());
        let next = self.cron.find_next_occurrence(&time, false).ok()?;
        Some(next.timestamp().as_millisecond())
    }

    /// The last time of those after `from` and up to `until`, and how many there are, of which at most
    /// `max` are counted.
    pub(crate) fn last_within(
        &self,
        from: Millis,
        until: Millis,
        max: usize,
    ) -> Option<(Millis, usize)> {
        let until_zoned = Timestamp::from_millisecond(until).ok()?.to_zoned(self.zone.clone());
        let last = self.cron.find_previous_occurrence(&until_zoned, true).ok()?;
        let last = last.timestamp().as_millisecond();
        let (mut count, mut at) = (0, from);
        while count < max {
            match self.next_after(at) {
                Some(next) if next <= until => (count, at) = (count + 1, next),
                _ => break,
            }
        }
        (count > 0 && last > from).then_some((last.max(at), count))
    }
}

impl Field {
    /// A field as the library reads it: numbers only, and the lower one first.
    fn plain(&self, word: &str) -> Result<String, BadSchedule> {
        let parts = word.split(',').map(|part| {
            self.part(part).ok_or_else(|| BadSchedule::Field {
                field: self.what,
                text: part.escape_debug().to_string(),
            })
        });
        Ok(parts.collect::<Result<Vec<_>, _>>()?.join(","))
    }

    fn part(&self, part: &str) -> Option<String> {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(number(step)?)),
            None => (part, None),
        };
        // A step over all of them comes to the first one again, as a larger one does.
        let span = u32::from(self.max - self.min) + 1;
        let step = step.map(|step| step.clamp(1, span));
        let range = match (range.split_once('-'), step) {
            _ if range == "*" => "*".to_owned(),
            (Some((from, to)), _) => {
                let (from, to) = (self.value(from)?, self.value(to)?);
                format!("{}-{}", from.min(to), from.max(to))
            }
            (None, Some(_)) => format!("{}-{}", self.value(range)?, self.max),
            (None, None) => self.value(range)?.to_string(),
        };
        Some(step.map_or(range.clone(), |step| format!("{range}/{step}")))
    }

    fn value(&self, text: &str) -> Option<u8> {
        if let Some(number) = number(text) {
            let value = u8::try_from(number).ok()?;
            return (self.min..=self.max).contains(&value).then_some(value);
        }
        let text = text.to_ascii_lowercase();
        let at = self.names.iter().position(|name| !text.is_empty() && name.starts_with(&text))?;
        Some(self.min + at as u8)
    }
}

/// Those that come with the program: a stored schedule means the same on every machine.
fn zones() -> &'static TimeZoneDatabase {
    static ZONES: OnceLock<TimeZoneDatabase> = OnceLock::new();
    ZONES.get_or_init(TimeZoneDatabase::bundled)
}

fn number(text: &str) -> Option<u32> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u32::MAX))
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text && self.zone_name == other.zone_name
    }
}

impl Eq for Schedule {}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.text, self.zone_name.as_deref().unwrap_or("UTC"))
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl TryFrom<Text> for Schedule {
    type Error = BadSchedule;

    fn try_from(text: Text) -> Result<Self, BadSchedule> {
        Self::parse(&text.text, text.zone.as_deref())
    }
}

impl From<Schedule> for Text {
    fn from(schedule: Schedule) -> Self {
        Self { text: schedule.text, zone: schedule.zone_name }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Millis {
        text.parse::<Timestamp>().unwrap().as_millisecond()
    }

    /// The next times after one, in UTC.
    fn next(schedule: &str, zone: Option<&str>, from: &str, count: usize) -> Vec<String> {
        let schedule = Schedule::parse(schedule, zone).unwrap();
        let mut time = at(from);
        let times = (0..count).map(|_| {
            time = schedule.next_after(time).unwrap();
            Timestamp::from_millisecond(time).unwrap().to_string()
        });
        times.collect()
    }

    #[test]
    fn times_are_those_of_the_managed_service() {
        // The cases of test-cases.md, K1 to K10.
        let first = |schedule: &str, from: &str| next(schedule, None, from, 1).remove(0);
        assert_eq!(first("0 12 * * Mon-Fri", "2024-01-05T13:00:00Z"), "2024-01-08T12:00:00Z");
        let tens = next("*/10 * * * *", None, "2024-01-01T00:00:00Z", 6);
        assert_eq!(tens[0], "2024-01-01T00:10:00Z");
        assert_eq!(tens[5], "2024-01-01T01:00:00Z");
        assert_eq!(first("0 0 13 * 5", "2024-01-01T00:00:00Z"), "2024-09-13T00:00:00Z");
        assert_eq!(first("0 0 31 * *", "2024-04-01T00:00:00Z"), "2024-05-31T00:00:00Z");
        let days = next("0 0 */7 * *", None, "2024-01-01T00:00:00Z", 5);
        let expected = ["01-08", "01-15", "01-22", "01-29", "02-01"];
        assert_eq!(days, expected.map(|day| format!("2024-{day}T00:00:00Z")));
        let minutes = next("5/20 * * * *", None, "2024-01-01T00:00:00Z", 4);
        let expected = ["00:05", "00:25", "00:45", "01:05"];
        assert_eq!(minutes, expected.map(|time| format!("2024-01-01T{time}:00Z")));
        assert_eq!(first("0 0 1 J *", "2024-01-02T00:00:00Z"), "2025-01-01T00:00:00Z");
        assert_eq!(first("0 0 1 ju *", "2024-01-02T00:00:00Z"), "2024-06-01T00:00:00Z");
        assert_eq!(first("0 0 1 M *", "2024-01-02T00:00:00Z"), "2024-03-01T00:00:00Z");
        assert_eq!(first("0 0 * * T", "2024-01-01T00:00:00Z"), "2024-01-02T00:00:00Z");
        assert_eq!(first("0 0 * * s", "2024-01-01T00:00:00Z"), "2024-01-07T00:00:00Z");
        let hours = next("0 9-5 * * *", None, "2024-01-01T00:00:00Z", 6);
        assert_eq!((&*hours[0], &*hours[4]), ("2024-01-01T05:00:00Z", "2024-01-01T09:00:00Z"));
        assert_eq!(hours[5], "2024-01-02T05:00:00Z");
        // A step below one, and one beyond the end.
        assert_eq!(first("*/0 * * * *", "2024-01-01T00:00:00Z"), "2024-01-01T00:01:00Z");
        assert_eq!(first("*/999 * * * *", "2024-01-01T00:00:00Z"), "2024-01-01T01:00:00Z");
        // Strictly later, and from within a minute on.
        assert_eq!(first("0 12 * * *", "2024-01-01T12:00:00Z"), "2024-01-02T12:00:00Z");
        assert_eq!(first("* * * * *", "2024-01-01T12:00:30.5Z"), "2024-01-01T12:01:00Z");
        assert_eq!(first("0 0 29 2 *", "2024-03-01T00:00:00Z"), "2028-02-29T00:00:00Z");
    }

    #[test]
    fn what_is_no_schedule_is_told() {
        let wrong = |text: &str, zone| Schedule::parse(text, zone).unwrap_err().to_string();
        for (text, expected) in [
            ("0 0 * * 7", "`7` is not a day of the week (0-6 from Sunday, or its name)"),
            (
                "0 0 * * * *",
                "a schedule has five fields, minute hour day month weekday, and this has 6",
            ),
            ("", "a schedule has five fields, minute hour day month weekday, and this has 0"),
            ("60 * * * *", "`60` is not a minute (0-59)"),
            ("1,,2 * * * *", "`` is not a minute (0-59)"),
            ("* * 0 * *", "`0` is not a day of the month (1-31)"),
            ("* * * x *", "`x` is not a month (1-12 or its name)"),
            ("*-3 * * * *", "`*-3` is not a minute (0-59)"),
            ("1/ * * * *", "`1/` is not a minute (0-59)"),
            ("1-2-3 * * * *", "`1-2-3` is not a minute (0-59)"),
            ("-1 * * * *", "`-1` is not a minute (0-59)"),
            ("0 0 31 2 *", "there is no such day in any year"),
            ("0 0 L * *", "`L` is not a day of the month (1-31)"),
            ("@daily", "a schedule has five fields, minute hour day month weekday, and this has 1"),
        ] {
            assert_eq!(wrong(text, None), expected, "{text}");
        }
        assert_eq!(
            wrong("* * * * *", Some("Mars/Olympus")),
            "there is no time zone `Mars/Olympus`"
        );
    }

    #[test]
    fn clocks_that_are_set_leave_out_no_day_and_repeat_none() {
        let berlin = Some("Europe/Berlin");
        // 2:30 is not there on 31 March, and is there twice on 27 October.
        let spring = next("30 2 * * *", berlin, "2024-03-30T00:00:00Z", 3);
        let expected = ["03-30T01:30", "03-31T01:00", "04-01T00:30"];
        assert_eq!(spring, expected.map(|time| format!("2024-{time}:00Z")));
        let autumn = next("30 2 * * *", berlin, "2024-10-26T00:00:00Z", 3);
        let expected = ["10-26T00:30", "10-27T00:30", "10-28T01:30"];
        assert_eq!(autumn, expected.map(|time| format!("2024-{time}:00Z")));
        // What comes in intervals goes on coming in intervals.
        let halves = next("*/30 * * * *", berlin, "2024-10-26T23:45:00Z", 5);
        let expected = ["00:00", "00:30", "01:00", "01:30", "02:00"];
        assert_eq!(halves, expected.map(|time| format!("2024-10-27T{time}:00Z")));
        let noon = next("0 12 * * *", Some("America/New_York"), "2024-03-09T00:00:00Z", 3);
        let expected = ["03-09T17:00", "03-10T16:00", "03-11T16:00"];
        assert_eq!(noon, expected.map(|time| format!("2024-{time}:00Z")));
    }

    #[test]
    fn what_was_missed_is_counted_and_the_last_of_it_is_known() {
        let daily = Schedule::parse("0 5 * * *", None).unwrap();
        let missed = |from: &str, until: &str| daily.last_within(at(from), at(until), 100);
        let last = at("2024-01-04T05:00:00Z");
        assert_eq!(missed("2024-01-01T05:00:00Z", "2024-01-05T04:59:00Z"), Some((last, 3)));
        assert_eq!(missed("2024-01-03T05:00:00Z", "2024-01-04T05:00:00Z"), Some((last, 1)));
        assert_eq!(missed("2024-01-04T05:00:00Z", "2024-01-05T04:59:00Z"), None);
        // A year of minutes is not gone through.
        let often = Schedule::parse("* * * * *", None).unwrap();
        let (last, count) =
            often.last_within(at("2023-01-01T00:00:00Z"), at("2024-01-01T00:00:20Z"), 5).unwrap();
        assert_eq!((last, count), (at("2024-01-01T00:00:00Z"), 5));
    }

    #[test]
    fn a_schedule_is_read_back_as_it_was_written() {
        let schedule = Schedule::parse(" 0  12 * * Mon-Fri ", Some("Asia/Tokyo")).unwrap();
        let text = serde_json::to_string(&schedule).unwrap();
        assert_eq!(text, r#"{"text":"0 12 * * Mon-Fri","zone":"Asia/Tokyo"}"#);
        assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), schedule);
        assert_eq!(schedule.to_string(), "0 12 * * Mon-Fri Asia/Tokyo");
    }

    proptest! {
        #[test]
        fn whatever_is_read_has_times_that_fit_it(
            minutes in prop::collection::vec(0u8..60, 1..4),
            hour in 0u8..24,
            from in 0i64..4_000_000_000_000,
        ) {
            let list = minutes.iter().map(u8::to_string).collect::<Vec<_>>().join(",");
            let schedule = Schedule::parse(&format!("{list} {hour} * * *"), None).unwrap();
            let next = schedule.next_after(from).unwrap();
            prop_assert!(next > from && next - from <= 24 * 3_600_000);
            let time = Timestamp::from_millisecond(next).unwrap().to_zoned(TimeZone::UTC);
            prop_assert_eq!(time.hour(), hour as i8);
            prop_assert!(minutes.contains(&(time.minute() as u8)));
            prop_assert_eq!((time.second(), time.millisecond()), (0, 0));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[-*/,0-9a-zA-Z ]{0,24}", zone in "[A-Za-z/_]{0,12}") {
            let _ = Schedule::parse(&text, Some(&zone));
        }
    }
}
