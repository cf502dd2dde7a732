//! Real sockets through the attached programs: first translated by the socket path, then with
//! that switched off by the packet path on `lo`.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use datapath::settings::socket_lb;
use socket2::{Domain, Socket, Type};

use crate::{Report, tables::Tables};

const fn ipv6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, last)
}

/// Cluster IP, client and backend, in this order.
pub(crate) const LOCAL4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(10, 96, 0, 1), Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 3)];
pub(crate) const LOCAL6: [Ipv6Addr; 3] = [ipv6(1), ipv6(2), ipv6(3)];

/// Ports of the frontends: with a backend, with none, and of no Service.
const SERVED: u16 = 80;
const EMPTY: u16 = 81;
const UNKNOWN: u16 = 82;
/// The ports of the socket path's frontends are apart by this.
const SOCKET_PATH: u16 = 1000;

const PATIENCE: Duration = Duration::from_secs(20);
/// More than a GSO packet, each way.
const BULK: usize = 300_000;

/// One family's parties.
#[derive(Clone, Copy)]
struct Parties {
    name: &'static str,
    vip: IpAddr,
    client: IpAddr,
    backend: IpAddr,
}

fn families() -> [Parties; 2] {
    let [vip4, client4, backend4] = LOCAL4.map(IpAddr::V4);
    let [vip6, client6, backend6] = LOCAL6.map(IpAddr::V6);
    [
        Parties { name: "IPv4", vip: vip4, client: client4, backend: backend4 },
        Parties { name: "IPv6", vip: vip6, client: client6, backend: backend6 },
    ]
}

/// A Service with one backend, and its row.
struct Served {
    row: u32,
    backend: SocketAddr,
}

impl Parties {
    fn vip(&self, port: u16) -> SocketAddr {
        (self.vip, port).into()
    }

    /// Servers for TCP and UDP on one port, and the Services before them.
    fn serve(&self, tables: &mut Tables, offset: u16) -> Result<Served> {
        let backend = answer((self.backend, 0).into())?;
        let row = tables.service(self.vip(SERVED + offset), Some(backend))?;
        tables.service(self.vip(EMPTY + offset), None)?;
        Ok(Served { row, backend })
    }
}

/// Gives back what comes there by TCP and UDP; where that is, if the port was left to the kernel.
pub(crate) fn answer(at: SocketAddr) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(at)?;
    let at = listener.local_addr()?;
    let socket = UdpSocket::bind(at)?;
    thread::spawn(move || listener.incoming().flatten().try_for_each(echo));
    thread::spawn(move || echo_datagrams(&socket));
    Ok(at)
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    stream.write_all(&bytes)
}

fn echo_datagrams(socket: &UdpSocket) -> io::Result<()> {
    let mut bytes = [0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut bytes)?;
        socket.send_to(&bytes[..length], from)?;
    }
}

/// The socket path: the call is translated, and no packet ever has the frontend's address.
pub(crate) fn over_sockets(report: &mut Report, tables: &mut Tables) {
    let Some(()) = report.check("socket path on", tables.serve(socket_lb::ON)) else { return };
    for parties in families() {
        let name = parties.name;
        let vip = |port| parties.vip(port + SOCKET_PATH);
        let Some(served) =
            report.check(format_args!("servers {name}"), parties.serve(tables, SOCKET_PATH))
        else {
            return;
        };
        let result = exchange(None, vip(SERVED), vip(SERVED))
            .and_then(|()| connections(tables, &served, 1, 0));
        report.check(format_args!("socket path, TCP {name}"), result);
        let result = exchange_datagrams(None, vip(SERVED));
        report.check(format_args!("socket path, UDP {name}"), result);
        let result = exchange_connected(vip(SERVED));
        report.check(format_args!("socket path, connected UDP {name}"), result);
        let result = refused(None, vip(EMPTY));
        report.check(format_args!("socket path, no endpoints {name}"), result);
        if let IpAddr::V4(address) = parties.vip {
            let mapped = (address.to_ipv6_mapped(), SERVED + SOCKET_PATH).into();
            let result = exchange(None, mapped, mapped);
            report.check("socket path, IPv4 on an IPv6 socket", result);
        }
        let result = exchange(None, served.backend, served.backend);
        report.check(format_args!("socket path, not a frontend {name}"), result);
    }
}

/// The packet path: `lo` carries packets to the frontend, out and in again.
pub(crate) fn over_packets(report: &mut Report, tables: &mut Tables) {
    let Some(()) = report.check("socket path off", tables.serve(socket_lb::OFF)) else { return };
    for parties in families() {
        let name = parties.name;
        let client = Some(parties.client);
        let Some(served) = report.check(format_args!("servers {name}"), parties.serve(tables, 0))
        else {
            return;
        };
        let vip = |port| parties.vip(port);
        let result = exchange(client, vip(SERVED), vip(SERVED))
            .and_then(|()| connections(tables, &served, 0, 1));
        report.check(format_args!("packet path, TCP {name}"), result);
        let result = exchange_datagrams(client, vip(SERVED))
            .and_then(|()| connections(tables, &served, 0, 2));
        report.check(format_args!("packet path, UDP {name}"), result);
        let result = refused(client, vip(EMPTY));
        report.check(format_args!("packet path, no endpoints {name}"), result);
        let result = refused(client, vip(UNKNOWN));
        report.check(format_args!("packet path, unknown port {name}"), result);
    }
}

/// That each path has translated so many, and that the packet path's traffic is counted.
fn connections(tables: &Tables, served: &Served, sockets: u64, packets: u64) -> Result<()> {
    let counters = tables.counters(served.row)?;
    let found = (counters.socket_connections, counters.packet_connections);
    ensure!(found == (sockets, packets), "connections by socket and packet path: {found:?}");
    ensure!((counters.packets > 0) == (packets > 0), "{} packets", counters.packets);
    Ok(())
}

pub(crate) fn connect(from: Option<IpAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::from((from, 0)).into())?;
    }
    socket.connect_timeout(&to.into(), PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

/// Sends much, and gets it back, on a connection whose peer is named `peer`.
pub(crate) fn exchange(from: Option<IpAddr>, to: SocketAddr, peer: SocketAddr) -> Result<()> {
    let mut stream = connect(from, to).context("connect")?;
    let named = stream.peer_addr()?;
    ensure!(named == peer, "the peer is called {named}");
    let sent: Vec<u8> = (0..BULK).map(|at| (at % 251) as u8).collect();
    stream.write_all(&sent).context("write")?;
    stream.shutdown(Shutdown::Write)?;
    let mut received = Vec::new();
    stream.read_to_end(&mut received).context("read")?;
    ensure!(received == sent, "{} of {} bytes came back", received.len(), sent.len());
    Ok(())
}

fn datagrams(from: Option<IpAddr>, to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr =
        if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((from.unwrap_or(any), 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends from a socket that is not connected, and looks who answers.
pub(crate) fn exchange_datagrams(from: Option<IpAddr>, to: SocketAddr) -> Result<()> {
    let socket = datagrams(from, to)?;
    let mut bytes = [0; 64];
    for text in [&b"one"[..], b"two"] {
        socket.send_to(text, to).context("send")?;
        let (length, by) = socket.recv_from(&mut bytes).context("receive")?;
        ensure!(&bytes[..length] == text, "another datagram came back");
        ensure!(by == to, "{by} answered");
    }
    Ok(())
}

fn exchange_connected(to: SocketAddr) -> Result<()> {
    let socket = datagrams(None, to)?;
    socket.connect(to)?;
    let named = socket.peer_addr()?;
    ensure!(named == to, "the peer is called {named}");
    socket.send(b"one").context("send")?;
    let mut bytes = [0; 64];
    let (length, by) = socket.recv_from(&mut bytes).context("receive")?;
    ensure!((&bytes[..length], by) == (b"one", to), "{length} bytes came from {by}");
    Ok(())
}

fn refused(from: Option<IpAddr>, to: SocketAddr) -> Result<()> {
    match connect(from, to) {
        Err(err) if err.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(err) => Err(err).context("not refused, but"),
        Ok(_) => bail!("connected"),
    }
}
