//! Compressed files of logs: independent frames and a table of them, the seekable format of Zstandard,
//! so that who reads from within decompresses no more than one frame in front of it.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Seek, SeekFrom, Write};

use serde::Deserialize;
use zeekstd::{Decoder, EncodeOptions, FrameSizePolicy};

const COMPRESSION_LEVEL: i32 = 3;
/// Bytes of a log in a frame.
const FRAME: u32 = 1 << 20;
/// Records that are so near, in bytes, are read through.
const NEAR: u64 = 256 << 10;

/// Compresses all of `input`.
pub(super) fn pack(input: &mut impl Read, output: &mut impl Write) -> io::Result<()> {
    let options = EncodeOptions::new()
        .compression_level(COMPRESSION_LEVEL)
        .frame_size_policy(FrameSizePolicy::Uncompressed(FRAME));
    let mut encoder = options.into_encoder(output).map_err(io::Error::other)?;
    io::copy(input, &mut encoder)?;
    encoder.finish().map_err(io::Error::other)?;
    Ok(())
}

/// Where in a log to begin.
#[derive(Debug, Clone, Copy)]
pub(super) enum Start {
    Offset(u64),
    /// At a record before which all have this number or less, not far from the first one after it.
    After(u64),
}

impl Start {
    /// In bytes, of which `log` has `len`.
    pub(super) fn offset<R: Read + Seek>(self, log: &mut R, len: u64) -> io::Result<u64> {
        match self {
            Self::Offset(offset) => Ok(offset.min(len)),
            Self::After(0) => Ok(0),
            Self::After(number) => offset_after(log, len, number),
        }
    }
}

/// Reads a compressed log.
pub(super) fn unpack(mut file: File, start: Start) -> io::Result<Box<dyn Read + Send>> {
    let table = Decoder::new(Whole(file.try_clone()?));
    if let Ok(mut log) = table {
        let len = log.seek_table().size_decomp();
        let offset = start.offset(&mut log, len)?;
        log.seek(SeekFrom::Start(offset))?;
        return Ok(Box::new(log));
    }
    // One that has no table, as logs had none once.
    file.rewind()?;
    let mut log = zstd::stream::read::Decoder::new(file)?;
    if let Start::Offset(offset) = start {
        io::copy(&mut log.by_ref().take(offset), &mut io::sink())?;
    }
    Ok(Box::new(log))
}

/// A file that nobody reads beyond its end. The decoder would do so for ever if there is less than the
/// table says.
struct Whole(File);

impl Read for Whole {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 if !buffer.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            read => Ok(read),
        }
    }
}

impl Seek for Whole {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

/// What of a record tells its place.
#[derive(Deserialize)]
struct Numbered {
    id: u64,
}

/// Invariant: at `from` a record begins, and those before it are none that is looked for; at or behind
/// `to` there is nothing that would be needed to find it.
fn offset_after<R: Read + Seek>(records: &mut R, len: u64, number: u64) -> io::Result<u64> {
    let (mut from, mut to) = (0, len);
    while to - from > NEAR {
        let middle = from + (to - from) / 2;
        records.seek(SeekFrom::Start(middle))?;
        let mut reader = BufReader::new(records.by_ref().take(to - middle));
        let begins = middle + reader.skip_until(b'\n')? as u64;
        let mut line = Vec::new();
        reader.read_until(b'\n', &mut line)?;
        match serde_json::from_slice::<Numbered>(&line) {
            Ok(record) if record.id <= number => from = begins,
            _ => to = middle,
        }
    }
    Ok(from)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// Counts what is read.
    struct Counting<R>(R, u64);

    impl<R: Read> Read for Counting<R> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let read = self.0.read(buffer)?;
            self.1 += read as u64;
            Ok(read)
        }
    }

    impl<R: Seek> Seek for Counting<R> {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }

    #[test]
    fn records_are_found_by_their_numbers() {
        let mut records = String::new();
        for id in 1..=200_000 {
            records += &format!("{{\"id\":{id},\"text\":\"{}\"}}\n", "x".repeat(id % 90));
        }
        let len = records.len() as u64;
        for number in [0, 1, 2, 77_777, 100_000, 199_999, 200_000, 1_000_000] {
            let mut log = Counting(Cursor::new(records.as_bytes()), 0);
            let offset = Start::After(number).offset(&mut log, len).unwrap() as usize;
            let (before, behind) = records.split_at(offset);
            assert!(before.is_empty() || before.ends_with('\n'));
            let first: Numbered = serde_json::from_str(behind.lines().next().unwrap()).unwrap();
            assert!(first.id <= number + 1, "{number}: {}", first.id);
            let wanted = behind.find(&format!("{{\"id\":{},", number + 1));
            assert!(wanted.unwrap_or(behind.len()) as u64 <= 2 * NEAR, "{number}");
            assert!(log.1 < len / 10, "{} of {len} bytes are read", log.1);
        }
    }

    #[test]
    fn a_log_that_lacks_something_is_damaged() {
        let text: Vec<u8> = (0..3 * FRAME).map(|n| (n.wrapping_mul(n) % 251) as u8).collect();
        let mut packed = Vec::new();
        pack(&mut text.as_slice(), &mut packed).unwrap();
        // The table says more than there is.
        for missing in [1, 1000, packed.len() / 2] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&packed[missing..]).unwrap();
            file.rewind().unwrap();
            let read =
                unpack(file, Start::Offset(0)).map(|mut log| log.read_to_end(&mut Vec::new()));
            assert!(read.and_then(|read| read).is_err());
        }
    }

    #[test]
    fn what_is_packed_is_read_from_anywhere() {
        let text: Vec<u8> = (0..3 * FRAME).map(|n| (n % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        pack(&mut text.as_slice(), &mut file).unwrap();
        let mut old = tempfile::tempfile().unwrap();
        old.write_all(&zstd::encode_all(text.as_slice(), 3).unwrap()).unwrap();
        for log in [file, old] {
            for offset in [0, 1, u64::from(FRAME) - 1, 2 * u64::from(FRAME), u64::MAX] {
                let mut log = log.try_clone().unwrap();
                log.rewind().unwrap();
                let mut read = Vec::new();
                let start = Start::Offset(offset);
                unpack(log, start).unwrap().read_to_end(&mut read).unwrap();
                assert_eq!(read, text[text.len().min(offset as usize)..]);
            }
        }
    }
}
