//! What masking costs a log: `cargo run --release -p control --example log_throughput DIR`.
//!
//! Prints MB/s of output that gets into the files of a log, without secrets and with 1, 100 and 1,000
//! of them, in large pieces and line by line: medians of rounds that alternate. The time is that of the
//! processor, of all threads: what other processes do meanwhile hardly counts.

#![expect(clippy::print_stdout, reason = "the figures are what it is for")]
#![expect(clippy::unwrap_used, reason = "a measurement that fails is no measurement")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use control::{Clock, EventKind, LogKey, Logs, Mask, RunStatus, Stream};

const SIZE: usize = 100_000_000;
const ROUNDS: usize = 7;
const SECRETS: [usize; 4] = [0, 1, 100, 1000];

#[tokio::main]
async fn main() {
    let parent = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let lines: Vec<String> = (0..200_000_u64).map(line).collect();
    let pieces: Vec<String> = lines.chunks(400).map(<[String]>::concat).collect();
    measure(&parent, "pieces of 32 KB", &pieces).await;
    measure(&parent, "lines", &lines).await;
}

/// What builds print.
fn line(number: u64) -> String {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    match number % 3 {
        0 => format!("#12 {number}.5    Compiling crate-{} v1.{}.0\n", mixed >> 50, number % 50),
        1 => {
            format!("#12 {number}.6 [{}/900] cc -O2 -c src/{mixed:016x}.c -o out.o\n", number % 900)
        }
        _ => format!("#12 {number}.7 warning: unused variable: `result` in function main\n"),
    }
}

fn secret(number: usize) -> String {
    let mixed = (number as u64 + 1).wrapping_mul(0xd134_2543_de82_ef95);
    format!("{mixed:x}/{:x}+{}", mixed.rotate_left(17) ^ 0x5bd1, mixed % 1009)
}

async fn measure(parent: &Path, name: &str, pieces: &[String]) {
    let secrets: Vec<String> = (0..1000).map(secret).collect();
    let masks = SECRETS.map(|count| Mask::new(secrets[..count].iter().map(String::as_str)));
    let mut took = [const { Vec::new() }; SECRETS.len()];
    for _ in 0..ROUNDS {
        for (mask, took) in masks.iter().zip(&mut took) {
            took.push(write(parent, mask.clone(), pieces).await);
        }
    }
    let medians = took.map(|mut took| {
        took.sort();
        took[ROUNDS / 2].as_secs_f64()
    });
    for (count, median) in SECRETS.iter().zip(medians) {
        let (speed, ratio) = (SIZE as f64 / 1e6 / median, median / medians[0]);
        println!("{name}, {count} secrets: {speed:.0} MB/s, {ratio:.3} of the time without");
    }
}

/// The time that all threads of this process have had.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // User and system time are the 12th and 13th member after the name, in hundredths of a second.
    let members = stat.rsplit_once(')').unwrap().1.split_whitespace();
    let hundredths: u64 =
        members.skip(11).take(2).map(|member| member.parse::<u64>().unwrap()).sum();
    Duration::from_millis(hundredths * 10)
}

/// How long it takes until all is in the files.
async fn write(parent: &Path, mask: Mask, pieces: &[String]) -> Duration {
    let folder = tempfile::tempdir_in(parent).unwrap();
    let logs = Logs::new(folder.path().to_owned(), u64::MAX, Clock::new(|| 1_700_000_000_000));
    let key = LogKey { registry: "local".parse().unwrap(), run: "c01".parse().unwrap() };
    let log = logs.open(&key, mask).await.unwrap();
    let (start, mut written) = (processor_time(), 0);
    for piece in pieces.iter().cycle() {
        if written >= SIZE {
            break;
        }
        written += piece.len();
        let text = piece.clone();
        log.append(EventKind::Output { step: 1, stream: Stream::Stdout, text }).await;
    }
    log.written().await;
    let took = processor_time() - start;
    log.finish(RunStatus::Succeeded, None, Duration::ZERO).await;
    took
}
