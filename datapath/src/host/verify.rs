//! Checks of a packet's checksums by summing it up, and packets in words for people.

use core::fmt::Write;

use crate::{
    address::protocol,
    header::{Part, Transport, transport},
    host::{
        buffer::Buffer,
        frame::{Sample, crc32c, pseudo, sum},
    },
    packet::Packet,
};

/// What a packet's transport checksum should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expect {
    Full,
    /// The sum of the pseudo header.
    Partial,
}

fn fail<T>(what: &str) -> Result<T, String> {
    Err(what.to_owned())
}

/// Checks every checksum in a packet: of the IPv4 header, of TCP, UDP, SCTP or ICMP, and those of
/// the packet that an ICMP error quotes as far as it is all there. Fragments have no more than
/// a header to check.
///
/// # Errors
/// Which one is wrong, or why it cannot be told.
pub fn checksums<F: Sample>(bytes: &[u8], expect: Expect) -> Result<(), String> {
    let buffer = Buffer::new(bytes.to_vec());
    let Some(header) = F::header(&buffer, 0) else { return fail("no header") };
    if !F::V6 && sum(&[&bytes[..header.offset.min(buffer.len()) as usize]]) != 0xffff {
        return fail("IPv4 header checksum");
    }
    let total = F::total_length(&buffer, 0).unwrap_or(0) as usize;
    let Ok(found) = F::follow(&buffer, 0, &header) else { return fail("headers") };
    if total > bytes.len() || found.offset as usize > total {
        return fail("truncated");
    }
    let body = &bytes[found.offset as usize..total];
    if found.part != Part::Whole {
        return Ok(());
    }
    let pseudo = pseudo::<F>(header.src, header.dst, found.proto, body.len());
    let field = match found.proto {
        protocol::TCP if body.len() >= 20 => 16,
        protocol::UDP if body.len() >= 8 => 6,
        proto if proto == F::ICMP && body.len() >= 8 => {
            let covered: &[u8] = if F::V6 { &pseudo } else { &[] };
            if sum(&[covered, body]) != 0xffff {
                return fail("ICMP checksum");
            }
            return quoted::<F>(body);
        }
        protocol::SCTP if body.len() >= 12 => return crc(body, expect),
        protocol::TCP | protocol::UDP | protocol::SCTP => return fail("truncated"),
        _ => return Ok(()),
    };
    let value = u16::from_be_bytes([body[field], body[field + 1]]);
    if found.proto == protocol::UDP && value == 0 {
        return if F::V6 { fail("UDP without checksum") } else { Ok(()) };
    }
    match expect {
        Expect::Full if sum(&[&pseudo, body]) != 0xffff => fail("transport checksum"),
        Expect::Partial if sum(&[&pseudo]) != value => fail("pseudo header sum"),
        _ => Ok(()),
    }
}

/// Checks an SCTP packet's; one that a device is to compute holds zero.
fn crc(body: &[u8], expect: Expect) -> Result<(), String> {
    let (field, mut zeroed) = (&body[8..12], body.to_vec());
    zeroed[8..12].fill(0);
    match expect {
        Expect::Full if field != crc32c(&zeroed).to_le_bytes() => fail("SCTP checksum"),
        Expect::Partial if field != [0; 4] => fail("SCTP checksum that is to be computed"),
        _ => Ok(()),
    }
}

fn quoted<F: Sample>(message: &[u8]) -> Result<(), String> {
    let error = if F::V6 { message[0] < 128 } else { matches!(message[0], 3 | 4 | 11 | 12) };
    let inner = &message[8..];
    if !error || F::header(&Buffer::new(inner.to_vec()), 0).is_none() {
        return Ok(());
    }
    match checksums::<F>(inner, Expect::Full) {
        Err(what) if what != "truncated" => Err(format!("quoted: {what}")),
        _ => Ok(()),
    }
}

/// A packet in one line, and its bytes.
#[must_use]
pub fn describe<F: Sample>(bytes: &[u8]) -> String {
    let buffer = Buffer::new(bytes.to_vec());
    let mut text = String::new();
    if let Some(header) = F::header(&buffer, 0) {
        let _ = write!(text, "{:?} → {:?} {:?}", header.src, header.dst, header.part);
        match transport::<F, _>(&buffer, &header) {
            Ok(Transport { proto, ports, flags, offset, .. }) => {
                let (src, dst) = (ports.src_port, ports.dst_port);
                let _ =
                    write!(text, " proto {proto} {src:?} → {dst:?} flags {flags:#04x} at {offset}");
            }
            Err(reason) => {
                let _ = write!(text, " {reason:?}");
            }
        }
    }
    let sums = checksums::<F>(bytes, Expect::Full);
    let _ = write!(text, " ({} bytes, {})", bytes.len(), sums.err().unwrap_or("sums right".into()));
    for (row, chunk) in bytes.chunks(16).enumerate() {
        let _ = write!(text, "\n  {:04x}", row * 16);
        for byte in chunk {
            let _ = write!(text, " {byte:02x}");
        }
    }
    text
}

/// Where two packets differ, in words; `None` if nowhere.
#[must_use]
pub fn difference<F: Sample>(expected: &[u8], found: &[u8]) -> Option<String> {
    if expected == found {
        return None;
    }
    let longer = expected.len().max(found.len());
    let places: Vec<_> = (0..longer).filter(|at| expected.get(*at) != found.get(*at)).collect();
    Some(format!(
        "expected {}\nfound    {}\ndiffer at {places:x?}",
        describe::<F>(expected),
        describe::<F>(found)
    ))
}
