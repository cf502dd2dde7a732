//! Packets with forged sources: floods of SYNs and of datagrams, one raw socket, a bounded number; and
//! segments that fit no window.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    thread::sleep,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

/// `IPPROTO_RAW`: we write the IP header ourselves.
const RAW: i32 = 255;
const TCP: u8 = 6;
const UDP: u8 = 17;
const SYN: u8 = 2;
const ACK: u8 = 16;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// A processor's queue of packets that were received takes a thousand (`netdev_max_backlog`) and is
/// one for all namespaces: a flood without a breath takes it from every other case.
const BURST: u32 = 256;
const BREATH: Duration = Duration::from_millis(1);

/// Sends so many SYNs to an address, each from another forged address and port. Returns how
/// many the kernel took.
pub(crate) fn syn_flood(to: SocketAddr, count: u32) -> io::Result<u32> {
    flood(to, count, |number| packet(stranger(to, number), to, number, SYN))
}

/// The same, all from one forged address.
pub(crate) fn syn_flood_of_one(to: SocketAddr, count: u32) -> io::Result<u32> {
    let source = stranger(to, 0).ip();
    flood(to, count, |number| packet(SocketAddr::new(source, port(number)), to, number, SYN))
}

/// The same of empty datagrams, each from another forged address and port.
pub(crate) fn datagram_flood(to: SocketAddr, count: u32) -> io::Result<u32> {
    flood(to, count, |number| datagram(stranger(to, number), to, number))
}

fn flood(to: SocketAddr, count: u32, packet: impl Fn(u32) -> Vec<u8>) -> io::Result<u32> {
    let socket = Socket::new(
        Domain::for_address(to),
        Type::from(libc::SOCK_RAW),
        Some(Protocol::from(RAW)),
    )?;
    socket.set_send_buffer_size(4 << 20)?;
    // A raw v6 socket refuses a destination with a port.
    let target = SocketAddr::new(to.ip(), 0).into();
    let mut sent = 0;
    for number in 0..count {
        match socket.send_to(&packet(number), &target) {
            Ok(_) => sent += 1,
            Err(err) if err.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(err) => return Err(err),
        }
        if number % BURST == BURST - 1 {
            sleep(BREATH);
        }
    }
    Ok(sent)
}

/// Sends one segment of an established connection's addresses, of which neither end has ever sent
/// the like: its numbers are whatever they are.
pub(crate) fn stray_segment(from: SocketAddr, to: SocketAddr, number: u32) -> io::Result<()> {
    let domain = Domain::for_address(to);
    let socket = Socket::new(domain, Type::from(libc::SOCK_RAW), Some(Protocol::from(RAW)))?;
    let target = SocketAddr::new(to.ip(), 0).into();
    socket.send_to(&packet(from, to, number, ACK), &target).map(drop)
}

/// A forged address and port.
fn stranger(to: SocketAddr, number: u32) -> SocketAddr {
    let [_, a, b, c] = number.to_be_bytes();
    let address = match to.ip() {
        // 198.18.0.0/15 is for tests of this kind (RFC 2544).
        IpAddr::V4(_) => IpAddr::from([198, 18 + (a & 1), b, c]),
        // 2001:2::/48 likewise (RFC 5180).
        IpAddr::V6(_) => IpAddr::from([0x20, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c]),
    };
    SocketAddr::new(address, port(number))
}

fn port(number: u32) -> u16 {
    1024 + (number % 60_000) as u16
}

/// A segment.
fn packet(from: SocketAddr, to: SocketAddr, number: u32, flags: u8) -> Vec<u8> {
    let (mut packet, addresses) = header(from, to, number, TCP, TCP_HEADER);
    packet.extend(segment(&addresses, [from.port(), to.port()], number, flags));
    packet
}

/// A datagram without anything in it.
fn datagram(from: SocketAddr, to: SocketAddr, number: u32) -> Vec<u8> {
    let (mut packet, addresses) = header(from, to, number, UDP, UDP_HEADER);
    let mut header = [0; UDP_HEADER];
    header[..2].copy_from_slice(&from.port().to_be_bytes());
    header[2..4].copy_from_slice(&to.port().to_be_bytes());
    header[5] = UDP_HEADER as u8;
    let mut sum = Sum::default();
    sum.add(&addresses);
    sum.add(&[0, UDP, 0, UDP_HEADER as u8]);
    sum.add(&header);
    header[6..].copy_from_slice(&sum.fold().to_be_bytes());
    packet.extend(header);
    packet
}

/// A header before so many bytes, and the addresses in it. The kernel fills in the checksum of an IPv4
/// header, not that of what follows.
fn header(
    from: SocketAddr,
    to: SocketAddr,
    number: u32,
    proto: u8,
    length: usize,
) -> (Vec<u8>, Vec<u8>) {
    let [.., b, c] = number.to_be_bytes();
    // The addresses are what each header ends with.
    let (mut packet, addresses) = match (from.ip(), to.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let header = vec![0x45, 0, 0, 20 + length as u8, b, c, 0, 0, 64, proto, 0, 0];
            (header, [src.octets(), dst.octets()].concat())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let header = vec![0x60, 0, 0, 0, 0, length as u8, proto, 64];
            (header, [src.octets(), dst.octets()].concat())
        }
        _ => panic!("{from} and {to} are of two families"),
    };
    packet.extend(&addresses);
    (packet, addresses)
}

/// The TCP header.
fn segment(addresses: &[u8], ports: [u16; 2], number: u32, flags: u8) -> [u8; TCP_HEADER] {
    let mut header = [0; TCP_HEADER];
    header[..2].copy_from_slice(&ports[0].to_be_bytes());
    header[2..4].copy_from_slice(&ports[1].to_be_bytes());
    header[4..8].copy_from_slice(&number.to_be_bytes());
    if flags & ACK != 0 {
        header[8..12].copy_from_slice(&number.to_be_bytes());
    }
    header[12..14].copy_from_slice(&[0x50, flags]);
    header[14..16].copy_from_slice(&[0xff, 0xff]);
    let mut sum = Sum::default();
    sum.add(addresses);
    sum.add(&[0, TCP, 0, TCP_HEADER as u8]);
    sum.add(&header);
    header[16..18].copy_from_slice(&sum.fold().to_be_bytes());
    header
}

/// The Internet checksum.
#[derive(Default)]
struct Sum(u32);

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
        self.0 += words.sum::<u32>();
    }

    fn fold(&self) -> u16 {
        let once = (self.0 & 0xffff) + (self.0 >> 16);
        !((once & 0xffff) + (once >> 16)) as u16
    }
}
