//! A name server on the bridge's address, which asks the host's name servers.
//!
//! It exists because a container cannot reach a name server that listens on the host's
//! loopback, as many do. It reads what it passes on only for containers that may not connect to
//! everywhere: they hear of no names but those they may connect to.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode};
use hickory_proto::rr::RData;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Subnet;
use super::bound::{Bound, Bounds};

/// Where containers ask.
pub(super) const PORT: u16 = 53;
const QUESTIONS_MAX: usize = 256;
const CONNECTIONS_MAX: usize = 64;
const DATAGRAM_SIZE_MAX: usize = 65_535;
const HEADER_SIZE: usize = 12;
const ANSWER_WAIT: Duration = Duration::from_secs(4);
const IDLE_WAIT: Duration = Duration::from_secs(10);
const SERVERS_MAX: usize = 3;
const CONFIGURATION: &str = "/etc/resolv.conf";
const CONFIGURATION_SIZE_MAX: usize = 64 << 10;

/// The two sockets of a name server, on one port.
pub(super) struct Sockets {
    datagrams: UdpSocket,
    connections: TcpListener,
}

impl Sockets {
    /// Opens them on the bridge's address: on the usual port, or on a free one where another
    /// name server has it on all addresses.
    pub(super) async fn open(subnet: Subnet) -> io::Result<Self> {
        let mut result = Self::open_at(subnet, PORT).await;
        for _ in 0..8 {
            match &result {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    result = Self::open_at(subnet, 0).await;
                }
                _ => break,
            }
        }
        result
    }

    async fn open_at(subnet: Subnet, port: u16) -> io::Result<Self> {
        let datagrams = UdpSocket::bind((subnet.gateway(), port)).await?;
        let connections = TcpListener::bind(datagrams.local_addr()?).await?;
        Ok(Self { datagrams, connections })
    }

    pub(super) fn port(&self) -> io::Result<u16> {
        Ok(self.datagrams.local_addr()?.port())
    }

    /// Answers questions of containers in `subnet` until the returned workers are aborted.
    pub(super) fn serve(self, subnet: Subnet, bounds: &Bounds) -> Vec<JoinHandle<()>> {
        vec![
            tokio::spawn(serve_datagrams(Arc::new(self.datagrams), subnet, bounds.clone())),
            tokio::spawn(serve_connections(self.connections, subnet, bounds.clone())),
        ]
    }
}

/// The container that asks, if it is one of ours.
fn container(client: SocketAddr, subnet: Subnet) -> Option<Ipv4Addr> {
    match client.ip() {
        IpAddr::V4(address) if subnet.contains(address) => Some(address),
        _ => None,
    }
}

/// Answers what a container asks, if it may ask that.
async fn answer(
    question: &[u8],
    bound: Option<Arc<Bound>>,
    ask: impl AsyncFnOnce(&[u8]) -> Option<Vec<u8>>,
) -> Vec<u8> {
    let Some(bound) = bound else {
        return ask(question).await.unwrap_or_else(|| failure(question, SERVER_FAILURE));
    };
    let Some((name, asked)) = read(question) else { return failure(question, FORMAT_ERROR) };
    if !bound.may_ask(&name) {
        return failure(question, NO_SUCH_NAME);
    }
    let Some(answer) = ask(&asked).await else { return failure(question, SERVER_FAILURE) };
    let Some(addresses) = addresses_of(&answer) else { return failure(question, SERVER_FAILURE) };
    // The container hears of an address when the firewall knows it.
    match bound.admit(name, addresses).await {
        Ok(()) => answer,
        Err(error) => {
            tracing::debug!(error, "a container's name is not let through");
            failure(question, SERVER_FAILURE)
        }
    }
}

/// The one name that a message asks for, and the question alone, written anew: nothing else that a
/// container wrote is passed on.
fn read(question: &[u8]) -> Option<(String, Vec<u8>)> {
    let message = Message::from_vec(question).ok()?;
    let is_question = message.message_type() == MessageType::Query;
    let [query] = message.queries() else { return None };
    let name = query.name().to_ascii();
    // A label with a dot in it would look like two.
    if !is_question || message.op_code() != OpCode::Query || name.contains('\\') {
        return None;
    }
    let mut asked = Message::new();
    asked.set_id(message.id()).set_recursion_desired(true).add_query(query.clone());
    Some((name, asked.to_vec().ok()?))
}

/// The IPv4 addresses that an answer tells; nothing if it cannot be read.
fn addresses_of(answer: &[u8]) -> Option<Vec<Ipv4Addr>> {
    let message = Message::from_vec(answer).ok()?;
    let addresses = message.answers().iter().filter_map(|record| match record.data() {
        RData::A(address) => Some(address.0),
        _ => None,
    });
    Some(addresses.collect())
}

async fn serve_datagrams(socket: Arc<UdpSocket>, subnet: Subnet, bounds: Bounds) {
    let free = Arc::new(Semaphore::new(QUESTIONS_MAX));
    let mut buffer = vec![0; DATAGRAM_SIZE_MAX];
    loop {
        let Ok((size, client)) = socket.recv_from(&mut buffer).await else { continue };
        let Some(address) = container(client, subnet).filter(|_| size >= HEADER_SIZE) else {
            continue;
        };
        // With too many questions open, a client has to ask again.
        let Ok(permit) = Arc::clone(&free).try_acquire_owned() else { continue };
        let question = buffer[..size].to_vec();
        let socket = Arc::clone(&socket);
        let bound = bounds.of(address);
        tokio::spawn(async move {
            let ask = async |question: &[u8]| ask_by_datagram(question).await;
            let answer = answer(&question, bound, ask).await;
            let _client_gone = socket.send_to(&answer, client).await;
            drop(permit);
        });
    }
}

async fn ask_by_datagram(question: &[u8]) -> Option<Vec<u8>> {
    for server in servers() {
        let asked = timeout(ANSWER_WAIT, ask_one(question, server)).await;
        if let Ok(Ok(answer)) = asked {
            return Some(answer);
        }
    }
    None
}

async fn ask_one(question: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let local: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((local, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut answer = vec![0; DATAGRAM_SIZE_MAX];
    loop {
        let size = socket.recv(&mut answer).await?;
        // Anything else is late, or forged.
        if size >= HEADER_SIZE && answer[..2] == question[..2] {
            answer.truncate(size);
            return Ok(answer);
        }
    }
}

const FORMAT_ERROR: u8 = 1;
const SERVER_FAILURE: u8 = 2;
const NO_SUCH_NAME: u8 = 3;

/// An answer to a question that is none, for one of the reasons above.
fn failure(question: &[u8], reason: u8) -> Vec<u8> {
    let mut answer = question.to_vec();
    if let Some([high, low]) = answer.get_mut(2..4) {
        *high |= 0x80;
        *low = (*low & 0xf0) | reason;
    }
    answer
}

async fn serve_connections(listener: TcpListener, subnet: Subnet, bounds: Bounds) {
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((connection, client)) => {
                let Some(address) = container(client, subnet) else { continue };
                let bound = bounds.of(address);
                tokio::spawn(async move {
                    let _ended = serve_connection(connection, bound).await;
                    drop(permit);
                });
            }
            // Out of files, most likely: others have to end first.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn serve_connection(mut client: TcpStream, bound: Option<Arc<Bound>>) -> io::Result<()> {
    loop {
        let question = timeout(IDLE_WAIT, read_message(&mut client)).await??;
        let ask = async |question: &[u8]| {
            for server in servers() {
                let asked = timeout(ANSWER_WAIT, ask_by_connection(question, server)).await;
                if let Ok(Ok(found)) = asked {
                    return Some(found);
                }
            }
            None
        };
        let answer = answer(&question, bound.clone(), ask).await;
        timeout(IDLE_WAIT, write_message(&mut client, &answer)).await??;
    }
}

async fn ask_by_connection(question: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut connection = TcpStream::connect(server).await?;
    write_message(&mut connection, question).await?;
    read_message(&mut connection).await
}

async fn read_message(connection: &mut TcpStream) -> io::Result<Vec<u8>> {
    let size = connection.read_u16().await?;
    let mut message = vec![0; size.into()];
    connection.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(connection: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let size = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(message.len() + 2);
    bytes.extend_from_slice(&size.to_be_bytes());
    bytes.extend_from_slice(message);
    connection.write_all(&bytes).await
}

/// The host's name servers, read each time: networks come and go.
fn servers() -> Vec<SocketAddr> {
    parse_servers(&configuration())
}

/// The host's `/etc/resolv.conf`, or nothing.
pub(crate) fn configuration() -> String {
    let mut text = std::fs::read_to_string(CONFIGURATION).unwrap_or_default();
    if text.len() > CONFIGURATION_SIZE_MAX {
        text.clear();
    }
    text
}

fn parse_servers(configuration: &str) -> Vec<SocketAddr> {
    let words = configuration.lines().map(|line| line.split_ascii_whitespace());
    words
        .filter_map(|mut words| {
            words.next().filter(|word| *word == "nameserver")?;
            let address: IpAddr = words.next()?.parse().ok()?;
            Some(SocketAddr::new(address, PORT))
        })
        .take(SERVERS_MAX)
        .collect()
}

/// What a container's `/etc/resolv.conf` says: our name server, and the host's search list.
pub(crate) fn configuration_for(server: Ipv4Addr, host: &str) -> String {
    let mut text = format!("nameserver {server}\n");
    for line in host.lines() {
        if matches!(line.split_ascii_whitespace().next(), Some("search" | "domain" | "options")) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_asks_the_bridge_and_keeps_the_search_list() {
        let host = "# comment\nnameserver 127.0.0.53\nsearch a.example b.example\noptions edns0\n";
        assert_eq!(parse_servers(host), ["127.0.0.53:53".parse().unwrap()]);
        expect_test::expect![[r#"
            nameserver 10.89.0.1
            search a.example b.example
            options edns0
        "#]]
        .assert_eq(&configuration_for(Ipv4Addr::new(10, 89, 0, 1), host));
    }

    #[test]
    fn a_question_is_read_and_written_anew() {
        let mut question = Message::new();
        question.set_id(7).set_recursion_desired(true);
        let name =
            |labels: &[&[u8]]| hickory_proto::rr::Name::from_labels(labels.to_vec()).unwrap();
        let query = |name| hickory_proto::op::Query::query(name, hickory_proto::rr::RecordType::A);
        question.add_query(query(name(&[b"Build", b"corp", b"example"])));
        let plain = question.to_vec().unwrap();
        let tail = [&plain[..], b"something else"].concat();
        assert_eq!(read(&plain), Some(("Build.corp.example.".to_owned(), plain.clone())));
        assert_eq!(read(&tail).map(|(_, asked)| asked), Some(plain.clone()));
        let mut two = question.clone();
        two.add_query(query(name(&[b"other"])));
        let mut dotted = Message::new();
        dotted.add_query(query(name(&[b"x.build", b"corp", b"example"])));
        let mut answer = question.clone();
        answer.set_message_type(MessageType::Response);
        let mut update = question;
        update.set_op_code(OpCode::Update);
        for message in [two, dotted, answer, update] {
            assert_eq!(read(&message.to_vec().unwrap()), None);
        }
        for size in 0..plain.len() {
            assert_eq!(read(&plain[..size]), None);
        }
    }

    #[test]
    fn a_failure_keeps_the_question() {
        let question = [0xab, 0xcd, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1];
        let answer = failure(&question, SERVER_FAILURE);
        assert_eq!((&answer[..4], &answer[4..]), (&[0xab, 0xcd, 0x81, 0x02][..], &question[4..]));
    }
}
