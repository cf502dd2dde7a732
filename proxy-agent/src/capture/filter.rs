//! Which frames are wanted.

use ipnetwork::IpNetwork;

use super::{
    frame::{Frame, Verdict},
    packet::{Content, Packet},
};

/// All of its kinds must hold; of each kind, one of what is named.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub devices: Vec<u32>,
    pub hosts: Vec<IpNetwork>,
    pub ports: Vec<u16>,
    pub verdicts: Vec<Verdict>,
}

/// True if nothing is named, or something that is so.
fn any<T>(named: &[T], is_so: impl FnMut(&T) -> bool) -> bool {
    named.is_empty() || named.iter().any(is_so)
}

impl Filter {
    /// Whether a frame is wanted, of which both sides are given where both are known: if one is, both
    /// are.
    pub fn wants(&self, sides: &[(Frame, Content)]) -> bool {
        let is_one = |(frame, content): &(Frame, Content)| {
            any(&self.devices, |device| *device == frame.device)
                && any(&self.verdicts, |verdict| frame.verdict() == Some(*verdict))
                && (self.hosts.is_empty() && self.ports.is_empty()
                    || content.packets().any(|packet| self.names(packet)))
        };
        sides.iter().any(is_one)
    }

    /// One packet must have both, the address and the port, be it in a tunnel or not.
    fn names(&self, packet: &Packet) -> bool {
        any(&self.hosts, |host| host.contains(packet.src) || host.contains(packet.dst))
            && any(&self.ports, |port| {
                packet.ports.is_some_and(|(from, to)| from == *port || to == *port)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::{
        frame::{Side, tests::frame},
        packet::{
            TUNNEL_PORTS,
            tests::{segment, tunnelled},
        },
    };

    fn of(side: Side, bytes: Vec<u8>) -> (Frame, Content) {
        let content = Content::of(&bytes, &TUNNEL_PORTS);
        (Frame { bytes, ..frame(side, Some(3)) }, content)
    }

    #[test]
    fn kinds_hold_together_and_what_is_named_by_itself() {
        // A client's segment, which leaves toward a pod in a tunnel.
        let before = of(Side::In, segment([10, 0, 0, 1], 1_234, [10, 0, 0, 2], 80));
        let inner = segment([10, 0, 0, 2], 50_000, [10, 244, 2, 9], 8_080);
        let sides = [before, of(Side::Out, tunnelled(&inner))];
        let wants = |hosts: &[&str], ports: &[u16], verdicts: &[Verdict]| {
            let hosts = hosts.iter().map(|host| host.parse().unwrap()).collect();
            let (ports, verdicts) = (ports.to_vec(), verdicts.to_vec());
            Filter { devices: vec![2], hosts, ports, verdicts }.wants(&sides)
        };
        assert!(wants(&[], &[], &[]));
        assert!(wants(&["10.0.0.1"], &[], &[]) && wants(&["10.244.0.0/16"], &[], &[]));
        assert!(wants(&["fd00::2"], &[8_472], &[Verdict::Sent]));
        assert!(wants(&["10.0.0.9", "10.0.0.1"], &[81, 80], &[Verdict::Dropped, Verdict::Sent]));
        assert!(!wants(&["10.0.0.9"], &[], &[]) && !wants(&[], &[81], &[]));
        assert!(!wants(&[], &[], &[Verdict::Passed]));
        // The port is another packet's.
        assert!(!wants(&["10.0.0.1"], &[8_080], &[]));
        assert!(!Filter { devices: vec![3], ..Filter::default() }.wants(&sides));
        let other = (frame(Side::In, None), Content::Other(0x0806));
        assert!(Filter::default().wants(std::slice::from_ref(&other)));
        assert!(!Filter { ports: vec![80], ..Filter::default() }.wants(&[other]));
    }
}
