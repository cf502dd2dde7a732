//! What a KubeProxyConfiguration says to what Millrace is told, and a word on all that it says in
//! vain. Pure.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use clap::ValueEnum;
use ipnetwork::IpNetwork;
use serde_json::Value;

use super::{Fault, document::Given, fields::Meaning};
use crate::config::{
    Algorithm, HEALTHZ_PORT, LogFormat, METRICS_PORT, NodePortAddresses, PodLink, RunArgs,
};

/// A mode of finding what is local, the field that it needs, and what that says.
type Way = (&'static str, &'static str, fn(String) -> PodLink);

/// A mapping under way.
struct Mapping<'a> {
    args: &'a mut RunArgs,
    given: &'a [Given],
    faults: Vec<Fault>,
    warnings: Vec<String>,
}

/// Has `args` say what was given. Returns warnings about what has no effect, or all that cannot be.
pub fn apply(args: &mut RunArgs, given: &[Given]) -> Result<Vec<String>, Vec<Fault>> {
    let mut mapping = Mapping { args, given, faults: Vec::new(), warnings: Vec::new() };
    mapping.without_meaning();
    mapping.node();
    mapping.addresses();
    mapping.networks();
    mapping.pod_link();
    mapping.scheduler();
    mapping.args.conntrack = super::tracking::sysctls(given);
    if mapping.faults.is_empty() { Ok(mapping.warnings) } else { Err(mapping.faults) }
}

impl Mapping<'_> {
    /// What was given for a field, unless it is empty; the last word counts.
    fn given(&self, path: &str) -> Option<&Given> {
        let given = self.given.iter().rfind(|given| given.field.path == path);
        given.filter(|given| !matches!(&given.value, Value::String(text) if text.is_empty()))
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
            self.args.healthz_bind_address = (Ipv6Addr::UNSPECIFIED, HEALTHZ_PORT).into();
            self.args.metrics_bind_address = (Ipv6Addr::LOCALHOST, METRICS_PORT).into();
        }
        if let Some(address) = self.socket("healthzBindAddress", HEALTHZ_PORT) {
            self.args.healthz_bind_address = address;
        }
        if let Some(address) = self.socket("metricsBindAddress", METRICS_PORT) {
            self.args.metrics_bind_address = address;
        }
    }

    fn socket(&mut self, path: &str, port: u16) -> Option<SocketAddr> {
        let (name, text) = self.text(path)?;
        match parse_socket(&text, port) {
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
        let given = self.given("nodePortAddresses");
        let given = given.map(|given| (given.name.clone(), texts(&given.value).join(",")));
        if let Some((name, text)) = given.filter(|(_, text)| !text.is_empty()) {
            match text.parse::<NodePortAddresses>() {
                Ok(addresses) => self.args.nodeport_addresses = addresses,
                Err(message) => self.faults.push(Fault::new(&name, message)),
            }
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
            Some(algorithm) if self.args.algorithm == Algorithm::Random => {
                self.args.algorithm = algorithm;
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

/// An address with a port, or without where there is one by default; kube-proxy takes both.
pub fn parse_socket(text: &str, port: u16) -> Result<SocketAddr, String> {
    let alone = || Some(SocketAddr::new(text.parse().ok()?, port));
    let address = text.parse().ok().or_else(alone);
    address
        .filter(|address: &SocketAddr| address.port() != 0)
        .ok_or_else(|| format!("{text:?} cannot be; write ADDRESS:PORT, such as 0.0.0.0:{port}"))
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
        (args, result.map_err(faults))
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
        assert!(
            matches!(args.nodeport_addresses, NodePortAddresses::Cidrs(cidrs) if cidrs.len() == 2)
        );
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
             maxPerCore: 0, tcpEstablishedTimeout: 24h0m0s, udpTimeout: 30s}\n\
             featureGates: {A: true}\nconfigSyncPeriod: 0s\ndetectLocalMode: NodeCIDR\n\
             iptables: {localhostNodePorts: false, masqueradeAll: true}\n",
        );
        let mut warnings = warnings.unwrap();
        warnings.sort();
        assert_eq!(
            warnings,
            [
                "conntrack.udpTimeout: \"30s\" has no meaning here: flows are kept in tables of \
                 Millrace's own, not in netfilter's",
                "detectLocalMode: NodeCIDR has no meaning here: what is masqueraded follows from \
                 where a backend is",
                "featureGates: {\"A\":true} has no meaning here: Kubernetes' feature gates change \
                 nothing in Millrace",
                "iptables.masqueradeAll: true has no meaning here: only what would not come back \
                 to this node by itself is masqueraded",
                "ipvs.strictARP: true has no meaning here: IPVS is not used",
                "mode: \"ipvs\" has no meaning here: it is eBPF in each",
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
        assert_eq!(["''", "rr", "wrr"].map(of), [Algorithm::RoundRobin; 3]);
        assert_eq!(["lc", "wlc", "sed", "nq"].map(of), [Algorithm::LeastConn; 4]);
        assert_eq!(["sh", "mh", "dh"].map(of), {
            [Algorithm::SourceHash, Algorithm::Maglev, Algorithm::Random]
        });
        assert_eq!(algorithm("", "mode: nftables"), Algorithm::Random);
        let file = "mode: ipvs\nipvs: {scheduler: sh}";
        let (args, warnings) = mapped("--algorithm maglev", file);
        assert_eq!(args.algorithm, Algorithm::Maglev);
        let told = "ipvs.scheduler does not count: --algorithm does".to_owned();
        assert!(warnings.unwrap().contains(&told));
    }

    #[test]
    fn what_cannot_be_is_named_by_its_field() {
        let faults = |file| mapped("", file).1.unwrap_err();
        assert_eq!(
            faults(
                "bindAddress: here\nhealthzBindAddress: 'x:1'\nclusterCIDR: 10.0.0.0/8,11.0.0.0/8\n\
                 nodePortAddresses: [primary, 10.0.0.0/8]\ndetectLocalMode: BridgeInterface\n"
            ),
            [
                "bindAddress: \"here\" cannot be; write an address such as 0.0.0.0",
                "healthzBindAddress: \"x:1\" cannot be; write ADDRESS:PORT, such as 0.0.0.0:10256",
                "clusterCIDR: \"10.0.0.0/8,11.0.0.0/8\" cannot be; write a CIDR, or one per family",
                "nodePortAddresses: \"primary\" is none of primary, all, localhost or a CIDR",
                "detectLocal.bridgeInterface: is empty, and detectLocalMode BridgeInterface needs \
                 it",
            ]
        );
    }
}
