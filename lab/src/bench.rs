//! What `lab-bench` is told and what it tells, and how it is run inside a place.
//!
//! Orders and reports are lines of JSON: a driver lives as long as the benchmark, so that no
//! round pays for the start of a process.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    process::{ChildStdin, ChildStdout, Command, Stdio},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    dist,
    error::{Error, Result},
    place::Place,
    process::Process,
};

/// Ports of a server, one for each kind of round.
pub mod port {
    pub const CONNECT: u16 = 7001;
    pub const LATENCY: u16 = 7002;
    pub const BULK: u16 = 7003;
    /// UDP: the answer says which of the server's addresses was asked.
    pub const ECHO: u16 = 7004;
    /// UDP: datagrams of [`super::FLOOD_BYTES`] are counted, any other is answered with the
    /// count so far, as eight bytes of this machine's order.
    pub const FLOOD: u16 = 7005;

    /// Where each of them listens a second time, for those who come through a Service: no
    /// connection through it has the tuple of one that is made directly.
    pub const fn behind_service(port: u16) -> u16 {
        port + 1_000
    }
}

/// One thing for a driver to do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Opens `count` connections, one after the other, with a byte each way on every one.
    Connect { to: SocketAddrV4, count: u32 },
    /// Sends a byte and awaits a byte, `count` times, on one connection.
    Latency { to: SocketAddrV4, count: u32 },
    /// Sends bytes on one connection, in so many parts of equal size.
    Bulk { to: SocketAddrV4, parts: u32, bytes: u32 },
    /// Sends datagrams of [`FLOOD_BYTES`] one way as fast as they go, in so many parts, and has
    /// the receiver count.
    Flood { to: SocketAddrV4, parts: u32, datagrams: u32 },
    /// Sends datagrams, with a pause between two, until the backend with this address answers.
    Follow { to: SocketAddrV4, until: Ipv4Addr, pause_micros: u64, patience_millis: u64 },
    /// Sends datagrams until each of `count` addresses from `first` on, taken `step` apart,
    /// has answered.
    Scan { first: Ipv4Addr, count: u32, step: u32, port: u16, patience_millis: u64 },
    /// Looks into a pinned table until each of the keys has a row, or none has.
    Rows { table: PathBuf, keys: Vec<Vec<u8>>, present: bool, patience_millis: u64 },
    /// Sends datagrams from `count` ports from `first` on, until each has been answered twice.
    Greet { to: SocketAddrV4, first: u16, count: u16 },
    /// Counts and drops frames like these at a device from now on, in one count with what is caught
    /// elsewhere. What is reported is that count, as of the next.
    Catch { device: String, at: Side, like: Vec<Word> },
    /// Reads how many frames have been caught.
    Count,
    /// Makes frames and hands them to the peer of a device as if its driver had received them: as
    /// fast as they go, or so many a second.
    Shoot { device: String, frame: Frame, millis: u64, rate: Option<u32> },
}

/// Where frames are caught.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// What comes in, before there is a socket buffer.
    Driver,
    /// What leaves, behind all other programs.
    Egress,
}

/// Two bytes of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Word {
    pub at: u16,
    pub is: u16,
}

/// What a frame of [`Order::Shoot`] has in the length of its IP header, and no datagram of
/// [`Order::Greet`] has.
pub const FRAME_IP_LENGTH: u16 = 46;

/// The smallest frames there are, of UDP. Each is of one of the `flows`, by chance, which differ by
/// their source ports, counted from the one in `from`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Frame {
    pub from_mac: [u8; 6],
    pub to_mac: [u8; 6],
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
    /// A power of two.
    pub flows: u16,
}

/// What came of shooting.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Shot {
    pub frames: u64,
    pub nanos: u64,
    /// What it cost the processor that they were made on, and with it all that the kernel does with
    /// them there at once.
    pub cpu_nanos: u64,
}

/// Times of a round, in nanoseconds.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Round {
    /// One for each piece of the round, in the order they were done: ten connections, one
    /// round trip, one part of the bulk, or what a thousand datagrams took that arrived.
    pub pieces: Vec<u64>,
    /// Datagrams that did not arrive.
    #[serde(default)]
    pub lost: u64,
}

/// Connections that make one piece of a round.
pub const CONNECTIONS_A_PIECE: u32 = 10;
/// Datagrams that arrived in one piece of a round.
pub const DATAGRAMS_A_PIECE: u32 = 1_000;
/// What a datagram of a flood carries, without headers.
pub const FLOOD_BYTES: usize = 64;

/// What came of waiting.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    /// On [`clock`], when the last of what was waited for answered.
    pub at: u64,
    pub asked: u64,
    /// Questions without an answer.
    pub silent: u64,
    /// Whether all was seen before patience ended.
    pub complete: bool,
}

/// Nanoseconds of the monotonic clock, which all processes share.
pub fn clock() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes to a timespec that outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// A `lab-bench` command line.
fn command(cpu: Option<usize>) -> Command {
    let mut command = Command::new(dist().join("lab-bench"));
    if let Some(cpu) = cpu {
        command.arg(format!("--cpu={cpu}"));
    }
    command
}

/// Settings by which a place can open thousands of connections a second for as long as it
/// likes: many ports, and no port kept back after its connection is over.
pub fn prepare(place: &Place) -> Result<()> {
    let entries = [
        ("ipv4/ip_local_port_range", "10240 65000"),
        ("ipv4/tcp_max_tw_buckets", "0"),
        // A connection that nobody answers ends the benchmark within seconds.
        ("ipv4/tcp_syn_retries", "2"),
    ];
    place.enter(|| {
        entries.iter().try_for_each(|(name, value)| {
            let path = format!("/proc/sys/net/{name}");
            fs::write(&path, value).map_err(|source| Error::File {
                step: "write",
                path: path.into(),
                source,
            })
        })
    })?
}

/// Starts the server of all kinds of rounds and waits until it listens.
pub fn serve(place: &Place, cpu: Option<usize>) -> Result<Process> {
    let mut serve = command(cpu);
    serve.arg("serve").stdin(Stdio::null()).stdout(Stdio::piped());
    started(place, serve, "serve")
}

/// Starts a command and waits for the word that it is ready.
fn started(place: &Place, command: Command, what: &str) -> Result<Process> {
    let mut process = place.spawn(command)?;
    let mut ready = [0; 6];
    let heard = process.stdout().map(|mut out| io::Read::read_exact(&mut out, &mut ready));
    if matches!(heard, Some(Ok(()))) && &ready == b"ready\n" {
        return Ok(process);
    }
    Err(failed(place, what, "it ended before it was ready"))
}

fn failed(place: &Place, what: &str, message: &str) -> Error {
    Error::Command {
        place: place.name.clone(),
        command: format!("lab-bench {what}"),
        message: format!("{message}; what it said is on standard error"),
    }
}

/// Has the kernel count the runs of every eBPF program and their time, as long as the process
/// lives. Costs each run some nanoseconds.
pub fn count_runs(place: &Place) -> Result<Process> {
    let mut count = command(None);
    count.arg("count-runs").stdin(Stdio::null()).stdout(Stdio::piped());
    started(place, count, "count-runs")
}

/// A client that does as it is told until it is dropped.
#[derive(Debug)]
pub struct Driver {
    place: Place,
    orders: ChildStdin,
    reports: BufReader<ChildStdout>,
    // Dropped last: it kills.
    _process: Process,
}

impl Driver {
    pub fn start(place: &Place, cpu: Option<usize>) -> Result<Self> {
        let mut drive = command(cpu);
        drive.arg("drive").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = place.spawn(drive)?;
        match (process.stdin(), process.stdout()) {
            (Some(orders), Some(reports)) => Ok(Self {
                place: place.clone(),
                orders,
                reports: BufReader::new(reports),
                _process: process,
            }),
            _ => Err(failed(place, "drive", "it has no pipes")),
        }
    }

    /// Gives an order without waiting for what comes of it.
    pub fn order(&mut self, order: &Order) -> Result<()> {
        let mut line = serde_json::to_vec(order).expect("an order is plain data");
        line.push(b'\n');
        self.orders.write_all(&line).map_err(|_| failed(&self.place, "drive", "it has ended"))
    }

    /// What came of the order given last.
    pub fn report<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        let bytes = self.reports.read_line(&mut line);
        if !matches!(bytes, Ok(1..)) {
            return Err(failed(&self.place, "drive", "it ended in the middle of a round"));
        }
        serde_json::from_str(&line)
            .map_err(|source| Error::Answer { what: format!("{line:?} of lab-bench"), source })
    }

    /// A round of connections, round trips, bulk or datagrams.
    pub fn round(&mut self, order: &Order) -> Result<Round> {
        self.order(order)?;
        self.report()
    }

    /// Catches frames from now on, or reads how many there were.
    pub fn caught(&mut self, order: &Order) -> Result<u64> {
        self.order(order)?;
        self.report()
    }

    /// Makes frames.
    pub fn shoot(&mut self, order: &Order) -> Result<Shot> {
        self.order(order)?;
        self.report()
    }

    /// Waits for answers, or for rows.
    pub fn see(&mut self, order: &Order) -> Result<Seen> {
        self.order(order)?;
        self.report()
    }
}
