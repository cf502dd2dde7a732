//! What drivers of this network namespace's devices say that they can do with XDP, as the kernel's
//! family `netdev` of generic netlink tells (include/uapi/linux/netdev.h). It came with Linux 6.3.
//!
//! Two lists, of families and of devices: libraries of generic netlink know neither the family nor
//! its messages.

use std::{collections::BTreeMap, io};

use rustix::net::netlink;

use crate::{
    dump::{Dump, attribute, attributes, text, u16_at, u32_at},
    notice::Word,
};

/// `struct genlmsghdr`: command, version, and two bytes of nothing.
const GENLMSGHDR: usize = 4;
/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY` (include/uapi/linux/genetlink.h).
const CONTROLLER: u16 = 16;
const GET_FAMILY: [u8; GENLMSGHDR] = [3, 1, 0, 0];
/// `CTRL_ATTR_*`.
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const GROUPS: u16 = 7;
/// `CTRL_ATTR_MCAST_GRP_*`.
const GROUP_NAME: u16 = 1;
const GROUP_ID: u16 = 2;
/// `NETDEV_CMD_DEV_GET`.
const GET_DEVICE: [u8; GENLMSGHDR] = [1, 1, 0, 0];
/// `NETDEV_A_DEV_*`.
const IFINDEX: u16 = 1;
const XDP_FEATURES: u16 = 3;

/// What a driver can do with XDP at the moment, by bits of `enum netdev_xdp_act`: for some, it
/// depends on their queues, on the programs that run, or on the peer's settings.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features(pub u64);

impl Features {
    /// Runs programs, which pass, drop, or send out by the same device.
    pub const BASIC: u64 = 1;
    /// Their programs may send frames out by other devices.
    pub const REDIRECT: u64 = 2;
    /// Sends out what came in by other devices.
    pub const NDO_XMIT: u64 = 4;
    /// Gives programs frames that are in several buffers.
    pub const RX_SG: u64 = 32;
    /// Sends out such as came in by other devices.
    pub const NDO_XMIT_SG: u64 = 64;

    /// As the kernel's own specification spells them (Documentation/netlink/specs/netdev.yaml).
    const NAMES: [(u64, &str); 7] = [
        (Self::BASIC, "basic"),
        (Self::REDIRECT, "redirect"),
        (Self::NDO_XMIT, "ndo-xmit"),
        (8, "xsk-zerocopy"),
        (16, "hw-offload"),
        (Self::RX_SG, "rx-sg"),
        (Self::NDO_XMIT_SG, "ndo-xmit-sg"),
    ];

    pub const fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    pub fn names(self) -> Vec<&'static str> {
        Self::NAMES.iter().filter(|(bit, _)| self.has(*bit)).map(|(_, name)| *name).collect()
    }
}

/// The family as the kernel knows it by.
struct Family {
    id: u16,
    /// Of the group that hears of devices.
    group: Option<u32>,
}

/// Of each device, by interface index; `None` if the kernel has no such family.
pub fn features() -> io::Result<Option<BTreeMap<u32, Features>>> {
    let mut dump = Dump::open(Some(netlink::GENERIC))?;
    let Some(Family { id, .. }) = family(&mut dump)? else { return Ok(None) };
    let mut found = BTreeMap::new();
    dump.ask(id, &GET_DEVICE, id, |message| found.extend(device(message)))?;
    Ok(Some(found))
}

/// Word that a driver can do more or less than before, of which nothing else tells; `None` if the
/// kernel has no such family. Needs a tokio runtime.
pub fn notices() -> io::Result<Option<Word>> {
    let mut dump = Dump::open(Some(netlink::GENERIC))?;
    let Some(group) = family(&mut dump)?.and_then(|family| family.group) else { return Ok(None) };
    Word::of_group(Some(netlink::GENERIC), group, |_| true).map(Some)
}

fn family(dump: &mut Dump) -> io::Result<Option<Family>> {
    let mut found = None;
    dump.ask(CONTROLLER, &GET_FAMILY, CONTROLLER, |message| {
        found = found.take().or_else(|| read_family(message));
    })?;
    Ok(found)
}

fn read_family(message: &[u8]) -> Option<Family> {
    let told = message.get(GENLMSGHDR..)?;
    if text(attribute(told, FAMILY_NAME)?) != "netdev" {
        return None;
    }
    let groups = attribute(told, GROUPS).unwrap_or_default();
    let is_of_devices =
        |group: &&[u8]| attribute(group, GROUP_NAME).map(text).as_deref() == Some("mgmt");
    let group = attributes(groups).map(|(_, group)| group).find(is_of_devices);
    Some(Family {
        id: u16_at(attribute(told, FAMILY_ID)?, 0)?,
        group: group.and_then(|group| u32_at(attribute(group, GROUP_ID)?, 0)),
    })
}

fn device(message: &[u8]) -> Option<(u32, Features)> {
    let told = message.get(GENLMSGHDR..)?;
    let features = attribute(told, XDP_FEATURES)?.first_chunk()?;
    Some((u32_at(attribute(told, IFINDEX)?, 0)?, Features(u64::from_ne_bytes(*features))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dump::attribute_of;

    #[test]
    fn a_device_tells_its_features() {
        let mut message = GET_DEVICE.to_vec();
        message.extend(attribute_of(IFINDEX, &4_u32.to_ne_bytes()));
        assert_eq!(device(&message), None);
        message.extend(attribute_of(XDP_FEATURES, &0x2b_u64.to_ne_bytes()));
        let (index, features) = device(&message).unwrap();
        assert_eq!(index, 4);
        assert_eq!(features.names(), ["basic", "redirect", "xsk-zerocopy", "rx-sg"]);
        for length in 0..message.len() {
            assert_eq!(device(&message[..length]), None);
        }
    }

    #[test]
    fn the_family_is_known_by_its_name() {
        let family = |name: &[u8]| {
            let mut group = attribute_of(GROUP_ID, &9_u32.to_ne_bytes());
            group.extend(attribute_of(GROUP_NAME, b"mgmt\0"));
            let mut message = GET_FAMILY.to_vec();
            message.extend(attribute_of(FAMILY_NAME, name));
            message.extend(attribute_of(FAMILY_ID, &20_u16.to_ne_bytes()));
            message.extend(attribute_of(GROUPS | 0x8000, &attribute_of(1, &group)));
            read_family(&message).map(|family| (family.id, family.group))
        };
        assert_eq!(family(b"netdev\0"), Some((20, Some(9))));
        assert_eq!(family(b"ethtool\0"), None);
    }

    #[test]
    fn the_loopback_device_runs_no_programs() {
        // A kernel before 6.3 tells nothing.
        let Some(all) = features().unwrap() else { return };
        assert_eq!(all.get(&1), Some(&Features(0)));
    }
}
