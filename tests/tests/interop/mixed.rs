//! A bed where flanneld runs on nodes, too.

use std::net::IpAddr;

use lab::{etcd::Etcd, flanneld::Flanneld, peer};

use crate::bed::{Bed, DATAGRAMS, DUAL, PREFIX, eventually, load_on, ok};

/// Nodes by their place in the bed's lists.
pub(crate) const NODES: [&str; 2] = ["node1", "node2"];

/// How the agent is started where programs choose tunnels: it masquerades, as flanneld does.
pub(crate) const PROGRAMS: &[&str] = &["--ip-masq=true"];

pub(crate) struct Mixed<S = Etcd> {
    // Dropped before what they talk to.
    pub(crate) flannelds: Vec<Flanneld>,
    pub(crate) bed: Bed<S>,
}

impl Mixed {
    /// Two nodes with two pods each and both programs, of which none runs yet. Both are
    /// dual-stack, and flanneld masquerades as its manifests have it.
    pub(crate) fn furnished(arguments: &[&str]) -> Self {
        let bed = Bed::furnished(DUAL, arguments);
        let endpoint = [format!("-etcd-endpoints={}", bed.store.endpoint())];
        let prepare = |node| ok(Flanneld::prepare(&bed.lab, node, &endpoint));
        Self { flannelds: NODES.map(prepare).into(), bed }
    }

    /// The lease of a node, byte for byte: its addresses and MACs.
    pub(crate) fn lease(&self, number: u8) -> String {
        let key = format!("{PREFIX}/subnets/10.244.{number}.0-24&fd00:10:244:{number}::-64");
        let lease = ok(self.bed.store.get(&key));
        lease.unwrap_or_else(|| panic!("no lease under {key}\n{}", self.logs()))
    }
}

impl<S> Mixed<S> {
    pub(crate) fn start_flanneld(&mut self, nth: usize) {
        ok(self.flannelds[nth].launch());
        ok(self.flannelds[nth].wait_ready());
    }

    pub(crate) fn start_agent(&mut self, nth: usize) {
        ok(self.bed.agents[nth].launch());
        ok(self.bed.agents[nth].wait_ready());
    }

    /// Waits until each pod network answers from the other node: flanneld tells nobody when it
    /// knows its peers.
    pub(crate) fn wait_joined(&self) {
        for line in ["ping -c1 -W1 10.244.2.10", "ping -c1 -W1 fd00:10:244:2::10"] {
            let ask = || self.bed.lab.shell("pod1a", line).ok();
            eventually(&format!("{line}\n{}", self.logs()), ask);
        }
        self.bed.assert_joined();
    }

    /// What a node's flanneld said of trouble: its lines of errors and fatal ones.
    pub(crate) fn alarms(&self, nth: usize) -> Vec<String> {
        let log = self.flannelds[nth].log();
        let is_alarm = |line: &&str| line.starts_with(['E', 'F']) || line.contains("panic");
        log.lines().filter(is_alarm).map(String::from).collect()
    }

    pub(crate) fn logs(&self) -> String {
        let flannelds = self.flannelds.iter().map(|it| format!("{}\n{}", it.node(), it.log()));
        let logs = flannelds.chain([self.bed.logs()]);
        logs.collect::<Vec<_>>().join("\n")
    }

    /// Loads by both families, from the first node to the second.
    pub(crate) fn loads(&self) -> Vec<peer::Loading> {
        let targets = ok(self.bed.lab.addresses("pod2a")).both();
        targets.map(|target: IpAddr| load_on(&self.bed, target)).into()
    }

    /// Ends loads; fails if a request or a connection was lost, or more datagrams than a gap of
    /// so many milliseconds costs.
    pub(crate) fn assert_gap(&self, what: &str, loads: Vec<peer::Loading>, most_millis: u64) {
        for (loading, family) in loads.into_iter().zip(["IPv4", "IPv6"]) {
            let load = ok(loading.stop());
            assert!(load.connections > 0 && load.requests > 0 && load.udp_sent > 0, "{load:?}");
            let gap = load.udp_missing * 1000 / DATAGRAMS;
            let (missing, slowest) = (load.udp_missing, load.slowest_micros / 1000);
            println!("{what}: {family}: a gap of {gap} ms ({missing} datagrams)");
            println!("{what}: {family}: the slowest answer took {slowest} ms");
            assert_eq!((load.failed, load.resets), (0, 0), "{what}: {load:?}\n{}", self.logs());
            assert!(gap <= most_millis, "{what}: {load:?}\n{}", self.logs());
        }
    }

    /// Runs `cleanup` as an operator would.
    pub(crate) fn clean_up(&self, nth: usize) {
        let (lab, node) = (&self.bed.lab, NODES[nth]);
        let file = format!("--subnet-file={}", lab.subnet_file(node).display());
        let bpffs = format!("--bpffs={}", lab.bpffs(node).display());
        let output = ok(self.bed.agents[nth].ask(&["cleanup", &file, &bpffs]));
        assert!(output.status.success(), "{output:?}");
    }

    /// What there is on a node that only flannel-agent makes. Its programs are there while their
    /// pins are.
    pub(crate) fn traces_of_ours(&self, nth: usize) -> Vec<&'static str> {
        let node = NODES[nth];
        let lines = [
            "ip -d route show table all",
            "ip -d -6 route show table all",
            "ip -d link",
            "cat /proc/sys/net/ipv4/ip_local_reserved_ports",
        ];
        let said = lines.map(|line| self.bed.shell(node, line)).concat();
        let words = ["proto 77", "blackhole", "169.254.1.1", "vxlan external", "60000-65535"];
        let mut traces: Vec<_> = words.into_iter().filter(|word| said.contains(word)).collect();
        traces.extend(self.bed.lab.bpffs(node).join("overlay").exists().then_some("pins"));
        traces
    }
}
