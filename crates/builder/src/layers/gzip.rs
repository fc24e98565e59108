//! gzip in blocks that are compressed on all processors.
//!
//! Each block starts with the end of the one before it as dictionary, so that little is lost
//! against one stream, and the result is one ordinary gzip member. Its bytes depend on the
//! input alone: not on how it was written, nor on the number of threads.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::mem;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use flate2::{Compress, Compression, FlushCompress, Status};

/// Bytes of input in a block. Another size gives other bytes.
const BLOCK_SIZE: usize = 1 << 20;
/// How far back the format can refer.
const DICTIONARY_SIZE: usize = 32 << 10;
const LEVEL: u32 = 6;
/// More threads than this wait for the one that hashes.
const THREADS_MAX: usize = 16;
/// Magic number, deflate, no flags, no time, no hint, unknown system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// A writer that compresses what it gets. Holds at most two blocks for each processor.
pub(super) struct BlockGzip<W> {
    out: W,
    block: Vec<u8>,
    dictionary: Vec<u8>,
    /// Blocks under way, the oldest first.
    pending: VecDeque<Receiver<io::Result<Vec<u8>>>>,
    checksum: crc32fast::Hasher,
    /// Of the input, as the format has it: modulo 2^32.
    size: u32,
}

impl<W: Write> BlockGzip<W> {
    pub(super) fn new(mut out: W) -> io::Result<Self> {
        out.write_all(&HEADER)?;
        Ok(Self {
            out,
            block: Vec::new(),
            dictionary: Vec::new(),
            pending: VecDeque::new(),
            checksum: crc32fast::Hasher::new(),
            size: 0,
        })
    }

    /// Ends the member.
    pub(super) fn finish(mut self) -> io::Result<W> {
        let last = self.take_block(FlushCompress::Finish);
        // A small layer is done sooner here than elsewhere.
        let end = last.compress();
        while let Some(block) = self.pending.pop_front() {
            self.out.write_all(&received(&block)?)?;
        }
        self.out.write_all(&end?)?;
        self.out.write_all(&self.checksum.finalize().to_le_bytes())?;
        self.out.write_all(&self.size.to_le_bytes())?;
        Ok(self.out)
    }

    fn take_block(&mut self, flush: FlushCompress) -> Block {
        let input = mem::take(&mut self.block);
        self.checksum.update(&input);
        self.size = self.size.wrapping_add(input.len() as u32);
        let keep = input.len().saturating_sub(DICTIONARY_SIZE);
        let dictionary = mem::replace(&mut self.dictionary, input[keep..].to_vec());
        Block { input, dictionary, flush }
    }

    fn send_block(&mut self) -> io::Result<()> {
        let block = self.take_block(FlushCompress::Sync);
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

impl<W: Write> Write for BlockGzip<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Only when more comes, so that the last block is never empty without need.
        if self.block.len() == BLOCK_SIZE {
            self.send_block()?;
        }
        let taken = bytes.len().min(BLOCK_SIZE - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // Flushing would change the compressed bytes.
    }
}

/// Input that is compressed for itself.
struct Block {
    input: Vec<u8>,
    dictionary: Vec<u8>,
    flush: FlushCompress,
}

impl Block {
    fn compress(&self) -> io::Result<Vec<u8>> {
        // A new one for each block: one that is used again gives other bytes now and then.
        let mut compressor = Compress::new(Compression::new(LEVEL), false);
        if !self.dictionary.is_empty() {
            compressor.set_dictionary(&self.dictionary)?;
        }
        let mut output = Vec::with_capacity(self.input.len() / 2 + 1024);
        loop {
            let done = usize::try_from(compressor.total_in()).map_err(io::Error::other)?;
            let status = compressor.compress_vec(&self.input[done..], &mut output, self.flush)?;
            let is_taken = compressor.total_in() == self.input.len() as u64;
            let has_room = output.len() < output.capacity();
            match (status, self.flush) {
                (Status::StreamEnd, _) => return Ok(output),
                (_, FlushCompress::Sync) if is_taken && has_room => return Ok(output),
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

    /// Half-compressible bytes.
    fn bytes(size: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 60) as u8
        };
        (0..size).map(next).collect()
    }

    fn compressed(input: &[u8], piece: usize) -> Vec<u8> {
        let mut writer = BlockGzip::new(Vec::new()).unwrap();
        for piece in input.chunks(piece) {
            writer.write_all(piece).unwrap();
        }
        writer.finish().unwrap()
    }

    fn plain(compressed: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        // The decoder of a single member: there is to be no second one.
        flate2::read::GzDecoder::new(compressed).read_to_end(&mut plain).unwrap();
        plain
    }

    #[test]
    fn block_ends_are_in_the_right_place() {
        for size in [0, 1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE] {
            let input = bytes(size, 7);
            let whole = compressed(&input, size.max(1));
            assert!(plain(&whole) == input, "{size} bytes come back");
        }
    }

    #[test]
    fn blocks_cost_little() {
        let input = bytes(8 * BLOCK_SIZE, 11);
        let mut single = flate2::write::GzEncoder::new(Vec::new(), Compression::new(LEVEL));
        single.write_all(&input).unwrap();
        let (single, ours) = (single.finish().unwrap().len(), compressed(&input, 1 << 16).len());
        assert!(ours * 100 <= single * 101, "{ours} bytes are not more than {single} and 1 %");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 32))]
        #[test]
        fn what_went_in_comes_out_whatever_the_pieces(
            size in 0..3 * BLOCK_SIZE, piece in 1..2 * BLOCK_SIZE, seed: u64,
        ) {
            let input = bytes(size, seed);
            let written = compressed(&input, piece);
            prop_assert!(plain(&written) == input);
            prop_assert!(written == compressed(&input, 4096));
        }
    }
}
