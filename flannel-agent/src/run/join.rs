//! The begin: configuration, uplink, hardware addresses, lease; in this order, since a lease tells
//! of the addresses. Devices come with the first look, when all that belongs on them is known: an
//! agent that takes over from another may have to replace them.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use agent_kit::ports::{self, PortRange};
use tokio::time::sleep;
use tracing::{info, warn};

use super::{ASK_AGAIN, Agent, RunError};
use crate::{
    config::{Datapath, InterfaceSettings, RunArgs, Settings},
    device::{self, existing_mac},
    interface::{Choice, InterfaceError, Listing, Uplink, select},
    kernel::{Kernel, random_mac},
    lease::{Attrs, Vtep},
    mac::{self, Mac},
    metrics::Metrics,
    net_config::{Backend, NetConfig},
    object,
    overlay::{self, Overlay},
    status::{Board, Kind, Problem},
    store::{Request, Store, StoreError},
    subnet::{Family, Subnet},
    subnet_env,
};

impl Agent {
    /// Everything up to a lease of our own.
    pub(super) async fn join(
        args: RunArgs,
        mut settings: Settings,
        store: Arc<dyn Store>,
        kernel: Kernel,
        board: Arc<Board>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, RunError> {
        let config = patiently(&board, || store.config()).await?;
        info!(backend = config.backend.name(), "read the network's configuration");
        let (public_ip, public_ipv6) = patiently(&board, || store.public()).await?;
        let wished = &mut settings.interface;
        wished.public_ip = wished.public_ip.or(public_ip);
        wished.public_ipv6 = wished.public_ipv6.or(public_ipv6);
        let listing = kernel.listing().await?;
        let uplink = find_uplink(&kernel, &listing, &settings.interface, &config).await?;
        info!(
            device = uplink.name,
            ipv4 = ?uplink.public_ip,
            ipv6 = ?uplink.public_ipv6,
            "found the device toward the other nodes"
        );
        let public: Vec<_> =
            Family::BOTH.into_iter().filter_map(|family| uplink.public(family)).collect();
        let published = patiently(&board, || store.published(&public)).await?;
        // The store may have kept us waiting.
        let listing = kernel.listing().await?;
        let (mut overlay, mut macs) = (None, BTreeMap::new());
        let has_tunnel = matches!(config.backend, Backend::Vxlan(_));
        if args.ip_masq || has_tunnel && args.datapath == Datapath::Ebpf {
            overlay = Some(Overlay::load(&args.pins.bpffs)?);
        }
        if let Backend::Vxlan(vxlan) = &config.backend {
            let datapath = args.datapath;
            macs = self::macs(&listing, &config, vxlan.vni, datapath, published.as_ref())?;
        }
        let answers = answers(&args, &config);
        let attrs = attrs(&config, &uplink, &macs, answers);
        let previous = fs::read_to_string(&args.subnet_file).unwrap_or_default();
        let request = Request {
            config: config.clone(),
            attrs: attrs.clone(),
            previous: subnet_env::previous(&previous),
        };
        let held = patiently(&board, || store.acquire(&request)).await?;
        info!(subnet = %held.subnet, previous = %request.previous, "took a subnet");
        {
            let mut state = board.state();
            state.status.store_reached = true;
            state.drops = overlay.as_ref().and_then(Overlay::drops);
            state.status.backend = config.backend.name().into();
            state.status.networks = config.networks().map(|network| network.to_string()).collect();
        }
        let mut agent = Self {
            args,
            settings,
            store,
            kernel,
            board,
            metrics,
            config,
            uplink,
            macs,
            tunnels: BTreeMap::new(),
            overlay,
            attrs,
            held,
            renewal: None,
            leases: BTreeMap::new(),
            is_listed: false,
            is_changed: false,
            wanted: crate::entries::Entries::default(),
            is_written: false,
            subnet_env: None,
            is_lost: false,
            is_announced: false,
            ways: BTreeMap::new(),
            answers,
        };
        agent.hold(held);
        Ok(agent)
    }

    pub(super) fn request(&self, previous: Subnet) -> Request {
        Request { config: self.config.clone(), attrs: self.attrs.clone(), previous }
    }
}

/// Takes away what an agent with programs left, once its device is another: pins, and the ports
/// set aside for them.
pub(super) fn forget_programs(bpffs: &Path, nat_ports: PortRange, reserved: &Path) {
    let pins = object::pins(bpffs);
    if !pins.root().exists() || pins.is_claimed() {
        return;
    }
    match pins.remove() {
        Ok(()) => info!(pins = %pins.root().display(), "removed the programs of before"),
        Err(err) => warn!(pins = %pins.root().display(), "cannot remove programs of before: {err}"),
    }
    if let Err(err) = ports::release(reserved, nat_ports) {
        warn!("cannot take {nat_ports} out of net.ipv4.ip_local_reserved_ports: {err}");
    }
}

/// What we publish of ourselves.
pub(super) fn attrs(
    config: &NetConfig,
    uplink: &Uplink,
    macs: &BTreeMap<Family, Mac>,
    answers: bool,
) -> Attrs {
    let vtep = |family| match (&config.backend, macs.get(&family)) {
        (Backend::Vxlan(vxlan), Some(&mac)) => {
            Some(Vtep { vni: vxlan.vni, mac, answers }.to_value())
        }
        _ => None,
    };
    Attrs {
        public_ip: uplink.public_ip,
        public_ipv6: uplink.public_ipv6,
        backend_type: config.backend.name().into(),
        backend_data: vtep(Family::V4),
        backend_v6_data: vtep(Family::V6),
    }
}

/// Whether this node answers clients outside by itself: where tunnels end in programs, the proxy
/// says so.
pub(super) fn answers(args: &RunArgs, config: &NetConfig) -> bool {
    let has_tunnel = matches!(config.backend, Backend::Vxlan(_));
    has_tunnel && args.datapath == Datapath::Ebpf && overlay::proxy_answers(&args.pins.bpffs)
}

/// What each family's device is to be known by: its own address, if it is there; else the one
/// that peers know; else, where one device serves both families, that of the other; else a new one.
fn macs(
    listing: &Listing,
    config: &NetConfig,
    vni: u32,
    datapath: Datapath,
    published: Option<&Attrs>,
) -> Result<BTreeMap<Family, Mac>, RunError> {
    let mut macs = BTreeMap::new();
    for family in config.families() {
        let known = || {
            let data = published.and_then(|attrs| attrs.data(family))?;
            Vtep::read(data).map(|vtep| vtep.mac).filter(|&mac| mac::is_usable(mac))
        };
        let shared = || match datapath {
            Datapath::Kernel => None,
            Datapath::Ebpf => existing_mac(listing, &device::name(Family::V4, vni))
                .or_else(|| macs.values().next().copied()),
        };
        let kept = existing_mac(listing, &device::name(family, vni)).or_else(known).or_else(shared);
        let mac = kept.map_or_else(|| random_mac().map_err(RunError::Random), Ok)?;
        macs.insert(family, mac);
    }
    Ok(macs)
}

pub(super) async fn find_uplink(
    kernel: &Kernel,
    listing: &Listing,
    settings: &InterfaceSettings,
    config: &NetConfig,
) -> Result<Uplink, InterfaceError> {
    let can_reach = match settings.can_reach {
        // An index that no device has, where no route leads: so that it is said.
        Some(address) => Some(kernel.device_to(address).await.unwrap_or(0)),
        None => None,
    };
    let choice = Choice {
        names: settings.names.clone(),
        patterns: settings.patterns.clone(),
        can_reach,
        public_ip: settings.public_ip,
        public_ipv6: settings.public_ipv6,
        needs_v4: config.v4.is_some(),
        needs_v6: config.v6.is_some(),
    };
    select(listing, &choice)
}

/// Asks until there is an answer, or one that no waiting will change.
async fn patiently<'a, T, F>(board: &Board, mut ask: impl FnMut() -> F) -> Result<T, RunError>
where
    F: Future<Output = Result<T, StoreError>> + 'a,
{
    loop {
        match ask().await {
            Ok(answer) => {
                board.set_problems("store", Vec::new());
                return Ok(answer);
            }
            Err(err @ (StoreError::Exhausted { .. } | StoreError::Refused(_))) => {
                return Err(err.into());
            }
            Err(err) => {
                let message = format!("{err}; asked again every second");
                board.set_problems("store", vec![Problem::new(Kind::Store, "", message)]);
            }
        }
        sleep(ASK_AGAIN).await;
    }
}
