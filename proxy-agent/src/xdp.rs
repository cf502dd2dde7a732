//! The program that sees frames of uplinks before the kernel has made socket buffers of them: on which
//! devices it runs, who runs it, and why it does not run on others.

use std::{collections::BTreeMap, path::Path};

use agent_kit::{
    attach::{self, AttachError},
    bpf::XdpMode,
    link::{LinkError, Links},
    table::{MapTable, OpenError, Table, TableError},
};
use aya::Ebpf;
use datapath::nexthop::{Uplink, mode, place};
use serde::{Deserialize, Serialize};

use crate::{
    config::Xdp,
    devices::{Role, Roles},
    netlink::{Link, Network},
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
        if let Err(err) = self.take_off_others(roles) {
            outcome.errors.push(err);
        }
        for link in network.links.iter().filter(|link| is_uplink(roles, link)) {
            let status = |mode: &str, reason: String| XdpStatus {
                device: link.name.clone(),
                mode: mode.into(),
                reason,
            };
            let served = match wanted(link, self.asked, obstacle) {
                Ok(mode) => self.put_on(ebpf, link, mode, &mut outcome),
                Err(reason) => self.take_off(link.index).map(|()| Err(reason)),
            };
            match served {
                Ok(Ok(mode)) => {
                    let reason = match (obstacle, self.asked) {
                        (Some(obstacle), _) => {
                            format!("asked for; passes by what there is: {obstacle}")
                        }
                        (None, Xdp::Auto) => "the driver can run it".into(),
                        (None, _) => "asked for".into(),
                    };
                    outcome.devices.push(status(name(mode), reason));
                }
                Ok(Err(reason)) => outcome.devices.push(status("none", reason)),
                // It went meanwhile.
                Err(XdpError::Link(err)) if err.is_gone() => {}
                Err(err) => {
                    outcome.devices.push(status("none", refusal(&err)));
                    if self.asked != Xdp::Auto {
                        outcome.errors.push(err);
                    }
                }
            }
        }
        outcome
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
        let wanted = Uplink {
            device: link.index,
            mac: link.mac,
            sends: (mode == XdpMode::Generic).into(),
            mode: match mode {
                XdpMode::Native => mode::NATIVE,
                XdpMode::Generic => mode::GENERIC,
            },
        };
        let row = self.table.get(&at).map_err(failed)?.unwrap_or_default();
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

    fn take_off(&mut self, ifindex: u32) -> Result<(), XdpError> {
        self.links.detach_now(&pin(ifindex))?;
        self.on.remove(&ifindex);
        let failed = |source| XdpError::Row { device: format!("of index {ifindex}"), source };
        let at = place(ifindex);
        let row = self.table.get(&at).map_err(failed)?.unwrap_or_default();
        if row.device == ifindex {
            self.table.insert(&at, &Uplink::default()).map_err(failed)?;
        }
        Ok(())
    }

    /// Takes the program off what is no uplink any more.
    fn take_off_others(&mut self, roles: &Roles) -> Result<(), XdpError> {
        for link in self.links.list()? {
            let Some(ifindex) = ifindex(&link.name) else { continue };
            let is_uplink = roles.devices.get(&ifindex).is_some_and(|on| on.role == Role::Uplink);
            if !is_uplink {
                self.take_off(ifindex)?;
            }
        }
        Ok(())
    }
}

/// Tunnels are seen where they enter and leave the node; what comes out of one has a socket buffer.
fn is_uplink(roles: &Roles, link: &Link) -> bool {
    !link.is_tunnel && roles.devices.get(&link.index).is_some_and(|on| on.role == Role::Uplink)
}

/// Who is to run the program on a device, or why nobody.
fn wanted(link: &Link, asked: Xdp, obstacle: Option<&str>) -> Result<XdpMode, String> {
    match (asked, obstacle) {
        (Xdp::Off, _) => Err("--xdp off".into()),
        (Xdp::Generic, _) => Ok(XdpMode::Generic),
        (Xdp::Auto, Some(obstacle)) => {
            Err(format!("it would pass by what forwarded packets meet: {obstacle}"))
        }
        (Xdp::Auto, None) if link.is_veth => Err("one end of a veth pair: the other end leaves out \
             checksums, and sends one by one what it sends in batches otherwise; --xdp native has it \
             none the less"
            .into()),
        (Xdp::Native, _) | (Xdp::Auto, None) => Ok(XdpMode::Native),
    }
}

/// Why the kernel does not attach, as far as its error tells.
fn refusal(err: &XdpError) -> String {
    let XdpError::Link(LinkError::Device { source, .. }) = err else { return err.to_string() };
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
        let card = Link { index: 2, name: "eth0".into(), is_ethernet: true, ..Link::default() };
        let pair = Link { is_veth: true, ..card.clone() };
        assert_eq!(wanted(&card, Xdp::Auto, None), Ok(XdpMode::Native));
        assert!(wanted(&pair, Xdp::Auto, None).unwrap_err().contains("veth"));
        assert!(wanted(&card, Xdp::Auto, Some("chain FORWARD")).unwrap_err().contains("FORWARD"));
        for obstacle in [None, Some("chain FORWARD")] {
            assert_eq!(wanted(&pair, Xdp::Native, obstacle), Ok(XdpMode::Native));
            assert_eq!(wanted(&card, Xdp::Generic, obstacle), Ok(XdpMode::Generic));
            assert!(wanted(&card, Xdp::Off, obstacle).is_err());
        }
    }

    #[test]
    fn a_pin_tells_its_device() {
        assert_eq!(ifindex(&pin(17)), Some(17));
        assert_eq!(ifindex("uplink_ingress_17"), None);
        assert_eq!(ifindex("xdp_ingress_"), None);
    }
}
