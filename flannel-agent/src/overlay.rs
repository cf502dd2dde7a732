//! The overlay's programs: loaded once, attached to the tunnel device and to those of pods, and
//! told what this node is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use agent_kit::{
    attach::{self, Hook, Layer, Outcome, Sweep},
    bpf,
    drops::Drops,
    embedded::LoadError,
    kernel,
    link::Links,
    object::{Loaded, ObjectError},
    ports::PortRange,
    table::{MapTable, OpenError, Table, TableError},
};
use aya::maps::Map;
use datapath::{
    address::Be16,
    device::Device,
    policy::Policy,
    settings::Settings,
    tunnel::{NetworkKey, Traffic, Tunnel as Row},
    vxlan::SOURCE_PORTS,
};
use ipnetwork::IpNetwork;

use crate::{
    entries::{Entries, Op},
    interface::{Listing, Uplink},
    masquerade, object,
    peers::Tunnel,
    subnet::{Family, Subnet},
    tables::{RefusedError, Tables},
};

/// What a device leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    Tunnel,
    /// The tunnel's device where flows are masqueraded.
    MasqueradingTunnel,
    /// A device that finds its tunnels by the kernel's own entries, where flows are masqueraded.
    ClassicTunnel,
    Pod,
    Uplink,
    /// An uplink where flows are masqueraded.
    MasqueradingUplink,
}

/// What goes into the tunnel is made ready before anything is sent there past the stack.
pub const HOOKS: [Hook<Role>; 12] = [
    hook("tunnel_egress", Role::Tunnel, false, Layer::Inner),
    hook("tunnel_ingress", Role::Tunnel, true, Layer::Inner),
    hook("tunnel_egress", Role::MasqueradingTunnel, false, Layer::Inner),
    hook("tunnel_ingress", Role::MasqueradingTunnel, true, Layer::Inner),
    hook("masq_egress", Role::MasqueradingTunnel, false, Layer::Innermost),
    hook("masq_ingress", Role::MasqueradingTunnel, true, Layer::Innermost),
    hook("masq_egress", Role::ClassicTunnel, false, Layer::Innermost),
    hook("masq_ingress", Role::ClassicTunnel, true, Layer::Innermost),
    hook("bypass_ingress", Role::Pod, true, Layer::Inner),
    hook("decap_ingress", Role::Uplink, true, Layer::Innermost),
    hook("masq_egress", Role::MasqueradingUplink, false, Layer::Innermost),
    hook("decap_ingress", Role::MasqueradingUplink, true, Layer::Innermost),
];

const fn hook(program: &'static str, role: Role, is_ingress: bool, layer: Layer) -> Hook<Role> {
    Hook { program, role, is_ingress, layer }
}

/// Why there is no overlay.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("cannot read the kernel's version: {0}")]
    Version(io::Error),
    #[error("cannot keep the lock on the pins: {0}")]
    Claim(io::Error),
    #[error("cannot ask for the number of table PROXYMARKS: {0}")]
    Marks(io::Error),
    #[error(transparent)]
    Object(#[from] ObjectError),
}

/// A device as it gets programs.
pub type Attachment = attach::Attachment<Role, Device>;

pub struct Overlay {
    loaded: Loaded,
    tables: Tables,
    devices: attach::Devices<Role, Device>,
    ipv6_checksum_flags: u32,
    sweep: Arc<Sweep>,
    bpffs: PathBuf,
    /// The proxy's table when the programs were loaded, by the kernel's number.
    marks: Option<u32>,
    /// The table that they read in its place, or as it: the proxy's may be of another make.
    read_marks: u32,
    /// Nobody else writes the tables meanwhile.
    claim: File,
}

/// What this node is, as programs are to know it.
pub struct Node<'a> {
    pub vni: u32,
    pub mtu: u32,
    pub uplink: &'a Uplink,
    pub subnet: Subnet,
    pub tunnels: &'a BTreeMap<Family, Tunnel>,
    /// One of [`datapath::tunnel::fast_path`].
    pub fast_path: u8,
    /// Whether programs encapsulate and decapsulate.
    pub encapsulates: bool,
    /// UDP port of the tunnels.
    pub port: u16,
    /// What packets into a tunnel come from, if it is not [`SOURCE_PORTS`].
    pub source_ports: Option<PortRange>,
}

impl Overlay {
    /// Loads the programs, or goes on with the tables that are there.
    pub fn load(bpffs: &Path) -> Result<Self, OverlayError> {
        // Before: what changes meanwhile is found later.
        let marks = marks(bpffs);
        let (loaded, claim) = object::load(bpffs)?;
        let links = Links::new(object::pins(bpffs).links());
        Self::new(bpffs, loaded, links, marks, claim)
    }

    fn new(
        bpffs: &Path,
        loaded: Loaded,
        links: Links,
        marks: Option<u32>,
        claim: File,
    ) -> Result<Self, OverlayError> {
        let sweep = Arc::new(Sweep::new(&loaded.ebpf).map_err(LoadError::from)?);
        let tables = Tables::open(&loaded.maps)?;
        let table = MapTable::open(&loaded.maps, "DEVICES")?;
        let ipv6_checksum_flags = kernel::ipv6_checksum_flags().map_err(OverlayError::Version)?;
        let devices = attach::Devices::new(&HOOKS, links, table);
        let read_marks = read_marks(&loaded).map_err(OverlayError::Marks)?;
        Ok(Self {
            loaded,
            tables,
            devices,
            ipv6_checksum_flags,
            sweep,
            bpffs: bpffs.into(),
            marks,
            read_marks,
            claim,
        })
    }

    /// True if the proxy has come, gone or made its table anew since the programs were loaded.
    pub fn is_outdated(&self) -> bool {
        marks(&self.bpffs) != self.marks
    }

    /// True if there is no proxy, or the programs read the table that it has now: then they may
    /// pass its programs by.
    pub fn knows_proxy(&self) -> bool {
        marks(&self.bpffs).is_none_or(|marks| marks == self.read_marks)
    }

    /// Loads the programs with the proxy's table as it is now. They are to be attached in place of
    /// the ones before.
    pub fn refresh(&mut self) -> Result<(), OverlayError> {
        let marks = marks(&self.bpffs);
        let loaded = object::reload(&self.bpffs)?;
        let claim = self.claim.try_clone().map_err(OverlayError::Claim)?;
        let links = self.devices.links().clone();
        *self = Self::new(&self.bpffs.clone(), loaded, links, marks, claim)?;
        Ok(())
    }

    /// Tells the programs what this node is; with `None` that they have nothing to do with
    /// tunnels. True if another hand had told them something else.
    pub fn tell(&mut self, node: Option<&Node<'_>>) -> Result<bool, TableError> {
        let row = node.map(|node| row(node, self.ipv6_checksum_flags)).unwrap_or_default();
        self.tables.set_tunnel(&row)
    }

    /// Tells the programs what is masqueraded. True if another hand had told them something else.
    pub fn masquerade(&mut self, policy: &Policy) -> Result<bool, TableError> {
        self.tables.set_policy(policy)
    }

    /// The program that removes expired flows.
    pub fn sweep(&self) -> Arc<Sweep> {
        Arc::clone(&self.sweep)
    }

    /// True if the kernel has no tcx.
    pub fn uses_clsact(&self) -> bool {
        self.devices.uses_clsact()
    }

    /// Has the next round look at filters, too.
    pub fn look_at_filters(&mut self) {
        self.devices.look_at_filters();
    }

    /// Makes pins of tables again that another hand removed; gives the tables' names.
    pub fn restore_pins(&mut self) -> Result<Vec<&str>, LoadError> {
        object::restore(&self.bpffs, &self.loaded, &mut self.claim)
    }

    /// Brings programs to where they belong; from then on the maps are those in force.
    pub fn attach(&mut self, devices: &BTreeMap<u32, Attachment>) -> Outcome {
        let outcome = self.devices.sync(&mut self.loaded.ebpf, devices);
        if outcome.errors.is_empty()
            && let Err(err) = self.loaded.take_over()
        {
            tracing::warn!("{err}");
        }
        outcome
    }

    /// Adds what the tables hold.
    pub fn read(&self, entries: &mut Entries) -> Result<(), TableError> {
        self.tables.read(entries)
    }

    /// Does one write to a table.
    pub fn apply(&mut self, op: &Op) -> Result<(), RefusedError> {
        self.tables.apply(op)
    }

    /// What passed the tunnel's device by.
    pub fn traffic(&self) -> Traffic {
        self.tables.traffic()
    }

    /// What programs refuse is counted here.
    pub fn drops(&self) -> Option<Drops> {
        Drops::open(&self.loaded.maps).ok()
    }
}

/// Whether the proxy says that this node answers clients outside by itself. Its programs do so
/// also while no agent runs; where it has left no such table, nobody does.
pub fn proxy_answers(bpffs: &Path) -> bool {
    let row = MapTable::<u32, Settings>::open(&object::proxy_maps(bpffs), "SETTINGS")
        .ok()
        .and_then(|table| table.get(&0).ok().flatten());
    row.is_some_and(|row| row.dsr == 1)
}

/// The number of the proxy's table, if there is one.
fn marks(bpffs: &Path) -> Option<u32> {
    let map = bpf::obj_get(&object::proxy_marks(bpffs)).ok()?;
    bpf::map_id(map.as_fd()).ok()
}

/// The number of the table that the programs read for it.
fn read_marks(loaded: &Loaded) -> io::Result<u32> {
    match loaded.ebpf.map("PROXYMARKS") {
        Some(Map::Array(map)) => bpf::map_id(map.fd().as_fd()),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// The row of `TUNNELS`.
fn row(node: &Node<'_>, ipv6_checksum_flags: u32) -> Row {
    let tunnel = |family| node.tunnels.get(&family).copied();
    let any = tunnel(Family::V4).or(tunnel(Family::V6));
    let mac = |family| tunnel(family).or(any).map(|tunnel| tunnel.mac).unwrap_or_default();
    let [first, last] = SOURCE_PORTS;
    let source_ports = node.source_ports.unwrap_or(PortRange { first, last });
    let mut row = Row {
        vni: node.vni,
        device: any.map_or(0, |tunnel| tunnel.device),
        mtu: node.mtu,
        mac4: mac(Family::V4),
        mac6: mac(Family::V6),
        fast_path: node.fast_path,
        ipv6_checksum_flags,
        uplink: if node.encapsulates { node.uplink.index } else { 0 },
        port: Be16::new(node.port),
        first_source_port: source_ports.first,
        last_source_port: source_ports.last,
        ..Row::default()
    };
    row.underlay4 = node.uplink.public_ip.map(Into::into).unwrap_or_default();
    row.underlay6 = node.uplink.public_ipv6.map(Into::into).unwrap_or_default();
    if let Some(IpNetwork::V4(own)) = node.subnet.of(Family::V4) {
        row.pods4 = NetworkKey::new(own.network(), own.prefix());
    }
    if let Some(IpNetwork::V6(own)) = node.subnet.of(Family::V6) {
        row.pods6 = NetworkKey::new(own.network(), own.prefix());
    }
    row
}

/// What decides which devices get programs.
pub struct Wish<'a> {
    /// The tunnels' devices: one, or one for each family.
    pub tunnels: BTreeSet<u32>,
    /// Whether programs choose the tunnel of each packet.
    pub chooses: bool,
    pub uplink: &'a Uplink,
    pub subnet: Subnet,
    pub fast_path: bool,
    pub masquerades: bool,
}

/// Which devices get programs: the tunnel's, on the fast path those that lead to pods, and there
/// as where flows are masqueraded those that lead out of the node.
pub fn attachments(listing: &Listing, wish: &Wish<'_>) -> BTreeMap<u32, Attachment> {
    let roles = listing.interfaces.iter().filter_map(|found| {
        let (role, device) = if wish.tunnels.contains(&found.index) {
            let role = match (wish.chooses, wish.masquerades) {
                (true, true) => Role::MasqueradingTunnel,
                (true, false) => Role::Tunnel,
                (false, true) => Role::ClassicTunnel,
                (false, false) => return None,
            };
            (role, masquerade::of_tunnel(wish.subnet))
        } else if is_uplink(listing, wish, found.index) {
            let role = match (wish.masquerades, wish.fast_path) {
                // Programs know no other link layer than that of Ethernet.
                _ if found.is_loopback || found.mac.is_none() => return None,
                (true, _) => Role::MasqueradingUplink,
                (false, true) => Role::Uplink,
                (false, false) => return None,
            };
            (role, masquerade::of_uplink(listing, found.index, wish.uplink))
        } else if wish.fast_path && found.leads_elsewhere {
            (Role::Pod, Device::default())
        } else {
            return None;
        };
        Some((found.index, Attachment { name: found.name.clone(), role, device }))
    });
    roles.collect()
}

/// Names of devices by which packets leave that should be masqueraded and are not.
pub fn not_ethernet<'a>(
    listing: &'a Listing,
    wish: &'a Wish<'_>,
) -> impl Iterator<Item = &'a String> {
    let found = listing.interfaces.iter().filter(|found| {
        wish.masquerades
            && is_uplink(listing, wish, found.index)
            && !found.is_loopback
            && found.mac.is_none()
    });
    found.map(|found| &found.name)
}

fn is_uplink(listing: &Listing, wish: &Wish<'_>, index: u32) -> bool {
    index == wish.uplink.index || listing.default_routes.iter().any(|&(_, device)| device == index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{interface::Interface, mac::Mac};

    #[test]
    fn programs_go_where_frames_are_ethernets() {
        let device = |index, name: &str| Interface {
            index,
            name: name.into(),
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            ..Interface::default()
        };
        let listing = Listing {
            interfaces: vec![
                Interface { is_loopback: true, ..device(1, "lo") },
                device(2, "eth0"),
                Interface { mac: None, ..device(3, "wg0") },
                device(4, "flannel.1"),
                Interface { leads_elsewhere: true, ..device(5, "veth0") },
                device(6, "cni0"),
            ],
            default_routes: vec![(Family::V4, 3), (Family::V6, 1)],
            ..Listing::default()
        };
        let uplink =
            Uplink { index: 2, name: "eth0".into(), mtu: 1500, public_ip: None, public_ipv6: None };
        let found_as = |chooses, fast_path, masquerades| {
            let (tunnels, subnet) = ([4].into(), Subnet::default());
            let wish = Wish { tunnels, chooses, uplink: &uplink, subnet, fast_path, masquerades };
            let roles: Vec<_> = attachments(&listing, &wish)
                .into_values()
                .map(|attachment| (attachment.name, attachment.role))
                .collect();
            (roles, not_ethernet(&listing, &wish).cloned().collect::<Vec<_>>())
        };
        let found = |fast_path, masquerades| found_as(true, fast_path, masquerades);
        let named = |roles: &[(&str, Role)]| {
            roles.iter().map(|&(name, role)| (name.to_owned(), role)).collect::<Vec<_>>()
        };
        let tunnel = ("flannel.1", Role::Tunnel);
        assert_eq!(found(false, false), (named(&[tunnel]), vec![]));
        let fast = [("eth0", Role::Uplink), tunnel, ("veth0", Role::Pod)];
        assert_eq!(found(true, false), (named(&fast), vec![]));
        let both = [("eth0", Role::MasqueradingUplink), ("flannel.1", Role::MasqueradingTunnel)];
        assert_eq!(found(false, true), (named(&both), vec!["wg0".to_owned()]));
        let classic = [("eth0", Role::MasqueradingUplink), ("flannel.1", Role::ClassicTunnel)];
        assert_eq!(found_as(false, false, true), (named(&classic), vec!["wg0".to_owned()]));
    }
}
