//! Random numbers and trash that are the same for the same seed.

use serde_json::{Value, json};

/// SplitMix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below a bound, which is not 0.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Once in so many times.
    pub(super) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(super) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// Bytes that have no business in a path, a query or a header.
    pub(super) fn trash(&mut self) -> Vec<u8> {
        const TRASH: &[&[u8]] = &[
            b"",
            b"%00",
            b"%",
            b"%zz",
            b"%2",
            b"%ff%fe",
            b"..",
            b"%2e%2e%2f%2e%2e%2fetc%2fpasswd",
            b"../../etc/passwd",
            b"a/b",
            b"%2f",
            b"//",
            b"*",
            b"$",
            b"'",
            b"' OR 1=1 --",
            b"%27%20or%201%3D1",
            b"%F0%9F%92%A9",
            b"\xf0\x9f\x92\xa9",
            b"\xff\xfe",
            b"%EF%BF%BE",
            b"%E2%80%AE",
            b"-1",
            b"0",
            b"18446744073709551615",
            b"9223372036854775807",
            b"-9223372036854775808",
            b"99999999999999999999999",
            b"1e308",
            b"NaN",
            b"true",
            b"null",
            b"[]",
            b"{}",
            b"sha256:",
            b"sha256:0000000000000000000000000000000000000000000000000000000000000000",
            b"sha512:00",
            b"a:b@c",
            b"_",
            b".",
            b"-",
            b"A",
            b"http://[::1",
            b"http://127.0.0.1:1/",
            b"file:///etc/passwd",
            b"{{.Run.ID}}",
            b"%0d%0aX: y",
            b"\t",
            b"+",
            b"a b",
        ];
        match self.below(8) {
            0 => vec![*self.pick(b"ax.%/\xc3"); *self.pick(&[64, 129, 256, 1025, 5000])],
            1 => (0..=self.below(12)).map(|_| self.next() as u8).collect(),
            _ => self.pick(TRASH).to_vec(),
        }
    }

    pub(super) fn json_trash(&mut self) -> Value {
        match self.below(16) {
            0 => Value::Null,
            1 => json!(true),
            2 => json!(-1),
            3 => json!(u64::MAX),
            4 => json!(i64::MIN),
            5 => json!(1.5e300),
            6 => json!([]),
            7 => json!({}),
            8 => json!("x".repeat(*self.pick(&[65, 257, 5000, 70_000]))),
            9 => json!("\u{0}"),
            10 => json!("{{.Run.ID}}{{"),
            11 => json!(["\u{202e}", null, 3]),
            12 => json!({ "type": "unknown", "value": { "value": [] } }),
            13 => (0..self.below(120)).fold(json!(0), |inner, _| json!([inner])),
            14 => json!(i64::MAX),
            _ => json!(String::from_utf8_lossy(&self.trash())),
        }
    }

    /// Bytes with something wrong in them.
    pub(super) fn spoil(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len() + 1);
        match self.below(5) {
            0 => bytes.truncate(at),
            1 => {
                let trash = self.trash();
                bytes.splice(at..at, trash);
            }
            2 => {
                let end = (at + self.below(20)).min(bytes.len());
                bytes.drain(at..end);
            }
            3 => {
                let end = (at + self.below(200)).min(bytes.len());
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << self.below(8);
                }
            }
        }
    }

    /// Puts something else in the place of a value, somewhere.
    pub(super) fn spoil_json(&mut self, value: &mut Value) {
        let size = match value {
            Value::Object(members) => members.len(),
            Value::Array(items) => items.len(),
            _ => 0,
        };
        if size == 0 || self.once_in(8) {
            *value = self.json_trash();
            return;
        }
        let at = self.below(size);
        match value {
            Value::Object(members) => {
                if self.once_in(10) {
                    let key = String::from_utf8_lossy(&self.trash()).into_owned();
                    members.insert(key, self.json_trash());
                } else if let Some((key, inner)) = members.iter_mut().nth(at) {
                    if self.0.is_multiple_of(12) {
                        let key = key.clone();
                        members.remove(&key);
                    } else {
                        self.spoil_json(inner);
                    }
                }
            }
            Value::Array(items) => self.spoil_json(&mut items[at]),
            _ => (),
        }
    }
}
