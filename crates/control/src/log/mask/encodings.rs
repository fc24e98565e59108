//! The forms in which programs pass a secret on.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// The part of a secret in the middle of Base64 is hidden from so many characters on.
const BASE64_LEN_MIN: usize = 6;

/// What programs leave as it is in parts of addresses; some also leave slashes.
const IN_ADDRESS: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const IN_PATH: &AsciiSet = &IN_ADDRESS.remove(b'/');

/// A secret as programs often pass it on: in Base64, also without padding and for addresses, in the
/// percent encodings of addresses and of forms, and inside the texts of JSON.
pub(super) fn encoded(secret: &str) -> impl Iterator<Item = String> {
    let base64 = BASE64_STANDARD_NO_PAD.encode(secret);
    let for_addresses = base64.replace('+', "-").replace('/', "_");
    let percent = |set| utf8_percent_encode(secret, set).to_string();
    let (all, address, path) = (percent(NON_ALPHANUMERIC), percent(IN_ADDRESS), percent(IN_PATH));
    let form: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    let lines = in_lines(&base64);
    let others = inside_base64(secret).chain(in_json(secret)).chain(lines);
    [base64, for_addresses, all, address, path, form].into_iter().chain(others)
}

/// The lines of Base64 that is broken, as `base64` and PEM do; but for what follows after the secret
/// may change, and for pieces that are found anywhere.
fn in_lines(base64: &str) -> Vec<String> {
    const WIDTHS: [usize; 2] = [64, 76];
    const LEN_MIN: usize = 16;
    let whole = &base64[..base64.len() / 4 * 4];
    let mut lines = Vec::new();
    for width in WIDTHS.into_iter().filter(|width| base64.len() > *width) {
        let starts = (0..whole.len()).step_by(width);
        let all = starts.map(|from| &whole[from..whole.len().min(from + width)]);
        lines.extend(all.filter(|line| line.len() >= LEN_MIN).map(str::to_owned));
    }
    lines
}

/// What is always seen of a secret in the Base64 of a longer text, by where in a group of three
/// bytes it begins. The characters at its ends depend on its neighbours.
fn inside_base64(secret: &str) -> impl Iterator<Item = String> {
    let shifted = (0..3_usize).map(|shift| {
        let bytes = [&b"   "[..shift], secret.as_bytes()].concat();
        let whole = bytes.len() * 8 / 6;
        BASE64_STANDARD_NO_PAD.encode(bytes)[(shift * 8).div_ceil(6)..whole].to_owned()
    });
    let plain = shifted.filter(|part| part.len() >= BASE64_LEN_MIN);
    plain.flat_map(|part| [part.replace('+', "-").replace('/', "_"), part])
}

/// How a writer of JSON escapes what it need not escape.
#[derive(Clone, Copy)]
struct JsonStyle {
    /// Characters that it gives by their numbers.
    by_number: &'static str,
    /// All that is not ASCII too.
    ascii: bool,
    /// `/` is `\/`.
    slash: bool,
    /// Letters of numbers are capital ones.
    upper: bool,
}

const PLAIN: JsonStyle = JsonStyle { by_number: "", ascii: false, slash: false, upper: false };

/// Those that are common: of JavaScript and Rust, PHP in two ways, Python, others like it, Go, Java
/// (Gson), and .NET.
const JSON_STYLES: [JsonStyle; 8] = [
    PLAIN,
    JsonStyle { slash: true, ..PLAIN },
    JsonStyle { slash: true, ascii: true, ..PLAIN },
    JsonStyle { ascii: true, ..PLAIN },
    JsonStyle { ascii: true, upper: true, ..PLAIN },
    JsonStyle { by_number: "<>&\u{2028}\u{2029}", ..PLAIN },
    JsonStyle { by_number: "<>&='\u{2028}\u{2029}", ..PLAIN },
    JsonStyle { by_number: "<>&'\"+`\x7f", ascii: true, upper: true, ..PLAIN },
];

/// A secret as it is inside a text of JSON. Most are the same whoever writes it.
pub(super) fn in_json(secret: &str) -> Vec<String> {
    let is_plain =
        |char: char| char.is_ascii_alphanumeric() || " -_.,:;!?@#$%*()[]{}".contains(char);
    if secret.chars().all(is_plain) {
        return vec![secret.to_owned()];
    }
    let mut forms: Vec<String> = JSON_STYLES.iter().map(|style| json(secret, *style)).collect();
    forms.sort_unstable();
    forms.dedup();
    forms
}

fn json(secret: &str, style: JsonStyle) -> String {
    let JsonStyle { by_number, ascii, slash, upper } = style;
    let mut text = String::with_capacity(secret.len());
    for char in secret.chars() {
        match char {
            _ if by_number.contains(char) || (ascii && !char.is_ascii()) => {
                push_number(&mut text, char, upper);
            }
            '"' | '\\' => text.extend(['\\', char]),
            '/' if slash => text.push_str("\\/"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\x08' => text.push_str("\\b"),
            '\x0c' => text.push_str("\\f"),
            '\0'..' ' => push_number(&mut text, char, upper),
            char => text.push(char),
        }
    }
    text
}

/// A character as `\u00e9`, and one beyond 16 bits as two.
fn push_number(text: &mut String, char: char, upper: bool) {
    for unit in char.encode_utf16(&mut [0; 2]) {
        text.push_str(&match upper {
            true => format!("\\u{unit:04X}"),
            false => format!("\\u{unit:04x}"),
        });
    }
}
