//! What would become of XDP on a device, and why, without trying: what its driver says, what the kernel's
//! lists tell of it, and what follows from both.

use std::{collections::BTreeMap, io};

use agent_kit::{
    bpf::XdpMode,
    ethtool::{Channels, Ethtool},
    netdev::{self, Features},
};
use aya::util::nr_cpus;

use crate::netlink::{Link, Network};

/// The longest packet that one buffer holds beside what drivers keep free for programs, of a page of
/// 4096 bytes: 256 bytes before the frame, 320 for `struct skb_shared_info` behind it, and 14 of Ethernet.
const ONE_BUFFER: u32 = 4096 - 256 - 320 - 14;

/// What is known of a device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    pub device: String,
    /// Of a device without hardware.
    pub kind: String,
    pub driver: String,
    pub mtu: u32,
    /// `None` if the kernel does not tell.
    pub features: Option<Features>,
    /// Of a bond.
    pub members: Vec<Member>,
    /// An XDP program that is none of ours.
    pub stranger: Option<u32>,
    /// Joins segments before programs see them.
    pub has_lro: bool,
    pub channels: Option<Channels>,
    pub processors: u32,
}

/// A member of a bond.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Member {
    pub device: String,
    pub driver: String,
    pub features: Option<Features>,
}

/// Why something is not done on a device, and what could be done about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Obstacle {
    pub reason: String,
    pub remedy: String,
}

impl Obstacle {
    pub fn new(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { reason: reason.into(), remedy: remedy.into() }
    }
}

impl std::fmt::Display for Obstacle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { reason, remedy } = self;
        write!(f, "{reason}; {remedy}")
    }
}

/// For where nothing but the driver stands in the way.
const GENERIC: &str = "--xdp generic has the kernel do it";

/// Asks for facts.
pub struct Probe {
    ethtool: Ethtool,
    features: Option<BTreeMap<u32, Features>>,
    processors: u32,
}

impl Probe {
    pub fn ask() -> io::Result<Self> {
        Ok(Self {
            ethtool: Ethtool::open(),
            features: netdev::features()?,
            processors: nr_cpus().map_or(1, |count| count as u32),
        })
    }

    /// Facts about a device; `own` is the program of ours that is known to be there.
    pub fn facts(&self, network: &Network, link: &Link, own: Option<u32>) -> Facts {
        let members = network.links.iter().filter(|member| member.bridge == Some(link.index));
        let is_bond = link.kind == "bond";
        Facts {
            device: link.name.clone(),
            kind: link.kind.clone(),
            driver: self.driver(link),
            mtu: link.mtu,
            features: self.features(link.index),
            members: members
                .filter(|_| is_bond)
                .map(|member| Member {
                    device: member.name.clone(),
                    driver: self.driver(member),
                    features: self.features(member.index),
                })
                .collect(),
            stranger: link.xdp_program.filter(|&program| Some(program) != own),
            has_lro: self.ethtool.has_lro(&link.name),
            channels: self.ethtool.channels(&link.name),
            processors: self.processors,
        }
    }

    /// Of a device the kernel has listed; `None` if it tells of none.
    pub fn features(&self, ifindex: u32) -> Option<Features> {
        let all = self.features.as_ref()?;
        // One that is not on the list came after it.
        Some(all.get(&ifindex).copied().unwrap_or_default())
    }

    fn driver(&self, link: &Link) -> String {
        if link.kind.is_empty() {
            self.ethtool.driver(&link.name).unwrap_or_default()
        } else {
            link.kind.clone()
        }
    }
}

/// What a driver says of its features, in words.
pub fn told<S: AsRef<str>>(driver: &str, features: Option<&[S]>) -> String {
    let driver = if driver.is_empty() { "the driver" } else { driver };
    match features {
        None => format!("what {driver} can do, this kernel does not tell (6.3 and later do)"),
        Some([]) => format!("{driver} says that it can do nothing with XDP"),
        Some(names) => {
            let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
            format!("{driver} says {}", names.join(", "))
        }
    }
}

impl Facts {
    fn has(&self, bit: u64) -> bool {
        self.features.is_some_and(|features| features.has(bit))
    }

    /// What the driver says, in words.
    pub fn told(&self) -> String {
        told(&self.driver, self.features.map(Features::names).as_deref())
    }

    /// Whether the other end of a veth pair does not look for what a program sends back. A driver of a
    /// card says the same until a program runs, or does not send for other devices, which is less.
    pub fn is_deaf(&self) -> bool {
        self.kind == "veth" && self.features.is_some() && !self.has(Features::NDO_XMIT)
    }

    /// Why the driver would not run a program, as far as facts tell.
    pub fn obstacle(&self) -> Option<Obstacle> {
        if let Some(id) = self.stranger {
            return Some(Obstacle::new(
                format!("another XDP program is there already (id {id}: ip link, bpftool net)"),
                "a device runs one; take that off",
            ));
        }
        // Nobody tells.
        self.features?;
        if !self.has(Features::BASIC) {
            return Some(self.runs_none());
        }
        if self.mtu > ONE_BUFFER && !self.has(Features::RX_SG) {
            return Some(Obstacle::new(
                format!(
                    "its MTU, {}, takes more than one buffer, and its driver ({}) gives programs \
                     frames in one alone",
                    self.mtu, self.driver
                ),
                format!(
                    "ip link set {} mtu {ONE_BUFFER}, or what the driver takes (dmesg); {GENERIC}",
                    self.device
                ),
            ));
        }
        None
    }

    fn runs_none(&self) -> Obstacle {
        let Self { device, driver, .. } = self;
        match self.kind.as_str() {
            "bond" => self.bond(),
            "bridge" => Obstacle::new(
                "a bridge has no driver that could run programs",
                format!("{GENERIC}; or give a port of its own the node's address (--uplink)"),
            ),
            "vlan" => Obstacle::new(
                "a VLAN device has no driver that could run programs, and on the device below it frames \
                 have a tag, which is left to the kernel",
                GENERIC,
            ),
            "veth" => Obstacle::new(
                "the other end of the veth pair sends by more queues than this one receives by",
                format!("ethtool -L {device} rx N, or fewer at the other end (tx)"),
            ),
            "" => Obstacle::new(
                format!(
                    "its driver ({driver}) runs no XDP programs, or not as it is set (queues, rings)"
                ),
                format!("another driver or kernel, or `ethtool -L`; {GENERIC}"),
            ),
            kind => Obstacle::new(format!("devices of kind {kind} run no XDP programs"), GENERIC),
        }
    }

    fn bond(&self) -> Obstacle {
        let runs_none = |member: &&Member| {
            !member.features.is_some_and(|features| features.has(Features::BASIC))
        };
        let without: Vec<String> = self
            .members
            .iter()
            .filter(runs_none)
            .map(|Member { device, driver, .. }| format!("{device} ({driver})"))
            .collect();
        if self.members.is_empty() {
            return Obstacle::new("the bond has no members", GENERIC);
        }
        if without.is_empty() {
            return Obstacle::new(
                "the bond's members run XDP programs, and its mode or hash policy does not",
                "balance-rr, active-backup, balance-xor and 802.3ad do, but for the policy \
                 vlan+srcmac",
            );
        }
        Obstacle::new(
            format!("members of the bond run no XDP programs: {}", without.join(", ")),
            GENERIC,
        )
    }

    /// What may come between although the driver runs programs: only trying tells.
    fn doubts(&self) -> Option<Obstacle> {
        if self.has_lro {
            return Some(Obstacle::new(
                "it joins segments (LRO), with which many drivers refuse programs",
                format!("ethtool -K {} lro off", self.device),
            ));
        }
        match self.channels {
            Some(Channels { used, most })
                if self.driver == "virtio_net" && used + self.processors > most =>
            {
                Some(Obstacle::new(
                    format!(
                        "of {most} pairs of queues {used} are in use, and each of {} processors \
                         would have one for what is sent out at once: they share, by locks",
                        self.processors
                    ),
                    "more queues of the virtual machine, or fewer in use (ethtool -L), where that counts",
                ))
            }
            _ => None,
        }
    }
}

/// What `--xdp auto` would run on a device, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Forecast {
    pub mode: Option<XdpMode>,
    /// False if only trying tells.
    pub is_known: bool,
    pub reason: String,
    pub remedy: Option<String>,
}

/// Foresees. `wanted` is what would be tried, facts of the driver apart.
pub fn foresee(facts: &Facts, wanted: Result<XdpMode, Obstacle>) -> Forecast {
    let none = |Obstacle { reason, remedy }| Forecast {
        mode: None,
        is_known: true,
        reason,
        remedy: Some(remedy),
    };
    let mode = match wanted {
        Ok(mode) => mode,
        Err(obstacle) => return none(obstacle),
    };
    if let Some(obstacle) = facts.obstacle() {
        return none(obstacle);
    }
    let doubts = facts.doubts();
    let is_known = facts.features.is_some();
    let reason = match &doubts {
        Some(doubts) => format!("{}; {}", facts.told(), doubts.reason),
        None => facts.told(),
    };
    let try_it = || (!is_known).then(|| "only trying tells: run with --xdp auto".to_owned());
    Forecast {
        mode: Some(mode),
        is_known,
        reason,
        remedy: doubts.map(|doubts| doubts.remedy).or_else(try_it),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = 0x7f;

    fn card(driver: &str, features: u64) -> Facts {
        Facts {
            device: "eth0".into(),
            driver: driver.into(),
            mtu: 1500,
            features: Some(Features(features)),
            processors: 4,
            ..Facts::default()
        }
    }

    fn without_card(kind: &str, features: u64) -> Facts {
        Facts { kind: kind.into(), ..card(kind, features) }
    }

    fn foreseen(facts: &Facts) -> (Option<XdpMode>, String, String) {
        let Forecast { mode, reason, remedy, .. } = foresee(facts, Ok(XdpMode::Native));
        (mode, reason, remedy.unwrap_or_default())
    }

    #[track_caller]
    fn is_none(facts: &Facts, reason: &str, remedy: &str) {
        let (mode, why, what) = foreseen(facts);
        assert_eq!(mode, None);
        assert!(why.contains(reason), "{why}");
        assert!(what.contains(remedy), "{what}");
    }

    #[test]
    fn a_card_whose_driver_can_runs_it_natively() {
        let (mode, reason, remedy) = foreseen(&card("ixgbe", 0xb));
        assert_eq!(mode, Some(XdpMode::Native));
        assert_eq!(reason, "ixgbe says basic, redirect, xsk-zerocopy");
        assert_eq!(remedy, "");
    }

    #[test]
    fn a_driver_that_cannot_is_named() {
        is_none(&card("e1000e", 0), "its driver (e1000e) runs no XDP programs", "--xdp generic");
    }

    #[test]
    fn what_stood_in_the_way_before_counts_first() {
        let rules = Obstacle::new("rules", "without");
        let forecast = foresee(&card("e1000e", 0), Err(rules));
        assert_eq!((forecast.mode, forecast.reason.as_str()), (None, "rules"));
    }

    #[test]
    fn large_packets_need_several_buffers() {
        let jumbo = |features| Facts { mtu: 9000, ..card("ixgbe", features) };
        is_none(&jumbo(0x7), "its MTU, 9000", "ip link set eth0 mtu 3506");
        assert_eq!(foreseen(&jumbo(0x27)).0, Some(XdpMode::Native));
        let fits = Facts { mtu: ONE_BUFFER, ..card("ixgbe", 0x7) };
        assert_eq!(foreseen(&fits).0, Some(XdpMode::Native));
    }

    #[test]
    fn one_program_a_device() {
        let taken = Facts { stranger: Some(17), ..card("ixgbe", ALL) };
        is_none(&taken, "another XDP program is there already (id 17", "take that off");
        // Also where the kernel tells nothing of drivers.
        is_none(&Facts { features: None, ..taken }, "id 17", "");
    }

    #[test]
    fn an_old_kernel_does_not_tell() {
        let facts = Facts { features: None, ..card("ixgbe", 0) };
        let forecast = foresee(&facts, Ok(XdpMode::Native));
        assert!(!forecast.is_known && forecast.mode == Some(XdpMode::Native));
        assert!(forecast.reason.contains("6.3"), "{}", forecast.reason);
        assert!(forecast.remedy.is_some_and(|remedy| remedy.contains("only trying")));
    }

    #[test]
    fn a_bond_is_as_good_as_its_members() {
        let member = |device: &str, features| Member {
            device: device.into(),
            driver: "igb".into(),
            features: Some(Features(features)),
        };
        let bond = |features, members: &[Member]| Facts {
            members: members.to_vec(),
            ..without_card("bond", features)
        };
        is_none(&bond(0, &[]), "no members", "generic");
        let one = [member("eth1", 7), member("eth2", 0)];
        is_none(&bond(0, &one), "run no XDP programs: eth2 (igb)", "generic");
        let both = [member("eth1", 7), member("eth2", 7)];
        is_none(&bond(0, &both), "its mode or hash policy", "active-backup");
        assert_eq!(foreseen(&bond(7, &both)).0, Some(XdpMode::Native));
    }

    #[test]
    fn what_is_no_card_says_what_it_is() {
        is_none(&without_card("bridge", 0), "a bridge", "--uplink");
        is_none(&without_card("vlan", 0), "a VLAN device", "generic");
        is_none(&without_card("dummy", 0), "devices of kind dummy", "generic");
        is_none(&without_card("veth", 0), "by more queues", "ethtool -L eth0 rx");
    }

    #[test]
    fn the_other_end_of_a_pair_must_listen() {
        assert!(without_card("veth", 0x23).is_deaf());
        assert!(!without_card("veth", 0x67).is_deaf());
        assert!(!Facts { features: None, ..without_card("veth", 0) }.is_deaf());
        assert!(!card("virtio_net", 0x23).is_deaf());
    }

    #[test]
    fn joined_segments_and_shared_queues_are_told() {
        let lro = Facts { has_lro: true, ..card("ixgbe", ALL) };
        let (mode, reason, remedy) = foreseen(&lro);
        assert!(mode.is_some() && reason.contains("LRO") && remedy.contains("eth0 lro off"));
        let queues = |used, most| {
            let channels = Some(Channels { used, most });
            foreseen(&Facts { channels, ..card("virtio_net", ALL) }).1
        };
        assert!(queues(2, 4).contains("of 4 pairs of queues 2 are in use"), "{}", queues(2, 4));
        assert!(!queues(4, 8).contains("queues"), "{}", queues(4, 8));
    }
}
