//! Rounds: the same few system calls again and again, with the clock read between pieces.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddrV4, TcpStream},
    time::Duration,
};

use lab::bench::{CONNECTIONS_A_PIECE, Round, clock};

/// What bulk is written and read by.
pub(crate) const BULK_BUFFER: usize = 128 << 10;
/// Longer than any step of a round may take.
const PATIENCE: Duration = Duration::from_secs(5);

fn open(to: SocketAddrV4) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// New connections, one after the other; a piece is the time of some.
pub(crate) fn connect(to: SocketAddrV4, count: u32) -> io::Result<Round> {
    let mut pieces = Vec::with_capacity((count / CONNECTIONS_A_PIECE) as usize);
    let mut began = clock();
    for number in 1..=count {
        let mut stream = TcpStream::connect(to)?;
        let mut byte = [number as u8];
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        drop(stream);
        if number % CONNECTIONS_A_PIECE == 0 {
            let now = clock();
            pieces.push(now - began);
            began = now;
        }
    }
    Ok(Round { pieces })
}

/// Round trips on one connection; a piece is the time of one.
pub(crate) fn latency(to: SocketAddrV4, count: u32) -> io::Result<Round> {
    let mut stream = open(to)?;
    stream.set_nodelay(true)?;
    let mut pieces = Vec::with_capacity(count as usize);
    let mut began = clock();
    for number in 0..count {
        let mut byte = [number as u8];
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        let now = clock();
        pieces.push(now - began);
        began = now;
    }
    Ok(Round { pieces })
}

/// Bytes in one direction; a piece is the time of one part.
pub(crate) fn bulk(to: SocketAddrV4, parts: u32, bytes: u32) -> io::Result<Round> {
    let mut stream = open(to)?;
    let buffer = vec![7; BULK_BUFFER];
    let mut pieces = Vec::with_capacity(parts as usize);
    let mut began = clock();
    for _ in 0..parts {
        let mut left = bytes as usize;
        while left > 0 {
            left -= stream.write(&buffer[..left.min(BULK_BUFFER)])?;
        }
        let now = clock();
        pieces.push(now - began);
        began = now;
    }
    // The next round begins when this one's last byte has been read.
    stream.shutdown(Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    Ok(Round { pieces })
}
