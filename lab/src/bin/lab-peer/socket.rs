//! Sockets as the tests need them: from a chosen port, v4 through a v6 socket, errors by name.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

/// How a client's socket is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    pub(crate) source_port: Option<u16>,
    /// Reach a v4 address by a v6 socket, as dual-stack programs do.
    pub(crate) mapped: bool,
    pub(crate) timeout: Duration,
    /// How long anything is waited for once there is a connection.
    pub(crate) patience: Duration,
}

impl Origin {
    /// The address as this socket's family writes it.
    pub(crate) fn target(&self, to: SocketAddr) -> SocketAddr {
        match to.ip() {
            IpAddr::V4(ip) if self.mapped => SocketAddr::new(ip.to_ipv6_mapped().into(), to.port()),
            _ => to,
        }
    }

    fn socket(&self, to: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let target = self.target(to);
        let socket = Socket::new(Domain::for_address(target), kind, Some(protocol))?;
        if let Some(port) = self.source_port {
            socket.set_reuse_address(true)?;
            let any: IpAddr = if target.is_ipv4() {
                Ipv4Addr::UNSPECIFIED.into()
            } else {
                Ipv6Addr::UNSPECIFIED.into()
            };
            socket.bind(&SocketAddr::new(any, port).into())?;
        }
        Ok(socket)
    }

    pub(crate) fn tcp(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.socket(to, Type::STREAM, Protocol::TCP)?;
        socket.connect_timeout(&self.target(to).into(), self.timeout)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A socket that is not connected yet.
    pub(crate) fn udp(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.socket(to, Type::DGRAM, Protocol::UDP)?;
        if self.source_port.is_none() {
            let any: SocketAddr = if self.target(to).is_ipv4() {
                (Ipv4Addr::UNSPECIFIED, 0).into()
            } else {
                (Ipv6Addr::UNSPECIFIED, 0).into()
            };
            socket.bind(&any.into())?;
        }
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(self.timeout))?;
        Ok(socket)
    }
}

/// A listening socket of one family, or of both by way of v6.
pub(crate) fn bind(port: u16, listen: Listen, kind: Type) -> io::Result<Socket> {
    let any: SocketAddr = match listen {
        Listen::V4 => (Ipv4Addr::UNSPECIFIED, port).into(),
        Listen::V6 | Listen::Both => (Ipv6Addr::UNSPECIFIED, port).into(),
    };
    let socket = Socket::new(Domain::for_address(any), kind, None)?;
    socket.set_reuse_address(true)?;
    if any.is_ipv6() {
        socket.set_only_v6(listen == Listen::V6)?;
    }
    socket.bind(&any.into())?;
    if kind == Type::STREAM {
        socket.listen(4096)?;
    }
    Ok(socket)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Listen {
    V4,
    V6,
    Both,
}

/// A v4-mapped address as the v4 address it means.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// `ECONNREFUSED` rather than a sentence; what has no errno has a word.
pub(crate) fn error_name(err: &io::Error) -> String {
    match (err.kind(), err.raw_os_error()) {
        (io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, _) => "timeout".into(),
        (io::ErrorKind::UnexpectedEof, _) => "closed".into(),
        (io::ErrorKind::InvalidData, _) => "garbled".into(),
        (_, Some(number)) => format!("{:?}", Errno::from_raw(number)),
        (_, None) => err.to_string(),
    }
}
