//! Compression in blocks, on all processors.
//!
//! gzip: each block starts with the end of the one before it as dictionary, so that little is
//! lost against one stream, and the result is one ordinary member. zstd: each block is a frame of
//! its own, which every decoder reads one after the other. The bytes depend on the input alone:
//! not on how it was written, nor on the number of threads.
//!
//! Blocks end where the names of a layer's entries say so, so that behind a change they soon end
//! in the same places again. Those that an earlier layer has are taken from it: the same bytes,
//! without the work.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Write};
use std::mem;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use flate2::{Compress, FlushCompress, Status};
use oci::{Compression, CompressionFormat, Digest};
use serde::{Deserialize, Serialize};

use crate::cache::KeyHasher;

/// Bytes of input in a block, at most. Another size gives other bytes.
const GZIP_BLOCK_SIZE: usize = 1 << 20;
/// Larger, since nothing is known in a frame of what was before it.
const ZSTD_BLOCK_SIZE: usize = 2 << 20;
/// Blocks of a layer that are noted. Further ones are compressed each time.
const NOTED_MAX: usize = 1 << 15;
/// How far back gzip can refer.
const DICTIONARY_SIZE: usize = 32 << 10;
/// More threads than this wait for the one that hashes.
const THREADS_MAX: usize = 16;
/// Magic number, deflate, no flags, no time, no hint, unknown system.
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// Names the compressor and its version: other bytes are another layer (decision 8).
pub(crate) fn compressor(compression: Compression) -> String {
    let Compression { format, level } = compression;
    match format {
        CompressionFormat::Uncompressed => "uncompressed".to_owned(),
        CompressionFormat::Gzip => format!("gzip-{level}-blocks/2"),
        CompressionFormat::Zstd => format!("zstd-{level}-blocks/2"),
    }
}

/// A writer that compresses what it gets. Holds at most two blocks for each processor.
pub(super) struct BlockWriter<W> {
    out: W,
    compression: Compression,
    block_size: usize,
    block: Vec<u8>,
    dictionary: Vec<u8>,
    /// Blocks under way, the oldest first.
    pending: VecDeque<Receiver<io::Result<Packed>>>,
    gzip_end: GzipEnd,
    /// Absent if blocks are not noted.
    noted: Option<BlockMap>,
    earlier: Option<Arc<EarlierBlocks>>,
    /// Bytes written that came from it.
    reused: u64,
}

/// The blocks that a layer's blob consists of, in their order, from the first on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BlockMap {
    blocks: Vec<NotedBlock>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct NotedBlock {
    /// Of all that its bytes depend on.
    key: Digest,
    size: u32,
    /// Of its bytes.
    digest: Digest,
}

impl BlockMap {
    /// Whether it is of use: one block or two change with whatever changes.
    pub(crate) fn is_worth_keeping(&self) -> bool {
        self.blocks.len() > 2
    }
}

/// The blocks of an earlier layer.
pub(crate) struct EarlierBlocks {
    blob: File,
    /// By key: where they are, and what they must be.
    blocks: HashMap<Digest, (u64, NotedBlock)>,
}

impl EarlierBlocks {
    pub(crate) fn new(blob: File, map: BlockMap, compression: Compression) -> Self {
        let mut at = match compression.format {
            CompressionFormat::Gzip => GZIP_HEADER.len() as u64,
            _ => 0,
        };
        let blocks = map.blocks.into_iter().map(|block| {
            let start = at;
            at += u64::from(block.size);
            (block.key.clone(), (start, block))
        });
        Self { blob, blocks: blocks.collect() }
    }

    /// The bytes of a block, unless the layer does not have it, or not any more.
    fn get(&self, key: &Digest) -> Option<(Vec<u8>, Digest)> {
        let (start, block) = self.blocks.get(key)?;
        let size = usize::try_from(block.size).ok().filter(|size| *size <= 2 * ZSTD_BLOCK_SIZE)?;
        let mut bytes = vec![0; size];
        self.blob.read_exact_at(&mut bytes, *start).ok()?;
        (Digest::of(&bytes) == block.digest).then(|| (bytes, block.digest.clone()))
    }
}

/// A compressed block.
struct Packed {
    bytes: Vec<u8>,
    /// Absent if blocks are not noted.
    noted: Option<NotedBlock>,
    is_reused: bool,
}

/// What a gzip member ends with.
#[derive(Default)]
struct GzipEnd {
    checksum: crc32fast::Hasher,
    /// Of the input, as the format has it: modulo 2^32.
    size: u32,
}

impl<W: Write> BlockWriter<W> {
    pub(super) fn new(mut out: W, compression: Compression) -> io::Result<Self> {
        if compression.format == CompressionFormat::Gzip {
            out.write_all(&GZIP_HEADER)?;
        }
        let block_size = match compression.format {
            CompressionFormat::Zstd => ZSTD_BLOCK_SIZE,
            _ => GZIP_BLOCK_SIZE,
        };
        Ok(Self {
            out,
            compression,
            block_size,
            block: Vec::new(),
            dictionary: Vec::new(),
            pending: VecDeque::new(),
            gzip_end: GzipEnd::default(),
            noted: None,
            earlier: None,
            reused: 0,
        })
    }

    /// Notes what blocks there are, and takes those from an earlier layer that it has.
    pub(super) fn noting(mut self, earlier: Option<Arc<EarlierBlocks>>) -> Self {
        let is_compressed = self.compression.format != CompressionFormat::Uncompressed;
        self.noted = is_compressed.then(BlockMap::default);
        self.earlier = earlier;
        self
    }

    /// Tells that an entry of a layer comes, and may end a block: always before a file that is
    /// larger than one, and else by chance, but the same one each time for the same name.
    pub(super) fn begin_entry(&mut self, name: &[u8], size: u64) -> io::Result<()> {
        let max = self.block_size as u64;
        let is_chosen = u64::from(crc32fast::hash(name)) * (max / 2) < (size.min(max) + 512) << 32;
        let is_large = self.block.len() >= self.block_size / 4;
        match size >= max || (is_large && is_chosen) {
            true if !self.block.is_empty() => self.send_block(),
            _ => Ok(()),
        }
    }

    /// Writes what is left, and the end.
    pub(super) fn finish(mut self) -> io::Result<Finished<W>> {
        let last = self.take_block(true);
        // A small layer is done sooner here than elsewhere.
        let end = last.pack();
        while let Some(block) = self.pending.pop_front() {
            self.write_packed(received(&block)?)?;
        }
        self.write_packed(end?)?;
        if self.compression.format == CompressionFormat::Gzip {
            self.out.write_all(&self.gzip_end.checksum.finalize().to_le_bytes())?;
            self.out.write_all(&self.gzip_end.size.to_le_bytes())?;
        }
        Ok(Finished { out: self.out, blocks: self.noted, reused: self.reused })
    }

    fn take_block(&mut self, is_last: bool) -> Block {
        let (compression, input) = (self.compression, mem::take(&mut self.block));
        let mut dictionary = Vec::new();
        if compression.format == CompressionFormat::Gzip {
            self.gzip_end.checksum.update(&input);
            self.gzip_end.size = self.gzip_end.size.wrapping_add(input.len() as u32);
            let keep = input.len().saturating_sub(DICTIONARY_SIZE);
            dictionary = mem::replace(&mut self.dictionary, input[keep..].to_vec());
        }
        let (is_noted, earlier) = (self.noted.is_some(), self.earlier.clone());
        Block { compression, input, dictionary, is_last, is_noted, earlier }
    }

    fn send_block(&mut self) -> io::Result<()> {
        let block = self.take_block(false);
        let pool = Pool::get();
        if self.pending.len() > pool.threads
            && let Some(oldest) = self.pending.pop_front()
        {
            self.write_packed(received(&oldest)?)?;
        }
        let (sender, receiver) = sync_channel(1);
        pool.jobs.send((block, sender)).map_err(|_no_threads| gone())?;
        self.pending.push_back(receiver);
        Ok(())
    }

    fn write_packed(&mut self, packed: Packed) -> io::Result<()> {
        self.out.write_all(&packed.bytes)?;
        if packed.is_reused {
            self.reused += packed.bytes.len() as u64;
        }
        if let (Some(map), Some(noted)) = (&mut self.noted, packed.noted)
            && map.blocks.len() < NOTED_MAX
        {
            map.blocks.push(noted);
        }
        Ok(())
    }
}

/// What a writer leaves.
pub(super) struct Finished<W> {
    pub(super) out: W,
    /// Absent if blocks were not noted.
    pub(super) blocks: Option<BlockMap>,
    /// Bytes that came from an earlier layer.
    pub(super) reused: u64,
}

impl<W: Write> Write for BlockWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.compression.format == CompressionFormat::Uncompressed {
            return self.out.write(bytes);
        }
        // Only when more comes, so that the last block is never empty without need.
        if self.block.len() == self.block_size {
            self.send_block()?;
        }
        let taken = bytes.len().min(self.block_size - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // Flushing would change the compressed bytes.
    }
}

/// Input that is compressed for itself.
struct Block {
    compression: Compression,
    input: Vec<u8>,
    dictionary: Vec<u8>,
    is_last: bool,
    is_noted: bool,
    earlier: Option<Arc<EarlierBlocks>>,
}

impl Block {
    /// Takes the block from an earlier layer, or compresses it.
    fn pack(self) -> io::Result<Packed> {
        if !self.is_noted {
            return Ok(Packed { bytes: self.compress()?, noted: None, is_reused: false });
        }
        let key = self.key();
        let found = self.earlier.as_ref().and_then(|earlier| earlier.get(&key));
        let is_reused = found.is_some();
        let (bytes, digest) = match found {
            Some(found) => found,
            None => {
                let bytes = self.compress()?;
                let digest = Digest::of(&bytes);
                (bytes, digest)
            }
        };
        let size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        Ok(Packed { bytes, noted: Some(NotedBlock { key, size, digest }), is_reused })
    }

    /// Of all that the compressed bytes depend on.
    fn key(&self) -> Digest {
        let mut key = KeyHasher::new("block");
        key.text("compressor", &compressor(self.compression));
        key.number("last", u64::from(self.is_last));
        key.bytes("dictionary", &self.dictionary);
        key.bytes("input", &self.input);
        key.finish()
    }

    fn compress(self) -> io::Result<Vec<u8>> {
        let Compression { format, level } = self.compression;
        match format {
            CompressionFormat::Uncompressed => Ok(self.input),
            CompressionFormat::Gzip => self.deflate(level),
            // A new compressor for each block, here too.
            CompressionFormat::Zstd => {
                zstd::bulk::compress(&self.input, i32::try_from(level).map_err(io::Error::other)?)
            }
        }
    }

    fn deflate(&self, level: u32) -> io::Result<Vec<u8>> {
        // A new one for each block: one that is used again gives other bytes now and then.
        let mut compressor = Compress::new(flate2::Compression::new(level), false);
        if !self.dictionary.is_empty() {
            compressor.set_dictionary(&self.dictionary)?;
        }
        let flush = if self.is_last { FlushCompress::Finish } else { FlushCompress::Sync };
        let mut output = Vec::with_capacity(self.input.len() / 2 + 1024);
        loop {
            let done = usize::try_from(compressor.total_in()).map_err(io::Error::other)?;
            let status = compressor.compress_vec(&self.input[done..], &mut output, flush)?;
            let is_taken = compressor.total_in() == self.input.len() as u64;
            let has_room = output.len() < output.capacity();
            match status {
                Status::StreamEnd => return Ok(output),
                _ if !self.is_last && is_taken && has_room => return Ok(output),
                _ => output.reserve(self.input.len() / 4 + 1024),
            }
        }
    }
}

fn received(block: &Receiver<io::Result<Packed>>) -> io::Result<Packed> {
    block.recv().map_err(|_dropped| gone())?
}

fn gone() -> io::Error {
    io::Error::other("the threads that compress are gone")
}

type Job = (Block, SyncSender<io::Result<Packed>>);

/// The threads that compress, shared by all layers of the process.
struct Pool {
    jobs: Sender<Job>,
    threads: usize,
}

impl Pool {
    fn get() -> &'static Self {
        static POOL: OnceLock<Pool> = OnceLock::new();
        POOL.get_or_init(|| {
            let wanted = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
            let (jobs, queue) = channel::<Job>();
            let queue = Arc::new(Mutex::new(queue));
            let started = (0..wanted).filter(|_| {
                let queue = Arc::clone(&queue);
                let named = thread::Builder::new().name("compress".to_owned());
                named.spawn(move || work(&queue)).is_ok()
            });
            Self { threads: started.count(), jobs }
        })
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((block, reply)) = job else { return };
        // Nobody waits for the blocks of a layer that was given up.
        let _given_up = reply.send(block.pack());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::*;

    const GZIP: Compression = Compression { format: CompressionFormat::Gzip, level: 6 };
    const ZSTD: Compression = Compression { format: CompressionFormat::Zstd, level: 3 };

    /// Half-compressible bytes.
    fn bytes(size: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 60) as u8
        };
        (0..size).map(next).collect()
    }

    fn compressed(input: &[u8], compression: Compression, piece: usize) -> Vec<u8> {
        let mut writer = BlockWriter::new(Vec::new(), compression).unwrap();
        for piece in input.chunks(piece) {
            writer.write_all(piece).unwrap();
        }
        writer.finish().unwrap().out
    }

    fn plain(compressed: &[u8], compression: Compression) -> Vec<u8> {
        let mut plain = Vec::new();
        match compression.format {
            CompressionFormat::Uncompressed => plain.extend_from_slice(compressed),
            // The decoder of a single member: there is to be no second one.
            CompressionFormat::Gzip => {
                flate2::read::GzDecoder::new(compressed).read_to_end(&mut plain).unwrap();
            }
            CompressionFormat::Zstd => plain = zstd::decode_all(compressed).unwrap(),
        }
        plain
    }

    #[test]
    fn block_ends_are_in_the_right_place() {
        for (compression, block) in [(GZIP, GZIP_BLOCK_SIZE), (ZSTD, ZSTD_BLOCK_SIZE)] {
            for size in [0, 1, block - 1, block, block + 1, 3 * block] {
                let input = bytes(size, 7);
                let whole = compressed(&input, compression, size.max(1));
                assert!(plain(&whole, compression) == input, "{size} bytes come back");
            }
        }
    }

    #[test]
    fn every_level_comes_back() {
        let input = bytes(GZIP_BLOCK_SIZE + (GZIP_BLOCK_SIZE >> 2), 5);
        let formats =
            [CompressionFormat::Uncompressed, CompressionFormat::Gzip, CompressionFormat::Zstd];
        for format in formats {
            for level in format.levels() {
                let compression = Compression { format, level };
                let written = compressed(&input, compression, 1 << 16);
                assert!(plain(&written, compression) == input, "{compression:?}");
            }
        }
    }

    #[test]
    fn blocks_cost_little() {
        let input = bytes(8 << 20, 11);
        let mut single = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        single.write_all(&input).unwrap();
        let (single, ours) = (single.finish().unwrap().len(), compressed(&input, GZIP, 1 << 16));
        assert!(ours.len() * 100 <= single * 101, "{} are not {single} and 1 %", ours.len());
    }

    /// Some hundred files, with a change to one of them and one more.
    fn files(is_changed: bool) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> = (0..400)
            .map(|number| (format!("file-{number}"), bytes(9000 + 31 * number, number as u64)))
            .collect();
        files.insert(200, ("large".to_owned(), bytes((5 << 20) + 77, 9)));
        if is_changed {
            files[100].1 = bytes(20_000, 1000);
            files.insert(50, ("new".to_owned(), bytes(3000, 1001)));
        }
        files
    }

    fn written(
        files: &[(String, Vec<u8>)],
        compression: Compression,
        earlier: Option<EarlierBlocks>,
    ) -> Finished<Vec<u8>> {
        let writer = BlockWriter::new(Vec::new(), compression).unwrap();
        let mut writer = writer.noting(earlier.map(Arc::new));
        for (name, content) in files {
            writer.begin_entry(name.as_bytes(), content.len() as u64).unwrap();
            writer.write_all(content).unwrap();
        }
        writer.finish().unwrap()
    }

    fn earlier(layer: &[u8], map: BlockMap, compression: Compression) -> EarlierBlocks {
        let mut blob = tempfile::tempfile().unwrap();
        blob.write_all(layer).unwrap();
        EarlierBlocks::new(blob, map, compression)
    }

    #[test]
    fn blocks_without_a_change_are_taken_from_the_earlier_layer() {
        for compression in [GZIP, ZSTD] {
            let first = written(&files(false), compression, None);
            let map = first.blocks.unwrap();
            assert!(map.is_worth_keeping() && first.reused == 0);
            let alone = written(&files(true), compression, None);
            let reusing = earlier(&first.out, map.clone(), compression);
            let reused = written(&files(true), compression, Some(reusing));
            assert!(reused.out == alone.out, "the bytes depend on the input alone");
            assert_eq!(reused.blocks, alone.blocks);
            let (taken, all) = (reused.reused, reused.out.len() as u64);
            assert!(taken * 100 > all * 60, "{taken} of {all} bytes of {compression:?}");
            // Damage is a miss.
            let mut damaged = first.out.clone();
            for byte in damaged.iter_mut().step_by(100) {
                *byte ^= 1;
            }
            let damaged = earlier(&damaged, map.clone(), compression);
            let remade = written(&files(true), compression, Some(damaged));
            assert!(remade.out == alone.out && remade.reused == 0);
            let short = earlier(&first.out[..all as usize / 3], map, compression);
            let remade = written(&files(true), compression, Some(short));
            assert!(remade.out == alone.out && remade.reused < taken);
            // Another level has other blocks.
            let other = Compression { level: 1, ..compression };
            let map = written(&files(false), compression, None).blocks.unwrap();
            let other_level = written(&files(true), other, Some(earlier(&first.out, map, other)));
            assert_eq!(other_level.reused, 0);
        }
    }

    #[test]
    fn blocks_of_many_files_cost_little() {
        let files = files(false);
        let input: Vec<u8> = files.iter().flat_map(|(_, content)| content.clone()).collect();
        let mut single = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        single.write_all(&input).unwrap();
        let (single, ours) = (single.finish().unwrap().len(), written(&files, GZIP, None).out);
        assert!(ours.len() * 100 <= single * 101, "{} are not {single} and 1 %", ours.len());
        let single = zstd::encode_all(&input[..], 3).unwrap().len();
        let ours = written(&files, ZSTD, None).out.len();
        assert!(ours * 100 <= single * 104, "{ours} are not {single} and 4 %");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 32))]
        #[test]
        fn what_went_in_comes_out_whatever_the_pieces(
            size in 0..3 * GZIP_BLOCK_SIZE, piece in 1..2 * GZIP_BLOCK_SIZE, seed: u64,
        ) {
            let input = bytes(size, seed);
            for compression in [GZIP, ZSTD] {
                let written = compressed(&input, compression, piece);
                prop_assert!(plain(&written, compression) == input);
                prop_assert!(written == compressed(&input, compression, 4096));
            }
        }
    }
}
