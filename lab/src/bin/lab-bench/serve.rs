//! The server: a thread for each kind of round, and one connection at a time on each.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    thread,
    time::Duration,
};

use lab::bench::{FLOOD_BYTES, port};
use nix::{
    cmsg_space,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, recvmsg,
        sendmsg, sendto, setsockopt,
        sockopt::{Ipv4PacketInfo, RcvBufForce},
    },
};

use crate::rounds::BULK_BUFFER;

/// Datagrams taken in by one system call.
const ABREAST: usize = 64;
/// The receive buffer of a flood; a small datagram takes up about 800 bytes of it.
const FLOOD_BUFFER: usize = 4 << 20;

/// Listens, says `ready`, and serves until ended.
pub(crate) fn run() -> io::Result<()> {
    let itself: fn(u16) -> u16 = |port| port;
    for at in [itself, port::behind_service] {
        listen(at(port::CONNECT), answer_once)?;
        listen(at(port::LATENCY), answer)?;
        listen(at(port::BULK), swallow)?;
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, at(port::ECHO)))?;
        setsockopt(&socket, Ipv4PacketInfo, &true)?;
        thread::spawn(move || echo(&socket));
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, at(port::FLOOD)))?;
        setsockopt(&socket, RcvBufForce, &FLOOD_BUFFER)?;
        thread::spawn(move || count(&socket));
    }
    println!("ready");
    io::stdout().flush()?;
    loop {
        thread::sleep(Duration::from_hours(1));
    }
}

fn listen(port: u16, talk: fn(TcpStream) -> io::Result<()>) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that goes in the middle says so itself.
            let _ = talk(stream);
        }
    });
    Ok(())
}

/// One byte each way; the client closes first.
fn answer_once(mut stream: TcpStream) -> io::Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)?;
    stream.read(&mut byte).map(drop)
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte)?;
        stream.write_all(&byte)?;
    }
}

/// Reads all there is and says so with one byte.
fn swallow(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BULK_BUFFER];
    while stream.read(&mut buffer)? > 0 {}
    stream.write_all(&[1])
}

/// Sends every datagram back with the address it was sent to, and from that address: the
/// server has more of them than the kernel would choose from.
fn echo(socket: &UdpSocket) {
    let mut buffer = [0; 64];
    loop {
        let _ = echo_one(socket, &mut buffer);
    }
}

fn echo_one(socket: &UdpSocket, buffer: &mut [u8; 64]) -> nix::Result<()> {
    let mut space = cmsg_space!(libc::in_pktinfo);
    let (length, source, mut asked) = {
        let mut slices = [IoSliceMut::new(&mut buffer[..32])];
        let flags = MsgFlags::empty();
        let message =
            recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        let asked = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => Some(info),
            _ => None,
        });
        match (message.address, asked) {
            (Some(source), Some(asked)) => (message.bytes, source, asked),
            _ => return Ok(()),
        }
    };
    // In the answer it is the source, whichever device it leaves by.
    asked.ipi_ifindex = 0;
    asked.ipi_spec_dst = asked.ipi_addr;
    buffer[length..length + 4].copy_from_slice(&asked.ipi_addr.s_addr.to_ne_bytes());
    let slices = [IoSlice::new(&buffer[..length + 4])];
    let control = [ControlMessage::Ipv4PacketInfo(&asked)];
    sendmsg(socket.as_raw_fd(), &slices, &control, MsgFlags::empty(), Some(&source)).map(drop)
}

/// Counts datagrams, and tells who asks how many there were.
fn count(socket: &UdpSocket) {
    let mut arrived = 0;
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(ABREAST, None);
    let mut buffers = [[0; FLOOD_BYTES]; ABREAST];
    loop {
        let _ = count_some(socket, &mut headers, &mut buffers, &mut arrived);
    }
}

/// Waits for a datagram and takes in those that are there with it.
fn count_some(
    socket: &UdpSocket,
    headers: &mut MultiHeaders<SockaddrIn>,
    buffers: &mut [[u8; FLOOD_BYTES]; ABREAST],
    arrived: &mut u64,
) -> nix::Result<()> {
    let mut slices = buffers.each_mut().map(|buffer| [IoSliceMut::new(buffer)]);
    let flags = MsgFlags::MSG_WAITFORONE;
    for message in recvmmsg(socket.as_raw_fd(), headers, slices.iter_mut(), flags, None)? {
        if message.bytes == FLOOD_BYTES {
            *arrived += 1;
        } else if let Some(asker) = message.address {
            let answer = arrived.to_ne_bytes();
            sendto(socket.as_raw_fd(), &answer, &asker, MsgFlags::empty())?;
        }
    }
    Ok(())
}
