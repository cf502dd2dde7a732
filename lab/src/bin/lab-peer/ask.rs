//! The client: one request after the other, and what became of each.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use lab::peer::{Answer, Greeting, Protocol};

use crate::socket::{Origin, error_name};

// Each is a flag of the command line.
#[expect(clippy::struct_excessive_bools)]
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    protocol: Kind,
    /// ADDRESS:PORT, v6 in brackets
    to: SocketAddr,
    /// How often to ask
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// Seconds to wait for an answer
    #[arg(long, default_value_t = 2.0)]
    timeout: f64,
    /// Seconds to wait for an answer once there is a connection; as for the connection if unset
    #[arg(long)]
    patience: Option<f64>,
    /// Ask from this port
    #[arg(long)]
    source_port: Option<u16>,
    /// UDP: send without connecting the socket
    #[arg(long, conflicts_with = "connected")]
    unconnected: bool,
    /// UDP: connect the socket first (the default)
    #[arg(long)]
    connected: bool,
    /// Reach a v4 address by a v6 socket
    #[arg(long)]
    mapped: bool,
    /// UDP: bytes of the request
    #[arg(long, default_value_t = 0)]
    size: usize,
    /// UDP: bytes of the answer
    #[arg(long, default_value_t = 0)]
    answer_size: usize,
    /// One JSON document a line
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Kind {
    Tcp,
    Udp,
    Http,
}

impl From<Kind> for Protocol {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Tcp => Self::Tcp,
            Kind::Udp => Self::Udp,
            Kind::Http => Self::Http,
        }
    }
}

impl From<Protocol> for Kind {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
            Protocol::Http => Self::Http,
        }
    }
}

impl Arguments {
    /// One question by a connected socket, with nothing asked of its bytes.
    pub(crate) fn plain(protocol: Protocol, to: SocketAddr, timeout: Duration) -> Self {
        Self {
            protocol: protocol.into(),
            to,
            count: 1,
            timeout: timeout.as_secs_f64(),
            // What is connected is no longer dropped, and a busy server may take its time.
            patience: Some(30.0),
            source_port: None,
            unconnected: false,
            connected: true,
            mapped: false,
            size: 0,
            answer_size: 0,
            json: false,
        }
    }

    pub(crate) fn with_source_port(self, port: u16) -> Self {
        Self { source_port: Some(port), ..self }
    }
}

/// Fails if any request did.
pub(crate) fn run(arguments: &Arguments) -> io::Result<ExitCode> {
    let mut failed = false;
    for number in 0..arguments.count {
        let answer = ask(arguments, number);
        failed |= answer.error.is_some();
        let text = if arguments.json {
            serde_json::to_string(&answer).expect("an answer is plain data")
        } else {
            sentence(&answer)
        };
        writeln!(io::stdout(), "{text}")?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn sentence(answer: &Answer) -> String {
    let millis = Duration::from_micros(answer.micros).as_secs_f64() * 1000.0;
    match (&answer.answer, &answer.error) {
        (Some(greeting), None) => {
            format!(
                "{} saw {} at {} ({millis:.1} ms)",
                greeting.name, greeting.source, greeting.local
            )
        }
        (_, error) => format!("{} ({millis:.1} ms)", error.as_deref().unwrap_or("no answer")),
    }
}

/// Asks once; the number stands in what is sent.
pub(crate) fn ask(arguments: &Arguments, number: u32) -> Answer {
    let [timeout, patience] = [arguments.timeout, arguments.patience.unwrap_or(arguments.timeout)]
        .map(|seconds| Duration::from_secs_f64(seconds.clamp(0.001, 3600.0)));
    let (source_port, mapped) = (arguments.source_port, arguments.mapped);
    let origin = Origin { source_port, mapped, timeout, patience };
    let mut answer = Answer {
        protocol: arguments.protocol.into(),
        to: arguments.to,
        answer: None,
        peer: None,
        local: None,
        from: None,
        error: None,
        micros: 0,
    };
    let began = Instant::now();
    let result = match arguments.protocol {
        Kind::Tcp => tcp(origin, &mut answer, number),
        Kind::Http => http(origin, &mut answer),
        Kind::Udp => udp(origin, &mut answer, arguments, number),
    };
    answer.micros = began.elapsed().as_micros() as u64;
    match result {
        Ok(greeting) => answer.answer = Some(greeting),
        Err(err) => answer.error = Some(error_name(&err)),
    }
    answer
}

/// Reads the greeting, and sends one line and reads it back, so that data goes both ways.
fn tcp(origin: Origin, answer: &mut Answer, number: u32) -> io::Result<Greeting> {
    let stream = connect(origin, answer)?;
    let mut reader = BufReader::new(&stream);
    let greeting = parse(&read_line(&mut reader)?)?;
    let line = format!("line {number}\n");
    (&stream).write_all(line.as_bytes())?;
    if read_line(&mut reader)? != line {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(greeting)
}

fn http(origin: Origin, answer: &mut Answer) -> io::Result<Greeting> {
    let mut stream = connect(origin, answer)?;
    let host = answer.to;
    write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => parse(body),
        Some(_) => Err(io::ErrorKind::InvalidData.into()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn connect(origin: Origin, answer: &mut Answer) -> io::Result<TcpStream> {
    let stream = origin.tcp(answer.to)?;
    answer.peer = stream.peer_addr().ok();
    answer.local = stream.local_addr().ok();
    Ok(stream)
}

fn udp(
    origin: Origin,
    answer: &mut Answer,
    arguments: &Arguments,
    number: u32,
) -> io::Result<Greeting> {
    let target = origin.target(answer.to);
    let socket = origin.udp(answer.to)?;
    let mut request = format!("answer {} {number} ", arguments.answer_size).into_bytes();
    request.resize(arguments.size.max(request.len()), b'.');
    if arguments.unconnected {
        socket.send_to(&request, target)?;
    } else {
        socket.connect(target)?;
        socket.send(&request)?;
        answer.peer = socket.peer_addr().ok();
    }
    answer.local = socket.local_addr().ok();
    let mut buffer = vec![0; 65_536];
    let (bytes, from) = socket.recv_from(&mut buffer)?;
    answer.from = Some(from);
    parse(&String::from_utf8_lossy(&buffer[..bytes]))
}

pub(crate) fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    match reader.read_line(&mut line)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line),
    }
}

pub(crate) fn parse(text: &str) -> io::Result<Greeting> {
    serde_json::from_str(text.trim()).map_err(|_| io::ErrorKind::InvalidData.into())
}
