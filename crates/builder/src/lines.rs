//! Lines of text of which there may be a million: kept in a file, and read when they are asked for.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::{Mutex, OnceLock, PoisonError};

/// Read at once.
const BLOCK_SIZE: usize = 64 << 10;
/// A longer line counts as damage.
pub(crate) const LINE_SIZE_MAX: usize = 64 << 20;
/// Less text than this stays in memory.
const TAIL_SIZE_MAX: usize = 1 << 20;

/// Text in lines, of which each is known by the byte where it begins. They are read mostly in their
/// order.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// All but the tail, and its length.
    file: Option<(File, u64)>,
    /// The last lines, whole ones.
    tail: Vec<u8>,
    /// What was read last, and where it is.
    block: Mutex<(u64, Vec<u8>)>,
    /// Why a line could not be read, the first time.
    failure: OnceLock<io::Error>,
}

impl Lines {
    /// The text of a file. What is written to it later is not seen.
    pub(crate) fn of_file(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self { file: Some((file, len)), ..Self::default() })
    }

    pub(crate) fn of_text(tail: Vec<u8>) -> Self {
        Self { tail, ..Self::default() }
    }

    /// Where the next line will begin.
    pub(crate) fn end(&self) -> u64 {
        self.file.as_ref().map_or(0, |(_, len)| *len) + self.tail.len() as u64
    }

    /// Adds a line, which `write` writes with its end. `make` makes the file when there is too much
    /// for memory.
    pub(crate) fn push(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
        make: impl FnOnce() -> io::Result<File>,
    ) -> io::Result<()> {
        write(&mut self.tail)?;
        if self.tail.len() < TAIL_SIZE_MAX {
            return Ok(());
        }
        let (file, len) = match &mut self.file {
            Some(file) => file,
            None => self.file.insert((make()?, 0)),
        };
        file.write_all_at(&self.tail, *len)?;
        *len += self.tail.len() as u64;
        self.tail.clear();
        Ok(())
    }

    /// What a line says; nothing if it cannot be read, and [`Self::failure`] says why.
    pub(crate) fn get<T>(
        &self,
        line: u64,
        parse: impl FnOnce(&[u8]) -> io::Result<T>,
    ) -> Option<T> {
        let read = self.read(line, parse);
        read.map_err(|error| self.failure.get_or_init(|| error)).ok()
    }

    /// Why a line could not be read, if that ever happened.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        let failure = self.failure.get()?;
        Some(io::Error::new(failure.kind(), failure.to_string()))
    }

    /// What a line says; it is given without its end.
    pub(crate) fn read<T>(
        &self,
        line: u64,
        parse: impl FnOnce(&[u8]) -> io::Result<T>,
    ) -> io::Result<T> {
        let unreadable = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let Some((file, len)) = self.file.as_ref().filter(|(_, len)| line < *len) else {
            let start = line - self.file.as_ref().map_or(0, |(_, len)| *len);
            let text = usize::try_from(start).ok().and_then(|start| self.tail.get(start..));
            return parse(whole_line(text.unwrap_or_default()).ok_or_else(unreadable)?);
        };
        let mut block = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, bytes) = &mut *block;
        let skipped = line.checked_sub(*start).and_then(|skipped| usize::try_from(skipped).ok());
        if let Some(found) = skipped.and_then(|skipped| whole_line(bytes.get(skipped..)?)) {
            return parse(found);
        }
        // Not kept if this fails: what it holds would be taken for this line.
        let mut read = std::mem::take(bytes);
        let mut size = BLOCK_SIZE;
        loop {
            read.resize(size, 0);
            let count = read_at(file, &mut read, line, *len)?;
            read.truncate(count);
            let Some(found) = whole_line(&read) else {
                if count < size || size >= LINE_SIZE_MAX {
                    return Err(unreadable());
                }
                size *= 4;
                continue;
            };
            let parsed = parse(found);
            // Nor if it is large, for a line that is.
            if size == BLOCK_SIZE {
                (*start, *bytes) = (line, read);
            }
            return parsed;
        }
    }

    /// About how many bytes of memory it takes.
    pub(crate) fn memory(&self) -> usize {
        self.tail.capacity() + BLOCK_SIZE
    }

    /// All of the text.
    pub(crate) fn text(&self) -> impl BufRead + '_ {
        let file = self.file.as_ref().map(|(file, len)| Section { file, at: 0, end: *len });
        let file: Box<dyn Read + '_> = match file {
            Some(file) => Box::new(file),
            None => Box::new(io::empty()),
        };
        BufReader::with_capacity(BLOCK_SIZE, file.chain(&self.tail[..]))
    }
}

fn whole_line(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some(&bytes[..end])
}

/// Fills a buffer, unless the end comes before.
fn read_at(file: &File, buffer: &mut [u8], at: u64, end: u64) -> io::Result<usize> {
    let mut section = Section { file, at, end };
    let mut count = 0;
    while count < buffer.len() {
        match section.read(&mut buffer[count..]) {
            Ok(0) => break,
            Ok(read) => count += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// A part of a file, which is read without moving its cursor.
struct Section<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let want = buffer.len().min(left);
        let read = self.file.read_at(&mut buffer[..want], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(lines: &Lines, line: u64) -> io::Result<String> {
        lines.read(line, |text| Ok(String::from_utf8_lossy(text).into_owned()))
    }

    #[test]
    fn lines_are_read_where_they_begin_from_memory_and_from_a_file() {
        let mut lines = Lines::default();
        let mut places = Vec::new();
        // Some longer than what is read at once, and in all more than memory takes.
        for number in 0..400 {
            let text = format!("{number} {}", "x".repeat(number * 37 + number % 7 / 6 * 100_000));
            places.push((lines.end(), text.clone()));
            let write = |tail: &mut Vec<u8>| {
                tail.extend_from_slice(text.as_bytes());
                tail.push(b'\n');
                Ok(())
            };
            lines.push(write, tempfile::tempfile).unwrap();
        }
        assert!(lines.file.is_some() && !lines.tail.is_empty());
        for (line, text) in places.iter().chain(places.iter().rev()) {
            assert_eq!(text_of(&lines, *line).unwrap(), *text);
        }
        let whole: Vec<String> = lines.text().lines().map(Result::unwrap).collect();
        assert_eq!(whole, places.iter().map(|(_, text)| text.clone()).collect::<Vec<_>>());
        assert_eq!(text_of(&lines, lines.end()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(lines.failure().is_none());
    }

    #[test]
    fn a_line_that_cannot_be_read_is_not_another_one() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"one\ntwo\n", 0).unwrap();
        let lines = Lines::of_file(file.try_clone().unwrap()).unwrap();
        assert_eq!(text_of(&lines, 0).unwrap(), "one");
        // What was read at once is enough for this.
        file.set_len(0).unwrap();
        assert_eq!(text_of(&lines, 4).unwrap(), "two");
        let lines = Lines { file: Some((file, 8)), ..Lines::default() };
        *lines.block.lock().unwrap() = (100, b"other\n".to_vec());
        for _ in 0..2 {
            assert!(text_of(&lines, 0).is_err());
        }
    }

    #[test]
    fn what_could_not_be_read_is_remembered() {
        let lines = Lines::of_text(b"one\ntwo".to_vec());
        assert_eq!(lines.get(0, |text| Ok(text.len())), Some(3));
        assert!(lines.failure().is_none());
        assert_eq!(lines.get(4, |text| Ok(text.len())), None);
        assert_eq!(lines.get(0, |text| Ok(text.len())), Some(3));
        assert_eq!(lines.failure().unwrap().kind(), io::ErrorKind::UnexpectedEof);
        let lines = Lines::of_text(b"one\n".to_vec());
        assert_eq!(lines.get(0, |_| Err::<(), _>(io::Error::other("no number"))), None);
        assert_eq!(lines.failure().unwrap().to_string(), "no number");
    }
}
