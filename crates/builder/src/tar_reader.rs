//! Tar archives, read as they come: ustar, GNU and PAX.
//!
//! Names, link targets and attributes are the bytes that the archive has, whatever they are. A
//! PAX record is as long as it says, so that its value may hold any byte and nothing in a value
//! passes for a record of its own.
//!
//! An archive may be anybody's: what describes one entry has a bound, and nothing is taken into
//! memory because a header claims it.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read};

/// One entry. Its bytes are read from the [`TarReader`] that gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarEntry {
    pub kind: TarKind,
    pub path: Vec<u8>,
    /// Where a link leads.
    pub link: Vec<u8>,
    /// How many bytes it has.
    pub size: u64,
    pub numbers: TarNumbers,
    /// Extended attributes, sorted by name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TarKind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
    /// What is no file, such as the label of a tape.
    Other,
}

/// What an entry says in numbers; none where it is no number, or too large.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TarNumbers {
    /// Permission bits, set-user-ID and the like included.
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Seconds since 1970.
    pub mtime: Option<i64>,
    /// Major and minor number of a device.
    pub device: Option<(u32, u32)>,
}

/// Headers, names, links and attributes of an entry take no more bytes than this.
const HEADERS_MAX: u64 = 1 << 20;

/// Bytes of a path or a link, whatever of it is left once it is made clean.
const NAME_MAX: usize = 16 << 10;

/// Archives are made of blocks of this size; a header is one.
pub(crate) const BLOCK: usize = 512;

/// Reads an archive from its start; as a [`Read`], the bytes of the entry that came last.
pub struct TarReader<R> {
    inner: R,
    /// What is left of the entry.
    content: VecDeque<Piece>,
    /// Bytes from the end of the entry to the next header.
    padding: u64,
    has_ended: bool,
}

/// What comes before an entry and describes it, as it came.
#[derive(Default)]
struct Ahead {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Option<Vec<u8>>,
}

/// A part of a file.
enum Piece {
    Bytes(u64),
    /// Zeros that the archive leaves out.
    Hole(u64),
}

impl<R: Read> TarReader<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, content: VecDeque::new(), padding: 0, has_ended: false }
    }

    /// The next entry, past what was not read of the one before; none at the archive's end.
    pub fn next_entry(&mut self) -> io::Result<Option<TarEntry>> {
        self.skip_content()?;
        let mut left = HEADERS_MAX;
        let mut ahead = Ahead::default();
        while let Some(header) = self.read_header(&mut left)? {
            let place = match header.kind() {
                b'L' => &mut ahead.path,
                b'K' => &mut ahead.link,
                b'x' => &mut ahead.pax,
                // What holds for all entries: comments, as far as anybody writes it.
                b'g' => &mut None,
                _ => return self.begin(&header, ahead, &mut left).map(Some),
            };
            if place.is_some() {
                return Err(invalid("an entry is described twice"));
            }
            *place = Some(self.read_extension(header.size()?, &mut left)?);
        }
        match ahead {
            Ahead { path: None, link: None, pax: None } => Ok(None),
            _ => Err(invalid("it describes an entry that does not come")),
        }
    }

    /// Everything after the archive's end can be read from here.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The next header; none at the end.
    fn read_header(&mut self, left: &mut u64) -> io::Result<Option<Header>> {
        if self.has_ended {
            return Ok(None);
        }
        let mut block = Vec::with_capacity(BLOCK);
        self.inner.by_ref().take(take(left, BLOCK as u64)?).read_to_end(&mut block)?;
        self.has_ended = block.iter().all(|byte| *byte == 0);
        if self.has_ended {
            return Ok(None);
        }
        let block = <[u8; BLOCK]>::try_from(block).map_err(|_| cut_off())?;
        match is_header(&block) {
            true => Ok(Some(Header(block))),
            false => Err(invalid("a header has a wrong checksum")),
        }
    }

    /// The bytes of an entry that describes the next one.
    fn read_extension(&mut self, size: u64, left: &mut u64) -> io::Result<Vec<u8>> {
        let padded = take(left, size.checked_next_multiple_of(BLOCK as u64).unwrap_or(u64::MAX))?;
        let mut bytes = Vec::new();
        self.inner.by_ref().take(padded).read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < padded {
            return Err(cut_off());
        }
        bytes.truncate(usize::try_from(size).unwrap_or(usize::MAX));
        Ok(bytes)
    }

    /// Puts together what describes an entry, and makes its bytes ready.
    fn begin(&mut self, header: &Header, ahead: Ahead, left: &mut u64) -> io::Result<TarEntry> {
        let pax = Pax::parse(&ahead.pax.unwrap_or_default())?;
        let long = |long: Option<Vec<u8>>| long.map(|bytes| until_zero(&bytes).to_vec());
        let path = pax.path.or(long(ahead.path)).unwrap_or_else(|| header.path());
        let link = pax.link.or(long(ahead.link)).unwrap_or_else(|| header.link());
        let kind = match header.kind() {
            // Archives that are older than folders in them.
            0 if path.ends_with(b"/") => TarKind::Directory,
            0 | b'0' | b'7' | b'S' => TarKind::File,
            b'1' => TarKind::HardLink,
            b'2' => TarKind::Symlink,
            b'3' => TarKind::CharDevice,
            b'4' => TarKind::BlockDevice,
            b'5' => TarKind::Directory,
            b'6' => TarKind::Fifo,
            _ => TarKind::Other,
        };
        // Of other kinds no bytes follow, whatever the header says.
        let stored = match kind {
            TarKind::File | TarKind::Other => pax.size.map_or_else(|| header.size(), Ok)?,
            _ => 0,
        };
        let mut size = stored;
        self.content = VecDeque::from([Piece::Bytes(stored)]);
        if header.kind() == b'S' {
            (self.content, size) = self.read_map(header, stored, left)?;
        }
        self.padding = stored.next_multiple_of(BLOCK as u64) - stored;
        let numbers = TarNumbers {
            mode: header.number(100, 8).map(|mode| (mode & 0o7777) as u32),
            uid: pax.uid.unwrap_or_else(|| id(header.number(108, 8))),
            gid: pax.gid.unwrap_or_else(|| id(header.number(116, 8))),
            mtime: pax.mtime.unwrap_or_else(|| header.number(136, 12)),
            device: id(header.number(329, 8)).zip(id(header.number(337, 8))),
        };
        // No file can be called so, and nobody has to keep it in memory.
        if path.len().max(link.len()) > NAME_MAX {
            return Err(io::Error::other(format!("it has a name of more than {NAME_MAX} bytes")));
        }
        Ok(TarEntry { kind, path, link, size, numbers, xattrs: pax.xattrs })
    }

    /// The pieces of a sparse file in the GNU format, and its size.
    fn read_map(
        &mut self,
        header: &Header,
        stored: u64,
        left: &mut u64,
    ) -> io::Result<(VecDeque<Piece>, u64)> {
        let wrong = || invalid("the map of a sparse file is wrong");
        let unsigned = |number: Option<i64>| number.and_then(|n| u64::try_from(n).ok());
        let real = unsigned(header.number(483, 12)).ok_or_else(wrong)?;
        let mut map = header.0[386..482].to_vec();
        let mut is_extended = header.0[482] != 0;
        while is_extended {
            let block = self.read_extension(BLOCK as u64, left)?;
            map.extend_from_slice(&block[..504]);
            is_extended = block[504] != 0;
        }
        let (mut pieces, mut end, mut bytes) = (VecDeque::new(), 0, 0_u64);
        for piece in map.chunks_exact(24).filter(|piece| piece[0] != 0 && piece[12] != 0) {
            let offset = unsigned(number(&piece[..12])).ok_or_else(wrong)?;
            let length = unsigned(number(&piece[12..])).ok_or_else(wrong)?;
            let hole = offset.checked_sub(end).ok_or_else(wrong)?;
            pieces.extend([Piece::Hole(hole), Piece::Bytes(length)]);
            end = offset.checked_add(length).ok_or_else(wrong)?;
            bytes = bytes.checked_add(length).ok_or_else(wrong)?;
        }
        pieces.push_back(Piece::Hole(real.checked_sub(end).ok_or_else(wrong)?));
        match bytes == stored {
            true => Ok((pieces, real)),
            false => Err(wrong()),
        }
    }

    fn skip_content(&mut self) -> io::Result<()> {
        let pieces = std::mem::take(&mut self.content);
        let stored = pieces.iter().map(|piece| match piece {
            Piece::Bytes(size) => *size,
            Piece::Hole(_) => 0,
        });
        // No more than the size that the header gave, which is below 2⁶³.
        let left = stored.sum::<u64>() + std::mem::take(&mut self.padding);
        match io::copy(&mut self.inner.by_ref().take(left), &mut io::sink())? == left {
            true => Ok(()),
            false => Err(cut_off()),
        }
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(piece) = self.content.front_mut() {
            let (Piece::Bytes(left) | Piece::Hole(left)) = piece;
            if *left == 0 {
                self.content.pop_front();
                continue;
            }
            let most = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
            let buffer = &mut buffer[..most];
            let read = match piece {
                Piece::Bytes(_) => self.inner.read(buffer)?,
                Piece::Hole(_) => {
                    buffer.fill(0);
                    most
                }
            };
            if read == 0 && most > 0 {
                return Err(cut_off());
            }
            let (Piece::Bytes(left) | Piece::Hole(left)) = piece;
            *left -= read as u64;
            return Ok(read);
        }
        Ok(0)
    }
}

/// Whether a block is a header: has the checksum that only those have.
pub(crate) fn is_header(block: &[u8]) -> bool {
    let Ok(block) = <&[u8; BLOCK]>::try_from(block) else { return false };
    let field = 148..156;
    let sum: i64 = (block.iter().enumerate())
        .map(|(at, byte)| i64::from(if field.contains(&at) { b' ' } else { *byte }))
        .sum();
    octal(&block[field]) == Some(sum)
}

struct Header([u8; BLOCK]);

impl Header {
    fn kind(&self) -> u8 {
        self.0[156]
    }

    fn text(&self, at: usize, length: usize) -> &[u8] {
        until_zero(&self.0[at..at + length])
    }

    /// The name; in the ustar format, what is before its last slashes may be elsewhere.
    fn path(&self) -> Vec<u8> {
        let (name, above) = (self.text(0, 100), self.text(345, 155));
        match self.0[257..263] == *b"ustar\0" && !above.is_empty() {
            true => [above, b"/", name].concat(),
            false => name.to_vec(),
        }
    }

    fn link(&self) -> Vec<u8> {
        self.text(157, 100).to_vec()
    }

    fn number(&self, at: usize, length: usize) -> Option<i64> {
        number(&self.0[at..at + length])
    }

    fn size(&self) -> io::Result<u64> {
        let size = self.number(124, 12).and_then(|size| u64::try_from(size).ok());
        size.ok_or_else(|| invalid("an entry has no valid size"))
    }
}

/// What a PAX header says of the next entry; numbers are `Some(None)` where they are wrong.
#[derive(Default)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<Option<u32>>,
    gid: Option<Option<u32>>,
    mtime: Option<Option<i64>>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Pax {
    fn parse(bytes: &[u8]) -> io::Result<Self> {
        let mut pax = Self::default();
        let mut left = bytes;
        while !left.is_empty() {
            let (name, value);
            (name, value, left) = record(left).ok_or_else(|| invalid("a PAX record is wrong"))?;
            if let Some(name) = name.strip_prefix(b"SCHILY.xattr.") {
                pax.xattrs.insert(name.to_vec(), value.to_vec());
                continue;
            }
            if name.starts_with(b"GNU.sparse.") {
                return Err(invalid("sparse files are not read in the PAX format, only in GNU's"));
            }
            // Without a value, what the header says holds.
            if value.is_empty() {
                continue;
            }
            let text = std::str::from_utf8(value).unwrap_or_default();
            match name {
                b"path" | b"linkpath" if value.contains(&0) => {
                    return Err(invalid("a name has a zero byte"));
                }
                b"path" => pax.path = Some(value.to_vec()),
                b"linkpath" => pax.link = Some(value.to_vec()),
                b"size" => {
                    let size = text.parse().ok().filter(|size| i64::try_from(*size).is_ok());
                    pax.size = Some(size.ok_or_else(|| invalid("an entry has no valid size"))?);
                }
                b"uid" => pax.uid = Some(text.parse().ok()),
                b"gid" => pax.gid = Some(text.parse().ok()),
                b"mtime" => pax.mtime = Some(seconds(text)),
                _ => (),
            }
        }
        Ok(pax)
    }
}

/// The first of some PAX records, which are `LENGTH NAME=VALUE` and a line end each, and what
/// comes after it. The length is that of all of it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let digits = bytes[..space].iter().all(u8::is_ascii_digit);
    let length: usize =
        std::str::from_utf8(&bytes[..space]).ok().filter(|_| digits)?.parse().ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=').filter(|at| *at > 0)?;
    Some((&record[..equals], &record[equals + 1..], rest))
}

/// Whole seconds of a time that may have a fraction, which is cut off towards the past.
fn seconds(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let is_earlier = whole.starts_with('-') && fraction.bytes().any(|digit| digit != b'0');
    let digits = fraction.bytes().all(|byte| byte.is_ascii_digit());
    seconds.checked_sub(i64::from(is_earlier)).filter(|_| digits)
}

/// The number of a field: octal digits or, if its first bit is set, binary.
fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 == 0 {
        return octal(field);
    }
    // The bit after the first is the sign.
    let (start, first) = match field[0] & 0x40 {
        0 => (0, field[0] & 0x3f),
        _ => (-1, field[0]),
    };
    let bytes = [first].into_iter().chain(field[1..].iter().copied());
    bytes.into_iter().try_fold(start, |number: i64, byte| {
        number.checked_mul(256).map(|number| number | i64::from(byte))
    })
}

/// Octal digits between spaces and zero bytes; nothing at all is zero.
fn octal(field: &[u8]) -> Option<i64> {
    let start = field.iter().position(|byte| !matches!(byte, 0 | b' ')).unwrap_or(field.len());
    let end = field[start..].iter().position(|byte| matches!(byte, 0 | b' '));
    let digits = &field[start..end.map_or(field.len(), |end| start + end)];
    digits.iter().try_fold(0_i64, |number, digit| match digit {
        b'0'..=b'7' => number.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

fn id(number: Option<i64>) -> Option<u32> {
    number.and_then(|number| u32::try_from(number).ok())
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Takes some of the bytes that are left for describing an entry.
fn take(left: &mut u64, size: u64) -> io::Result<u64> {
    *left = left.checked_sub(size).ok_or_else(|| {
        invalid(&format!("names and attributes of an entry take more than {HEADERS_MAX} bytes"))
    })?;
    Ok(size)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it ends in the middle of an entry")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header with a right checksum.
    fn header(name: &[u8], kind: u8, size: u64, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(7);
        header.set_size(size);
        let bytes = header.as_mut_bytes();
        bytes[..name.len()].copy_from_slice(name);
        bytes[156] = kind;
        change(bytes);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    fn entry(name: &[u8], kind: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = header(name, kind, content.len() as u64, |_| ());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    /// All entries with their bytes.
    fn read(archive: &[u8]) -> io::Result<Vec<(TarEntry, Vec<u8>)>> {
        let mut reader = TarReader::new(archive);
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes)?;
            entries.push((entry, bytes));
        }
        Ok(entries)
    }

    #[track_caller]
    fn error(archive: &[u8]) -> String {
        read(archive).unwrap_err().to_string()
    }

    #[test]
    fn nothing_in_a_value_passes_for_a_record() {
        let records = b"44 SCHILY.xattr.user.a=x\n\n13 path=evil\n12 y\n13 path=good\n";
        let archive = [entry(b"h", b'x', records), entry(b"f", b'0', b"!")].concat();
        let [(entry, bytes)] = &read(&archive).unwrap()[..] else { panic!() };
        assert_eq!((&entry.path[..], &bytes[..]), (&b"good"[..], &b"!"[..]));
        let value = &entry.xattrs[&b"user.a"[..]];
        assert_eq!(value, b"x\n\n13 path=evil\n12 y");
    }

    #[test]
    fn records_that_are_not_as_long_as_they_say_are_refused() {
        for records in [
            &b"12 path=abc"[..],
            b"12 path=abcd\n",
            b"999999999999999999999 path=a\n",
            b"+9 path=a\n",
            b"9 =pathaa\n",
            b"3 \n",
            b"\0\0\0\0",
            b"path=a\n",
        ] {
            let archive = [entry(b"h", b'x', records), entry(b"f", b'0', b"")].concat();
            assert_eq!(error(&archive), "a PAX record is wrong", "{records:?}");
        }
    }

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"0000648\0"), None);
        assert_eq!(number(b"\x80\0\0\0\0\0\0\0\0\0\x01\x02"), Some(258));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe"), Some(-2));
        assert_eq!(number(b"\x80\0\0\x01\0\0\0\0\0\0\0\0"), None);
        assert_eq!(number(b"\xbf\xff\xff\xff"), Some(0x3fff_ffff));
        assert_eq!(number(b"\xc0\0\0\0"), Some(-0x4000_0000));
        for (text, expected) in [
            ("12", Some(12)),
            ("12.9", Some(12)),
            ("-12.0", Some(-12)),
            ("-12.5", Some(-13)),
            ("-0.5", Some(-1)),
            ("1.x", None),
            ("", None),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }

    #[test]
    fn old_names_are_put_together() {
        let prefix = |magic: &'static [u8; 8]| {
            let change = move |bytes: &mut [u8]| {
                bytes[257..265].copy_from_slice(magic);
                bytes[345..350].copy_from_slice(b"above");
            };
            header(b"name/", 0, 0, change)
        };
        let archive = [prefix(b"ustar\x0000"), prefix(b"ustar  \0")].concat();
        let found = read(&archive).unwrap();
        assert_eq!(found[0].0.path, b"above/name/");
        assert_eq!(found[1].0.path, b"name/");
        assert_eq!(found[0].0.kind, TarKind::Directory);
    }

    #[test]
    fn a_sparse_file_has_its_holes() {
        let map = |bytes: &mut [u8]| {
            for (at, number) in [(386, 1000), (398, 3), (410, 2000), (422, 2), (483, 2010)] {
                bytes[at..at + 11].copy_from_slice(format!("{number:011o}").as_bytes());
            }
        };
        let mut archive = header(b"sparse", b'S', 5, map);
        archive.extend_from_slice(b"abcde");
        archive.resize(2 * BLOCK, 0);
        archive.extend(entry(b"next", b'0', b"n"));
        let found = read(&archive).unwrap();
        let mut expected = vec![0; 2010];
        expected[1000..1003].copy_from_slice(b"abc");
        expected[2000..2002].copy_from_slice(b"de");
        assert_eq!((found[0].0.size, &found[0].1), (2010, &expected));
        assert_eq!(found[1].0.path, b"next");
        let wrong = header(b"sparse", b'S', 4, map);
        assert_eq!(error(&wrong), "the map of a sparse file is wrong");
        let pax = entry(b"h", b'x', b"22 GNU.sparse.major=1\n");
        assert!(error(&[pax, entry(b"f", b'0', b"")].concat()).contains("sparse files"));
    }

    #[test]
    fn what_is_not_whole_is_an_error() {
        let archive = [entry(b"l", b'L', &[b'n'; 600]), entry(b"f", b'0', &[1; 700])].concat();
        assert_eq!(read(&archive).unwrap()[0].0.path, [b'n'; 600]);
        for length in 1..archive.len() {
            assert!(read(&archive[..length]).is_err(), "{length} bytes");
        }
        let mut broken = archive.clone();
        broken[3 * BLOCK] ^= 1;
        assert_eq!(error(&broken), "a header has a wrong checksum");
        let twice = [entry(b"l", b'L', b"a"), entry(b"l", b'L', b"a"), archive].concat();
        assert_eq!(error(&twice), "an entry is described twice");
        let alone = [entry(b"l", b'L', b"a"), vec![0; BLOCK]].concat();
        assert_eq!(error(&alone), "it describes an entry that does not come");
    }

    #[test]
    fn what_describes_an_entry_has_a_bound() {
        let bound = "names and attributes of an entry take more than 1048576 bytes";
        let claim = header(b"l", b'L', 0, |bytes| bytes[124..136].fill(b'7'));
        assert_eq!(error(&claim), bound);
        let many = entry(b"g", b'g', b"").repeat(3000);
        assert_eq!(error(&many), bound);
        let each = [entry(b"g", b'g', &[0; 2000]), entry(b"f", b'0', &[0; 2000])].concat();
        assert_eq!(read(&each.repeat(1000)).unwrap().len(), 1000);
    }

    proptest! {
        #[test]
        fn what_another_writer_writes_is_read(
            path in "[a-zé0-9]{1,90}(/[a-z]{1,90}){0,3}", target in "[a-zü]{1,150}",
            uid in 0..u32::MAX, mtime in 0..1_u64 << 40, bytes: Vec<u8>,
        ) {
            let mut archive = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o4711);
            header.set_uid(uid.into());
            header.set_gid(5);
            header.set_mtime(mtime);
            archive.append_data(&mut header, &path, &bytes[..]).unwrap();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            archive.append_link(&mut header, &path, &target).unwrap();
            let found = read(&archive.into_inner().unwrap()).unwrap();
            let numbers = TarNumbers {
                mode: Some(0o4711),
                uid: Some(uid),
                gid: Some(5),
                mtime: Some(mtime as i64),
                device: Some((0, 0)),
            };
            let (path, size) = (path.into_bytes(), bytes.len() as u64);
            let (link, xattrs) = (Vec::new(), BTreeMap::new());
            let file = TarEntry { kind: TarKind::File, path, link, size, numbers, xattrs };
            let link = target.into_bytes();
            let symlink = TarEntry { kind: TarKind::Symlink, link, size: 0, ..file.clone() };
            prop_assert_eq!(found, [(file, bytes), (symlink, Vec::new())]);
        }

        #[test]
        fn any_record_is_read_as_it_was_written(
            name in "[a-z]{1,9}", values in proptest::collection::vec(any::<Vec<u8>>(), 1..4),
        ) {
            let mut archive = tar::Builder::new(Vec::new());
            let names: Vec<_> =
                (0..values.len()).map(|count| format!("SCHILY.xattr.user.{name}{count}")).collect();
            let records = names.iter().map(String::as_str).zip(values.iter().map(Vec::as_slice));
            archive.append_pax_extensions(records).unwrap();
            let mut header = tar::Header::new_ustar();
            header.set_size(0);
            archive.append_data(&mut header, "f", io::empty()).unwrap();
            let found = read(&archive.into_inner().unwrap()).unwrap();
            let found: Vec<_> = found[0].0.xattrs.values().cloned().collect();
            prop_assert_eq!(found, values);
        }

        #[test]
        fn any_bytes_are_survived(
            recipe in proptest::collection::vec(any::<u8>(), 0..90), changes: Vec<(u16, u8)>,
        ) {
            let mut archive = crate::fuzz::archive(&recipe);
            for (at, value) in changes {
                let at = usize::from(at) % archive.len();
                archive[at] = value;
            }
            // Holes may be of any size: they are not read here.
            let mut reader = TarReader::new(&archive[..]);
            while let Ok(Some(_)) = reader.next_entry() {}
        }
    }
}
