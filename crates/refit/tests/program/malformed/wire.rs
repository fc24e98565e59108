//! Requests as bytes, right or not, and the answers to them.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is sent.
#[derive(Default)]
pub(super) struct Sent {
    pub(super) bytes: Vec<u8>,
    pub(super) is_head: bool,
    /// Whether HTTP itself is kept to: then there is an answer, and the connection goes on.
    pub(super) is_framed: bool,
}

impl Sent {
    pub(super) fn shown(&self) -> String {
        shown(&self.bytes)
    }
}

/// The beginning, fit to be printed.
fn shown(bytes: &[u8]) -> String {
    format!("{}", bytes[..bytes.len().min(1500)].escape_ascii()).replace("\\r\\n", "\n    ")
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) location: Option<String>,
    pub(super) body: Vec<u8>,
    is_last: bool,
}

impl Answer {
    pub(super) fn shown(&self) -> String {
        format!("{} {}", self.status, shown(&self.body))
    }
}

/// One client, whose connection is renewed when it has to be.
pub(super) struct Client {
    host: String,
    connection: Option<BufReader<TcpStream>>,
}

impl Client {
    pub(super) fn new(host: &str) -> Self {
        Self { host: host.to_owned(), connection: None }
    }

    /// Sends a request and reads the answer. None came if the connection was closed before.
    pub(super) fn send(&mut self, sent: &Sent) -> std::io::Result<Answer> {
        let is_new = self.connection.is_none();
        let answer = self.exchange(sent);
        let goes_on = sent.is_framed && answer.as_ref().is_ok_and(|answer| !answer.is_last);
        if !goes_on {
            self.connection = None;
        }
        match answer {
            // The server may close a connection at any time between two requests.
            Err(_) if !is_new && sent.is_framed => self.send(sent),
            answer => answer,
        }
    }

    fn exchange(&mut self, sent: &Sent) -> std::io::Result<Answer> {
        if !sent.is_framed {
            self.connection = None;
        }
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => {
                let stream = TcpStream::connect(&self.host)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_nodelay(true)?;
                none.insert(BufReader::new(stream))
            }
        };
        // A server that has refused what it read so far need not read the rest.
        let written = connection.get_mut().write_all(&sent.bytes);
        if !sent.is_framed {
            let _ = connection.get_mut().shutdown(Shutdown::Write);
        }
        let answer = read(connection, sent.is_head);
        if answer.is_err() {
            written?;
        }
        answer
    }
}

fn read(stream: &mut impl BufRead, is_head: bool) -> std::io::Result<Answer> {
    loop {
        let answer = read_one(stream, is_head)?;
        if answer.status != 100 {
            return Ok(answer);
        }
    }
}

fn read_one(stream: &mut impl BufRead, is_head: bool) -> std::io::Result<Answer> {
    let broken = |what: &str| std::io::Error::other(what.to_owned());
    let first = line(stream)?;
    let status = first.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5));
    let status: u16 = status.and_then(|status| status.parse().ok()).ok_or(broken(&first))?;
    let (mut length, mut is_chunked, mut is_last, mut location) = (None, false, false, None);
    loop {
        let header = line(stream)?;
        let Some((name, value)) = header.split_once(':') else { break };
        match (&*name.to_ascii_lowercase(), value.trim()) {
            ("content-length", value) => length = value.parse::<usize>().ok(),
            ("transfer-encoding", "chunked") => is_chunked = true,
            ("connection", "close") => is_last = true,
            ("location", value) => location = Some(value.to_owned()),
            _ => (),
        }
    }
    let mut body = Vec::new();
    match (is_chunked, length) {
        _ if is_head || matches!(status, 204 | 304) => (),
        _ if status == 101 => is_last = true,
        _ if status < 200 => (),
        (true, _) => loop {
            let size = line(stream)?;
            let size = usize::from_str_radix(&size, 16).map_err(|_| broken("a chunk"))?;
            let begin = body.len();
            body.resize(begin + size, 0);
            stream.read_exact(&mut body[begin..])?;
            line(stream)?;
            if size == 0 {
                break;
            }
        },
        (false, Some(length)) => {
            body.resize(length, 0);
            stream.read_exact(&mut body)?;
        }
        (false, None) => {
            is_last = true;
            stream.read_to_end(&mut body)?;
        }
    }
    Ok(Answer { status, location, body, is_last })
}

fn line(stream: &mut impl BufRead) -> std::io::Result<String> {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned())
}
