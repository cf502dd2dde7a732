//! Rewriting one side of a packet, with all checksums kept right.

use crate::{
    address::{Address, Be16, protocol},
    checksum::difference,
    counter::Reason,
    flow::Place,
    fragment::Ports,
    header::{IpHeader, Network, Part, Transport, checksum_offset},
    packet::{Covers, Packet},
    sctp,
};

/// Which side of the packet changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Source,
    Destination,
}

impl Side {
    /// Offset of the side's address from the start of the IP header.
    #[inline(always)]
    pub const fn address_field<F: Network>(self) -> u32 {
        match self {
            Self::Source => F::SRC,
            Self::Destination => F::DST,
        }
    }

    /// The side's address and port.
    #[inline(always)]
    pub const fn pick<A: Address>(self, header: &IpHeader<A>, transport: &Transport) -> (A, Be16) {
        match self {
            Self::Source => (header.src, transport.ports.src_port),
            Self::Destination => (header.dst, transport.ports.dst_port),
        }
    }

    /// Source and destination of a header, this side's replaced.
    #[inline(always)]
    pub fn put_address<A: Address>(self, header: &IpHeader<A>, new: A) -> (A, A) {
        match self {
            Self::Source => (new, header.dst),
            Self::Destination => (header.src, new),
        }
    }

    /// A transport header's ports, this side's replaced.
    #[inline(always)]
    pub const fn put_port(self, ports: Ports, new: Be16) -> Ports {
        match self {
            Self::Source => Ports { src_port: new, ..ports },
            Self::Destination => Ports { dst_port: new, ..ports },
        }
    }

    /// The same with the other side's port turned.
    #[inline(always)]
    #[must_use]
    pub const fn put_ports(self, ports: Ports, new: Be16, turn: Be16) -> Ports {
        match self {
            Self::Source => Ports { src_port: new, dst_port: ports.dst_port.xor(turn) },
            Self::Destination => Ports { src_port: ports.src_port.xor(turn), dst_port: new },
        }
    }
}

/// Replaces address and port of one side by `new`, and turns the other side's port by `turn`, which is
/// nearly always zero. Later fragments have no transport header, so only their address changes: the
/// first fragment's checksum stands for all.
///
/// # Errors
/// [`Reason::RewriteFailed`] if the packet could not be written; it may be half rewritten then
/// and must not go on. [`Reason::SctpFragment`] if a fragment's checksum would have to change by
/// what only the whole packet tells.
#[inline(always)]
pub fn rewrite<F: Network, P: Packet>(
    packet: &mut P,
    header: &IpHeader<F::Address>,
    transport: &Transport,
    side: Side,
    (new, turn): (Place<F::Address>, Be16),
) -> Result<(), Reason> {
    let ports = side.put_ports(transport.ports, new.port, turn);
    let is_first = transport.part == Part::First;
    if is_first && transport.proto == protocol::SCTP && transport.ports.word() != ports.word() {
        return Err(Reason::SctpFragment);
    }
    write::<F, P>(packet, header, transport, side, new, ports).ok_or(Reason::RewriteFailed)
}

/// Replaces both ends of a packet of TCP or UDP without options.
#[inline(always)]
pub fn rewrite_ends<F: Network, P: Packet>(
    packet: &mut P,
    header: &IpHeader<F::Address>,
    ports: Ports,
    src: Place<F::Address>,
    dst: Place<F::Address>,
) -> Option<()> {
    let at = F::HEADER + checksum_offset(header.next);
    let udp = header.next == protocol::UDP;
    let (before, after) = (header.src.sum() + header.dst.sum(), src.addr.sum() + dst.addr.sum());
    packet.change_transport_checksum(at, difference(before, after), F::COVERS, udp)?;
    let new = Ports { src_port: src.port, dst_port: dst.port };
    if ports.word() != new.word() {
        let by = difference(ports.sum(), new.sum());
        packet.change_transport_checksum(at, by, Covers::Payload, udp)?;
    }
    F::store_ends(packet, header, src.addr, dst.addr, new, 0)
}

#[inline(always)]
fn write<F: Network, P: Packet>(
    packet: &mut P,
    header: &IpHeader<F::Address>,
    transport: &Transport,
    side: Side,
    new: Place<F::Address>,
    ports: Ports,
) -> Option<()> {
    let (old, _) = side.pick(header, transport);
    if transport.part == Part::Later {
        return F::store_address(packet, 0, side.address_field::<F>(), old, new.addr);
    }
    if transport.proto == protocol::SCTP {
        let difference = sctp::difference(transport.ports, ports);
        if difference != 0 && !packet.change_crc32c::<F>(transport.offset, difference) {
            return None;
        }
    } else {
        change_checksum::<F, P>(packet, transport, old, new.addr, ports)?;
    }
    if transport.offset == F::HEADER {
        return F::store_place(packet, header, ports, side, new);
    }
    packet.store_words(transport.offset, &[ports.word()])?;
    F::store_address(packet, 0, side.address_field::<F>(), old, new.addr)
}

/// Changes TCP's or UDP's checksum from one address of a side to another, and to other ports.
#[inline(always)]
fn change_checksum<F: Network, P: Packet>(
    packet: &mut P,
    transport: &Transport,
    old: F::Address,
    new: F::Address,
    ports: Ports,
) -> Option<()> {
    let at = transport.offset + checksum_offset(transport.proto);
    let udp = transport.proto == protocol::UDP;
    if old != new {
        packet.change_transport_checksum(at, difference(old.sum(), new.sum()), F::COVERS, udp)?;
    }
    if transport.ports.word() != ports.word() {
        let by = difference(transport.ports.sum(), ports.sum());
        packet.change_transport_checksum(at, by, Covers::Payload, udp)?;
    }
    Some(())
}
