//! What a KubeProxyConfiguration says to what Millrace is told, and a word on all that it says in
//! vain. Pure.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use clap::ValueEnum;
use ipnetwork::IpNetwork;
use jiff::SignedDuration;
use serde_json::Value;

use super::{
    Fault,
    document::Given,
    fields::{self, Meaning, duration},
    mode::Mode,
};
use crate::config::{
    Algorithm, HEALTHZ_PORT, LogFormat, METRICS_PORT, PodLink, RunArgs, ServerAddress,
};

/// A mode of finding what is local, the field that it needs, and what that says.
type Way = (&'static str, &'static str, fn(String) -> PodLink);

/// What a person should be told of a mapping.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Told {
    /// What has no effect.
    pub warnings: Vec<String>,
    /// What was chosen because nothing was said.
    pub notes: Vec<String>,
}

/// A mapping under way.
struct Mapping<'a> {
    args: &'a mut RunArgs,
    given: &'a [Given],
    faults: Vec<Fault>,
    warnings: Vec<String>,
    notes: Vec<String>,
}

/// Has `args` say what was given, or returns all that cannot be.
pub fn apply(args: &mut RunArgs, given: &[Given]) -> Result<Told, Vec<Fault>> {
    let (faults, warnings, notes) = (Vec::new(), Vec::new(), Vec::new());
    let mut mapping = Mapping { args, given, faults, warnings, notes };
    mapping.without_meaning();
    mapping.node();
    mapping.addresses();
    mapping.networks();
    mapping.node_ports();
    mapping.periods();
    mapping.pod_link();
    mapping.scheduler();
    mapping.args.conntrack = super::tracking::sysctls(given);
    let Mapping { faults, warnings, notes, .. } = mapping;
    if faults.is_empty() { Ok(Told { warnings, notes }) } else { Err(faults) }
}

/// What was given for a field, unless it is empty; the last word counts.
fn find<'a>(given: &'a [Given], path: &str) -> Option<&'a Given> {
    let given = given.iter().rfind(|given| given.field.path == path);
    given.filter(|given| !matches!(&given.value, Value::String(text) if text.is_empty()))
}

/// The mode of kube-proxy that was given, or its default.
pub fn mode(given: &[Given]) -> Mode {
    let name = find(given, "mode").and_then(|given| given.value.as_str());
    let localhost = find(given, "iptables.localhostNodePorts");
    Mode::of(name, localhost.is_none_or(|given| given.value != Value::Bool(false)))
}

impl Mapping<'_> {
    fn given(&self, path: &str) -> Option<&Given> {
        find(self.given, path)
    }

    /// The text given for a field, and what the field is called.
    fn text(&self, path: &str) -> Option<(String, String)> {
        let given = self.given(path)?;
        Some((given.name.clone(), given.value.as_str()?.to_owned()))
    }

    fn parse<T: FromStr>(&mut self, path: &str, wanted: &str) -> Option<T> {
        let (name, text) = self.text(path)?;
        let value = text.parse().ok();
        if value.is_none() {
            self.faults.push(Fault::new(&name, format!("{text:?} cannot be; write {wanted}")));
        }
        value
    }

    fn without_meaning(&mut self) {
        for given in self.given {
            if let Meaning::None(why) = given.field.meaning
                && !given.field.is_default(&given.value)
            {
                let Given { name, value, .. } = given;
                self.warnings.push(format!("{name}: {value} has no meaning here: {why}"));
            }
        }
    }

    fn node(&mut self) {
        if let Some((_, path)) = self.text("clientConnection.kubeconfig") {
            self.args.kubeconfig = Some(path.into());
        }
        if let (None, Some((_, name))) =
            (self.args.hostname_override.as_ref(), self.text("hostnameOverride"))
        {
            self.args.hostname_override = Some(name);
        }
        if let Some((_, format)) = self.text("logging.format")
            && let Ok(format @ LogFormat::Json) = LogFormat::from_str(&format, true)
        {
            self.args.log_format = format;
        }
        // klog's levels: up to 3 what goes on ordinarily, 4 for debugging, beyond for tracing
        // (contributors/devel/sig-instrumentation/logging.md of kubernetes/community).
        let level = self.given("logging.verbosity").and_then(|given| given.value.as_u64());
        let verbose = match level.unwrap_or_default() {
            0..=3 => 0,
            4 => 1,
            _ => 2,
        };
        self.args.verbose = self.args.verbose.max(verbose);
    }

    /// bindAddress opens no socket: it tells the node's address, and in a file, by its family, where
    /// the servers listen.
    fn addresses(&mut self) {
        let bind: Option<IpAddr> = self.parse("bindAddress", "an address such as 0.0.0.0");
        if let Some(address) = bind
            && !address.is_unspecified()
            && self.args.node_ip.is_empty()
        {
            self.args.node_ip = vec![address];
        }
        if let (Some(IpAddr::V6(_)), Some(_)) = (bind, &self.args.config) {
            let v6 = |address: Ipv6Addr, port: u16| SocketAddr::from((address, port)).into();
            self.args.healthz_bind_address = v6(Ipv6Addr::UNSPECIFIED, HEALTHZ_PORT);
            self.args.metrics_bind_address = v6(Ipv6Addr::LOCALHOST, METRICS_PORT);
        }
        if let Some(address) = self.socket("healthzBindAddress", HEALTHZ_PORT) {
            self.args.healthz_bind_address = address;
        }
        if let Some(address) = self.socket("metricsBindAddress", METRICS_PORT) {
            self.args.metrics_bind_address = address;
        }
    }

    fn socket(&mut self, path: &str, port: u16) -> Option<ServerAddress> {
        let (name, text) = self.text(path)?;
        match ServerAddress::parse(&text, port) {
            Ok(address) => Some(address),
            Err(message) => {
                self.faults.push(Fault::new(&name, message));
                None
            }
        }
    }

    fn networks(&mut self) {
        if let Some((name, text)) = self.text("clusterCIDR") {
            let cidrs: Result<Vec<IpNetwork>, _> = text.split(',').map(str::parse).collect();
            match cidrs {
                Ok(cidrs) if is_one_of_each_family(&cidrs) => self.args.cluster_cidr = cidrs,
                _ => {
                    let message = format!("{text:?} cannot be; write a CIDR, or one per family");
                    self.faults.push(Fault::new(&name, message));
                }
            }
        }
    }

    /// The mode tells where, unless it is said. Without a word of kube-proxy's mode, it is Millrace's
    /// own default.
    fn node_ports(&mut self) {
        let given = self.given("nodePortAddresses");
        let given = given.map(|given| (given.name.clone(), texts(&given.value).join(",")));
        if let Some((name, text)) = given {
            match text.parse() {
                Ok(addresses) => self.args.nodeport_addresses = addresses,
                Err(message) => return self.faults.push(Fault::new(&name, message)),
            }
        }
        let mode = mode(self.given);
        if let Some((name, _)) =
            self.text("mode").filter(|_| !matches!(mode, Mode::Iptables { .. }))
        {
            let also = if mode == Mode::Ipvs { "the algorithm and " } else { "" };
            self.warnings.push(format!(
                "{name}: {mode} is not used, it is eBPF in each mode; it tells {also}where NodePorts \
                 answer"
            ));
        }
        let is_told = self.args.config.is_some() || self.text("mode").is_some();
        let addresses = &mut self.args.nodeport_addresses;
        if addresses.is_unset() {
            *addresses = if is_told { mode.node_ports() } else { Mode::Nftables.node_ports() };
            if is_told {
                self.notes.push(format!(
                    "NodePorts answer at {addresses}, as those of a kube-proxy in mode {mode} do \
                     where nodePortAddresses says nothing; [primary] there has them answer at the \
                     node's primary addresses alone"
                ));
            }
        } else if is_told {
            mode.add_loopback(addresses);
        }
    }

    /// Nothing is done by them, but what kube-proxy refuses is refused (validation.go of
    /// pkg/proxy/apis/config): of periods, those of the mode.
    fn periods(&mut self) {
        let mode = mode(self.given);
        // Flags are those of iptables for nftables too.
        let section = match mode {
            Mode::Nftables if self.args.config.is_some() => "nftables",
            Mode::Nftables | Mode::Iptables { .. } => "iptables",
            Mode::Ipvs => "ipvs",
        };
        let [sync, min] = ["syncPeriod", "minSyncPeriod"].map(|name| format!("{section}.{name}"));
        for path in [sync.as_str(), "configSyncPeriod"] {
            self.must_last(path);
        }
        let (sync, min) = (self.period(&sync), self.period(&min));
        if let (Some((_, min)), Some((name, sync))) = (&min, &sync)
            && min > sync
        {
            let message = format!("{sync:#} is shorter than {section}.minSyncPeriod, {min:#}");
            self.faults.push(Fault::new(name, message));
        }
        if mode == Mode::Ipvs
            && let Some(given) = self.given("ipvs.excludeCIDRs")
        {
            let wrong =
                texts(&given.value).into_iter().find(|text| IpNetwork::from_str(text).is_err());
            let wrong = wrong.map(|text| format!("{text:?} cannot be; write a CIDR"));
            let fault = wrong.map(|message| Fault::new(&given.name, message));
            self.faults.extend(fault);
        }
    }

    /// In a file, zero asks for the default; a flag means it.
    fn must_last(&mut self, path: &str) {
        if let Some(given) = self.given(path)
            && given.name.starts_with("--")
            && given.value.as_str().and_then(duration).is_some_and(|it| it.is_zero())
        {
            let fault = Fault::new(&given.name, "must be longer than 0s");
            self.faults.push(fault);
        }
    }

    /// What a duration is called, and what it comes to.
    fn period(&self, path: &str) -> Option<(String, SignedDuration)> {
        let field = fields::find(path)?;
        let given = self
            .given(path)
            .filter(|given| given.name.starts_with("--") || !field.is_default(&given.value));
        match given {
            Some(given) => Some((given.name.clone(), duration(given.value.as_str()?)?)),
            None => Some((path.into(), duration(field.default_value().as_str()?)?)),
        }
    }

    /// What is local follows from devices; only which they are can be told.
    fn pod_link(&mut self) {
        let mode = self.text("detectLocalMode");
        let ways: [Way; 2] = [
            ("BridgeInterface", "detectLocal.bridgeInterface", PodLink::Bridge),
            ("InterfaceNamePrefix", "detectLocal.interfaceNamePrefix", PodLink::Prefix),
        ];
        for (wanted, path, link) in ways {
            let is_chosen = mode.as_ref().is_some_and(|(_, mode)| mode == wanted);
            match (is_chosen, self.text(path)) {
                (true, Some((_, name))) if self.args.pod_link == PodLink::Auto => {
                    self.args.pod_link = link(name);
                }
                (true, Some((name, _))) => {
                    self.warnings.push(format!("{name} does not count: --pod-link does"));
                }
                (true, None) => {
                    let message = format!("is empty, and detectLocalMode {wanted} needs it");
                    self.faults.push(Fault::new(path, message));
                }
                (false, Some((name, _))) => self
                    .warnings
                    .push(format!("{name} does not count without detectLocalMode {wanted}")),
                (false, None) => {}
            }
        }
        if let Some((name, mode)) = mode.filter(|(_, mode)| mode == "NodeCIDR") {
            self.warnings.push(format!(
                "{name}: {mode} has no meaning here: what is masqueraded follows from where a \
                 backend is"
            ));
        }
    }

    /// IPVS' names are names of `--algorithm`, which goes before; kube-proxy's default is rr.
    fn scheduler(&mut self) {
        let is_ipvs = self.text("mode").is_some_and(|(_, mode)| mode == "ipvs");
        let scheduler = self.text("ipvs.scheduler");
        let named = match &scheduler {
            None if is_ipvs => Some(Algorithm::RoundRobin),
            None => return,
            Some((_, scheduler)) => Algorithm::named(scheduler),
        };
        let (name, scheduler) = scheduler.unwrap_or_default();
        let warning = match named {
            _ if !is_ipvs => format!("{name} does not count without mode ipvs"),
            Some(algorithm) if self.args.algorithm.is_none() => {
                self.args.algorithm = Some(algorithm);
                return;
            }
            Some(_) if name.is_empty() => return,
            Some(_) => format!("{name} does not count: --algorithm does"),
            None => format!(
                "{name}: {scheduler} has no meaning here; backends are chosen by --algorithm: \
                 {}",
                Algorithm::NAMES
            ),
        };
        self.warnings.push(warning);
    }
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn is_one_of_each_family(cidrs: &[IpNetwork]) -> bool {
    match cidrs {
        [_] => true,
        [first, second] => first.is_ipv4() != second.is_ipv4(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{config::Cli, kube_proxy::document};

    fn mapped(line: &str, file: &str) -> (RunArgs, Result<Vec<String>, Vec<String>>) {
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        let given = document::read(&format!("{head}{file}")).expect("sound").given;
        let words = std::iter::once("proxy-agent").chain(line.split_whitespace());
        let mut args = Cli::parse_from(words).run;
        let result = apply(&mut args, &given);
        let faults = |faults: Vec<Fault>| faults.iter().map(ToString::to_string).collect();
        (args, result.map(|told| told.warnings).map_err(faults))
    }

    #[test]
    fn fields_with_a_meaning_are_settings() {
        let (args, warnings) = mapped(
            "--hostname-override=flag",
            "clientConnection: {kubeconfig: /k}\nclusterCIDR: '10.1.0.0/16,fd00::/48'\n\
             hostnameOverride: file\nbindAddress: 192.0.2.7\nhealthzBindAddress: 127.0.0.1\n\
             metricsBindAddress: '[::]:1'\nnodePortAddresses: [192.0.2.0/24, '::/0']\n\
             logging: {format: json}\n\
             detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}\n",
        );
        assert_eq!(warnings, Ok(Vec::new()));
        assert_eq!(args.kubeconfig, Some("/k".into()));
        assert_eq!(args.cluster_cidr.len(), 2);
        assert_eq!(args.hostname_override.as_deref(), Some("flag"));
        assert_eq!(args.node_ip, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(args.healthz_bind_address.to_string(), "127.0.0.1:10256");
        assert_eq!(args.metrics_bind_address.to_string(), "[::]:1");
        assert_eq!(args.nodeport_addresses.to_string(), "192.0.2.0/24,::/0");
        assert_eq!(args.pod_link, PodLink::Bridge("cni0".into()));
        assert_eq!(args.log_format, LogFormat::Json);
    }

    #[test]
    fn the_family_of_the_bind_address_is_that_of_the_servers() {
        let (args, _) = mapped("--config=x", "bindAddress: '::'");
        assert_eq!(args.healthz_bind_address.to_string(), "[::]:10256");
        assert_eq!(args.metrics_bind_address.to_string(), "[::1]:10249");
        assert_eq!(args.node_ip, [] as [IpAddr; 0]);
    }

    #[test]
    fn node_ports_answer_where_those_of_the_mode_do() {
        let at = |line: &str, file: &str| mapped(line, file).0.nodeport_addresses.to_string();
        let legacy = "all,127.0.0.0/8";
        for (line, file, addresses) in [
            ("--config=x", "", legacy),
            ("--config=x", "mode: ''\nnodePortAddresses: []\n", legacy),
            ("--config=x", "mode: iptables\n", legacy),
            ("--config=x", "iptables: {localhostNodePorts: false}\n", "all"),
            ("--config=x", "mode: ipvs\n", "all"),
            ("--config=x", "mode: nftables\n", "primary"),
            ("--config=x", "nodePortAddresses: [primary]\n", "primary"),
            ("--config=x", "nodePortAddresses: [192.0.2.0/24]\n", "192.0.2.0/24"),
            // As written, they have 127.0.0.1 answer too.
            ("--config=x", "nodePortAddresses: [0.0.0.0/0]\n", "0.0.0.0/0,127.0.0.0/8"),
            ("--config=x", "nodePortAddresses: ['fd00::/8']\n", "fd00::/8,0.0.0.0/0,127.0.0.0/8"),
            ("--config=x", "mode: ipvs\nnodePortAddresses: [0.0.0.0/0]\n", "0.0.0.0/0"),
            // Nothing is said of the mode, or of where by another.
            ("", "", "primary"),
            ("", "mode: iptables\n", legacy),
            ("--nodeport-addresses=primary", "mode: iptables\n", "primary"),
            ("--nodeport-addresses=localhost,fd00::/8", "mode: ipvs\n", "localhost,fd00::/8"),
        ] {
            assert_eq!(at(line, file), addresses, "{line} {file}");
        }
    }

    #[test]
    fn what_was_chosen_is_told() {
        let notes = |line: &str, file: &str| {
            let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration";
            let given = document::read(&format!("{head}\n{file}")).expect("sound").given;
            let mut args = Cli::parse_from(["proxy-agent", line]).run;
            apply(&mut args, &given).expect("sound").notes
        };
        assert_eq!(
            notes("--config=x", "mode: ipvs"),
            ["NodePorts answer at all, as those of a kube-proxy in mode ipvs do where \
              nodePortAddresses says nothing; [primary] there has them answer at the node's primary \
              addresses alone"]
        );
        assert_eq!(notes("--config=x", "nodePortAddresses: [primary]"), [""; 0]);
        assert_eq!(notes("--socket-lb=on", ""), [""; 0]);
    }

    #[test]
    fn millraces_own_flags_go_before() {
        let (args, warnings) = mapped(
            "--pod-link none --node-ip 10.0.0.1",
            "bindAddress: 10.0.0.2\ndetectLocalMode: InterfaceNamePrefix\n\
             detectLocal: {interfaceNamePrefix: cali}\n",
        );
        assert_eq!(args.node_ip, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(args.pod_link, PodLink::None);
        let told = "detectLocal.interfaceNamePrefix does not count: --pod-link does";
        assert_eq!(warnings, Ok(vec![told.to_owned()]));
    }

    #[test]
    fn what_is_said_in_vain_is_named_and_empty_values_are_not() {
        let (_, warnings) = mapped(
            "",
            "mode: ipvs\nipvs: {scheduler: rr, strictARP: true}\nconntrack: {min: null, \
             maxPerCore: 0, tcpEstablishedTimeout: 24h0m0s, udpTimeout: 40s}\n\
             featureGates: {A: true}\nconfigSyncPeriod: 0s\ndetectLocalMode: NodeCIDR\n\
             iptables: {localhostNodePorts: false, masqueradeAll: true}\n",
        );
        let mut warnings = warnings.unwrap();
        warnings.sort();
        assert_eq!(
            warnings,
            [
                "conntrack.udpTimeout: \"40s\" has no meaning here: datagrams through a Service that \
                 nobody answers are forgotten after 30s; it is set for what netfilter tracks",
                "detectLocalMode: NodeCIDR has no meaning here: what is masqueraded follows from \
                 where a backend is",
                "featureGates: {\"A\":true} has no meaning here: Kubernetes' feature gates change \
                 nothing in Millrace",
                "iptables.masqueradeAll: true has no meaning here: a pod's connection to a ClusterIP \
                 keeps the pod's address, since its answers come back to this node by themselves; \
                 only what would not is masqueraded",
                "ipvs.strictARP: true has no meaning here: IPVS is not used",
                "mode: ipvs is not used, it is eBPF in each mode; it tells the algorithm and where \
                 NodePorts answer",
            ]
        );
    }

    #[test]
    fn schedulers_that_no_algorithm_stands_for_are_named() {
        let told = |file| mapped("", file).1.unwrap().pop().unwrap();
        assert!(told("mode: ipvs\nipvs: {scheduler: dh}").starts_with("ipvs.scheduler: dh has no"));
        let idle = "ipvs.scheduler does not count without mode ipvs";
        assert_eq!(told("ipvs: {scheduler: rr}"), idle);
    }

    #[test]
    fn ipvs_schedulers_are_algorithms() {
        let algorithm = |flags: &str, file: &str| mapped(flags, file).0.algorithm;
        let of =
            |scheduler| algorithm("", &format!("mode: ipvs\nipvs: {{scheduler: {scheduler}}}"));
        assert_eq!(["''", "rr", "wrr"].map(of), [Some(Algorithm::RoundRobin); 3]);
        assert_eq!(["lc", "wlc", "sed", "nq"].map(of), [Some(Algorithm::LeastConn); 4]);
        assert_eq!(["sh", "mh", "dh"].map(of), {
            [Some(Algorithm::SourceHash), Some(Algorithm::Maglev), None]
        });
        assert_eq!(algorithm("", "mode: nftables"), None);
        let file = "mode: ipvs\nipvs: {scheduler: sh}";
        let (args, warnings) = mapped("--algorithm maglev", file);
        assert_eq!(args.algorithm, Some(Algorithm::Maglev));
        let told = "ipvs.scheduler does not count: --algorithm does".to_owned();
        assert!(warnings.unwrap().contains(&told));
    }

    #[test]
    fn what_cannot_be_is_named_by_its_field() {
        let faults = |file| mapped("", file).1.unwrap_err();
        assert_eq!(
            faults(
                "bindAddress: here\nhealthzBindAddress: 'x:1'\nclusterCIDR: 10.0.0.0/8,11.0.0.0/8\n\
                 nodePortAddresses: [first, 10.0.0.0/8]\ndetectLocalMode: BridgeInterface\n"
            ),
            [
                "bindAddress: \"here\" cannot be; write an address such as 0.0.0.0",
                "healthzBindAddress: \"x:1\" cannot be; write ADDRESS:PORT, such as 0.0.0.0:10256",
                "clusterCIDR: \"10.0.0.0/8,11.0.0.0/8\" cannot be; write a CIDR, or one per family",
                "nodePortAddresses: \"first\" is none of primary, all, localhost or a CIDR",
                "detectLocal.bridgeInterface: is empty, and detectLocalMode BridgeInterface needs \
                 it",
            ]
        );
    }
    #[test]
    fn levels_of_the_log_are_klogs() {
        let verbose = |line: &str, level: u8| {
            mapped(line, &format!("logging: {{verbosity: {level}}}\n")).0.verbose
        };
        assert_eq!([0, 2, 3, 4, 5, 10].map(|level| verbose("", level)), [0, 0, 0, 1, 2, 2]);
        assert_eq!(verbose("-vv", 4), 2);
    }

    #[test]
    fn periods_are_what_kube_proxy_takes() {
        let faults = |line: &str, file: &str| mapped(line, file).1.err().unwrap_or_default();
        for (file, told) in [
            ("iptables: {syncPeriod: 5s, minSyncPeriod: 10s}", "iptables.syncPeriod: 5s"),
            ("iptables: {minSyncPeriod: 1m}", "iptables.syncPeriod: 30s"),
            ("mode: ipvs\nipvs: {syncPeriod: 1s, minSyncPeriod: 2s}", "ipvs.syncPeriod: 1s"),
            ("mode: nftables\nnftables: {syncPeriod: 500ms}", "nftables.syncPeriod: 500ms"),
        ] {
            let faults = faults("--config=x", file);
            assert!(faults[0].starts_with(&format!("{told} is shorter than ")), "{faults:?}");
            assert_eq!(faults.len(), 1, "{faults:?}");
        }
        for sound in [
            // Of other modes, nothing is asked; zero is the default.
            "mode: nftables\niptables: {syncPeriod: 5s, minSyncPeriod: 10s}",
            "iptables: {syncPeriod: 0s, minSyncPeriod: 30s}\nconfigSyncPeriod: 0s",
            "ipvs: {excludeCIDRs: [some]}",
        ] {
            assert_eq!(faults("--config=x", sound), [""; 0], "{sound}");
        }
        assert_eq!(
            faults("", "mode: ipvs\nipvs: {excludeCIDRs: [10.0.0.0/8, some]}"),
            ["ipvs.excludeCIDRs: \"some\" cannot be; write a CIDR"]
        );
    }
}
