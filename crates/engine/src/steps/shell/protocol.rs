//! What the client in the agent shell and the engine say to each other.
//!
//! A client asks once, answers what it is asked, and passes on what it is told. Each message is a
//! byte for its kind, its length in four bytes, the highest first, and so many bytes.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Where the client finds the engine.
pub(super) const SOCKET: &str = "/.refit/run.sock";

/// What stands before the bytes of a message.
const HEADER_SIZE: usize = 5;
/// A message has at most so many bytes; arguments and variables are within it.
pub(super) const MESSAGE_SIZE_MAX: usize = 1 << 20;

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) program: Program,
    pub(super) arguments: Vec<String>,
    /// For those that a command names without a value.
    pub(super) environment: BTreeMap<String, String>,
}

/// Which of the shell's commands a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Program {
    /// The step's own: an image, and what it gets as arguments.
    Step,
    Docker,
    Acr,
}

impl Program {
    pub(super) const ALL: [Self; 3] = [Self::Step, Self::Docker, Self::Acr];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Docker => "docker",
            Self::Acr => "acr",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// From the client: what it wants.
    Request(Bytes),
    /// From the client: what it was asked for.
    Answer(Bytes),
    /// From the client: why it cannot do what it was asked for.
    Refusal(Bytes),
    Stdout(Bytes),
    Stderr(Bytes),
    /// Give me your standard input.
    AskInput,
    /// Give me the file with logins; empty if there is none.
    AskLogins,
    /// Write the file with logins, and say so.
    KeepLogins(Bytes),
    /// The last one: the exit code.
    Exit(u8),
}

impl Message {
    pub(super) fn encode(&self) -> Vec<u8> {
        let code;
        let (kind, bytes): (u8, &[u8]) = match self {
            Self::Request(bytes) => (b'R', bytes),
            Self::Answer(bytes) => (b'A', bytes),
            Self::Refusal(bytes) => (b'F', bytes),
            Self::Stdout(bytes) => (b'O', bytes),
            Self::Stderr(bytes) => (b'E', bytes),
            Self::AskInput => (b'I', &[]),
            Self::AskLogins => (b'L', &[]),
            Self::KeepLogins(bytes) => (b'K', bytes),
            Self::Exit(exit) => {
                code = [*exit];
                (b'X', &code)
            }
        };
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
        [&[kind], &size[..], bytes].concat()
    }

    fn decode(kind: u8, bytes: Vec<u8>) -> io::Result<Self> {
        let bytes = Bytes::from(bytes);
        Ok(match (kind, &*bytes) {
            (b'R', _) => Self::Request(bytes),
            (b'A', _) => Self::Answer(bytes),
            (b'F', _) => Self::Refusal(bytes),
            (b'O', _) => Self::Stdout(bytes),
            (b'E', _) => Self::Stderr(bytes),
            (b'I', []) => Self::AskInput,
            (b'L', []) => Self::AskLogins,
            (b'K', _) => Self::KeepLogins(bytes),
            (b'X', [code]) => Self::Exit(*code),
            _ => return Err(io::Error::other("there is no such message")),
        })
    }

    /// Reads a message, as the client does.
    pub(super) fn read(mut from: impl Read) -> io::Result<Self> {
        let mut header = [0; HEADER_SIZE];
        from.read_exact(&mut header)?;
        let mut bytes = vec![0; size(header)?];
        from.read_exact(&mut bytes)?;
        Self::decode(header[0], bytes)
    }

    pub(super) fn write(&self, mut to: impl Write) -> io::Result<()> {
        to.write_all(&self.encode())
    }

    /// Reads a message, as the engine does.
    pub(super) async fn receive(mut from: impl AsyncRead + Unpin) -> io::Result<Self> {
        let mut header = [0; HEADER_SIZE];
        from.read_exact(&mut header).await?;
        // The memory is taken as bytes come, not as somebody says that they will.
        let size = size(header)?;
        let mut bytes = Vec::new();
        (&mut from).take(size as u64).read_to_end(&mut bytes).await?;
        match bytes.len() == size {
            true => Self::decode(header[0], bytes),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn size([_, size @ ..]: [u8; HEADER_SIZE]) -> io::Result<usize> {
    match usize::try_from(u32::from_be_bytes(size)) {
        Ok(size) if size <= MESSAGE_SIZE_MAX => Ok(size),
        _ => Err(io::Error::other(format!("a message has more than {MESSAGE_SIZE_MAX} bytes"))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_are_read_as_they_were_written() {
        let bytes = Bytes::from_static(b"some\0bytes");
        for message in [
            Message::Request(bytes.clone()),
            Message::Answer(bytes.clone()),
            Message::Refusal(Bytes::new()),
            Message::Stdout(bytes.clone()),
            Message::Stderr(bytes.clone()),
            Message::AskInput,
            Message::AskLogins,
            Message::KeepLogins(bytes),
            Message::Exit(125),
        ] {
            assert_eq!(Message::read(message.encode().as_slice()).unwrap(), message);
        }
    }

    #[test]
    fn what_is_too_large_or_no_message_is_refused() {
        let large = Message::Stdout(vec![0; MESSAGE_SIZE_MAX + 1].into()).encode();
        let error = Message::read(large.as_slice()).unwrap_err();
        assert_eq!(error.to_string(), "a message has more than 1048576 bytes");
        assert!(Message::read(&b"?\0\0\0\0"[..]).is_err());
        assert!(Message::read(&b"X\0\0\0\0"[..]).is_err());
        assert!(Message::read(&b"A\0\0\0\x02a"[..]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(message) = Message::read(bytes.as_slice()) {
                let written = message.encode();
                prop_assert_eq!(&written, &bytes[..written.len()]);
            }
            let _any = serde_json::from_slice::<Request>(&bytes);
        }
    }
}
