//! The program that sees frames of uplinks before the kernel has made socket buffers of them: on which
//! devices it runs, who runs it, and why it does not run on others.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use agent_kit::{
    attach::{self, AttachError},
    bpf::XdpMode,
    link::{LinkError, Links},
    netdev::Features,
    table::{MapTable, OpenError, Table, TableError},
};
use aya::Ebpf;
use datapath::nexthop::{Uplink, mode, place};
use serde::{Deserialize, Serialize};

use crate::{
    config::Xdp,
    devices::{Attachment, Role, Roles},
    netlink::{Link, Network},
    probe::{self, Facts, Obstacle, Probe},
};

/// The program that drivers run, by which links are pinned, too.
pub const PROGRAM: &str = "xdp_ingress";
/// The same for the kernel to run.
const GENERIC: &str = "xdp_generic";

/// By who runs it.
pub const fn program(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Native => PROGRAM,
        XdpMode::Generic => GENERIC,
    }
}

/// What is done on a device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct XdpStatus {
    pub device: String,
    /// `native`, `generic` or `none`.
    pub mode: String,
    pub reason: String,
    /// Its driver, or what kind of device it is; empty with `--xdp off`, where nobody asks.
    #[serde(default)]
    pub driver: String,
    /// What the driver says that it can do with XDP ([`agent_kit::netdev`]), if the kernel tells.
    #[serde(default)]
    pub features: Option<Vec<String>>,
}

impl XdpStatus {
    /// What the driver says, in words.
    pub fn told(&self) -> String {
        probe::told(&self.driver, self.features.as_deref())
    }
}

/// Why a row or a link is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("cannot write device {device} to table UPLINKS: {source}")]
    Row { device: String, source: TableError },
    #[error(
        "what is sent back by {device} is lost: the other end of the veth pair has neither an XDP program \
         nor GRO, so nobody there looks for it; give it a program, or --xdp generic"
    )]
    Deaf { device: String },
}

/// What a round came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Of all devices that could be served.
    pub devices: Vec<XdpStatus>,
    /// Programs that another hand had taken off, and that are on again, by device.
    pub mended: Vec<String>,
    pub errors: Vec<XdpError>,
}

/// The devices as they are served.
pub struct Wires {
    asked: Xdp,
    links: Links,
    table: MapTable<u32, Uplink>,
    /// Devices that have the program, by this process's doing.
    on: BTreeMap<u32, XdpMode>,
}

impl Wires {
    pub fn open(maps: &Path, links: Links, asked: Xdp) -> Result<Self, OpenError> {
        Ok(Self { asked, links, table: MapTable::open(maps, "UPLINKS")?, on: BTreeMap::new() })
    }

    /// Brings the program to the uplinks that it is wanted on, and takes it off all others. `obstacle`
    /// says what in netfilter forwarded packets meet, if there is anything.
    pub fn sync(
        &mut self,
        ebpf: &Ebpf,
        roles: &Roles,
        network: &Network,
        obstacle: Option<&str>,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        let uplinks: Vec<&Link> = uplinks(roles, network).collect();
        let wanted: Vec<_> =
            uplinks.iter().map(|link| wanted(link.is_veth, self.asked, obstacle)).collect();
        let stay = uplinks.iter().zip(&wanted).filter(|(_, wanted)| wanted.is_ok());
        let stay: BTreeSet<u32> = stay.map(|(link, _)| link.index).collect();
        if let Err(err) = self.take_off_others(&uplinks, &stay) {
            outcome.errors.push(err);
        }
        let served: Vec<_> = uplinks
            .iter()
            .zip(wanted)
            .map(|(link, wanted)| match wanted {
                Ok(mode) => self.put_on(ebpf, link, mode, &mut outcome),
                Err(obstacle) => Ok(Err(obstacle.to_string())),
            })
            .collect();
        // Some drivers can do more once a program runs.
        let probe = (self.asked != Xdp::Off).then(Probe::ask).and_then(Result::ok);
        outcome.errors.extend(self.tell_senders(&uplinks, probe.as_ref()).err());
        for (link, served) in uplinks.into_iter().zip(served) {
            let facts = probe.as_ref().map(|probe| {
                let own = self.on.get(&link.index).and(link.xdp_program);
                probe.facts(network, link, own)
            });
            let facts = facts.unwrap_or_default();
            if matches!(served, Ok(Ok(XdpMode::Native))) && facts.is_deaf() {
                outcome.errors.push(XdpError::Deaf { device: link.name.clone() });
            }
            let (mode, reason) = match served {
                Ok(Ok(mode)) => (name(mode), self.consent(obstacle)),
                Ok(Err(reason)) => ("none", reason),
                // It went meanwhile.
                Err(XdpError::Link(err)) if err.is_gone() => continue,
                Err(err) => {
                    let reason = refusal(&err, &facts);
                    if self.asked != Xdp::Auto {
                        outcome.errors.push(err);
                    }
                    ("none", reason)
                }
            };
            outcome.devices.push(XdpStatus {
                device: link.name.clone(),
                mode: mode.into(),
                reason,
                driver: facts.driver,
                features: facts
                    .features
                    .map(|features| features.names().into_iter().map(ToOwned::to_owned).collect()),
            });
        }
        outcome
    }

    /// Why it is done.
    fn consent(&self, obstacle: Option<&str>) -> String {
        match (obstacle, self.asked) {
            (Some(obstacle), _) => format!("asked for; passes by what there is: {obstacle}"),
            (None, Xdp::Auto) => "the driver can run it".into(),
            (None, _) => "asked for".into(),
        }
    }

    /// Puts the program on a device; says why not if the table has no place for it.
    fn put_on(
        &mut self,
        ebpf: &Ebpf,
        link: &Link,
        mode: XdpMode,
        outcome: &mut Outcome,
    ) -> Result<Result<XdpMode, String>, XdpError> {
        let failed = |source| XdpError::Row { device: link.name.clone(), source };
        let (pin, at) = (pin(link.index), place(link.index));
        let row = self.table.get(&at).map_err(failed)?.unwrap_or_default();
        let (number, sends) = match mode {
            // Told once it is known: some drivers send only where a program runs.
            XdpMode::Native if (row.device, row.mode) == (link.index, mode::NATIVE) => {
                (mode::NATIVE, row.sends)
            }
            XdpMode::Native => (mode::NATIVE, 0),
            XdpMode::Generic => (mode::GENERIC, 1),
        };
        let wanted = Uplink { device: link.index, mac: link.mac, sends, mode: number };
        if row.device != 0 && row.device != link.index && self.on.contains_key(&row.device) {
            return Ok(Err(format!(
                "interface indices {} and {} have one place in table UPLINKS",
                row.device, link.index
            )));
        }
        if let Some(before) = self.links.get(&pin)? {
            if before.is_attached() && (row.device, row.mode) != (wanted.device, wanted.mode) {
                // It may be run by another than is wanted now, which a link does not tell.
                self.links.detach_now(&pin)?;
            } else if !before.is_attached() && self.on.contains_key(&link.index) {
                outcome.mended.push(link.name.clone());
            }
        }
        let fd = attach::program_fd(ebpf, program(mode))?;
        self.links.attach_xdp(&pin, fd, link.index, mode)?;
        if row != wanted {
            self.table.insert(&at, &wanted).map_err(failed)?;
        }
        self.on.insert(link.index, mode);
        Ok(Ok(mode))
    }

    /// Says in the table which devices send out what came in by others, where drivers run the program.
    fn tell_senders(&mut self, uplinks: &[&Link], probe: Option<&Probe>) -> Result<(), XdpError> {
        let features = |link: &Link| probe.and_then(|probe| probe.features(link.index));
        let native: Vec<&Link> = uplinks
            .iter()
            .copied()
            .filter(|link| self.on.get(&link.index) == Some(&XdpMode::Native))
            .collect();
        let redirects =
            |link: &&Link| features(link).is_some_and(|known| known.has(Features::REDIRECT));
        let all_redirect = native.iter().all(redirects);
        for link in native {
            let failed = |source| XdpError::Row { device: link.name.clone(), source };
            let sends = all_redirect && sends(features(link), link.mtu);
            let at = place(link.index);
            let row = self.table.get(&at).map_err(failed)?.unwrap_or_default();
            let wanted = Uplink { sends: sends.into(), ..row };
            if row.device == link.index && row != wanted {
                self.table.insert(&at, &wanted).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Takes the program off all but those that it is to stay on.
    fn take_off_others(&mut self, uplinks: &[&Link], stay: &BTreeSet<u32>) -> Result<(), XdpError> {
        let pinned: Vec<u32> =
            self.links.names()?.iter().filter_map(|name| ifindex(name)).collect();
        for &ifindex in pinned.iter().chain(self.on.keys()).filter(|on| !stay.contains(on)) {
            self.links.detach_now(&pin(ifindex))?;
        }
        self.on.retain(|ifindex, _| stay.contains(ifindex));
        let listed = uplinks.iter().map(|link| link.index);
        for ifindex in pinned.into_iter().chain(listed).filter(|on| !stay.contains(on)) {
            self.clear(ifindex)?;
        }
        Ok(())
    }

    /// Has the table say nothing of a device.
    fn clear(&mut self, ifindex: u32) -> Result<(), XdpError> {
        let failed = |source| XdpError::Row { device: format!("of index {ifindex}"), source };
        let at = place(ifindex);
        let row = self.table.get(&at).map_err(failed)?.unwrap_or_default();
        if row.device == ifindex {
            self.table.insert(&at, &Uplink::default()).map_err(failed)?;
        }
        Ok(())
    }
}

/// Devices that frames come in by from outside. Tunnels are seen where they enter and leave the node; what
/// comes out of one has a socket buffer.
pub fn uplinks<'a>(roles: &'a Roles, network: &'a Network) -> impl Iterator<Item = &'a Link> {
    network.links.iter().filter(|link| {
        let has_role = |on: &Attachment| on.role == Role::Uplink;
        !link.is_tunnel && roles.devices.get(&link.index).is_some_and(has_role)
    })
}

/// Whether a driver sends out what came in by other devices. It drops what it cannot, without a word: what
/// came in several buffers, too, of which there are none as long as packets are no longer than usual.
fn sends(features: Option<Features>, mtu: u32) -> bool {
    const USUAL: u32 = 1500;
    features.is_some_and(|features| {
        features.has(Features::NDO_XMIT) && (mtu <= USUAL || features.has(Features::NDO_XMIT_SG))
    })
}

/// Who is to run the program on a device, or why nobody. `rules` are what forwarded packets meet.
pub fn wanted(is_veth: bool, asked: Xdp, rules: Option<&str>) -> Result<XdpMode, Obstacle> {
    let asked_for = "--xdp native has it none the less";
    match (asked, rules) {
        (Xdp::Off, _) => Err(Obstacle::new("--xdp off", "--xdp auto has it where it can be")),
        (Xdp::Generic, _) => Ok(XdpMode::Generic),
        (Xdp::Auto, Some(rules)) => Err(Obstacle::new(
            format!("it would pass by what forwarded packets meet: {rules}"),
            asked_for,
        )),
        (Xdp::Auto, None) if is_veth => Err(Obstacle::new(
            "one end of a veth pair: the other end leaves out checksums, and sends one by one what it \
             sends in batches otherwise",
            asked_for,
        )),
        (Xdp::Native, _) | (Xdp::Auto, None) => Ok(XdpMode::Native),
    }
}

/// Why the kernel does not attach, as far as facts and its error tell.
fn refusal(err: &XdpError, facts: &Facts) -> String {
    let XdpError::Link(LinkError::Device { source, .. }) = err else { return err.to_string() };
    if let Some(obstacle) = facts.obstacle() {
        return format!("{obstacle} ({source})");
    }
    let why = match source.raw_os_error() {
        // By the same who is to run ours, or by the other.
        Some(libc::EBUSY | libc::EEXIST) => {
            "another XDP program is there already (ip link, bpftool net)"
        }
        Some(libc::EOPNOTSUPP) => {
            "its driver runs no XDP programs; --xdp generic has the kernel do it"
        }
        Some(libc::EINVAL | libc::ERANGE) => {
            "its settings are in the way: MTU too large, offloads (LRO) on, or too few queues"
        }
        _ => return format!("the kernel refuses: {source}"),
    };
    format!("{why} ({source})")
}

/// Who runs the program on a device, as the tables tell.
pub fn mode_of(maps: &Path, ifindex: u32) -> Option<XdpMode> {
    let table: MapTable<u32, Uplink> = MapTable::open(maps, "UPLINKS").ok()?;
    let row = table.get(&place(ifindex)).ok()?.filter(|row| row.device == ifindex)?;
    match row.mode {
        mode::NATIVE => Some(XdpMode::Native),
        mode::GENERIC => Some(XdpMode::Generic),
        _ => None,
    }
}

/// As `status` has it.
pub const fn name(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Native => "native",
        XdpMode::Generic => "generic",
    }
}

fn pin(ifindex: u32) -> String {
    format!("{PROGRAM}_{ifindex}")
}

/// The device that a pin's name tells.
pub fn ifindex(pin: &str) -> Option<u32> {
    pin.strip_prefix(PROGRAM)?.strip_prefix('_')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_native_but_for_pairs_and_beside_rules() {
        let (card, pair) = (false, true);
        assert_eq!(wanted(card, Xdp::Auto, None), Ok(XdpMode::Native));
        assert!(wanted(pair, Xdp::Auto, None).unwrap_err().reason.contains("veth"));
        assert!(
            wanted(card, Xdp::Auto, Some("chain FORWARD")).unwrap_err().reason.contains("FORWARD")
        );
        for obstacle in [None, Some("chain FORWARD")] {
            assert_eq!(wanted(pair, Xdp::Native, obstacle), Ok(XdpMode::Native));
            assert_eq!(wanted(card, Xdp::Generic, obstacle), Ok(XdpMode::Generic));
            assert!(wanted(card, Xdp::Off, obstacle).is_err());
        }
    }

    #[test]
    fn a_driver_sends_what_it_says_it_does() {
        assert!(!sends(None, 1500));
        assert!(!sends(Some(Features(0x23)), 1500));
        assert!(sends(Some(Features(0x7)), 1500));
        assert!(!sends(Some(Features(0x27)), 9000));
        assert!(sends(Some(Features(0x67)), 9000));
    }

    #[test]
    fn a_pin_tells_its_device() {
        assert_eq!(ifindex(&pin(17)), Some(17));
        assert_eq!(ifindex("uplink_ingress_17"), None);
        assert_eq!(ifindex("xdp_ingress_"), None);
    }
}
