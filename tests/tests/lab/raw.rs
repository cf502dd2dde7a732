//! Packets with forged sources: a flood of SYNs, one raw socket, a bounded number.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};

/// `IPPROTO_RAW`: we write the IP header ourselves.
const RAW: i32 = 255;
const TCP: u8 = 6;
const SYN: u8 = 2;
const TCP_HEADER: usize = 20;

/// Sends so many SYNs to an address, each from another forged address and port. Returns how
/// many the kernel took.
pub(crate) fn syn_flood(to: SocketAddr, count: u32) -> io::Result<u32> {
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
        match socket.send_to(&syn(to, number), &target) {
            Ok(_) => sent += 1,
            Err(err) if err.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(err) => return Err(err),
        }
    }
    Ok(sent)
}

fn syn(to: SocketAddr, number: u32) -> Vec<u8> {
    let [_, a, b, c] = number.to_be_bytes();
    match to.ip() {
        IpAddr::V4(dst) => {
            // 198.18.0.0/15 is for tests of this kind (RFC 2544).
            let src = [198, 18 + (a & 1), b, c];
            let mut packet = vec![0x45, 0, 0, 40, b, c, 0, 0, 64, TCP, 0, 0];
            packet.extend(src);
            packet.extend(dst.octets());
            // The kernel fills in the header's checksum, not that of TCP.
            let mut sum = Sum::default();
            sum.add(&src);
            sum.add(&dst.octets());
            packet.extend(segment(to.port(), number, sum));
            packet
        }
        IpAddr::V6(dst) => {
            // 2001:2::/48 likewise (RFC 5180).
            let src = [0x20, 0x01, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c];
            let mut packet = vec![0x60, 0, 0, 0, 0, TCP_HEADER as u8, TCP, 64];
            packet.extend(src);
            packet.extend(dst.octets());
            let mut sum = Sum::default();
            sum.add(&src);
            sum.add(&dst.octets());
            packet.extend(segment(to.port(), number, sum));
            packet
        }
    }
}

/// The TCP header; `sum` holds the addresses already.
fn segment(port: u16, number: u32, mut sum: Sum) -> [u8; TCP_HEADER] {
    let mut header = [0; TCP_HEADER];
    header[..2].copy_from_slice(&(1024 + (number % 60_000) as u16).to_be_bytes());
    header[2..4].copy_from_slice(&port.to_be_bytes());
    header[4..8].copy_from_slice(&number.to_be_bytes());
    header[12..14].copy_from_slice(&[0x50, SYN]);
    header[14..16].copy_from_slice(&[0xff, 0xff]);
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
