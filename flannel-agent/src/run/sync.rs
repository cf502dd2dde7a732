//! The level to which everything is brought, from whatever it is: uplink, devices, addresses,
//! entries, `subnet.env`. Nothing remembers what failed; the next look finds it again.

use std::{collections::BTreeSet, net::IpAddr, time::Instant};

use agent_kit::{
    attach::Mended,
    audit::{Damage, Difference},
    code, ipsec,
    netfilter::{self, Obstacles},
    ports::{self, SYSCTL},
};
use datapath::{
    policy::Policy,
    tunnel::{Traffic, fast_path},
};
use tracing::{debug, info, warn};

use super::{
    Agent,
    join::{answers, attrs, find_uplink, forget_programs},
};
use crate::{
    config::{Datapath, FastPath},
    device::{self, Plan, overhead, pod_mtu},
    entries::diff,
    file,
    interface::{Listing, Uplink},
    kernel::KernelError,
    masquerade,
    net_config::{Backend, NetConfig, Vxlan},
    notify,
    overlay::{Node, Overlay, Wish, attachments, not_ethernet},
    peers::{Compiled, Site, compile},
    status::{DeviceStatus, Kind, Problem},
    subnet::Family,
    subnet_env::SubnetEnv,
};

impl Agent {
    /// Publishes the addresses that the uplink has now.
    async fn follow_uplink(&mut self, listing: &Listing) {
        match find_uplink(&self.kernel, listing, &self.settings.interface, &self.config).await {
            Ok(uplink) => {
                if uplink != self.uplink {
                    info!(
                        device = uplink.name,
                        ipv4 = ?uplink.public_ip,
                        ipv6 = ?uplink.public_ipv6,
                        mtu = uplink.mtu,
                        "the device toward the other nodes is another now, or has changed"
                    );
                    self.uplink = uplink;
                }
                self.board.set_problems("uplink", Vec::new());
            }
            Err(err) => {
                // What is published stays: a device that is down for a moment comes back.
                let problem = Problem::new(Kind::Device, &*self.uplink.name, err);
                self.board.set_problems("uplink", vec![problem]);
            }
        }
    }

    /// Brings the kernel to what the leases say. What is found to do without news was another
    /// hand's doing, or failed before.
    pub(super) async fn sync(&mut self, is_news: bool) {
        let began = Instant::now();
        self.answers = answers(&self.args, &self.config);
        let mut listing = match self.kernel.listing().await {
            Ok(listing) => listing,
            Err(err) => {
                self.board.set_problems("listing", vec![Problem::new(Kind::Node, "", err)]);
                return;
            }
        };
        self.board.set_problems("listing", Vec::new());
        self.follow_uplink(&listing).await;
        if !self.is_listed {
            return;
        }
        let devices_fit = match self.provide_devices(&mut listing).await {
            Ok(repairs) => {
                self.repaired(repairs);
                self.board.set_problems("devices", Vec::new());
                true
            }
            Err(err) => {
                self.board.set_problems("devices", vec![Problem::new(Kind::Device, "", err)]);
                false
            }
        };
        self.publish().await;
        let site = self.site().await;
        let compiled = compile(&site, &self.leases);
        let written = self.write(&compiled, is_news).await;
        self.tell(compiled, &listing);
        if devices_fit && written {
            self.ready().await;
        }
        self.metrics.synced(began.elapsed());
    }

    async fn provide_devices(&mut self, listing: &mut Listing) -> Result<u32, KernelError> {
        let Backend::Vxlan(vxlan) = &self.config.backend else {
            self.attach(listing);
            return Ok(0);
        };
        let datapath = self.args.datapath;
        let is_first = self.subnet_env.is_none();
        let (config, uplink, macs) = (&self.config, &self.uplink, &self.macs);
        let source_ports = self.args.vxlan_source_ports;
        let plan = Plan { config, vxlan, uplink, datapath, source_ports, macs };
        let provided = device::provide_all(&self.kernel, listing, &plan, is_first).await;
        let (tunnels, mut repairs) = provided?;
        self.macs.extend(tunnels.iter().map(|(&family, tunnel)| (family, tunnel.mac)));
        self.tunnels = tunnels;
        if is_first && self.overlay.is_none() {
            let reserved = &self.args.reserved_ports.reserved_ports_file;
            forget_programs(&self.args.pins.bpffs, self.args.nat_ports, reserved);
        }
        // Programs are there before the device comes up.
        self.attach(listing);
        for (family, tunnel) in &self.tunnels {
            let (Some(own), Some(pods)) =
                (self.held.subnet.of(*family), self.config.network(*family))
            else {
                continue;
            };
            let made = device::address(&self.kernel, listing, tunnel.device, own, pods).await?;
            repairs += if is_first { 0 } else { made };
        }
        Ok(repairs)
    }

    /// Tells the programs what this node is, and has them run where they belong.
    fn attach(&mut self, listing: &Listing) {
        let Some(overlay) = &mut self.overlay else { return };
        let mut repairs = 0;
        let mut problems =
            restore_pins(overlay, &mut repairs).err().into_iter().collect::<Vec<_>>();
        let tunnels: BTreeSet<u32> = self.tunnels.values().map(|tunnel| tunnel.device).collect();
        let chooses = self.args.datapath == Datapath::Ebpf;
        // Of the tunnel whose packets programs see to.
        let vxlan = match &self.config.backend {
            Backend::Vxlan(vxlan) if chooses && !tunnels.is_empty() => Some(vxlan),
            _ => None,
        };
        let mut fast_path = FastPathState::default();
        if let Some(vxlan) = vxlan {
            let plan = (vxlan, &self.config, &self.uplink);
            fast_path = state(self.args.fast_path, plan, listing);
        }
        let FastPathState { is_on: fast_path, encapsulates, said } = fast_path;
        // Straight only past a proxy whose table the programs know.
        let how = |overlay: &Overlay| match (fast_path, overlay.knows_proxy()) {
            (false, _) => fast_path::OFF,
            (true, false) => fast_path::ONE_WAY,
            (true, true) => fast_path::STRAIGHT,
        };
        let mut node = vxlan.map(|vxlan| Node {
            vni: vxlan.vni,
            mtu: pod_mtu(&self.config, &self.uplink),
            uplink: &self.uplink,
            subnet: self.held.subnet,
            tunnels: &self.tunnels,
            fast_path: how(overlay),
            encapsulates,
            port: device::port(vxlan),
            source_ports: self.args.vxlan_source_ports,
        });
        problems.extend(tell(overlay, node.as_ref(), &mut repairs));
        if overlay.is_outdated()
            && let Err(err) = overlay.refresh()
        {
            let message = format!("cannot load the programs beside the Service proxy's: {err}");
            problems.push(Problem::new(Kind::Device, "", message));
        }
        let masquerades = self.args.ip_masq;
        let mut policy = Policy::default();
        if masquerades {
            let range = self.args.nat_ports;
            policy = masquerade::policy(&self.config, self.held.subnet, range);
            let file = &self.args.reserved_ports.reserved_ports_file;
            let failed = ports::reserve(file, range).err();
            problems.extend(failed.map(|err| Problem::new(Kind::Node, SYSCTL, err)));
        }
        match overlay.masquerade(&policy) {
            Ok(is_repair) => note_row("POLICIES", is_repair, &mut repairs),
            Err(err) => {
                let message = format!("cannot tell the programs what is masqueraded: {err}");
                problems.push(Problem::new(Kind::Entry, "POLICIES", message));
            }
        }
        let (uplink, subnet) = (&self.uplink, self.held.subnet);
        let wish = Wish { tunnels, chooses, uplink, subnet, fast_path, masquerades };
        problems.extend(not_ethernet(listing, &wish).map(|name| {
            let message = "carries no Ethernet frames, which the programs need: what pods send out by \
                           it keeps its source; let a rule of netfilter masquerade it";
            Problem::new(Kind::Device, name, message)
        }));
        let devices = attachments(listing, &wish);
        let outcome = overlay.attach(&devices);
        for device in outcome.attached {
            info!(device, "attached");
        }
        for device in outcome.detached {
            info!(device, "no longer attached");
        }
        for Mended { device, hook, program } in &outcome.mended {
            warn!(device, hook, program, "another hand took a program off; it is on again");
        }
        for Difference { table, key, damage } in &outcome.rows {
            warn!(table, key, %damage, "a row was not as written; repaired");
        }
        if !outcome.pinned.is_empty() {
            warn!(links = outcome.pinned.join(", "), "another hand removed pins; pinned again");
        }
        repairs += (outcome.mended.len() + outcome.rows.len() + outcome.pinned.len()) as u32;
        if let Some(node) = &mut node
            && outcome.errors.is_empty()
        {
            // Those that are attached now may know more.
            node.fast_path = how(overlay);
            problems.extend(tell(overlay, Some(node), &mut repairs));
        }
        problems.extend(outcome.errors.iter().map(|err| Problem::new(Kind::Device, "", err)));
        self.board.set_problems("programs", problems);
        self.repaired(repairs);
        // Said once it is so.
        let before = &mut self.board.state().status.fast_path;
        if node.is_some() && *before != said {
            info!("fast path {said}");
            *before = said;
        }
    }

    /// Tells the store where an address of ours changed, or who answers clients.
    async fn publish(&mut self) {
        let attrs = attrs(&self.config, &self.uplink, &self.macs, self.answers);
        if attrs == self.attrs || self.is_lost {
            return;
        }
        match self.store.renew(&self.held, &attrs).await {
            Ok(held) => {
                info!(value = attrs.to_json(), "published what changed of this node");
                self.attrs = attrs;
                self.hold(held);
                self.board.set_problems("publish", Vec::new());
            }
            Err(err) => {
                let message = format!("what changed of this node is not published: {err}");
                let problem = Problem::new(Kind::Lease, self.held.subnet.to_string(), message);
                self.board.set_problems("publish", vec![problem]);
            }
        }
    }

    async fn site(&mut self) -> Site {
        Site {
            config: self.config.clone(),
            subnet: self.held.subnet,
            tunnels: self.tunnels.clone(),
            datapath: self.args.datapath,
            has_blackhole: self.args.ip_blackhole_route,
            uplink: self.uplink.index,
            neighbours: self.neighbours().await,
            by_uplink: self.by_uplink().await,
        }
    }

    /// Peers whose packets leave by the uplink, as they are. What was found is asked again when
    /// routes may have changed.
    async fn by_uplink(&mut self) -> BTreeSet<IpAddr> {
        let (Some(_), Some(own)) = (&self.overlay, self.uplink.public_ip) else {
            return BTreeSet::new();
        };
        let leases = self.leases.values().flatten();
        let addresses: BTreeSet<IpAddr> =
            leases.filter_map(|lease| lease.attrs.public(Family::V4)).collect();
        self.ways.retain(|address, _| addresses.contains(address));
        let least = pod_mtu(&self.config, &self.uplink) + overhead(Family::V4);
        for &address in &addresses {
            if !self.ways.contains_key(&address) {
                let device = self.kernel.plain_device(own.into(), address, least).await;
                self.ways.insert(address, device == Some(self.uplink.index));
            }
        }
        self.ways.iter().filter(|(_, by_uplink)| **by_uplink).map(|(&address, _)| address).collect()
    }

    /// Peers that no router is in between, asked anew each time: routes change.
    async fn neighbours(&self) -> BTreeSet<IpAddr> {
        let is_wanted = match &self.config.backend {
            Backend::HostGw => true,
            Backend::Vxlan(vxlan) => vxlan.direct_routing,
        };
        let mut found = BTreeSet::new();
        if !is_wanted {
            return found;
        }
        let leases = self.leases.values().flatten();
        let addresses: BTreeSet<IpAddr> = leases
            .flat_map(|lease| Family::BOTH.map(|family| lease.attrs.public(family)))
            .flatten()
            .collect();
        for address in addresses {
            if self.kernel.direct_device(address).await == Some(self.uplink.index) {
                found.insert(address);
            }
        }
        found
    }

    /// Writes the difference; true if the kernel could be asked what it has.
    async fn write(&mut self, compiled: &Compiled, is_news: bool) -> bool {
        let devices: Vec<u32> = self.tunnels.values().map(|tunnel| tunnel.device).collect();
        let networks: Vec<_> = self.config.networks().collect();
        let mut actual = match self.kernel.entries(&devices, &networks).await {
            Ok(actual) => actual,
            Err(err) => {
                self.board.set_problems("entries", vec![Problem::new(Kind::Entry, "", err)]);
                return false;
            }
        };
        if let Some(overlay) = &self.overlay
            && let Err(err) = overlay.read(&mut actual)
        {
            let message = format!("cannot read the programs' tables: {err}");
            self.board.set_problems("entries", vec![Problem::new(Kind::Entry, "", message)]);
            return false;
        }
        let ops = diff(&compiled.entries, &actual);
        let is_repair = !is_news && self.is_written && compiled.entries == self.wanted;
        let mut problems = Vec::new();
        let mut done = 0;
        for op in &ops {
            let result = match &mut self.overlay {
                Some(overlay) if op.is_row() => overlay.apply(op).map_err(|err| err.to_string()),
                _ => self.kernel.apply(op).await.map_err(|err| err.to_string()),
            };
            match result {
                Ok(()) => {
                    done += 1;
                    debug!("{op}");
                    if is_repair {
                        warn!("another hand changed what was programmed; {op}");
                    }
                }
                Err(err) => problems.push(Problem::new(Kind::Entry, "", err)),
            }
        }
        if is_repair {
            self.repaired(done);
        }
        self.wanted = compiled.entries.clone();
        self.is_written = problems.is_empty();
        self.board.set_problems("entries", problems);
        true
    }

    fn repaired(&self, count: u32) {
        self.board.state().status.repairs += u64::from(count);
    }

    fn tell(&self, compiled: Compiled, listing: &Listing) {
        let faults = compiled.faults.into_iter();
        let problems =
            faults.map(|fault| Problem::new(Kind::Peer, fault.name, fault.message)).collect();
        self.board.set_problems("peers", problems);
        let mut traffic = self.overlay.as_ref().map_or(Traffic::default(), Overlay::traffic);
        let mut devices = Vec::new();
        for (family, tunnel) in &self.tunnels {
            let Some(found) = listing.at(tunnel.device) else { continue };
            let of_device = found.vxlan.and_then(|vxlan| vxlan.local);
            let local = of_device.or_else(|| self.uplink.public(*family));
            let local = local.map_or(String::new(), |local| local.to_string());
            // One device may serve both families.
            let known =
                devices.iter_mut().find(|known: &&mut DeviceStatus| known.ifindex == found.index);
            if let Some(known) = known {
                known.local = format!("{}, {local}", known.local);
                continue;
            }
            traffic.received_packets += found.traffic.received_packets;
            traffic.received_bytes += found.traffic.received_bytes;
            traffic.sent_packets += found.traffic.sent_packets;
            traffic.sent_bytes += found.traffic.sent_bytes;
            devices.push(DeviceStatus {
                name: found.name.clone(),
                ifindex: found.index,
                mac: tunnel.mac.to_string(),
                mtu: found.mtu,
                local,
            });
        }
        let mut state = self.board.state();
        state.traffic = traffic;
        let status = &mut state.status;
        status.devices = devices;
        status.mtu = pod_mtu(&self.config, &self.uplink);
        status.uplink.clone_from(&self.uplink.name);
        status.public_addresses = self.public_addresses().iter().map(ToString::to_string).collect();
        status.answers = self.attrs.answers();
        status.peers = compiled.peers.len();
        status.other_leases = compiled.others;
        state.peers = compiled.peers;
    }

    /// Lets pods begin: the CNI plugin waits for this file.
    async fn ready(&mut self) {
        let mtu = pod_mtu(&self.config, &self.uplink);
        let env = SubnetEnv::new(&self.config, self.held.subnet, mtu, self.args.ip_masq);
        let text = env.to_text();
        let path = &self.args.subnet_file;
        if self.subnet_env.as_ref() == Some(&text) && path.exists() {
            return self.announce().await;
        }
        if let Err(err) = file::replace(path, &text) {
            self.board.set_problems("subnet.env", vec![Problem::new(Kind::Node, "", err)]);
            return;
        }
        let is_first = self.subnet_env.replace(text).is_none();
        info!(path = %path.display(), subnet = %self.held.subnet, mtu, "wrote what pods need to know");
        let mut problems = Vec::new();
        if is_first {
            if let Err(err) = notify::ready() {
                problems.push(Problem::new(Kind::Node, "NOTIFY_SOCKET", err));
            }
            self.board.state().status.ready = true;
            code::let_go();
        }
        self.board.set_problems("subnet.env", problems);
        self.announce().await;
    }

    /// Tells the store, until it has heard, that pods can be reached here.
    async fn announce(&mut self) {
        if self.is_announced {
            return;
        }
        let told = self.store.ready().await;
        self.is_announced = told.is_ok();
        let problem = told.err().map(|err| Problem::new(Kind::Store, "", err));
        self.board.set_problems("ready", problem.into_iter().collect());
    }
}

/// Tells the programs what this node is; a problem if they cannot be told.
fn tell(overlay: &mut Overlay, node: Option<&Node<'_>>, repairs: &mut u32) -> Option<Problem> {
    match overlay.tell(node) {
        Ok(is_repair) => {
            note_row("TUNNELS", is_repair, repairs);
            None
        }
        Err(err) => {
            let message = format!("cannot tell the programs what this node is: {err}");
            Some(Problem::new(Kind::Entry, "TUNNELS", message))
        }
    }
}

fn note_row(table: &'static str, is_repair: bool, repairs: &mut u32) {
    if is_repair {
        warn!(table, key = 0, damage = %Damage::Changed, "a row was not as written; repaired");
        *repairs += 1;
    }
}

/// Makes pins of tables again that another hand removed: by them the next agent goes on with what
/// is there. Programs have their tables without.
fn restore_pins(overlay: &mut Overlay, repairs: &mut u32) -> Result<(), Problem> {
    let restored = overlay.restore_pins().map_err(|err| {
        let message = format!(
            "pins are gone and cannot be made again: {err}. Traffic goes on; the next agent would \
             begin with empty tables"
        );
        Problem::new(Kind::Node, "--bpffs", message)
    })?;
    if !restored.is_empty() {
        warn!(tables = restored.join(", "), "another hand removed pins; pinned again");
    }
    *repairs += restored.len() as u32;
    Ok(())
}

/// Whether packets of pods pass bridge and IP stack by.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct FastPathState {
    is_on: bool,
    /// Whether programs do on IPv4 what else the tunnel device does.
    encapsulates: bool,
    /// Both, with the reason.
    said: String,
}

fn state(
    wanted: FastPath,
    (vxlan, config, uplink): (&Vxlan, &NetConfig, &Uplink),
    listing: &Listing,
) -> FastPathState {
    let mut rules = None;
    let obstacle = match (wanted == FastPath::Auto).then(netfilter::obstacles) {
        Some(Ok(Obstacles { forwarded, local })) => {
            rules = local;
            forwarded
        }
        Some(Err(err)) => Some(format!("netfilter cannot be asked: {err}")),
        None => None,
    };
    let (is_on, said) = wanted.judge(obstacle.as_deref());
    if !is_on {
        return FastPathState { said, ..FastPathState::default() };
    }
    match rules.or_else(|| hindrance(vxlan, config, uplink, listing)) {
        None => FastPathState { is_on: true, encapsulates: true, said },
        Some(reason) => {
            let said = format!("{said}; tunnels by the device: {reason}");
            FastPathState { is_on: true, encapsulates: false, said }
        }
    }
}

/// Why programs cannot do on IPv4 what the tunnel device does: where it would have to divide
/// packets for the uplink, and where the kernel does more with them than to send them.
fn hindrance(
    vxlan: &Vxlan,
    config: &NetConfig,
    uplink: &Uplink,
    listing: &Listing,
) -> Option<String> {
    let needed = pod_mtu(config, uplink) + overhead(Family::V4);
    if needed > uplink.mtu {
        return Some(format!("{} carries {} bytes and not {needed}", uplink.name, uplink.mtu));
    }
    if vxlan.gbp {
        return Some("GBP is on".into());
    }
    if listing.at(uplink.index).is_none_or(|found| found.mac.is_none()) {
        return Some(format!("{} is no Ethernet device", uplink.name));
    }
    match ipsec::has_policies() {
        Ok(false) => None,
        Ok(true) => Some("the kernel has policies of IPsec".into()),
        // It may encrypt.
        Err(err) => Some(format!("the kernel cannot be asked for policies of IPsec: {err}")),
    }
}
