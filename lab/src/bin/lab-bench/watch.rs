//! Waiting for answers: until a change is in force, until every Service answers.

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    thread,
    time::Duration,
};

use lab::bench::{Seen, clock};

/// An answer that is not there by then will not come.
const ANSWER: Duration = Duration::from_millis(5);
/// Questions under way at once; a socket's buffer holds as many answers.
const ABREAST: usize = 64;

/// Asks on a new socket each time, as a new client would, until this backend answers. The pause
/// leaves the processors to what is watched.
pub(crate) fn follow(
    to: SocketAddrV4,
    until: Ipv4Addr,
    pause: Duration,
    patience_millis: u64,
) -> Seen {
    let give_up = clock() + patience_millis * 1_000_000;
    let mut seen = Seen::default();
    while !seen.complete && clock() < give_up {
        seen.asked += 1;
        match ask(to) {
            Ok(backend) => {
                seen.at = clock();
                seen.complete = backend == until;
            }
            Err(_) => seen.silent += 1,
        }
        if !seen.complete {
            thread::sleep(pause);
        }
    }
    seen
}

fn ask(to: SocketAddrV4) -> io::Result<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(ANSWER))?;
    socket.send_to(&[0; 4], to)?;
    let mut answer = [0; 8];
    socket.recv(&mut answer)?;
    Ok(Ipv4Addr::new(answer[4], answer[5], answer[6], answer[7]))
}

/// Sends from each of the ports until it has been answered, twice: what is answered once might be
/// nothing that lasts to those who keep flows.
pub(crate) fn greet(to: SocketAddrV4, first: u16, count: u16) -> io::Result<Seen> {
    const TRIES: u32 = 50;
    let mut seen = Seen::default();
    for port in (first..).take(count.into()) {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(4 * ANSWER))?;
        let mut answers = 0;
        for _ in 0..TRIES {
            seen.asked += 1;
            let answered = socket.send(&[0; 4]).and_then(|_| socket.recv(&mut [0; 8]));
            answers += u32::from(answered.is_ok());
            if answers == 2 {
                break;
            }
        }
        seen.silent += u64::from(answers < 2);
    }
    seen.at = clock();
    seen.complete = seen.silent == 0;
    Ok(seen)
}

/// Asks all that have not answered, many at once, until none is left.
pub(crate) fn scan(
    first: Ipv4Addr,
    count: u32,
    step: u32,
    port: u16,
    patience_millis: u64,
) -> io::Result<Seen> {
    let give_up = clock() + patience_millis * 1_000_000;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(ANSWER))?;
    let mut seen = Seen::default();
    let mut left: VecDeque<u32> = (0..count).step_by(step.max(1) as usize).collect();
    while !left.is_empty() && clock() < give_up {
        let mut batch: Vec<u32> = left.drain(..left.len().min(ABREAST)).collect();
        for number in &batch {
            let to = SocketAddrV4::new(Ipv4Addr::from(u32::from(first) + number), port);
            // A Service that is not there yet may be refused.
            let _ = socket.send_to(&number.to_ne_bytes(), to);
        }
        seen.asked += batch.len() as u64;
        let mut answer = [0; 8];
        while !batch.is_empty() {
            match socket.recv(&mut answer) {
                Ok(8) => {
                    let [a, b, c, d, ..] = answer;
                    let number = u32::from_ne_bytes([a, b, c, d]);
                    let waiting = batch.len();
                    batch.retain(|&asked| asked != number);
                    if batch.len() == waiting {
                        // An answer that came late, to a question that waits to be asked again.
                        left.retain(|&asked| asked != number);
                    }
                    seen.at = clock();
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        seen.silent += batch.len() as u64;
        left.extend(batch);
    }
    seen.complete = left.is_empty();
    Ok(seen)
}
