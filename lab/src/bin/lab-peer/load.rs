//! A steady load through which a restart must not be seen: new connections, connections that
//! stay, and numbered datagrams of one flow. What went wrong is counted by name.

use std::{
    collections::BTreeSet,
    io::{self, BufReader, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use clap::Args;
use lab::peer::Load;

use crate::{
    ask::{parse, read_line},
    socket::{Origin, error_name},
};

#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// Where to open connections
    #[arg(long)]
    tcp: Vec<SocketAddr>,
    /// Where to send datagrams
    #[arg(long)]
    udp: Vec<SocketAddr>,
    /// End after this time; without it, when standard input ends
    #[arg(long)]
    seconds: Option<f64>,
    /// New connections a second and address; none for 0
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Connections that stay open, for each address
    #[arg(long, default_value_t = 8)]
    lasting: u32,
    /// Requests a second on each connection that stays
    #[arg(long, default_value_t = 100)]
    requests: u32,
    /// Datagrams a second and address
    #[arg(long, default_value_t = 500)]
    datagrams: u32,
    /// Send datagrams by `sendto`, without a `connect`
    #[arg(long)]
    unconnected: bool,
    /// Seconds to wait for an answer before it counts as failed
    #[arg(long, default_value_t = 5.0)]
    timeout: f64,
}

/// What all threads share.
struct Run {
    stop: AtomicBool,
    counts: Mutex<Load>,
    origin: Origin,
}

impl Run {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn count(&self, change: impl FnOnce(&mut Load)) {
        change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn answered(&self, began: Instant, change: impl FnOnce(&mut Load)) {
        let micros = began.elapsed().as_micros() as u64;
        self.count(|counts| {
            counts.slowest_micros = counts.slowest_micros.max(micros);
            change(counts);
        });
    }

    fn failed(&self, err: &io::Error) {
        let name = error_name(err);
        self.count(|counts| {
            counts.failed += 1;
            counts.resets += u64::from(matches!(name.as_str(), "ECONNRESET" | "EPIPE"));
            *counts.errors.entry(name).or_default() += 1;
        });
    }
}

/// Prints the counts as JSON and fails if anything was lost.
pub(crate) fn run(arguments: &Arguments) -> io::Result<ExitCode> {
    let timeout = Duration::from_secs_f64(arguments.timeout.clamp(0.001, 3600.0));
    let run = Arc::new(Run {
        stop: AtomicBool::new(false),
        counts: Mutex::new(Load::default()),
        origin: Origin { source_port: None, mapped: false, timeout, patience: timeout },
    });
    let threads = start(arguments, &run);
    wait(arguments.seconds);
    run.stop.store(true, Ordering::Relaxed);
    for thread in threads {
        let _ = thread.join();
    }
    let counts = run.counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let text = serde_json::to_string(&counts).expect("counts are plain data");
    writeln!(io::stdout(), "{text}")?;
    let clean = counts.failed == 0 && counts.udp_missing == 0;
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn wait(seconds: Option<f64>) {
    match seconds {
        Some(seconds) => thread::sleep(Duration::from_secs_f64(seconds.max(0.0))),
        None => {
            let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        }
    }
}

fn start(arguments: &Arguments, run: &Arc<Run>) -> Vec<JoinHandle<()>> {
    let mut threads = Vec::new();
    for &to in &arguments.tcp {
        let (open, rate) = (Arc::clone(run), arguments.rate);
        if rate != 0 {
            threads.push(thread::spawn(move || connect_again_and_again(&open, to, rate)));
        }
        for _ in 0..arguments.lasting {
            let (lasting, rate) = (Arc::clone(run), arguments.requests);
            threads.push(thread::spawn(move || keep_asking(&lasting, to, rate)));
        }
    }
    for &to in &arguments.udp {
        let (numbered, arguments) = (Arc::clone(run), arguments.clone());
        threads.push(thread::spawn(move || send_numbers(&numbered, to, &arguments)));
    }
    threads
}

/// Gives each turn its time, without catching up on a slow one by a burst.
struct Pace {
    interval: Duration,
    next: Instant,
}

impl Pace {
    fn new(rate: u32) -> Self {
        Self { interval: Duration::from_secs(1) / rate.max(1), next: Instant::now() }
    }

    fn turn(&mut self) {
        let now = Instant::now();
        thread::sleep(self.next.saturating_duration_since(now));
        self.next = self.next.max(now) + self.interval;
    }
}

fn connect_again_and_again(run: &Run, to: SocketAddr, rate: u32) {
    let mut pace = Pace::new(rate);
    while run.goes_on() {
        pace.turn();
        let began = Instant::now();
        match one_connection(run, to) {
            Ok(()) => run.answered(began, |counts| counts.connections += 1),
            Err(err) => run.failed(&err),
        }
    }
}

fn one_connection(run: &Run, to: SocketAddr) -> io::Result<()> {
    let stream = run.origin.tcp(to)?;
    let mut reader = BufReader::new(&stream);
    parse(&read_line(&mut reader)?)?;
    echo(&stream, &mut reader, 0)
}

fn echo(mut stream: &TcpStream, reader: &mut BufReader<&TcpStream>, number: u64) -> io::Result<()> {
    let line = format!("line {number}\n");
    stream.write_all(line.as_bytes())?;
    if read_line(reader)? == line { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// One connection for as long as the load lasts; opened again, after it was counted, if it breaks.
fn keep_asking(run: &Run, to: SocketAddr, rate: u32) {
    let mut pace = Pace::new(rate);
    while run.goes_on() {
        pace.turn();
        if let Err(err) = ask_until_the_end(run, to, &mut pace) {
            run.failed(&err);
        }
    }
}

fn ask_until_the_end(run: &Run, to: SocketAddr, pace: &mut Pace) -> io::Result<()> {
    let stream = run.origin.tcp(to)?;
    let mut reader = BufReader::new(&stream);
    parse(&read_line(&mut reader)?)?;
    let mut number = 0;
    while run.goes_on() {
        pace.turn();
        let began = Instant::now();
        number += 1;
        echo(&stream, &mut reader, number)?;
        run.answered(began, |counts| counts.requests += 1);
    }
    Ok(())
}

fn send_numbers(run: &Arc<Run>, to: SocketAddr, arguments: &Arguments) {
    let connect = |socket: UdpSocket| {
        if arguments.unconnected { Ok(socket) } else { socket.connect(to).map(|()| socket) }
    };
    let socket = match run.origin.udp(to).and_then(connect) {
        Ok(socket) => socket,
        Err(err) => return run.failed(&err),
    };
    let sent = AtomicU64::new(0);
    let finished = AtomicBool::new(false);
    thread::scope(|scope| {
        let receiver = scope.spawn(|| count_answers(run, &socket, to, &sent, &finished));
        let mut pace = Pace::new(arguments.datagrams);
        while run.goes_on() {
            pace.turn();
            let number = sent.fetch_add(1, Ordering::Relaxed);
            let text = format!("number {number}");
            let done = if arguments.unconnected {
                socket.send_to(text.as_bytes(), to)
            } else {
                socket.send(text.as_bytes())
            };
            if let Err(err) = done {
                run.failed(&err);
            }
        }
        finished.store(true, Ordering::Relaxed);
        let answered = receiver.join().unwrap_or(0);
        let sent = sent.load(Ordering::Relaxed);
        run.count(|counts| {
            counts.udp_sent += sent;
            counts.udp_missing += sent.saturating_sub(answered);
        });
    });
}

/// Counts the numbers that came back, each once, until all have or nothing comes any more. One
/// that comes from another address than it was sent to has been moved, too.
fn count_answers(
    run: &Run,
    socket: &UdpSocket,
    to: SocketAddr,
    sent: &AtomicU64,
    finished: &AtomicBool,
) -> u64 {
    let _ = socket.set_read_timeout(Some(Duration::from_millis(500)));
    let mut seen = BTreeSet::new();
    let mut first = None;
    let mut buffer = [0; 2048];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((bytes, from)) => {
                let Ok(greeting) = parse(&String::from_utf8_lossy(&buffer[..bytes])) else {
                    continue;
                };
                seen.extend(
                    greeting.echo.strip_prefix("number ").and_then(|n| n.parse::<u64>().ok()),
                );
                let first = first.get_or_insert_with(|| greeting.name.clone());
                if *first != greeting.name || from != to {
                    run.count(|counts| counts.udp_moved += 1);
                }
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                if finished.load(Ordering::Relaxed) {
                    break;
                }
            }
            // A refusal is told to the socket once for each datagram; the number stays missing.
            Err(err) => run.failed(&err),
        }
        let all = seen.len() as u64 == sent.load(Ordering::Relaxed);
        if finished.load(Ordering::Relaxed) && all {
            break;
        }
    }
    seen.len() as u64
}
