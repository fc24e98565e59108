//! Byte ranges: `Range` of a request for content, `Content-Range` of a chunk of an upload.

/// What a `Range` header asks of content of a known size.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ByteRange {
    /// No range, or one that RFC 9110 lets a server ignore: another unit, several ranges.
    Whole,
    /// The bytes from `start` to `end`, both inclusive.
    Part {
        start: u64,
        end: u64,
    },
    Unsatisfiable,
}

/// Reads a `Range` header for content of `size` bytes (RFC 9110 section 14).
pub(crate) fn requested(header: Option<&str>, size: u64) -> ByteRange {
    let Some(spec) = header.and_then(|text| text.trim().strip_prefix("bytes=")) else {
        return ByteRange::Whole;
    };
    if spec.contains(',') {
        return ByteRange::Whole;
    }
    let Some((first, last)) = spec.trim().split_once('-') else {
        return ByteRange::Unsatisfiable;
    };
    match (number_or_more(first), number_or_more(last)) {
        (Some(start), Some(end)) if start <= end && start < size => {
            ByteRange::Part { start, end: end.min(size - 1) }
        }
        (Some(start), None) if last.is_empty() && start < size => {
            ByteRange::Part { start, end: size - 1 }
        }
        (None, Some(count)) if first.is_empty() && count > 0 && size > 0 => {
            ByteRange::Part { start: size.saturating_sub(count), end: size - 1 }
        }
        _ => ByteRange::Unsatisfiable,
    }
}

/// The `Content-Range` of a chunk: `first-last`, inclusive (distribution-spec, *Pushing a
/// blob in chunks*). `None` when it is none.
pub(crate) fn chunk(header: &str) -> Option<Chunk> {
    let (first, last) = header.trim().split_once('-')?;
    let (start, end) = (number(first)?, number(last)?);
    let len = end.checked_sub(start)?.checked_add(1)?;
    Some(Chunk { start, len })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) start: u64,
    pub(crate) len: u64,
}

/// The `Range` header of an upload that has `size` bytes. There is no way to write an empty
/// range, so none and one byte look alike, as in every registry.
pub(crate) fn received(size: u64) -> String {
    format!("0-{}", size.saturating_sub(1))
}

/// Digits only: `parse` alone would take a sign.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// A number that may be larger than any content: then it is as large as one can be.
fn number_or_more(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_part_lies_within_its_blob(header in "bytes=[0-9]{0,3}-[0-9]{0,3}|\\PC*", size in 0u64..500) {
            if let ByteRange::Part { start, end } = requested(Some(&header), size) {
                prop_assert!(start <= end && end < size);
            }
            let _ = chunk(&header);
        }
    }

    #[test]
    fn ranges_of_ten_bytes() {
        let part = |start, end| ByteRange::Part { start, end };
        for (header, expected) in [
            ("bytes=0-0", part(0, 0)),
            ("bytes=2-5", part(2, 5)),
            ("bytes=2-", part(2, 9)),
            ("bytes=-3", part(7, 9)),
            ("bytes=-30", part(0, 9)),
            ("bytes=8-99", part(8, 9)),
            ("bytes=0-99999999999999999999999", part(0, 9)),
            ("bytes=-99999999999999999999999", part(0, 9)),
            ("bytes=10-", ByteRange::Unsatisfiable),
            ("bytes=5-2", ByteRange::Unsatisfiable),
            ("bytes=-0", ByteRange::Unsatisfiable),
            ("bytes=-", ByteRange::Unsatisfiable),
            ("bytes=x-y", ByteRange::Unsatisfiable),
            ("bytes=+1-2", ByteRange::Unsatisfiable),
            ("bytes=99999999999999999999-", ByteRange::Unsatisfiable),
            ("bytes=0-1,3-4", ByteRange::Whole),
            ("lines=0-1", ByteRange::Whole),
        ] {
            assert_eq!(requested(Some(header), 10), expected, "{header}");
        }
        assert_eq!(requested(None, 10), ByteRange::Whole);
        assert_eq!(requested(Some("bytes=0-"), 0), ByteRange::Unsatisfiable);
        assert_eq!(requested(Some("bytes=-1"), 0), ByteRange::Unsatisfiable);
    }

    #[test]
    fn chunks_of_an_upload() {
        assert_eq!(chunk("0-0"), Some(Chunk { start: 0, len: 1 }));
        assert_eq!(chunk("5-9"), Some(Chunk { start: 5, len: 5 }));
        let whole = format!("0-{}", u64::MAX);
        for bad in [
            "",
            "-",
            "5",
            "9-5",
            "a-b",
            "bytes 0-5/6",
            "0--5",
            "5-99999999999999999999999",
            whole.as_str(),
        ] {
            assert_eq!(chunk(bad), None, "{bad}");
        }
        assert_eq!(received(0), "0-0");
        assert_eq!(received(10), "0-9");
    }
}
