//! What `lab-peer` prints and how it is run inside a place.

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    dist,
    error::{Error, Result},
    place::Place,
    process::Process,
};

/// What a server says of a request: one line of JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Greeting {
    /// Name of the server that answers.
    pub name: String,
    /// Where the request came from, as the server sees it.
    pub source: SocketAddr,
    /// The server's own address, as the request was addressed to it.
    pub local: SocketAddr,
    /// Bytes of the request (UDP).
    #[serde(default)]
    pub bytes: usize,
    /// The first bytes of the request (UDP).
    #[serde(default)]
    pub echo: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Http,
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Http => "http",
        }
    }
}

/// What became of one request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Answer {
    pub protocol: Protocol,
    pub to: SocketAddr,
    pub answer: Option<Greeting>,
    /// `getpeername` of the asking socket; none on an unconnected one.
    pub peer: Option<SocketAddr>,
    /// `getsockname` of the asking socket.
    pub local: Option<SocketAddr>,
    /// Source of the answer, as `recvfrom` gave it (UDP).
    pub from: Option<SocketAddr>,
    /// The error by name (`ECONNREFUSED`), or `timeout`, `closed`, `garbled`.
    pub error: Option<String>,
    pub micros: u64,
}

impl Answer {
    /// Name of the server that answered.
    pub fn name(&self) -> Option<&str> {
        self.answer.as_ref().map(|answer| answer.name.as_str())
    }

    /// The source address that the server saw.
    pub fn source(&self) -> Option<SocketAddr> {
        self.answer.as_ref().map(|answer| answer.source)
    }

    pub fn is_refused(&self) -> bool {
        self.error.as_deref() == Some("ECONNREFUSED")
    }
}

/// What `lab-peer load` counts.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Load {
    /// Connections opened, answered and closed, one request each.
    pub connections: u64,
    /// Requests on connections that stayed open throughout.
    pub requests: u64,
    /// Connections and requests of both kinds without a right answer.
    pub failed: u64,
    /// Those of them ended by a reset.
    pub resets: u64,
    pub udp_sent: u64,
    pub udp_missing: u64,
    /// UDP answers that came from another pod than the first one.
    pub udp_moved: u64,
    /// The longest wait for any answer.
    pub slowest_micros: u64,
    /// The errors by name, and how often each was met.
    pub errors: std::collections::BTreeMap<String, u64>,
}

/// What `lab-peer exchange` saw of bulk data: bytes before the first wrong one.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Exchange {
    /// Bytes that the server received as they were sent.
    pub sent: u64,
    /// Bytes that the client received as they were sent.
    pub received: u64,
    pub error: Option<String>,
}

impl Exchange {
    /// All of so many bytes each way.
    pub fn whole(bytes: u64) -> Self {
        Self { sent: bytes, received: bytes, error: None }
    }
}

/// A `lab-peer` command line.
pub fn command() -> Command {
    Command::new(dist().join("lab-peer"))
}

/// What is answered at all is answered within this time, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// How to ask; the default waits long, on a connected socket.
#[derive(Clone, Debug, Default)]
pub struct Question {
    pub count: Option<u32>,
    pub timeout: Option<Duration>,
    pub source_port: Option<u16>,
    /// UDP by `sendto`, without a `connect`.
    pub unconnected: bool,
    /// A v4 address by way of a v6 socket.
    pub mapped: bool,
    /// Bytes of a UDP request.
    pub size: Option<usize>,
    /// Bytes of a UDP answer.
    pub answer_size: Option<usize>,
}

/// Asks once and returns what became of it.
pub fn ask(place: &Place, protocol: Protocol, to: SocketAddr) -> Result<Answer> {
    let mut answers = ask_with(place, protocol, to, &Question::default())?;
    Ok(answers.remove(0))
}

/// Asks as told, and returns one answer for each time.
pub fn ask_with(
    place: &Place,
    protocol: Protocol,
    to: SocketAddr,
    question: &Question,
) -> Result<Vec<Answer>> {
    let mut ask = command();
    ask.args(["ask", "--json", protocol.name(), &to.to_string()]);
    ask.arg(format!("--count={}", question.count.unwrap_or(1)));
    let timeout = question.timeout.unwrap_or(PATIENCE);
    ask.arg(format!("--timeout={}", timeout.as_secs_f64()));
    let port = question.source_port.map(|port| format!("--source-port={port}"));
    let size = question.size.map(|size| format!("--size={size}"));
    let answer_size = question.answer_size.map(|size| format!("--answer-size={size}"));
    ask.args([port, size, answer_size].into_iter().flatten());
    ask.args(question.unconnected.then_some("--unconnected"));
    ask.args(question.mapped.then_some("--mapped"));
    let output = place.run(ask)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let answers: Vec<Answer> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<std::result::Result<_, _>>()
        .map_err(|source| Error::Answer { what: text.to_string(), source })?;
    if answers.is_empty() {
        return Err(Error::Command {
            place: place.name.clone(),
            command: format!("lab-peer ask {} {to}", protocol.name()),
            message: String::from_utf8_lossy(&output.stderr).trim().into(),
        });
    }
    Ok(answers)
}

/// Sends bulk data both ways over one connection and returns what came of it.
pub fn exchange(place: &Place, to: SocketAddr, bytes: u64) -> Result<Exchange> {
    let mut exchange = command();
    exchange.arg("exchange").arg(to.to_string()).arg(format!("--bytes={bytes}"));
    let output = place.run(exchange)?;
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text)
        .map_err(|source| Error::Answer { what: format!("{text:?} of an exchange"), source })
}

/// Starts a server named after its place and waits until it listens.
pub fn serve(place: &Place, arguments: &[&str]) -> Result<Process> {
    let mut serve = command();
    serve.args(["serve", "--name", &place.name]).args(arguments);
    serve.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut server = place.spawn(serve)?;
    let mut ready = [0; 6];
    let heard = server.stdout().map(|mut out| std::io::Read::read_exact(&mut out, &mut ready));
    if matches!(heard, Some(Ok(()))) && &ready == b"ready\n" {
        return Ok(server);
    }
    Err(Error::Command {
        place: place.name.clone(),
        command: format!("lab-peer serve {}", arguments.join(" ")),
        message: "it ended before it listened; what it said is on standard error".into(),
    })
}

/// Arguments of a load of TCP and UDP to these places.
pub fn targets(places: impl IntoIterator<Item = SocketAddr>) -> Vec<String> {
    let both = |to| [format!("--tcp={to}"), format!("--udp={to}")];
    places.into_iter().flat_map(both).collect()
}

/// A load that runs while the test does something else.
#[derive(Debug)]
pub struct Loading {
    process: Process,
    place: String,
}

/// Starts a load; it lasts until [`Loading::stop`].
pub fn load(place: &Place, arguments: &[&str]) -> Result<Loading> {
    let mut load = command();
    load.arg("load").args(arguments);
    load_by(place, load)
}

/// The same by a command that hands its input on to `lab-peer load`, and the answer back.
pub fn load_by(place: &Place, mut command: Command) -> Result<Loading> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    Ok(Loading { process: place.spawn(command)?, place: place.name.clone() })
}

impl Loading {
    /// Ends the load, which sends what is under way to its end first, and returns the counts.
    pub fn stop(mut self) -> Result<Load> {
        // The load ends when its input does.
        drop(self.process.stdin());
        let began = Instant::now();
        let output = self
            .process
            .output()
            .map_err(|source| Error::Start { program: "lab-peer".into(), source })?;
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text).map_err(|source| Error::Answer {
            what: format!("{text:?} of the load in {} after {:?}", self.place, began.elapsed()),
            source,
        })
    }
}
