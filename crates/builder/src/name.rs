//! Names of files as text.
//!
//! A name is any bytes but zero and `/`, and mostly UTF-8. Trees and indexes hold text, so a
//! byte that is none becomes one of the last 128 private characters; the bytes of a name that
//! has such a character itself are written so too. So each name has a text of its own, and
//! [`bytes_of`] gives back the very name.

use std::borrow::Cow;

/// Bytes in one name of a path; Linux takes no more.
pub(crate) const NAME_MAX: usize = 255;

/// Bytes of a path, as the kernel bounds it.
pub(crate) const PATH_MAX: usize = 4096;

/// What stands for the byte zero, if that could be in a name. Bytes of 0x80 and above are meant.
const FIRST: u32 = 0x10_ff00;

fn char_of(byte: u8) -> char {
    char::from_u32(FIRST + u32::from(byte)).expect("the last plane is full of characters")
}

/// The byte that a character stands for.
fn byte_of(char: char) -> Option<u8> {
    let byte = u32::from(char).checked_sub(FIRST)?;
    u8::try_from(byte).ok().filter(|byte| *byte >= 0x80)
}

/// The text of a name, or of a path. What a user wrote is taken as bytes too.
pub(crate) fn text_of(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for char in chunk.valid().chars() {
            match byte_of(char) {
                None => text.push(char),
                Some(_) => {
                    let mut buffer = [0; 4];
                    text.extend(char.encode_utf8(&mut buffer).bytes().map(char_of));
                }
            }
        }
        text.extend(chunk.invalid().iter().copied().map(char_of));
    }
    text
}

/// The name, or path, that a text stands for.
pub(crate) fn bytes_of(text: &str) -> Cow<'_, [u8]> {
    if !text.chars().any(|char| byte_of(char).is_some()) {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut name = Vec::with_capacity(text.len());
    for char in text.chars() {
        match byte_of(char) {
            Some(byte) => name.push(byte),
            None => name.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Cow::Owned(name)
}

/// A name as people see it and as patterns are matched with it: a byte that is not UTF-8 is a
/// replacement character.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    match bytes_of(text) {
        Cow::Borrowed(_) => Cow::Borrowed(text),
        Cow::Owned(name) => Cow::Owned(
            name.utf8_chunks()
                .flat_map(|chunk| {
                    let replaced = chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER);
                    chunk.valid().chars().chain(replaced)
                })
                .collect(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_not_text_is_kept_and_shown_as_unknown() {
        for name in
            [&b"caf\xe9"[..], b"\xff", b"a/\x80\xbf/b", b"\xf4\x8f\xbf\xbf", b"\xed\xa0\x80"]
        {
            let text = text_of(name);
            assert_eq!(*bytes_of(&text), *name);
            assert_ne!(text.as_bytes(), name);
        }
        assert_eq!(shown(&text_of(b"caf\xe9\xe8")), "caf\u{fffd}\u{fffd}");
        assert_eq!(shown(&text_of("é\u{10ffff}".as_bytes())), "é\u{10ffff}");
        assert_eq!(text_of("é\u{fffd}".as_bytes()), "é\u{fffd}");
    }

    proptest! {
        #[test]
        fn a_name_comes_back_from_its_text(name: Vec<u8>, private in "[a\u{10ff7e}-\u{10ffff}/]{0,9}") {
            for name in [&name[..], private.as_bytes()] {
                let text = text_of(name);
                prop_assert_eq!(&*bytes_of(&text), name);
                if let Ok(same) = std::str::from_utf8(name) {
                    prop_assert_eq!(shown(&text), same);
                }
            }
        }

        #[test]
        fn a_path_is_its_names(one: Vec<u8>, two: Vec<u8>) {
            let path = [&one[..], b"/", &two].concat();
            prop_assert_eq!(text_of(&path), format!("{}/{}", text_of(&one), text_of(&two)));
        }
    }
}
