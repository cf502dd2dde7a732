//! The command line, parsed once into values that can no longer be wrong.

mod nodeport_addresses;
mod server_address;
mod verbosity;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    path::PathBuf,
    str::FromStr,
};

use agent_kit::{bpf::XdpMode, kubernetes};
pub use agent_kit::{
    fast_path::FastPath,
    log::LogFormat,
    output::{Output, OutputArgs},
    ports::{PortRange, ReservedPortsArgs},
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use datapath::source_rate;
use ipnetwork::IpNetwork;
pub use nodeport_addresses::NodePortAddresses;
use serde::Serialize;
pub use server_address::ServerAddress;
pub use verbosity::spelled;

use crate::{
    capture::frame::Verdict,
    conntrack::{NetfilterArgs, Sysctls},
    kube_proxy::flags::KubeProxyFlags,
    source::Origin,
};

/// Balances Kubernetes Services with eBPF, in place of kube-proxy.
#[derive(Parser, Debug)]
#[command(
    name = "proxy-agent",
    version,
    propagate_version = true,
    args_conflicts_with_subcommands = true,
    after_help = RUN_HELP
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Balance Services until told to stop; what is programmed stays (the default)
    #[command(after_help = RUN_HELP)]
    Run(Box<RunArgs>),
    /// Show on one screen what the agent does and how it fares
    #[command(after_help = "Example:\n  proxy-agent status -o json")]
    Status(StatusArgs),
    /// Show frontends with their backends, as programmed now
    #[command(after_help = "Example:\n  proxy-agent services default/web")]
    Services(ServicesArgs),
    /// Show backends with the Services that use them
    #[command(after_help = "Example:\n  proxy-agent backends -o json")]
    Backends(ShowArgs),
    /// Show tracked flows of the packet path
    #[command(after_help = "Example:\n  proxy-agent flows")]
    Flows(ShowArgs),
    /// Show frames before and behind XDP, which tcpdump does not where they are sent out at once
    #[command(after_help = CAPTURE_HELP)]
    Capture(CaptureArgs),
    /// Tell what this node lacks, and what that costs
    #[command(after_help = "Example:\n  proxy-agent check")]
    Check(CheckArgs),
    /// Remove everything Millrace's proxy left on the node
    #[command(after_help = "Example:\n  proxy-agent cleanup --kube-proxy")]
    Cleanup(CleanupArgs),
}

const RUN_HELP: &str = "Example:
  proxy-agent run --source dir:/etc/millrace/manifests --node-ip 10.0.0.1

kube-proxy's other flags are taken too; those that have no meaning here are named in the log.";

const CAPTURE_HELP: &str = "Example:
  proxy-agent capture --verdict sent --port 30080
  proxy-agent capture --host 203.0.113.7 --write /tmp/eth0.pcapng --duration 60
  proxy-agent capture --device eth0 --write - | tcpdump -nr -

Each frame is shown twice: `in`, as it came in by the device, and `out`, as the program left it, with
what became of it: passed (to the kernel, where tcpdump sees it), sent (out at once), or dropped.
Times are UTC.

Filters of different kinds must all hold; of one kind, any that is named. Address and port must be
those of one packet, be it source or destination, in a tunnel or not; and if one side of a frame is
wanted, both are shown.";

/// kube-proxy's ports.
pub const HEALTHZ_PORT: u16 = 10_256;
pub const METRICS_PORT: u16 = 10_249;
pub const HEALTHZ_ADDRESS: SocketAddr =
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, HEALTHZ_PORT));
pub const METRICS_ADDRESS: SocketAddr =
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, METRICS_PORT));

/// Source ports for masquerading, unless others are named.
const NAT_PORTS: PortRange = PortRange { first: 50_000, last: 59_999 };

/// As programs can tell apart.
const MOST_NEW_FLOWS: i64 = source_rate::MOST as i64;

/// Where pins are.
#[derive(Args, Clone, Debug)]
pub struct PinArgs {
    /// Where maps and links are pinned; a bpf file system is mounted there if there is none
    #[arg(
        long,
        env = "MILLRACE_BPFFS",
        value_name = "PATH",
        default_value = "/sys/fs/bpf/millrace"
    )]
    pub bpffs: PathBuf,
}

#[derive(Args, Clone, Debug)]
pub struct ShowArgs {
    #[command(flatten)]
    pub pins: PinArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    pub show: ShowArgs,
    /// Where the agent answers
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10249")]
    pub metrics_bind_address: SocketAddr,
}

#[derive(Args, Debug)]
pub struct ServicesArgs {
    /// Only this Service: NAME, NAMESPACE/NAME, or NAMESPACE/NAME:PORT
    pub name: Option<String>,
    #[command(flatten)]
    pub show: ShowArgs,
}

#[derive(Args, Debug)]
pub struct CaptureArgs {
    #[command(flatten)]
    pub pins: PinArgs,
    /// Only what comes in by this device; may be given several times [default: all that have XDP]
    #[arg(short = 'i', long, value_name = "DEV")]
    pub device: Vec<String>,
    /// Write a pcap-ng file, or to standard output with -, in place of lines
    #[arg(short, long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// End after so many frames, each side counted
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub duration: Option<u64>,
    /// Bytes kept of each frame
    #[arg(
        short,
        long,
        value_name = "BYTES",
        default_value_t = SNAP_LENGTH,
        value_parser = clap::value_parser!(u32).range(14..=i64::from(SNAP_LENGTH))
    )]
    pub snap_length: u32,
    /// Only frames from or to this address or network; may be given several times
    #[arg(long, value_name = "ADDR[/LENGTH]")]
    pub host: Vec<IpNetwork>,
    /// Only frames from or to this port; may be given several times
    #[arg(long, value_name = "PORT")]
    pub port: Vec<u16>,
    /// Only frames of which this became; may be given several times
    #[arg(long, value_name = "WHAT")]
    pub verdict: Vec<Verdict>,
}

/// What a ring takes at once, which is more than frames have.
const SNAP_LENGTH: u32 = 65_000;

#[derive(Args, Debug)]
pub struct CheckArgs {
    #[command(flatten)]
    pub show: ShowArgs,
    /// Where the socket path would attach [default: the cgroup2 mount]
    #[arg(long, env = "MILLRACE_CGROUP_ROOT", value_name = "PATH")]
    pub cgroup_root: Option<PathBuf>,
    /// Source ports for masquerading
    #[arg(long, value_name = "FROM-TO", default_value_t = NAT_PORTS)]
    pub nat_ports: PortRange,
    /// Devices toward the outside, of which it is told what XDP could do there [default: those that
    /// hold a default route]
    #[arg(long, value_name = "DEV", value_delimiter = ',')]
    pub uplink: Vec<String>,
    #[command(flatten)]
    pub reserved_ports: ReservedPortsArgs,
}

#[derive(Args, Debug)]
pub struct CleanupArgs {
    #[command(flatten)]
    pub show: ShowArgs,
    /// Source ports to give back to the kernel
    #[arg(long, value_name = "FROM-TO", default_value_t = NAT_PORTS)]
    pub nat_ports: PortRange,
    #[command(flatten)]
    pub reserved_ports: ReservedPortsArgs,
    /// Remove what kube-proxy left, too: its chains, tables, sets and virtual servers. Stop it
    /// first. While an agent is running, only that is removed
    #[arg(long)]
    pub kube_proxy: bool,
}

#[derive(Args, Clone, Debug, Serialize)]
pub struct RunArgs {
    // First, because it looks at what others were given, and who reads them takes them away.
    #[command(flatten)]
    #[serde(skip)]
    pub kube_proxy: KubeProxyFlags,
    /// Where Services, EndpointSlices and Nodes come from: kubernetes, dir:PATH, or
    /// etcd:URL[,URL…][/PREFIX], where the prefix is /millrace unless another is named
    /// [default: kubernetes in a cluster or with a kubeconfig, else dir:/etc/millrace/manifests]
    #[arg(long, value_name = "SOURCE")]
    pub source: Option<Source>,
    /// Kubernetes client configuration [default: that of the pod we are in]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Address of the Kubernetes API server, in place of the client configuration's
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,
    #[command(flatten)]
    pub etcd: EtcdArgs,
    /// This node's name [default: the host name]
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// Primary addresses of this node, one per family [default: those of the Node object, else
    /// the uplink's]
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub node_ip: Vec<IpAddr>,
    /// Pod network, one per family; nothing depends on it yet: what is masqueraded follows from
    /// where a backend is
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub cluster_cidr: Vec<IpNetwork>,
    /// Where NodePorts answer: primary, all, localhost, CIDRs, or several of these; where only CIDRs
    /// of one family are given, at all addresses of the other [default: primary; with --config or
    /// --proxy-mode as kube-proxy's in that mode]
    #[arg(long, value_name = "WHERE", default_value_t, hide_default_value = true)]
    pub nodeport_addresses: NodePortAddresses,
    /// Devices toward the outside [default: those that hold the node addresses or a default
    /// route]
    #[arg(long, value_name = "DEV", value_delimiter = ',')]
    pub uplink: Vec<String>,
    /// Devices toward pods: auto, bridge:NAME, prefix:NAME or none
    #[arg(long, value_name = "WHICH", default_value = "auto")]
    pub pod_link: PodLink,
    /// Whose connections are balanced where they are opened: everyone's, those of the node's
    /// own processes, or no one's
    #[arg(long, value_enum, default_value_t)]
    pub socket_lb: SocketLb,
    /// Where the socket path attaches [default: the cgroup2 mount]
    #[arg(long, env = "MILLRACE_CGROUP_ROOT", value_name = "PATH")]
    pub cgroup_root: Option<PathBuf>,
    /// What becomes of TCP connections through a Service whose endpoint is removed from it, one that
    /// terminates being none yet: kept, as by kube-proxy, or reset
    #[arg(long, value_enum, default_value_t)]
    pub tcp_on_removed_endpoint: OnRemovedEndpoint,
    /// Source ports for masquerading Service traffic
    #[arg(long, value_name = "FROM-TO", default_value_t = NAT_PORTS)]
    pub nat_ports: PortRange,
    #[command(flatten)]
    pub reserved_ports: ReservedPortsArgs,
    #[command(flatten)]
    pub netfilter: NetfilterArgs,
    /// As kube-proxy's configuration has it, which [`tracking`](crate::kube_proxy::tracking) reads.
    #[arg(skip)]
    #[serde(skip)]
    pub conntrack: Sysctls,
    /// Whether packets of known connections from outside pass bridge and IP stack by, into the pod and out
    /// again; auto: while nothing on the node filters, translates or encrypts there
    #[arg(long, value_enum, default_value_t)]
    pub fast_path: FastPath,
    /// Whether frames of flows that are known already are dealt with on uplinks before the kernel makes
    /// socket buffers of them, and by whom: the driver (native), or the kernel (generic), which is for
    /// trying; auto is native where the driver can, but not on an end of a veth pair, nor where rules of
    /// netfilter or IPsec would be passed by
    #[arg(long, value_enum, default_value_t)]
    pub xdp: Xdp,
    /// Flows a second that one source outside may begin, an address of IPv4 or a network of 64 bits of
    /// IPv6, and twice as many at once: others of its are dropped, before any work is done for them, and
    /// what has begun goes on; 0 is any number
    #[arg(long, value_name = "FLOWS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=MOST_NEW_FLOWS))]
    pub new_flows_per_source: u32,
    /// Let the node of a backend answer clients outside by itself (direct server return): what they
    /// send goes there through flannel-agent's tunnel as it is, and the backend sees who they are. Only
    /// between nodes that both say so; others are asked as ever. Needs an underlay that takes what a
    /// node sends in another's name
    #[arg(long)]
    pub dsr: bool,
    /// Answer pings (ICMP echo) to Services' own addresses: cluster IPs, load balancers' and external IPs.
    /// Otherwise a cluster IP refuses them, and the others are left to the kernel's routing
    #[arg(long)]
    pub answer_pings: bool,
    /// How a backend is chosen, unless a Service says otherwise by its annotation
    /// millrace.io/algorithm; IPVS' rr, lc, sh and mh are names of the last four [default: random, but
    /// with --xdp or --dsr maglev for Services that are reached from outside]
    #[arg(long, value_enum)]
    pub algorithm: Option<Algorithm>,
    #[command(flatten)]
    #[serde(skip)]
    pub pins: PinArgs,
    /// Room in tables: services=ROWS, backends=ROWS, frontends=ROWS, flows=ROWS; tables of
    /// another size are made anew, and take the old ones' place once they are filled
    #[arg(long, value_name = "TABLE=ROWS", value_delimiter = ',', value_parser = parse_capacity)]
    pub capacity: Vec<(CapacityOf, u32)>,
    /// Where /metrics, /healthz, /livez, /proxyMode, /configz, /status, /flagz and /statusz answer;
    /// empty: nowhere
    #[arg(long, value_name = "ADDR:PORT", default_value_t = METRICS_ADDRESS.into(), value_parser = metrics_address)]
    pub metrics_bind_address: ServerAddress,
    /// Where /healthz and /livez answer; empty: nowhere else
    #[arg(long, value_name = "ADDR:PORT", default_value_t = HEALTHZ_ADDRESS.into(), value_parser = healthz_address)]
    pub healthz_bind_address: ServerAddress,
    /// A KubeProxyConfiguration as kubeadm writes it; goes before flags that kube-proxy has too, but
    /// --hostname-override. The agent ends when it changes, to be started anew
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How the log is written to standard error
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
    /// Say more; twice for everything. A level as kube-proxy takes it (-v=4) is understood
    #[arg(short, action = clap::ArgAction::Count)]
    #[serde(skip)]
    pub verbose: u8,
}

/// How etcd is asked, where it is the source.
#[derive(Args, Clone, Debug, Serialize)]
pub struct EtcdArgs {
    /// Who may have signed etcd's certificate [default: whom the system trusts]
    #[arg(long, value_name = "FILE")]
    pub etcd_cafile: Option<PathBuf>,
    /// Client certificate for etcd
    #[arg(long, value_name = "FILE", requires = "etcd_keyfile")]
    pub etcd_certfile: Option<PathBuf>,
    /// Key of the client certificate
    #[arg(long, value_name = "FILE", requires = "etcd_certfile")]
    pub etcd_keyfile: Option<PathBuf>,
    /// User of etcd
    #[arg(long, value_name = "NAME", requires = "etcd_password")]
    pub etcd_username: Option<String>,
    /// Password of etcd's user; not seen by others where it comes by the environment
    #[arg(long, env = "ETCD_PASSWORD", hide_env_values = true, value_name = "WORD")]
    #[serde(skip)]
    pub etcd_password: Option<String>,
}

/// A flag that is understood, and asks for what is not there.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[cfg(not(feature = "etcd"))]
    #[error(
        "--source etcd: this agent was built without etcd's client; build it by `cargo xtask \
         build`, or with the feature etcd"
    )]
    WithoutEtcd,
    #[error("--node-ip: {0} and {1} are of one family; give one address per family")]
    NodeIps(IpAddr, IpAddr),
}

impl RunArgs {
    /// Where objects come from, if everything asked for can be done.
    pub fn validate(&self) -> Result<Origin, ConfigError> {
        for (nth, &first) in self.node_ip.iter().enumerate() {
            let mut others = self.node_ip[nth + 1..].iter();
            if let Some(&second) = others.find(|other| other.is_ipv4() == first.is_ipv4()) {
                return Err(ConfigError::NodeIps(first, second));
            }
        }
        self.origin()
    }

    fn origin(&self) -> Result<Origin, ConfigError> {
        let is_in_cluster = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        match &self.source {
            Some(Source::Dir(path)) => Ok(Origin::Directory(path.clone())),
            Some(Source::Etcd { endpoints, prefix }) => self.etcd(endpoints, prefix),
            None if !is_in_cluster && self.kubeconfig.is_none() && self.master.is_none() => {
                Ok(Origin::Directory("/etc/millrace/manifests".into()))
            }
            Some(Source::Kubernetes) | None => Ok(Origin::Kubernetes(kubernetes::Access {
                kubeconfig: self.kubeconfig.clone(),
                url: self.master.clone(),
                flags: kubernetes::Flags { kubeconfig: "--kubeconfig", url: "--master" },
                requests: kubernetes::RequestMetrics::default(),
            })),
        }
    }

    #[cfg(feature = "etcd")]
    #[expect(clippy::unnecessary_wraps, reason = "as without etcd")]
    fn etcd(&self, endpoints: &[String], prefix: &str) -> Result<Origin, ConfigError> {
        let EtcdArgs { etcd_cafile, etcd_certfile, etcd_keyfile, etcd_username, etcd_password } =
            self.etcd.clone();
        let access = agent_kit::etcd::Access {
            endpoints: endpoints.to_vec(),
            ca: etcd_cafile,
            identity: etcd_certfile.zip(etcd_keyfile),
            user: etcd_username.zip(etcd_password),
        };
        Ok(Origin::Etcd(access, prefix.into()))
    }

    #[cfg(not(feature = "etcd"))]
    #[expect(clippy::unused_self, reason = "as with etcd")]
    fn etcd(&self, _endpoints: &[String], _prefix: &str) -> Result<Origin, ConfigError> {
        Err(ConfigError::WithoutEtcd)
    }

    /// Rows by map. What an option alone fills is kept small without it.
    pub fn capacities(&self) -> BTreeMap<String, u32> {
        let (has_xdp, has_rates) = (self.xdp.mode().is_some(), self.new_flows_per_source > 0);
        let copies = ["FLOWCACHE4", "FLOWCACHE6", "FLOWCOMMON4", "FLOWCOMMON6"];
        let copies = copies.into_iter().filter(|_| !has_xdp);
        let rates = Some("RATES").filter(|_| !has_rates);
        let unused = copies.chain(rates).map(|map| (map.to_owned(), 1));
        let maps = self.capacity.iter().flat_map(|&(table, rows)| {
            table.maps().iter().map(move |map| ((*map).to_owned(), rows))
        });
        maps.chain(unused).collect()
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Kubernetes,
    Dir(PathBuf),
    Etcd {
        endpoints: Vec<String>,
        /// Without a slash at its end.
        prefix: String,
    },
}

/// What keys of etcd begin with, unless told otherwise.
const ETCD_PREFIX: &str = "/millrace";

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "kubernetes" => Ok(Self::Kubernetes),
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Dir(path.into())),
            Some(("etcd", urls)) if !urls.is_empty() => etcd(urls),
            _ => Err("expected kubernetes, dir:PATH or etcd:URL[,URL…][/PREFIX]".into()),
        }
    }
}

/// `URL[,URL…][/PREFIX]`: the prefix is what stands behind the last URL.
fn etcd(text: &str) -> Result<Source, String> {
    let mut endpoints = Vec::new();
    let mut prefix = String::new();
    for url in text.split(',').map(str::trim) {
        let (scheme, rest) = url
            .split_once("://")
            .filter(|(scheme, _)| matches!(*scheme, "http" | "https"))
            .ok_or_else(|| format!("{url:?} is no URL; write http://HOST:PORT or https://…"))?;
        if !prefix.is_empty() {
            return Err(format!("the prefix {prefix} stands behind the last URL only"));
        }
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if host.is_empty() {
            return Err(format!("{url:?} names no host; write {scheme}://HOST:PORT"));
        }
        endpoints.push(format!("{scheme}://{host}"));
        path.trim_end_matches('/').clone_into(&mut prefix);
    }
    if prefix.is_empty() {
        ETCD_PREFIX.clone_into(&mut prefix);
    }
    Ok(Source::Etcd { endpoints, prefix })
}

/// Which devices lead to pods.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PodLink {
    /// One end of a pair whose other end is in another network namespace.
    Auto,
    Bridge(String),
    Prefix(String),
    None,
}

impl FromStr for PodLink {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.split_once(':')) {
            ("auto", _) => Ok(Self::Auto),
            ("none", _) => Ok(Self::None),
            (_, Some(("bridge", name))) if !name.is_empty() => Ok(Self::Bridge(name.into())),
            (_, Some(("prefix", name))) if !name.is_empty() => Ok(Self::Prefix(name.into())),
            _ => Err("expected auto, bridge:NAME, prefix:NAME or none".into()),
        }
    }
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SocketLb {
    #[default]
    On,
    Host,
    Off,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnRemovedEndpoint {
    #[default]
    Keep,
    Reset,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Xdp {
    #[default]
    Off,
    Auto,
    Native,
    Generic,
}

impl Xdp {
    /// Who runs the program where it runs.
    pub const fn mode(self) -> Option<XdpMode> {
        match self {
            Self::Off => None,
            Self::Auto | Self::Native => Some(XdpMode::Native),
            Self::Generic => Some(XdpMode::Generic),
        }
    }
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    Random,
    #[value(aliases = ["rr", "wrr"])]
    RoundRobin,
    #[value(aliases = ["lc", "wlc", "sed", "nq"])]
    LeastConn,
    #[value(alias = "sh")]
    SourceHash,
    #[value(alias = "mh")]
    Maglev,
}

impl RunArgs {
    /// How backends are chosen of Services that do not say: in general, and of those that are reached
    /// from outside. What XDP serves may come by another node the next time, and where the backend's
    /// node answers, that which was entered by keeps little.
    pub fn algorithms(&self) -> [datapath::algorithm::Algorithm; 2] {
        let is_plain = self.xdp == Xdp::Off && !self.dsr;
        let outside = if is_plain { Algorithm::Random } else { Algorithm::Maglev };
        [Algorithm::Random, outside].map(|default| self.algorithm.unwrap_or(default).into())
    }
}

impl Algorithm {
    /// For whoever wrote another.
    pub const NAMES: &str = "random, round-robin, least-conn, source-hash or maglev";

    /// By its name, or by that of IPVS' scheduler that comes nearest.
    pub fn named(text: &str) -> Option<Self> {
        Self::from_str(text, false).ok()
    }
}

impl From<Algorithm> for datapath::algorithm::Algorithm {
    fn from(named: Algorithm) -> Self {
        match named {
            Algorithm::Random => Self::Random,
            Algorithm::RoundRobin => Self::RoundRobin,
            Algorithm::LeastConn => Self::LeastConn,
            Algorithm::SourceHash => Self::SourceHash,
            Algorithm::Maglev => Self::Maglev,
        }
    }
}

/// Which maps a capacity is for.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CapacityOf {
    Services,
    Backends,
    Frontends,
    Flows,
}

impl CapacityOf {
    pub fn maps(self) -> &'static [&'static str] {
        match self {
            Self::Services => &["SERVICES", "STATS", "NAMES"],
            Self::Backends => &["BACKENDS4", "BACKENDS6"],
            Self::Frontends => &["FRONTENDS4", "FRONTENDS6", "ADDRESSES4", "ADDRESSES6"],
            Self::Flows => &["FLOWS4", "FLOWS6"],
        }
    }

    /// The capacity that a map's rows come from.
    pub fn of_map(map: &str) -> Option<Self> {
        Self::value_variants().iter().copied().find(|of| of.maps().contains(&map))
    }

    /// As given after `--capacity`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Backends => "backends",
            Self::Frontends => "frontends",
            Self::Flows => "flows",
        }
    }
}

fn metrics_address(text: &str) -> Result<ServerAddress, String> {
    ServerAddress::parse(text, METRICS_PORT)
}

fn healthz_address(text: &str) -> Result<ServerAddress, String> {
    ServerAddress::parse(text, HEALTHZ_PORT)
}

fn parse_capacity(text: &str) -> Result<(CapacityOf, u32), String> {
    let (table, rows) = text.split_once('=').ok_or("expected TABLE=ROWS")?;
    let table = CapacityOf::from_str(table, true).map_err(|_| {
        format!("no table {table:?}; there are services, backends, frontends, flows")
    })?;
    match rows.parse() {
        Ok(rows) if (1..=16_777_216).contains(&rows) => Ok((table, rows)),
        _ => Err(format!("{rows:?} is no number of rows from 1 to 16777216")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_xdp_serves_is_chosen_by_maglev_unless_another_is_named() {
        use datapath::algorithm::Algorithm::{LeastConn, Maglev, Random};

        let algorithms = |flags: &str| {
            let line = format!("proxy-agent --source dir:/x {flags}");
            Cli::parse_from(line.split_whitespace()).run.algorithms()
        };
        assert_eq!(algorithms(""), [Random; 2]);
        for mode in ["auto", "native", "generic"] {
            assert_eq!(algorithms(&format!("--xdp {mode}")), [Random, Maglev]);
        }
        assert_eq!(algorithms("--dsr"), [Random, Maglev]);
        assert_eq!(algorithms("--xdp native --algorithm lc"), [LeastConn; 2]);
        assert_eq!(algorithms("--xdp native --algorithm random"), [Random; 2]);
    }

    #[test]
    fn every_command_has_an_example() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.starts_with("Example:\n"), "{}", command.get_name());
        }
    }

    #[test]
    fn sources() {
        assert_eq!("dir:/x:y".parse(), Ok(Source::Dir("/x:y".into())));
        assert!("dir:".parse::<Source>().is_err());
        assert!("file:/x".parse::<Source>().is_err());
    }

    #[test]
    fn urls_of_etcd_and_the_prefix() {
        let parsed = |text: &str| match text.parse() {
            Ok(Source::Etcd { endpoints, prefix }) => Ok((endpoints.join(" "), prefix)),
            Ok(other) => Err(format!("{other:?}")),
            Err(err) => Err(err),
        };
        let both = "http://10.0.0.1:2379 https://[fd00::1]:2379";
        for (text, urls, prefix) in [
            ("etcd:http://a:2379", "http://a:2379", "/millrace"),
            ("etcd:http://a:2379/", "http://a:2379", "/millrace"),
            ("etcd:http://a:2379/one/two/", "http://a:2379", "/one/two"),
            ("etcd:http://10.0.0.1:2379,https://[fd00::1]:2379/x", both, "/x"),
        ] {
            assert_eq!(parsed(text), Ok((urls.into(), prefix.into())), "{text}");
        }
        for text in ["etcd:", "etcd:a:2379", "etcd:http:///x", "etcd:http://a/x,http://b"] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }

    /// Flags as they come after the command's name.
    fn origin(flags: &str) -> Result<Origin, String> {
        let words = std::iter::once("proxy-agent").chain(flags.split_whitespace());
        let cli = Cli::try_parse_from(words).map_err(|err| err.to_string())?;
        cli.run.validate().map_err(|err| err.to_string())
    }

    #[test]
    fn a_kubeconfig_or_an_address_mean_kubernetes() {
        for flags in ["--kubeconfig=/k", "--master=https://a:6443", "--source=kubernetes"] {
            assert!(matches!(origin(flags), Ok(Origin::Kubernetes(_))), "{flags}");
        }
        let both = origin("--kubeconfig=/k --source=dir:/x");
        assert!(matches!(both, Ok(Origin::Directory(path)) if path.ends_with("x")));
    }

    #[test]
    fn what_belongs_together_for_etcd() {
        let etcd = "--source=etcd:https://a:2379";
        for half in ["--etcd-certfile=/c", "--etcd-keyfile=/k", "--etcd-username=u"] {
            assert!(origin(&format!("{etcd} {half}")).is_err(), "{half}");
        }
        let whole = origin(&format!(
            "{etcd} --etcd-certfile=/c --etcd-keyfile=/k --etcd-username=u --etcd-password=p"
        ));
        #[cfg(feature = "etcd")]
        assert!(matches!(
            whole,
            Ok(Origin::Etcd(access, prefix))
                if access.user.is_some() && access.identity.is_some() && prefix == "/millrace"
        ));
        #[cfg(not(feature = "etcd"))]
        assert!(whole.unwrap_err().contains("--source etcd"));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let args = |line: &str| {
            Cli::parse_from(line.split(' ')).run.validate().map_err(|err| err.to_string())
        };
        assert!(args("proxy-agent --source dir:/x --xdp native").is_ok());
        assert!(args("proxy-agent --source dir:/x --new-flows-per-source 100").is_ok());
        assert!(args("proxy-agent --algorithm rr --source dir:/x").is_ok());
        assert!(args("proxy-agent --node-ip 10.0.0.1,10.0.0.2 --source dir:/x").is_err());
        assert!(args("proxy-agent --node-ip 10.0.0.1,::1,::2 --source dir:/x").is_err());
        assert!(matches!(args("proxy-agent --source dir:/x"), Ok(Origin::Directory(_))));
    }
}
