//! Rounds: the same few system calls again and again, with the clock read between pieces.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use lab::bench::{CONNECTIONS_A_PIECE, DATAGRAMS_A_PIECE, FLOOD_BYTES, Round, clock};

/// What bulk is written and read by.
pub(crate) const BULK_BUFFER: usize = 128 << 10;
/// Datagrams after which the receiver may run where it shares the sender's processor: well
/// below what its buffer holds.
const BURST: u32 = 128;
/// How often the receiver is asked for its count, in case the question was lost.
const QUESTIONS: usize = 5;
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
    Ok(Round { pieces, lost: 0 })
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
    Ok(Round { pieces, lost: 0 })
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
    Ok(Round { pieces, lost: 0 })
}

/// Datagrams in one direction; a piece is the time in which so many arrived.
pub(crate) fn flood(to: SocketAddrV4, parts: u32, datagrams: u32) -> io::Result<Round> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE / QUESTIONS as u32))?;
    let payload = [7; FLOOD_BYTES];
    let mut round = Round::default();
    let mut counted = arrived(&socket)?;
    let mut began = clock();
    for _ in 0..parts {
        for number in 1..=datagrams {
            socket.send(&payload)?;
            if number % BURST == 0 {
                thread::yield_now();
            }
        }
        // Behind them in every queue, so the answer counts all that will ever arrive.
        let count = arrived(&socket)?;
        let now = clock();
        let came = count - counted;
        if came == 0 {
            return Err(io::Error::other("no datagram arrived"));
        }
        round.pieces.push((now - began) * u64::from(DATAGRAMS_A_PIECE) / came);
        round.lost += u64::from(datagrams).saturating_sub(came);
        (counted, began) = (count, now);
    }
    Ok(round)
}

/// Datagrams that the receiver has counted in its life.
fn arrived(socket: &UdpSocket) -> io::Result<u64> {
    let mut answer = [0; 8];
    let mut outcome = Ok(0);
    for _ in 0..QUESTIONS {
        socket.send(&[0])?;
        outcome = socket.recv(&mut answer);
        if outcome.is_ok() {
            return Ok(u64::from_ne_bytes(answer));
        }
    }
    outcome.map(|_| 0)
}
