//! Bulk data in both directions of one connection at once, compared byte by byte: what offloads
//! and checksums could spoil, and counts of bytes would not show.

use std::{
    io::{self, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::ExitCode,
    thread,
    time::Duration,
};

use clap::Args;
use lab::peer::Exchange;

use crate::{
    ask::read_line,
    socket::{Origin, error_name},
};

#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// ADDRESS:PORT, v6 in brackets
    to: SocketAddr,
    /// Bytes in each direction
    #[arg(long, default_value_t = 32 << 20)]
    bytes: u64,
    /// Seconds without progress after which it is given up
    #[arg(long, default_value_t = 5.0)]
    timeout: f64,
}

/// Prints what came as JSON and fails unless it was what was sent.
pub(crate) fn run(arguments: &Arguments) -> io::Result<ExitCode> {
    let timeout = Duration::from_secs_f64(arguments.timeout.clamp(0.001, 3600.0));
    let origin = Origin { source_port: None, mapped: false, timeout, patience: timeout };
    let outcome = match exchange(origin, arguments) {
        Ok(outcome) => outcome,
        Err(err) => Exchange { error: Some(error_name(&err)), ..Exchange::default() },
    };
    let text = serde_json::to_string(&outcome).expect("counts are plain data");
    writeln!(io::stdout(), "{text}")?;
    let whole = outcome == Exchange::whole(arguments.bytes);
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn exchange(origin: Origin, arguments: &Arguments) -> io::Result<Exchange> {
    let mut stream = origin.tcp(arguments.to)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    read_line(&mut reader)?;
    writeln!(stream, "exchange {}", arguments.bytes)?;
    let received = both_ways(&stream, &mut reader, arguments.bytes)?;
    // The other side's count comes behind its data.
    let text = read_line(&mut reader)?;
    let sent = text.trim().parse().map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(Exchange { sent, received, error: None })
}

/// The server's side. The reader may hold the first bytes already.
pub(crate) fn answer(mut stream: &TcpStream, reader: &mut impl Read, bytes: u64) -> io::Result<()> {
    let received = both_ways(stream, reader, bytes)?;
    writeln!(stream, "{received}")
}

/// Sends as many bytes of the pattern, and says how many came before one that was wrong.
fn both_ways(stream: &TcpStream, reader: &mut impl Read, bytes: u64) -> io::Result<u64> {
    thread::scope(|scope| {
        let sender = scope.spawn(|| send(stream, bytes));
        let received = receive(reader, bytes);
        let sent = sender.join().unwrap_or_else(|_| Err(io::Error::other("the sender panicked")));
        sent.and(received)
    })
}

/// Bytes that repeat with no power of two, so that what is moved or left out is noticed.
fn pattern() -> Vec<u8> {
    (0..65_521_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn send(mut stream: &TcpStream, bytes: u64) -> io::Result<()> {
    let pattern = pattern();
    let mut left = bytes;
    while left > 0 {
        let part = left.min(pattern.len() as u64);
        stream.write_all(&pattern[..part as usize])?;
        left -= part;
    }
    Ok(())
}

/// How many of the bytes, the first of which is number `at`, are as in the pattern.
fn same(mut bytes: &[u8], pattern: &[u8], at: u64) -> usize {
    let mut rest = &pattern[(at % pattern.len() as u64) as usize..];
    let mut right = 0;
    while !bytes.is_empty() {
        let part = bytes.len().min(rest.len());
        if bytes[..part] != rest[..part] {
            return right + bytes.iter().zip(rest).take_while(|(a, b)| a == b).count();
        }
        (right, bytes, rest) = (right + part, &bytes[part..], pattern);
    }
    right
}

fn receive(reader: &mut impl Read, bytes: u64) -> io::Result<u64> {
    let pattern = pattern();
    let mut buffer = vec![0; 1 << 16];
    let mut right = 0;
    let mut came = 0;
    while came < bytes {
        let room = (bytes - came).min(buffer.len() as u64) as usize;
        let count = reader.read(&mut buffer[..room])?;
        if count == 0 {
            break;
        }
        if right == came {
            right += same(&buffer[..count], &pattern, came) as u64;
        }
        came += count as u64;
    }
    Ok(right)
}
