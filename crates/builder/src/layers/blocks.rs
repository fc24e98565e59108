//! Compression in blocks, on all processors.
//!
//! gzip: each block starts with the end of the one before it as dictionary, so that little is
//! lost against one stream, and the result is one ordinary member. zstd: each block is a frame of
//! its own, which every decoder reads one after the other. The bytes depend on the input alone:
//! not on how it was written, nor on the number of threads.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::mem;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use flate2::{Compress, FlushCompress, Status};
use oci::{Compression, CompressionFormat};

/// Bytes of input in a block. Another size gives other bytes.
const GZIP_BLOCK_SIZE: usize = 1 << 20;
/// Larger, since nothing is known in a frame of what was before it.
const ZSTD_BLOCK_SIZE: usize = 2 << 20;
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
        CompressionFormat::Gzip => format!("gzip-{level}-blocks/1"),
        CompressionFormat::Zstd => format!("zstd-{level}-blocks/1"),
    }
}

/// A writer that compresses what it gets. Holds at most two blocks for each processor.
pub(super) struct BlockWriter<W> {
    out: W,
    codec: Codec,
    block_size: usize,
    block: Vec<u8>,
    dictionary: Vec<u8>,
    /// Blocks under way, the oldest first.
    pending: VecDeque<Receiver<io::Result<Vec<u8>>>>,
    gzip_end: GzipEnd,
}

/// What compresses a block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Codec {
    /// As it is.
    None,
    Gzip(u32),
    Zstd(i32),
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
        let (codec, block_size) = match compression.format {
            CompressionFormat::Uncompressed => (Codec::None, GZIP_BLOCK_SIZE),
            CompressionFormat::Gzip => (Codec::Gzip(compression.level), GZIP_BLOCK_SIZE),
            CompressionFormat::Zstd => {
                let level = i32::try_from(compression.level).map_err(io::Error::other)?;
                (Codec::Zstd(level), ZSTD_BLOCK_SIZE)
            }
        };
        if let Codec::Gzip(_) = codec {
            out.write_all(&GZIP_HEADER)?;
        }
        Ok(Self {
            out,
            codec,
            block_size,
            block: Vec::new(),
            dictionary: Vec::new(),
            pending: VecDeque::new(),
            gzip_end: GzipEnd::default(),
        })
    }

    /// Writes what is left, and the end.
    pub(super) fn finish(mut self) -> io::Result<W> {
        let last = self.take_block(true);
        // A small layer is done sooner here than elsewhere.
        let end = last.compress();
        while let Some(block) = self.pending.pop_front() {
            self.out.write_all(&received(&block)?)?;
        }
        self.out.write_all(&end?)?;
        if let Codec::Gzip(_) = self.codec {
            self.out.write_all(&self.gzip_end.checksum.finalize().to_le_bytes())?;
            self.out.write_all(&self.gzip_end.size.to_le_bytes())?;
        }
        Ok(self.out)
    }

    fn take_block(&mut self, is_last: bool) -> Block {
        let (codec, input) = (self.codec, mem::take(&mut self.block));
        let mut dictionary = Vec::new();
        if let Codec::Gzip(_) = codec {
            self.gzip_end.checksum.update(&input);
            self.gzip_end.size = self.gzip_end.size.wrapping_add(input.len() as u32);
            let keep = input.len().saturating_sub(DICTIONARY_SIZE);
            dictionary = mem::replace(&mut self.dictionary, input[keep..].to_vec());
        }
        Block { codec, input, dictionary, is_last }
    }

    fn send_block(&mut self) -> io::Result<()> {
        let block = self.take_block(false);
        let pool = Pool::get();
        if self.pending.len() > pool.threads
            && let Some(oldest) = self.pending.pop_front()
        {
            self.out.write_all(&received(&oldest)?)?;
        }
        let (sender, receiver) = sync_channel(1);
        pool.jobs.send((block, sender)).map_err(|_no_threads| gone())?;
        self.pending.push_back(receiver);
        Ok(())
    }
}

impl<W: Write> Write for BlockWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.codec == Codec::None {
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
    codec: Codec,
    input: Vec<u8>,
    dictionary: Vec<u8>,
    is_last: bool,
}

impl Block {
    fn compress(self) -> io::Result<Vec<u8>> {
        match self.codec {
            Codec::None => Ok(self.input),
            Codec::Gzip(level) => self.deflate(level),
            // A new compressor for each block, here too.
            Codec::Zstd(level) => zstd::bulk::compress(&self.input, level),
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

fn received(block: &Receiver<io::Result<Vec<u8>>>) -> io::Result<Vec<u8>> {
    block.recv().map_err(|_dropped| gone())?
}

fn gone() -> io::Error {
    io::Error::other("the threads that compress are gone")
}

type Job = (Block, SyncSender<io::Result<Vec<u8>>>);

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
        let _given_up = reply.send(block.compress());
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
        writer.finish().unwrap()
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
