//! Frames that are made by the kernel and never see a socket, and what catches them at the other end.
//! Both cost little beside what is between them.

use std::{io, net::SocketAddrV4, os::fd::OwnedFd, thread};

use lab::bench::{FRAME_IP_LENGTH, Frame, Shot, Side, Word, clock};
use nix::net::if_::if_nametoindex;

use crate::{
    bpf::{Counter, Hook, Program},
    instructions::{Code, R0, R1, R2, R3, R6, RANDOM, REDIRECT},
};

/// Of the smallest frame, without its checksum.
const LENGTH: usize = IP + FRAME_IP_LENGTH as usize;
const END: i32 = 14 + FRAME_IP_LENGTH as i32;
const IP: usize = 14;
const UDP: usize = 34;
const SOURCE_PORT: i16 = 34;
const CHECKSUM: i16 = 40;
const PAYLOAD: usize = 42;

/// Frames of one call. A call takes the kernel a third of a millisecond before the first, so it is for
/// many, also at a fixed rate, where they come as bursts.
const BURST: u32 = 1 << 12;
const VOLLEY: u32 = 1 << 16;

/// What programs return.
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
const TC_SHOT: i32 = 2;
const TCX_NEXT: i32 = -1;

/// Catches frames as long as it lives.
#[derive(Debug, Default)]
pub(crate) struct Net {
    counter: Option<Counter>,
    links: Vec<OwnedFd>,
}

impl Net {
    /// Returns how many have been caught before.
    pub(crate) fn spread(&mut self, device: &str, side: Side, like: &[Word]) -> io::Result<u64> {
        if self.counter.is_none() {
            self.counter = Some(Counter::new()?);
        }
        if let Some(counter) = &self.counter {
            let (hook, code) = catcher(side, like, counter);
            let program = Program::load(hook, code.words())?;
            self.links.push(program.attach(if_nametoindex(device)?)?);
        }
        self.count()
    }

    pub(crate) fn count(&self) -> io::Result<u64> {
        self.counter.as_ref().map_or(Ok(0), Counter::read)
    }
}

/// Counts and drops what has all these words; passes all else.
fn catcher(side: Side, like: &[Word], counter: &Counter) -> (Hook, Code) {
    // Where the context has the frame's begin and end.
    let (hook, data, end, drop, pass) = match side {
        Side::Driver => (Hook::Xdp, 0, 4, XDP_DROP, XDP_PASS),
        Side::Egress => (Hook::TcxEgress, 76, 80, TC_SHOT, TCX_NEXT),
    };
    let length = like.iter().map(|word| i32::from(word.at) + 2).max().unwrap_or(0);
    let mut code = Code::default();
    code.load32(R2, R1, data);
    code.load32(R3, R1, end);
    code.copy(R0, R2);
    code.add(R0, length);
    code.jump_if_greater(R0, R3);
    for word in like {
        code.load16(R0, R2, word.at.cast_signed());
        code.jump_unless_equal(R0, i32::from(word.is.to_be()));
    }
    code.value_of(R1, counter.number());
    code.set(R2, 1);
    code.add_shared(R1, R2);
    code.set(R0, drop);
    code.exit();
    code.land();
    code.set(R0, pass);
    code.exit();
    (hook, code)
}

/// Writes a whole frame each time, since the kernel uses its memory again as others left it, and
/// sends it by a device.
fn shooter(frame: Frame, index: u32) -> Code {
    let (bytes, checksum) = layout(frame);
    let mut code = Code::default();
    code.load32(R6, R1, 0);
    code.load32(R3, R1, 4);
    code.copy(R0, R6);
    code.add(R0, END);
    code.jump_if_greater(R0, R3);
    code.call(RANDOM);
    code.and(R0, i32::from(frame.flows) - 1);
    for (number, word) in (0_i16..).zip(bytes.as_chunks().0) {
        code.store32(R6, number * 4, i32::from_ne_bytes(*word));
    }
    code.set(R1, frame.from.port().into());
    code.add_register(R1, R0);
    code.network_order(R1);
    code.store16(R6, SOURCE_PORT, R1);
    // A port that is greater makes a checksum that is smaller.
    code.set(R1, checksum.into());
    code.subtract_register(R1, R0);
    code.network_order(R1);
    code.store16(R6, CHECKSUM, R1);
    code.set(R1, index.cast_signed());
    code.set(R2, 0);
    code.call(REDIRECT);
    code.exit();
    code.land();
    code.set(R0, XDP_DROP);
    code.exit();
    code
}

/// The frame of the first flow, and its checksum, from which those of the others are subtracted.
fn layout(frame: Frame) -> ([u8; LENGTH], u16) {
    let put = |bytes: &mut [u8; LENGTH], at: usize, what: &[u8]| {
        bytes[at..at + what.len()].copy_from_slice(what);
    };
    let Frame { from_mac, to_mac, from, to, flows } = frame;
    let mut bytes = [0; LENGTH];
    put(&mut bytes, 0, &to_mac);
    put(&mut bytes, 6, &from_mac);
    put(&mut bytes, 12, &[8, 0]);
    put(&mut bytes, IP, &[0x45, 0, 0, (LENGTH - IP) as u8]);
    // Not to be divided, 64 hops, UDP.
    put(&mut bytes, IP + 6, &[0x40, 0, 64, 17]);
    let addresses = |ends: [SocketAddrV4; 2]| ends.map(|end| end.ip().octets()).concat();
    put(&mut bytes, IP + 12, &addresses([from, to]));
    let sum = checksum(&bytes[IP..UDP], 0);
    put(&mut bytes, IP + 10, &sum.to_be_bytes());
    put(&mut bytes, UDP, &from.port().to_be_bytes());
    put(&mut bytes, UDP + 2, &to.port().to_be_bytes());
    put(&mut bytes, UDP + 4, &[0, (LENGTH - UDP) as u8]);
    let of_datagram =
        |bytes: &[u8; LENGTH]| checksum(&bytes[IP + 12..], 17 + (LENGTH - UDP) as u32);
    let mut sum = of_datagram(&bytes);
    if sum <= flows {
        // Some flow's would pass zero.
        bytes[PAYLOAD] = 0x80;
        sum = of_datagram(&bytes);
    }
    (bytes, sum)
}

/// The Internet's checksum, of an even number of bytes and what is added.
fn checksum(bytes: &[u8], more: u32) -> u16 {
    let words = bytes.as_chunks().0.iter().map(|word| u32::from(u16::from_be_bytes(*word)));
    let mut sum = words.sum::<u32>() + more;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Sends frames for so long.
pub(crate) fn shoot(
    device: &str,
    frame: Frame,
    millis: u64,
    rate: Option<u32>,
) -> io::Result<Shot> {
    let program = Program::load(Hook::Xdp, shooter(frame, if_nametoindex(device)?).words())?;
    let (bytes, _) = layout(frame);
    let began = clock();
    let end = began + millis * 1_000_000;
    let burst = if rate.is_some() { BURST } else { VOLLEY };
    let mut shot = Shot::default();
    while clock() < end {
        if let Some(rate) = rate {
            let due = began + shot.frames * 1_000_000_000 / u64::from(rate);
            while clock() < due {
                thread::yield_now();
            }
        }
        let cpu_began = cpu_clock();
        program.shoot(&bytes, burst)?;
        shot.cpu_nanos += cpu_clock() - cpu_began;
        shot.frames += u64::from(burst);
    }
    shot.nanos = clock() - began;
    Ok(shot)
}

/// Nanoseconds that this thread has had a processor.
fn cpu_clock() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes to a timespec that outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flow_has_a_right_checksum() {
        for port in 0..2_000 {
            let frame = Frame {
                from_mac: [2; 6],
                to_mac: [4; 6],
                from: "192.168.78.50:20000".parse().unwrap(),
                to: SocketAddrV4::new([192, 168, 78, 11].into(), 30_000 + port),
                flows: 64,
            };
            let (bytes, sum) = layout(frame);
            assert!(sum > 64, "{sum}");
            assert_eq!(checksum(&bytes[IP..UDP], 0), 0);
            for flow in [0_u16, 1, 63] {
                let mut bytes = bytes;
                bytes[UDP..UDP + 2].copy_from_slice(&(20_000 + flow).to_be_bytes());
                bytes[UDP + 6..PAYLOAD].copy_from_slice(&(sum - flow).to_be_bytes());
                assert_eq!(checksum(&bytes[IP + 12..], 17 + 26), 0, "flow {flow}");
            }
        }
    }
}
