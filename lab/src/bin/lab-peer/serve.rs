//! The server: TCP by lines, UDP by datagrams, HTTP by requests; every answer is a [`Greeting`].
//!
//! A TCP connection is greeted at once. Then each line is echoed, but for four words:
//! `sink` reads to the end and says how much came, `source N` sends N bytes, `exchange N` does
//! both at once with a known pattern, `reset` ends the connection by RST.

use std::{
    io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    process::ExitCode,
    thread,
    time::Duration,
};

use clap::Args;
use lab::peer::Greeting;
use nix::{
    cmsg_space,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg,
        setsockopt,
        sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo},
    },
};
use socket2::{SockRef, Socket, Type};

use crate::{
    exchange,
    socket::{Listen, bind, plain},
};

#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// What the server calls itself in its answers
    #[arg(long)]
    name: String,
    /// Ports for TCP
    #[arg(long, value_delimiter = ',')]
    tcp: Vec<u16>,
    /// Ports for UDP
    #[arg(long, value_delimiter = ',')]
    udp: Vec<u16>,
    /// Ports for HTTP
    #[arg(long, value_delimiter = ',')]
    http: Vec<u16>,
    /// Serve v4 by a v6 socket, as dual-stack servers do
    #[arg(long)]
    mapped: bool,
}

/// Listens everywhere, says `ready`, and serves until it is ended.
pub(crate) fn run(arguments: &Arguments) -> io::Result<ExitCode> {
    let families: &[Listen] =
        if arguments.mapped { &[Listen::Both] } else { &[Listen::V4, Listen::V6] };
    for &family in families {
        for &port in &arguments.tcp {
            serve_streams(bind_at(port, family, Type::STREAM)?, &arguments.name, converse);
        }
        for &port in &arguments.http {
            serve_streams(bind_at(port, family, Type::STREAM)?, &arguments.name, respond);
        }
        for &port in &arguments.udp {
            let socket = bind_at(port, family, Type::DGRAM)?;
            let name = arguments.name.clone();
            thread::spawn(move || answer_datagrams(&socket, port, &name));
        }
    }
    println!("ready");
    io::stdout().flush()?;
    loop {
        thread::sleep(Duration::from_hours(1));
    }
}

fn bind_at(port: u16, family: Listen, kind: Type) -> io::Result<Socket> {
    bind(port, family, kind)
        .map_err(|err| io::Error::new(err.kind(), format!("cannot listen on port {port}: {err}")))
}

/// A thread for each connection: labs have few, and a slow one must hold up no other.
fn serve_streams(listener: Socket, name: &str, talk: fn(TcpStream, &Greeting) -> io::Result<()>) {
    let listener = TcpListener::from(listener);
    let name = name.to_string();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let Ok(greeting) = greeting(&stream, &name) else { continue };
            thread::spawn(move || talk(stream, &greeting));
        }
    });
}

fn greeting(stream: &TcpStream, name: &str) -> io::Result<Greeting> {
    Ok(Greeting {
        name: name.into(),
        source: plain(stream.peer_addr()?),
        local: plain(stream.local_addr()?),
        bytes: 0,
        echo: String::new(),
    })
}

fn line(greeting: &Greeting) -> String {
    let mut text = serde_json::to_string(greeting).expect("a greeting is plain data");
    text.push('\n');
    text
}

fn converse(mut stream: TcpStream, greeting: &Greeting) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(line(greeting).as_bytes())?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    while reader.read_line(&mut request)? > 0 {
        match request.trim_end().split_once(' ').unwrap_or((request.trim_end(), "")) {
            ("sink", _) => {
                let bytes = io::copy(&mut reader, &mut io::sink())?;
                return writeln!(stream, "{bytes}");
            }
            ("source", bytes) => {
                let bytes = bytes.parse().unwrap_or(u64::MAX);
                io::copy(&mut io::repeat(b'x').take(bytes), &mut stream)?;
                return Ok(());
            }
            ("exchange", bytes) => {
                return exchange::answer(&stream, &mut reader, bytes.parse().unwrap_or(0));
            }
            ("reset", _) => {
                return SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
            _ => stream.write_all(request.as_bytes())?,
        }
        request.clear();
    }
    Ok(())
}

/// HTTP/1.1 with connections that stay open, as browsers and `curl` speak it.
fn respond(mut stream: TcpStream, greeting: &Greeting) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut close = false;
        let mut header = String::new();
        loop {
            header.clear();
            if reader.read_line(&mut header)? == 0 {
                return Ok(());
            }
            close |= header.to_ascii_lowercase().starts_with("connection: close");
            if header.trim_end().is_empty() {
                break;
            }
        }
        let body = line(greeting);
        let connection = if close { "close" } else { "keep-alive" };
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: {connection}\r\n\r\n{body}",
            body.len()
        )?;
        if close {
            return Ok(());
        }
    }
}

/// The greeting echoes the request's first bytes; `answer N` in front asks for N bytes.
fn answer_datagrams(socket: &Socket, port: u16, name: &str) -> io::Result<()> {
    // Both are set: a v6 socket that serves v4 as well needs each.
    let _ = setsockopt(socket, Ipv4PacketInfo, &true);
    let _ = setsockopt(socket, Ipv6RecvPacketInfo, &true);
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok((bytes, source, local)) = receive(socket, port, &mut buffer) else { continue };
        let text = String::from_utf8_lossy(&buffer[..bytes.min(64)]).into_owned();
        let wanted = text.strip_prefix("answer ").and_then(|rest| rest.split(' ').next());
        let wanted: usize = wanted.and_then(|number| number.parse().ok()).unwrap_or(0);
        let greeting = Greeting {
            name: name.into(),
            source: plain(source),
            local: plain(local),
            bytes,
            echo: text.trim_end().into(),
        };
        let mut answer = line(&greeting).into_bytes();
        answer.resize(wanted.clamp(answer.len(), 65_000.max(answer.len())), b' ');
        // An error here belongs to one client (its port may be closed by now).
        let _ = answer_from(socket, local, source, &answer);
    }
}

/// Receives a datagram with the address it was sent to, which only the kernel's ancillary
/// data tell on a socket bound to all addresses.
fn receive(
    socket: &Socket,
    port: u16,
    buffer: &mut [u8],
) -> io::Result<(usize, SocketAddr, SocketAddr)> {
    let mut space = cmsg_space!(nix::libc::in_pktinfo, nix::libc::in6_pktinfo);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut space),
        MsgFlags::empty(),
    )?;
    let ip = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(std::net::Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)).into())
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            Some(std::net::Ipv6Addr::from(info.ipi6_addr.s6_addr).into())
        }
        _ => None,
    });
    let source = message.address.as_ref().and_then(socket_address);
    match (source, ip) {
        (Some(source), Some(ip)) => Ok((message.bytes, source, SocketAddr::new(ip, port))),
        _ => Err(io::Error::other("a datagram without addresses")),
    }
}

/// Answers from the address that was asked: on a node the route to the client may suggest
/// another of its addresses, and the client would not know it.
fn answer_from(
    socket: &Socket,
    local: SocketAddr,
    to: SocketAddr,
    answer: &[u8],
) -> nix::Result<usize> {
    let slices = [IoSlice::new(answer)];
    let fd = socket.as_raw_fd();
    let to = SockaddrStorage::from(to);
    match local.ip() {
        IpAddr::V4(ip) => {
            let info = nix::libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: nix::libc::in_addr { s_addr: u32::from(ip).to_be() },
                ipi_addr: nix::libc::in_addr { s_addr: 0 },
            };
            let control = [ControlMessage::Ipv4PacketInfo(&info)];
            sendmsg(fd, &slices, &control, MsgFlags::empty(), Some(&to))
        }
        IpAddr::V6(ip) => {
            let info = nix::libc::in6_pktinfo {
                ipi6_addr: nix::libc::in6_addr { s6_addr: ip.octets() },
                ipi6_ifindex: 0,
            };
            let control = [ControlMessage::Ipv6PacketInfo(&info)];
            sendmsg(fd, &slices, &control, MsgFlags::empty(), Some(&to))
        }
    }
}

fn socket_address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|v4| SocketAddr::from((v4.ip(), v4.port())));
    v4.or_else(|| storage.as_sockaddr_in6().map(|v6| SocketAddr::from((v6.ip(), v6.port()))))
}
