//! Agents that answer here, with keys that the build was given (draft-ietf-sshm-ssh-agent).
//!
//! They list their keys and sign. Nothing else is answered: keys cannot be read, added, removed or
//! locked.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, duplex};
use tokio::sync::Semaphore;

use super::key::{Fields, RsaHash, SshKey, string};
use super::{AgentConnection, SshAgents};

/// A message has at most so many bytes; OpenSSH's agent takes no more.
const MESSAGE_SIZE_MAX: usize = 256 << 10;

/// Bytes that wait between a process and its agent.
const BUFFER_SIZE: usize = 4096;

/// Requests that all agents of a build answer at once.
const REQUESTS_MAX: usize = 2;

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;

/// Flags of a request to sign.
const RSA_SHA2_256: u32 = 2;
const RSA_SHA2_512: u32 = 4;

/// Keys by the ids of the agents that have them.
#[derive(Debug)]
pub struct KeyAgents {
    agents: BTreeMap<String, Arc<[SshKey]>>,
    places: Arc<Semaphore>,
}

impl KeyAgents {
    pub fn new(agents: BTreeMap<String, Vec<SshKey>>) -> Self {
        let agents = agents.into_iter().map(|(id, keys)| (id, keys.into())).collect();
        Self { agents, places: Arc::new(Semaphore::new(REQUESTS_MAX)) }
    }
}

#[async_trait]
impl SshAgents for KeyAgents {
    fn has(&self, id: &str) -> bool {
        self.agents.contains_key(id)
    }

    async fn connect(&self, id: &str) -> io::Result<Box<dyn AgentConnection>> {
        let keys = Arc::clone(self.agents.get(id).ok_or(io::ErrorKind::NotFound)?);
        let (process, agent) = duplex(BUFFER_SIZE);
        let places = Arc::clone(&self.places);
        // It ends with the other end of the connection.
        tokio::spawn(async move {
            if let Err(error) = serve(agent, keys, &places).await {
                tracing::debug!(%error, "a connection to an ssh agent ended early");
            }
        });
        Ok(Box::new(process))
    }
}

/// Answers requests one after another, as agents do, until there are no more.
async fn serve(
    mut connection: impl AsyncRead + AsyncWrite + Unpin,
    keys: Arc<[SshKey]>,
    places: &Semaphore,
) -> io::Result<()> {
    while let Some(request) = read(&mut connection).await? {
        let _place = places.acquire().await.map_err(io::Error::other)?;
        let keys = Arc::clone(&keys);
        let answered = tokio::task::spawn_blocking(move || answer(&keys, &request));
        let answer = answered.await.map_err(io::Error::other)?;
        connection.write_all(&string(&answer)).await?;
        connection.flush().await?;
    }
    Ok(())
}

/// Reads a message; nothing at the end.
async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut header = [0; 4];
    if from.read(&mut header[..1]).await? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut header[1..]).await?;
    let length = usize::try_from(u32::from_be_bytes(header)).map_err(io::Error::other)?;
    if !(1..=MESSAGE_SIZE_MAX).contains(&length) {
        return Err(io::Error::other("a message to an ssh agent is empty or too large"));
    }
    let mut message = vec![0; length];
    from.read_exact(&mut message).await?;
    Ok(Some(message))
}

/// What an agent with these keys says to a request.
fn answer(keys: &[SshKey], request: &[u8]) -> Vec<u8> {
    let answer = match request.split_first() {
        Some((&REQUEST_IDENTITIES, _)) => Some(identities(keys)),
        Some((&SIGN_REQUEST, rest)) => sign(keys, rest),
        _ => None,
    };
    answer.unwrap_or_else(|| vec![FAILURE])
}

fn identities(keys: &[SshKey]) -> Vec<u8> {
    let count = u32::try_from(keys.len()).unwrap_or(u32::MAX).to_be_bytes();
    let listed = keys.iter().flat_map(|key| [key.public(), key.comment().as_bytes()]);
    [&[IDENTITIES_ANSWER], &count[..]].concat().into_iter().chain(listed.flat_map(string)).collect()
}

fn sign(keys: &[SshKey], request: &[u8]) -> Option<Vec<u8>> {
    let mut fields = Fields(request);
    let (public, data, flags) = (fields.string()?, fields.string()?, fields.number()?);
    let hash = match (flags & RSA_SHA2_256 != 0, flags & RSA_SHA2_512 != 0) {
        (true, _) => Some(RsaHash::Sha256),
        (false, true) => Some(RsaHash::Sha512),
        (false, false) => None,
    };
    let key = keys.iter().find(|key| key.public() == public)?;
    Some([&[SIGN_RESPONSE], &string(&key.sign(data, hash)?)[..]].concat())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH
-----END PRIVATE KEY-----";

    fn keys() -> Vec<SshKey> {
        vec![SshKey::parse(KEY.as_bytes()).unwrap()]
    }

    fn sign_request(public: &[u8]) -> Vec<u8> {
        [&[SIGN_REQUEST][..], &string(public), &string(b"data"), &[0; 4]].concat()
    }

    #[test]
    fn keys_are_listed_and_sign() {
        let keys = keys();
        let public = keys[0].public();
        let listed = [&[IDENTITIES_ANSWER, 0, 0, 0, 1][..], &string(public), &string(b"")].concat();
        assert_eq!(answer(&keys, &[REQUEST_IDENTITIES]), listed);
        let signature = string(&keys[0].sign(b"data", None).unwrap());
        let signed = [&[SIGN_RESPONSE][..], &signature].concat();
        assert_eq!(answer(&keys, &sign_request(public)), signed);
        for wrong in [sign_request(b"other"), vec![SIGN_REQUEST], vec![SIGN_REQUEST, 255, 0]] {
            assert_eq!(answer(&keys, &wrong), [FAILURE]);
        }
    }

    #[tokio::test]
    async fn an_agent_answers_until_nobody_asks() {
        let agents = KeyAgents::new([("default".to_owned(), keys())].into());
        assert!(agents.has("default") && !agents.has("other"));
        assert!(agents.connect("other").await.is_err());
        let mut connection = agents.connect("default").await.unwrap();
        let requests = [string(&[REQUEST_IDENTITIES]), string(&[17])].concat();
        connection.write_all(&requests).await.unwrap();
        connection.shutdown().await.unwrap();
        let mut answers = Vec::new();
        connection.read_to_end(&mut answers).await.unwrap();
        let listed = answer(&keys(), &[REQUEST_IDENTITIES]);
        assert_eq!(answers, [string(&listed), string(&[FAILURE])].concat());
    }

    #[tokio::test]
    async fn what_is_too_large_or_has_no_end_ends_the_connection() {
        let agents = KeyAgents::new([("default".to_owned(), keys())].into());
        for bytes in [vec![0; 4], vec![255; 4], vec![0, 4, 0, 1], vec![0, 0, 0, 2, 11], vec![0]] {
            let mut connection = agents.connect("default").await.unwrap();
            connection.write_all(&bytes).await.unwrap();
            connection.shutdown().await.unwrap();
            assert_eq!(connection.read(&mut [0]).await.unwrap(), 0, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_asked_a_key_is_only_listed_or_signs(request: Vec<u8>) {
            let answer = answer(&keys(), &request);
            let listed = request.first() == Some(&REQUEST_IDENTITIES);
            prop_assert_eq!(answer[0], if listed { IDENTITIES_ANSWER } else { FAILURE });
        }
    }
}
