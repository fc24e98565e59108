//! No secret gets through a log, however many there are and however they are written.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as tests do")]

use aho_corasick::AhoCorasick;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use control::{Clock, EventKind, LogKey, Logs, Mask, RunLog, RunStatus, Stream};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

const SECRETS: usize = 1000;
const LOG_SIZE: usize = 100_000_000;
/// Bytes of output that come at once, about.
const PIECE_SIZE: usize = 30_000;

/// Numbers that look random, and are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % end
    }

    fn secret(&mut self) -> String {
        let letters: Vec<char> = ('!'..='~').chain("äß€🔑".chars()).collect();
        (0..16 + self.below(25)).map(|_| letters[self.below(letters.len())]).collect()
    }
}

/// A secret as it is, in Base64, for addresses, and in two ways of JSON.
fn forms(secret: &str) -> [String; 5] {
    let json = serde_json::to_string(secret).unwrap();
    let json = &json[1..json.len() - 1];
    [
        secret.to_owned(),
        BASE64_STANDARD_NO_PAD.encode(secret),
        utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string(),
        json.to_owned(),
        json.chars().map(escaped).collect(),
    ]
}

/// As Python writes characters that are not ASCII.
fn escaped(char: char) -> String {
    match char.is_ascii() {
        true => char.to_string(),
        false => {
            let mut units = [0; 2];
            char.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect()
        }
    }
}

/// What builds print.
fn filler(random: &mut Random) -> String {
    let mut text = String::with_capacity(PIECE_SIZE + 200);
    while text.len() < PIECE_SIZE {
        let (number, size) = (random.below(1000), random.below(1 << 30));
        text.push_str(&format!("   Compiling crate-{number} v{number}.0.1 ({size:x} bytes)\n"));
        text.push_str(&format!("[{number}/999] cc -O2 -c src/lib/{size:08x}.c -o {size}.o\n"));
    }
    text
}

async fn output(log: &RunLog, text: &str) {
    let text = text.to_owned();
    log.append(EventKind::Output { step: 1, stream: Stream::Stdout, text }).await;
}

/// A place in a text where it can be cut.
fn cut(text: &str, random: &mut Random) -> usize {
    text.floor_char_boundary(1 + random.below(text.len() - 1))
}

#[tokio::test(flavor = "multi_thread")]
async fn none_of_a_thousand_secrets_gets_into_a_hundred_megabytes_of_log() {
    let mut random = Random(1);
    let secrets: Vec<String> = (0..SECRETS).map(|_| random.secret()).collect();
    let forms: Vec<[String; 5]> = secrets.iter().map(|secret| forms(secret)).collect();
    let fillers: Vec<String> = (0..20).map(|_| filler(&mut random)).collect();
    let folder = tempfile::tempdir().unwrap();
    let logs = Logs::new(folder.path().to_owned(), u64::MAX, Clock::new(|| 1_700_000_000_000));
    let key = LogKey { registry: "local".parse().unwrap(), run: "c01".parse().unwrap() };
    let log = logs.open(&key, Mask::new(secrets.iter().map(String::as_str))).await.unwrap();
    let (mut written, mut strewn) = (0, 0);
    while written < LOG_SIZE {
        let filler = &fillers[strewn % fillers.len()];
        let form = &forms[strewn % SECRETS][random.below(5)];
        let (before, after) = filler.split_at(random.below(filler.len()));
        written += filler.len() + form.len();
        strewn += 1;
        if strewn % 2 == 0 {
            output(&log, &[before, form, after].concat()).await;
            continue;
        }
        let (start, end) = form.split_at(cut(form, &mut random));
        output(&log, &[before, start].concat()).await;
        output(&log, &[end, after].concat()).await;
    }
    log.finish(RunStatus::Succeeded, None, std::time::Duration::ZERO).await;
    let finder = AhoCorasick::new(forms.iter().flatten()).unwrap();
    let mask = AhoCorasick::new(["***"]).unwrap();
    let mut reader = logs.read_text(&key, 0, false).await.unwrap();
    let (mut text, mut masked) = (Vec::new(), 0);
    while let Some(chunk) = reader.next().await.unwrap() {
        text.extend_from_slice(&chunk);
    }
    for lines in text.chunks(1 << 20) {
        masked += mask.find_iter(lines).count();
    }
    let leak = finder.find(&text).map(|leak| String::from_utf8_lossy(&text[leak.range()]));
    assert_eq!(leak, None);
    assert!(text.len() > LOG_SIZE / 10 * 9 && masked + 100 > strewn, "{masked} of {strewn}");
}
