//! The command line: flanneld's flags and environment, and ours; parsed once into values that
//! can no longer be wrong.

mod go;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

pub use agent_kit::{
    fast_path::FastPath,
    log::LogFormat,
    output::{Output, OutputArgs},
    ports::{PortRange, ReservedPortsArgs},
};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
pub use go::spelled;
use regex_lite::Regex;
use serde::Serialize;

use crate::{
    annotation::{Annotations, PrefixError},
    store::{etcd::Access, kubernetes::Cluster},
};

/// Gives this node its pod subnet and joins it to the others, in place of flanneld.
#[derive(Parser, Debug)]
#[command(
    name = "flannel-agent",
    version,
    propagate_version = true,
    args_conflicts_with_subcommands = true,
    after_help = "Example:\n  flannel-agent --etcd-endpoints http://10.0.0.1:2379 --iface eth0\n\n\
                  Flags may be spelled as flanneld's (-iface=eth0, --ip-masq=false); each is also \
                  read from the environment, as FLANNELD_IFACE."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Join the network until told to stop; what is programmed stays (the default)
    #[command(after_help = "Example:\n  flannel-agent run --subnet-store dir:/var/lib/leases")]
    Run(Box<RunArgs>),
    /// Show on one screen what the agent does and how it fares
    #[command(after_help = "Example:\n  flannel-agent status -o json")]
    Status(AskArgs),
    /// Show the other nodes, and how packets reach them
    #[command(after_help = "Example:\n  flannel-agent peers")]
    Peers(AskArgs),
    /// Tell what this node lacks, and what that costs
    #[command(after_help = "Example:\n  flannel-agent check")]
    Check(CheckArgs),
    /// Put the CNI configuration where the container runtime looks for it, and end
    #[command(
        after_help = "Example:\n  flannel-agent install-cni --from /etc/kube-flannel/cni-conf.json"
    )]
    InstallCni(InstallCniArgs),
    /// Remove devices, routes and subnet.env; the lease stays and runs out
    #[command(after_help = "Example:\n  flannel-agent cleanup")]
    Cleanup(CleanupArgs),
}

#[derive(Args, Debug)]
pub struct AskArgs {
    #[command(flatten)]
    pub output: OutputArgs,
    /// Where the agent answers
    #[arg(long, value_name = "ADDR:PORT", default_value = METRICS)]
    pub metrics_bind_address: SocketAddr,
}

#[derive(Args, Debug)]
pub struct CheckArgs {
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub pins: PinArgs,
    #[command(flatten)]
    pub interface: InterfaceArgs,
}

#[derive(Args, Debug)]
pub struct InstallCniArgs {
    #[command(flatten)]
    pub output: OutputArgs,
    /// The configuration, of flannel's plugin
    #[arg(long, value_name = "FILE", default_value = "/etc/kube-flannel/cni-conf.json")]
    pub from: PathBuf,
    /// The file to write; runtimes take the first of the directory by name
    #[arg(long, value_name = "FILE", default_value = "/etc/cni/net.d/10-flannel.conflist")]
    pub to: PathBuf,
}

#[derive(Args, Debug)]
pub struct CleanupArgs {
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub pins: PinArgs,
    /// The file to remove
    #[arg(long, env = "FLANNELD_SUBNET_FILE", value_name = "FILE", default_value = SUBNET_FILE)]
    pub subnet_file: PathBuf,
    /// Source ports to give back to the kernel
    #[arg(long, value_name = "FROM-TO", default_value_t = NAT_PORTS)]
    pub nat_ports: PortRange,
    #[command(flatten)]
    pub reserved_ports: ReservedPortsArgs,
}

/// Where programs and their tables are kept.
#[derive(Args, Clone, Debug, Serialize)]
pub struct PinArgs {
    /// Directory for pinned programs and tables; a bpf file system is mounted there if there is
    /// none
    #[arg(
        long,
        env = "MILLRACE_BPFFS",
        value_name = "PATH",
        default_value = "/sys/fs/bpf/millrace"
    )]
    pub bpffs: PathBuf,
}

const METRICS: &str = "127.0.0.1:9871";
/// Source ports for masquerading, unless others are named.
const NAT_PORTS: PortRange = PortRange { first: 60_000, last: 65_535 };
const SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// Which device and addresses lead to the other nodes.
#[derive(Args, Clone, Debug, Serialize)]
pub struct InterfaceArgs {
    /// Device toward the other nodes, by name or address; may be given several times, the
    /// first that is there counts [default: that of the default route]
    #[arg(long, env = "FLANNELD_IFACE", value_name = "DEV|IP", value_delimiter = ',')]
    pub iface: Vec<String>,
    /// The same by a regular expression, of addresses first
    #[arg(long, env = "FLANNELD_IFACE_REGEX", value_name = "REGEX", value_parser = Regex::from_str)]
    #[serde(skip)]
    pub iface_regex: Vec<Regex>,
    /// The same by an address that it leads to
    #[arg(
        long,
        env = "FLANNELD_IFACE_CAN_REACH",
        value_name = "IP",
        default_value = "",
        hide_default_value = true
    )]
    pub iface_can_reach: String,
    /// The address that other nodes send to [default: the device's]
    #[arg(
        long,
        env = "FLANNELD_PUBLIC_IP",
        value_name = "IP",
        default_value = "",
        hide_default_value = true
    )]
    pub public_ip: String,
    /// The same for IPv6
    #[arg(
        long,
        env = "FLANNELD_PUBLIC_IPV6",
        value_name = "IP",
        default_value = "",
        hide_default_value = true
    )]
    pub public_ipv6: String,
}

#[derive(Args, Clone, Debug, Serialize)]
pub struct EtcdArgs {
    /// Where etcd answers; the next one is asked where one does not
    #[arg(
        long,
        env = "FLANNELD_ETCD_ENDPOINTS",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:4001,http://127.0.0.1:2379"
    )]
    pub etcd_endpoints: Vec<String>,
    /// What all keys begin with
    #[arg(
        long,
        env = "FLANNELD_ETCD_PREFIX",
        value_name = "KEY",
        default_value = "/coreos.com/network"
    )]
    pub etcd_prefix: String,
    /// Key of the client certificate
    #[arg(
        long,
        env = "FLANNELD_ETCD_KEYFILE",
        value_name = "FILE",
        default_value = "",
        hide_default_value = true
    )]
    pub etcd_keyfile: String,
    /// Client certificate
    #[arg(
        long,
        env = "FLANNELD_ETCD_CERTFILE",
        value_name = "FILE",
        default_value = "",
        hide_default_value = true
    )]
    pub etcd_certfile: String,
    /// Who may have signed etcd's certificate [default: whom the system trusts]
    #[arg(
        long,
        env = "FLANNELD_ETCD_CAFILE",
        value_name = "FILE",
        default_value = "",
        hide_default_value = true
    )]
    pub etcd_cafile: String,
    #[arg(
        long,
        env = "FLANNELD_ETCD_USERNAME",
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub etcd_username: String,
    #[arg(
        long,
        env = "FLANNELD_ETCD_PASSWORD",
        hide_env_values = true,
        value_name = "WORD",
        default_value = "",
        hide_default_value = true
    )]
    #[serde(skip)]
    pub etcd_password: String,
}

#[derive(Args, Clone, Debug, Serialize)]
pub struct KubernetesArgs {
    /// Kubernetes client configuration [default: that of the pod we are in]
    #[arg(
        long,
        env = "FLANNELD_KUBECONFIG_FILE",
        value_name = "FILE",
        default_value = "",
        hide_default_value = true
    )]
    pub kubeconfig_file: String,
    /// Address of the Kubernetes API server
    #[arg(
        long,
        env = "FLANNELD_KUBE_API_URL",
        value_name = "URL",
        default_value = "",
        hide_default_value = true
    )]
    pub kube_api_url: String,
    /// What names of annotations begin with
    #[arg(long, env = "FLANNELD_KUBE_ANNOTATION_PREFIX", value_name = "PREFIX",
        default_value = crate::annotation::DEFAULT_PREFIX)]
    pub kube_annotation_prefix: String,
    /// The network's configuration, where the store is Kubernetes
    #[arg(
        long,
        env = "FLANNELD_NET_CONFIG_PATH",
        value_name = "FILE",
        default_value = "/etc/kube-flannel/net-conf.json"
    )]
    pub net_config_path: PathBuf,
    /// Set the Node's condition NetworkUnavailable to False once pods can be reached
    #[arg(long, env = "FLANNELD_SET_NODE_NETWORK_UNAVAILABLE", value_name = "BOOL",
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value = "true", default_missing_value = "true", value_parser = go::parse_bool)]
    pub set_node_network_unavailable: bool,
}

#[derive(Args, Clone, Debug, Serialize)]
#[allow(clippy::struct_excessive_bools, reason = "flanneld's flags")]
pub struct RunArgs {
    /// Where leases live: etcd, dir:PATH, or kubernetes
    #[arg(long, value_name = "STORE", default_value = "etcd")]
    pub subnet_store: SubnetStore,
    /// The same as --subnet-store kubernetes
    #[arg(long, env = "FLANNELD_KUBE_SUBNET_MGR", value_name = "BOOL", action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", value_parser = go::parse_bool)]
    pub kube_subnet_mgr: bool,
    #[command(flatten)]
    pub etcd: EtcdArgs,
    #[command(flatten)]
    pub kubernetes: KubernetesArgs,
    #[command(flatten)]
    pub interface: InterfaceArgs,
    /// Who chooses the tunnel of a packet: programs, or the kernel by the entries of a classic
    /// device
    #[arg(long, value_enum, default_value_t)]
    pub datapath: Datapath,
    /// Whether pods' packets pass bridge and IP stack by; auto: while nothing on the node filters
    /// or translates there
    #[arg(long, value_enum, default_value_t)]
    pub fast_path: FastPath,
    #[command(flatten)]
    pub pins: PinArgs,
    /// What the CNI plugin reads
    #[arg(long, env = "FLANNELD_SUBNET_FILE", value_name = "FILE", default_value = SUBNET_FILE)]
    pub subnet_file: PathBuf,
    /// Minutes before its end at which a lease is renewed
    #[arg(long, env = "FLANNELD_SUBNET_LEASE_RENEW_MARGIN", value_name = "MINUTES",
        default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..1440))]
    pub subnet_lease_renew_margin: u64,
    /// Seconds for which a lease is taken; one that is shorter than the margin is renewed half
    /// way
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400,
        value_parser = clap::value_parser!(u64).range(2..))]
    pub subnet_lease_ttl: u64,
    /// Masquerade what pods send to the outside, and what others send to pods elsewhere
    #[arg(long, env = "FLANNELD_IP_MASQ", value_name = "BOOL", action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", value_parser = go::parse_bool)]
    pub ip_masq: bool,
    /// Source ports for masquerading
    #[arg(long, value_name = "FROM-TO", default_value_t = NAT_PORTS)]
    pub nat_ports: PortRange,
    #[command(flatten)]
    pub reserved_ports: ReservedPortsArgs,
    /// UDP ports that packets into a tunnel come from, by their flow, where something between the nodes
    /// admits only some [default: 49152-65535 from programs, and what the kernel gives to sockets from the
    /// tunnel's device]
    #[arg(long, value_name = "FROM-TO")]
    pub vxlan_source_ports: Option<PortRange>,
    /// Without meaning here: no rules are made that could be random
    #[arg(long, env = "FLANNELD_IP_MASQ_FULLY_RANDOM_DISABLE", value_name = "BOOL", hide = true,
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true", value_parser = go::parse_bool)]
    pub ip_masq_fully_random_disable: bool,
    /// Address of /healthz and /readyz
    #[arg(long, env = "FLANNELD_HEALTHZ_IP", value_name = "IP", default_value = "0.0.0.0")]
    pub healthz_ip: IpAddr,
    /// Port of /healthz and /readyz; 0 for none
    #[arg(long, env = "FLANNELD_HEALTHZ_PORT", value_name = "PORT", default_value_t = 0)]
    pub healthz_port: u16,
    /// Without meaning here: there are no rules to look after
    #[arg(
        long,
        env = "FLANNELD_IPTABLES_RESYNC",
        value_name = "SECONDS",
        hide = true,
        default_value_t = 5
    )]
    pub iptables_resync: u64,
    /// Without meaning here: no rules are made; `check` tells if others block forwarding
    #[arg(long, env = "FLANNELD_IPTABLES_FORWARD_RULES", value_name = "BOOL", hide = true,
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value = "true", default_missing_value = "true", value_parser = go::parse_bool)]
    pub iptables_forward_rules: bool,
    /// Keep a blackhole route for our subnet, for pods without a bridge; with programs it is always
    /// there
    #[arg(long, env = "FLANNELD_IP_BLACKHOLE_ROUTE", value_name = "BOOL",
        action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true", value_parser = go::parse_bool)]
    pub ip_blackhole_route: bool,
    /// Where /metrics, /status, /peers, /healthz and /readyz answer
    #[arg(long, value_name = "ADDR:PORT", default_value = METRICS)]
    pub metrics_bind_address: SocketAddr,
    /// How the log is written to standard error
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
    /// Say more; twice for everything. A number as flanneld takes it (-v=4) is understood
    #[arg(short, action = ArgAction::Count)]
    #[serde(skip)]
    pub verbose: u8,
    /// Without meaning here
    #[arg(long, hide = true, default_value = "", hide_default_value = true)]
    #[serde(skip)]
    pub vmodule: String,
    /// Without meaning here
    #[arg(long = "log_backtrace_at", hide = true, default_value = "", hide_default_value = true)]
    #[serde(skip)]
    pub log_backtrace_at: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SubnetStore {
    Etcd,
    Kubernetes,
    Dir(PathBuf),
}

impl FromStr for SubnetStore {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "etcd" => Ok(Self::Etcd),
            None if text == "kubernetes" => Ok(Self::Kubernetes),
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Dir(path.into())),
            _ => Err("expected etcd, kubernetes or dir:PATH".into()),
        }
    }
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Datapath {
    #[default]
    Ebpf,
    Kernel,
}

/// A flag that is understood, and asks for what is not there, or for what cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{flag}: {text:?} is no {expected}")]
    Value { flag: &'static str, text: String, expected: &'static str },
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    #[error("--etcd-certfile and --etcd-keyfile belong together; give both or none")]
    Pair,
}

/// What flags mean, once they are known to make sense.
#[derive(Clone, Debug)]
pub struct Settings {
    pub store: StoreSettings,
    pub interface: InterfaceSettings,
    pub term: Duration,
    pub margin: Duration,
    pub healthz: Option<SocketAddr>,
}

#[derive(Clone, Debug)]
pub enum StoreSettings {
    Etcd { access: Access, prefix: String },
    Dir(PathBuf),
    Kubernetes(Cluster),
}

#[derive(Clone, Debug)]
pub struct InterfaceSettings {
    pub names: Vec<String>,
    pub patterns: Vec<Regex>,
    pub can_reach: Option<IpAddr>,
    pub public_ip: Option<Ipv4Addr>,
    pub public_ipv6: Option<Ipv6Addr>,
}

impl RunArgs {
    pub fn validate(&self) -> Result<Settings, ConfigError> {
        let healthz = (self.healthz_port != 0).then(|| (self.healthz_ip, self.healthz_port).into());
        Ok(Settings {
            store: match &self.subnet_store {
                _ if self.kube_subnet_mgr => self.kubernetes.settings()?,
                SubnetStore::Kubernetes => self.kubernetes.settings()?,
                SubnetStore::Dir(path) => StoreSettings::Dir(path.clone()),
                SubnetStore::Etcd => self.etcd.settings()?,
            },
            interface: self.interface.settings()?,
            term: Duration::from_secs(self.subnet_lease_ttl),
            margin: Duration::from_mins(self.subnet_lease_renew_margin),
            healthz,
        })
    }
}

impl KubernetesArgs {
    fn settings(&self) -> Result<StoreSettings, ConfigError> {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Ok(StoreSettings::Kubernetes(Cluster {
            kubeconfig: given(&self.kubeconfig_file).map(PathBuf::from),
            url: given(&self.kube_api_url),
            annotations: Annotations::new(&self.kube_annotation_prefix)?,
            net_config: self.net_config_path.clone(),
            sets_available: self.set_node_network_unavailable,
            node: variable("NODE_NAME"),
            pod: variable("POD_NAME").zip(variable("POD_NAMESPACE")),
        }))
    }
}

impl EtcdArgs {
    fn settings(&self) -> Result<StoreSettings, ConfigError> {
        let file = |path: &String| (!path.is_empty()).then(|| PathBuf::from(path));
        let identity = match (file(&self.etcd_certfile), file(&self.etcd_keyfile)) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(ConfigError::Pair),
        };
        let endpoints = self.etcd_endpoints.iter().map(|url| url.trim().to_owned());
        let user = (!self.etcd_username.is_empty())
            .then(|| (self.etcd_username.clone(), self.etcd_password.clone()));
        let access = Access {
            endpoints: endpoints.filter(|url| !url.is_empty()).collect(),
            ca: file(&self.etcd_cafile),
            identity,
            user,
        };
        if access.endpoints.is_empty() {
            let text = String::new();
            return Err(ConfigError::Value { flag: "--etcd-endpoints", text, expected: "URL" });
        }
        Ok(StoreSettings::Etcd { access, prefix: self.etcd_prefix.clone() })
    }
}

impl InterfaceArgs {
    pub fn settings(&self) -> Result<InterfaceSettings, ConfigError> {
        Ok(InterfaceSettings {
            names: self.iface.iter().filter(|name| !name.is_empty()).cloned().collect(),
            patterns: self.iface_regex.clone(),
            can_reach: given("--iface-can-reach", &self.iface_can_reach, "address")?,
            public_ip: given("--public-ip", &self.public_ip, "IPv4 address")?,
            public_ipv6: given("--public-ipv6", &self.public_ipv6, "IPv6 address")?,
        })
    }
}

/// Empty is not given, as with flanneld: manifests pass variables that nobody set.
fn given<T: FromStr>(
    flag: &'static str,
    text: &str,
    expected: &'static str,
) -> Result<Option<T>, ConfigError> {
    let text = text.trim();
    let wrong = |_| ConfigError::Value { flag, text: text.into(), expected };
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(wrong) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> RunArgs {
        Cli::try_parse_from(spelled(line.split(' ').map(Into::into))).unwrap().run
    }

    fn refusal(line: &str) -> String {
        parse(line).validate().unwrap_err().to_string()
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.starts_with("Example:\n"), "{}", command.get_name());
        }
    }

    #[test]
    fn the_observed_command_line() {
        let args = parse(
            "flannel-agent -etcd-endpoints=http://192.168.77.100:2379 \
             -etcd-prefix=/coreos.com/network -iface=eth0 -ip-masq -subnet-file=run/subnet.env \
             -healthz-port=0 -v=2",
        );
        assert_eq!(args.etcd.etcd_endpoints, ["http://192.168.77.100:2379"]);
        assert_eq!(
            (args.interface.iface.as_slice(), args.ip_masq),
            (&["eth0".to_owned()][..], true)
        );
        assert_eq!((args.subnet_file, args.verbose), ("run/subnet.env".into(), 0));
    }

    #[test]
    fn what_is_asked_for_together_is_done() {
        assert!(parse("flannel-agent --ip-masq --datapath kernel").validate().is_ok());
        assert!(parse("flannel-agent -kube-subnet-mgr").validate().is_ok());
        assert!(parse("flannel-agent --ip-masq=false").validate().is_ok());
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        assert!(refusal("flannel-agent --public-ip=::1").contains("--public-ip"));
        assert!(refusal("flannel-agent --etcd-certfile=x").contains("together"));
        let prefixed = "flannel-agent -kube-subnet-mgr -kube-annotation-prefix=X";
        assert!(refusal(prefixed).contains("--kube-annotation-prefix"));
        assert!(parse("flannel-agent --public-ip=").validate().is_ok());
        let wrong = ["flannel-agent", "--subnet-lease-renew-margin=1440"];
        assert!(Cli::try_parse_from(wrong).is_err());
    }
}
