//! What a frame says in its headers, as far as people look for it: addresses and ports, and the same of
//! what a tunnel carries.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// Where VXLAN is, unless the overlay's tables tell another port.
pub const TUNNEL_PORTS: [u16; 2] = [8_472, 4_789];

const ETHERNET: usize = 14;
const VXLAN: usize = 8;

/// One packet: of the frame itself, or of a tunnel in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    pub protocol: u8,
    pub src: IpAddr,
    pub dst: IpAddr,
    /// Source and destination; `None` of fragments but the first, and of protocols without.
    pub ports: Option<(u16, u16)>,
    /// TCP's.
    pub flags: u8,
    /// The network that the tunnel is of, if the packet opens one.
    pub vni: Option<u32>,
}

/// What a frame holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// The packet, and the one in its tunnel.
    Ip(Packet, Option<Packet>),
    /// Of this Ethernet type.
    Other(u16),
    /// No whole header.
    Cut,
}

impl Content {
    pub fn of(frame: &[u8], tunnel_ports: &[u16]) -> Self {
        let Some(kind) = half(frame, 12) else { return Self::Cut };
        let Some(start) = network(frame) else { return Self::Other(kind) };
        let Some((outer, payload)) = packet(&frame[start..]) else { return Self::Cut };
        let Some(carried) = carried(&outer, payload, tunnel_ports) else {
            return Self::Ip(outer, None);
        };
        let inner = network(carried).and_then(|start| packet(&carried[start..]));
        let outer = Packet { vni: vni(payload), ..outer };
        Self::Ip(outer, inner.map(|(inner, _)| inner))
    }

    /// The packets there are.
    pub fn packets(&self) -> impl Iterator<Item = &Packet> {
        let (outer, inner) = match self {
            Self::Ip(outer, inner) => (Some(outer), inner.as_ref()),
            _ => (None, None),
        };
        outer.into_iter().chain(inner)
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Where the network header of a frame begins, behind VLAN tags too.
fn network(frame: &[u8]) -> Option<usize> {
    let mut start = ETHERNET;
    loop {
        match half(frame, start - 2)? {
            0x8100 | 0x88a8 => start += 4,
            0x0800 | 0x86dd => return Some(start),
            _ => return None,
        }
    }
}

/// The packet, and what follows its headers.
fn packet(bytes: &[u8]) -> Option<(Packet, &[u8])> {
    let (protocol, src, dst, rest, is_later) = match bytes.first()? >> 4 {
        4 => {
            let length = usize::from(bytes[0] & 0x0f) * 4;
            let src = Ipv4Addr::from(*bytes.get(12..)?.first_chunk::<4>()?);
            let dst = Ipv4Addr::from(*bytes.get(16..)?.first_chunk::<4>()?);
            let is_later = half(bytes, 6)? & 0x1fff != 0;
            (bytes[9], src.into(), dst.into(), bytes.get(length.max(20)..)?, is_later)
        }
        6 => {
            let src = Ipv6Addr::from(*bytes.get(8..)?.first_chunk::<16>()?);
            let dst = Ipv6Addr::from(*bytes.get(24..)?.first_chunk::<16>()?);
            let (protocol, rest, is_later) = extensions(bytes[6], bytes.get(40..)?);
            (protocol, src.into(), dst.into(), rest, is_later)
        }
        _ => return None,
    };
    let has_ports = !is_later && matches!(protocol, 6 | 17 | 132);
    let ports = has_ports.then(|| Some((half(rest, 0)?, half(rest, 2)?))).flatten();
    let flags = if protocol == 6 && !is_later { rest.get(13).copied().unwrap_or(0) } else { 0 };
    Some((Packet { protocol, src, dst, ports, flags, vni: None }, rest))
}

/// Past IPv6's extension headers (RFC 8200 §4): the protocol, what follows, and whether that is a later
/// fragment.
fn extensions(mut next: u8, mut rest: &[u8]) -> (u8, &[u8], bool) {
    while let [following, length, ..] = rest {
        let length = match next {
            0 | 43 | 60 => (usize::from(*length) + 1) * 8,
            44 => 8,
            _ => break,
        };
        if next == 44 && half(rest, 2).is_some_and(|offset| offset & 0xfff8 != 0) {
            return (*following, &[], true);
        }
        next = *following;
        rest = rest.get(length..).unwrap_or_default();
    }
    (next, rest, false)
}

/// The frame in a tunnel (RFC 7348): behind UDP's header and VXLAN's, whose flag says that the number of
/// the network is valid.
fn carried<'a>(outer: &Packet, payload: &'a [u8], tunnel_ports: &[u16]) -> Option<&'a [u8]> {
    let (_, port) = outer.ports?;
    let is_tunnel =
        outer.protocol == 17 && tunnel_ports.contains(&port) && payload.get(8)? & 0x08 != 0;
    is_tunnel.then(|| payload.get(8 + VXLAN..))?
}

fn vni(payload: &[u8]) -> Option<u32> {
    let word = u32::from_be_bytes(*payload.get(12..)?.first_chunk()?);
    Some(word >> 8)
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            1 | 58 => write!(f, "ICMP")?,
            6 => write!(f, "TCP")?,
            17 => write!(f, "UDP")?,
            132 => write!(f, "SCTP")?,
            other => write!(f, "protocol {other}")?,
        }
        match self.ports {
            Some((from, to)) => {
                let (src, dst) = (SocketAddr::new(self.src, from), SocketAddr::new(self.dst, to));
                write!(f, " {src} > {dst}")?;
            }
            None => write!(f, " {} > {}", self.src, self.dst)?,
        }
        if self.protocol == 6 && self.ports.is_some() {
            // As tcpdump has it.
            let names = [(0x02, 'S'), (0x01, 'F'), (0x08, 'P'), (0x04, 'R'), (0x10, '.')];
            let flags: String = names
                .iter()
                .filter(|(bit, _)| self.flags & bit != 0)
                .map(|(_, name)| name)
                .collect();
            write!(f, " [{flags}]")?;
        }
        if let Some(vni) = self.vni {
            write!(f, " VXLAN {vni}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(outer, None) => write!(f, "{outer}"),
            Self::Ip(outer, Some(inner)) => write!(f, "{outer} ( {inner} )"),
            Self::Other(0x0806) => write!(f, "ARP"),
            Self::Other(kind) => write!(f, "type {kind:#06x}"),
            Self::Cut => write!(f, "cut short"),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A segment of TCP over IPv4.
    pub fn segment(src: [u8; 4], from: u16, dst: [u8; 4], to: u16) -> Vec<u8> {
        let mut bytes = vec![0x0a; 12];
        bytes.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
        bytes.extend(src.into_iter().chain(dst));
        bytes.extend(from.to_be_bytes().into_iter().chain(to.to_be_bytes()));
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
        bytes
    }

    /// The same in VXLAN over IPv6.
    pub fn tunnelled(inner: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x0b; 12];
        bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 17, 64]);
        bytes.extend(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).octets());
        bytes.extend(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2).octets());
        bytes.extend([0xc0, 0x00, 0x21, 0x18, 0, 0, 0, 0, 0x08, 0, 0, 0, 0, 0, 7, 0]);
        bytes.extend(inner);
        bytes
    }

    #[test]
    fn a_segment_is_read_as_tcpdump_has_it() {
        let frame = segment([10, 0, 0, 1], 1_234, [10, 0, 0, 2], 80);
        let content = Content::of(&frame, &TUNNEL_PORTS);
        assert_eq!(content.to_string(), "TCP 10.0.0.1:1234 > 10.0.0.2:80 [P.]");
        let mut tagged = frame.clone();
        tagged.splice(12..12, [0x81, 0x00, 0, 5]);
        assert_eq!(Content::of(&tagged, &TUNNEL_PORTS), content);
    }

    #[test]
    fn what_a_tunnel_carries_is_read_where_one_is() {
        let frame = tunnelled(&segment([10, 0, 0, 1], 1_234, [10, 0, 0, 2], 80));
        let content = Content::of(&frame, &TUNNEL_PORTS);
        assert_eq!(
            content.to_string(),
            "UDP [fd00::1]:49152 > [fd00::2]:8472 VXLAN 7 ( TCP 10.0.0.1:1234 > 10.0.0.2:80 [P.] )"
        );
        assert_eq!(content.packets().count(), 2);
        assert_eq!(Content::of(&frame, &[4_789]).packets().count(), 1);
    }

    #[test]
    fn what_is_cut_short_or_no_packet_is_called_so() {
        let frame = tunnelled(&segment([10, 0, 0, 1], 1_234, [10, 0, 0, 2], 80));
        for length in 0..frame.len() {
            let _ = Content::of(&frame[..length], &TUNNEL_PORTS).to_string();
        }
        assert_eq!(Content::of(&frame[..20], &TUNNEL_PORTS).to_string(), "cut short");
        let mut request = vec![0; 42];
        request[12..14].copy_from_slice(&[0x08, 0x06]);
        assert_eq!(Content::of(&request, &TUNNEL_PORTS).to_string(), "ARP");
    }

    #[test]
    fn later_fragments_have_no_ports() {
        let mut frame = segment([10, 0, 0, 1], 1_234, [10, 0, 0, 2], 80);
        frame[20..22].copy_from_slice(&[0x00, 0x08]);
        let content = Content::of(&frame, &TUNNEL_PORTS);
        assert_eq!(content.to_string(), "TCP 10.0.0.1 > 10.0.0.2");
    }
}
