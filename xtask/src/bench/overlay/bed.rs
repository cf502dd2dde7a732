//! Two nodes joined in one way, and the load between them.

use std::{
    collections::BTreeMap, fs, net::Ipv4Addr, ops::Range, path::Path, process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use lab::{
    Lab, LabSpec, NodeSpec, Process,
    address::pod_cidrs,
    agent::{Agent, AgentOptions},
    bench::{self, Driver, Order, Round, Seen, port},
    etcd::Etcd,
    flanneld::Flanneld,
    kube_proxy, manifests, overlay,
};
use serde_json::Value;

use super::{
    crowd::{self, NETWORK},
    rules,
    way::Way,
};
use crate::{
    bench::{fleet, kind::Kind},
    command,
};

pub(super) const NODES: [&str; 2] = ["node1", "node2"];
const PODS: [&str; 2] = ["pod1a", "pod2a"];
/// What flanneld tells pods where nodes have 1500.
const POD_MTU: u16 = 1450;
/// Services of proxy-agent, where it runs beside.
const SERVICES: u32 = 10;
/// How long nodes may take to be joined.
const PATIENCE: Duration = Duration::from_secs(30);

/// Client and server share a processor, as in the benchmark of Services: no round has the wait
/// for another one to wake up in it.
const CPU: Option<usize> = Some(1);

/// Fields are dropped in this order: the lab goes last.
pub(super) struct Bed {
    pub(super) way: Way,
    driver: Driver,
    _server: Process,
    flanneld: Vec<Flanneld>,
    overlay: Vec<Agent>,
    proxies: Vec<Agent>,
    etcd: Option<Etcd>,
    target: Ipv4Addr,
    lab: Lab,
}

impl Bed {
    pub(super) fn raise(way: Way) -> Result<Self> {
        let lab = lab(&NODES.map(|node| (node, true)))?;
        let [asker, answerer] = if way == Way::Nodes { NODES } else { PODS };
        for place in NODES.into_iter().chain([asker, answerer]) {
            bench::prepare(&lab.place(place)?)?;
        }
        for (number, node) in (1..).zip(NODES) {
            // The kernel's default, what Kubernetes asks for, and what flanneld does not start
            // without: set on all nodes, so that no way has less to do in the bridge.
            kube_proxy::pass_bridged(&lab.place(node)?)?;
            overlay::remember(&lab, node, number, 1)?;
        }
        let server = bench::serve(&lab.place(answerer)?, CPU)?;
        let driver = Driver::start(&lab.place(asker)?, CPU)?;
        let target = lab.addresses(answerer)?.v4;
        let mut bed = Self {
            way,
            driver,
            _server: server,
            flanneld: Vec::new(),
            overlay: Vec::new(),
            proxies: Vec::new(),
            etcd: None,
            target,
            lab,
        };
        bed.join().with_context(|| format!("nodes are not joined by {}", way.name()))?;
        Ok(bed)
    }

    fn join(&mut self) -> Result<()> {
        if self.way == Way::Nodes {
            return self.await_joined();
        }
        let etcd = self.etcd.insert(overlay::etcd(&self.lab, &crowd::config())?);
        let endpoint = etcd.endpoint();
        match self.way {
            Way::Nodes => {}
            Way::FastPath => self.start_agents("on")?,
            Way::SlowPath => self.start_agents("off")?,
            Way::Classic => {
                self.start_overlay(&["--datapath=kernel"])?;
                for (number, node) in (1..).zip(NODES) {
                    let [pods, _] = pod_cidrs(number);
                    let file = self.lab.directory(node).join("flanneld.nft");
                    fs::write(&file, rules::ruleset(NETWORK, &pods))?;
                    self.lab.shell(node, &format!("nft -f {}", file.display()))?;
                }
            }
            Way::Flanneld => {
                for node in NODES {
                    let etcd = [format!("-etcd-endpoints={endpoint}")];
                    let mut flanneld = Flanneld::prepare(&self.lab, node, &etcd)?;
                    flanneld.launch()?;
                    self.flanneld.push(flanneld);
                }
                self.flanneld.iter_mut().try_for_each(Flanneld::wait_ready)?;
            }
        }
        self.await_joined()
    }

    /// Both agents on each node, with some Services to look up.
    fn start_agents(&mut self, fast_path: &str) -> Result<()> {
        self.lab.publish("nodes.yaml", &manifests::nodes(&self.lab))?;
        for node in NODES {
            let manifests = self.lab.manifests(node);
            fleet::write(&manifests, 0, SERVICES - 1).context("cannot write the manifests")?;
            fleet::write_bench(&manifests, self.target)?;
            self.proxies.push(Agent::start(&self.lab, node, AgentOptions::default())?);
        }
        // flanneld's manifest has it masquerade, too.
        self.start_overlay(&[&format!("--fast-path={fast_path}"), "--ip-masq"])?;
        for agent in &self.overlay {
            let said = show(agent, "status")?;
            let is_as_told = said["fast_path"] == format!("{fast_path}, as told");
            ensure!(is_as_told, "flannel-agent says of its fast path: {}", said["fast_path"]);
        }
        Ok(())
    }

    fn start_overlay(&mut self, arguments: &[&str]) -> Result<()> {
        self.overlay = overlay::agents(&self.lab, self.etcd()?, arguments)?;
        Ok(overlay::start(&mut self.overlay)?)
    }

    /// Waits until packets get from one end to the other and back.
    fn await_joined(&mut self) -> Result<()> {
        let patience_millis = PATIENCE.as_millis() as u64;
        let port = port::ECHO;
        let order = Order::Scan { first: self.target, count: 1, step: 1, port, patience_millis };
        if self.driver.see(&order)?.complete {
            return Ok(());
        }
        let mut logs: Vec<String> =
            self.overlay.iter().chain(&self.proxies).map(Agent::log_tail).collect();
        logs.extend(self.flanneld.iter().map(Flanneld::log));
        bail!("nothing arrives; logs end:\n{}", logs.join("\n"));
    }

    pub(super) fn round(&mut self, kind: Kind) -> Result<Round> {
        Ok(self.driver.round(&kind.order(self.target))?)
    }

    /// Adds leases of other nodes, and waits until the first node's programs know them.
    pub(super) fn crowd(&mut self, numbers: Range<u32>) -> Result<()> {
        self.etcd()?.put_all(&crowd::leases(numbers.clone()))?;
        self.await_rows(numbers, true)
    }

    /// Takes all of them away again.
    pub(super) fn disperse(&mut self, numbers: Range<u32>) -> Result<()> {
        let [from, to] = crowd::range();
        self.etcd()?.ctl(&["del", &from, &to])?;
        self.await_rows(numbers, false)
    }

    fn await_rows(&mut self, numbers: Range<u32>, present: bool) -> Result<()> {
        let order = rows(&self.lab, NODES[0], numbers, present);
        let seen: Seen = self.driver.see(&order)?;
        ensure!(seen.complete, "{} rows are not as leases say", seen.silent);
        Ok(())
    }

    fn etcd(&self) -> Result<&Etcd> {
        self.etcd.as_ref().context("these nodes keep nothing in etcd")
    }

    /// Connections that the first node's kernel tracks.
    pub(super) fn tracked(&self) -> Result<u64> {
        Ok(kube_proxy::tracked(&self.lab.place(NODES[0])?)?)
    }

    /// Where the kernel can be asked to count.
    pub(super) fn place(&self) -> Result<lab::Place> {
        Ok(self.lab.place(NODES[0])?)
    }

    /// Ids and names of the programs that both agents have attached on both nodes, by the links
    /// they keep.
    pub(super) fn programs(&self) -> Result<BTreeMap<u64, String>> {
        let names = program_names()?;
        let mut found = BTreeMap::new();
        for node in NODES {
            for link in links(&self.lab.bpffs(node)) {
                let arguments = ["-j", "link", "show", "pinned", &link];
                let id = bpftool(&arguments)?["prog_id"].as_u64();
                let id = id.with_context(|| format!("{link} is the link of no program"))?;
                found.insert(id, names.get(&id).cloned().unwrap_or_default());
            }
        }
        Ok(found)
    }
}

/// Nodes with one pod each, or with none.
pub(super) fn lab(nodes: &[(&str, bool)]) -> Result<Lab> {
    let node = |(number, (name, has_pod)): (usize, &(&str, bool))| {
        NodeSpec::new(name, if *has_pod { &PODS[number..=number] } else { &[] })
    };
    let nodes = nodes.iter().enumerate().map(node).collect();
    Ok(Lab::up(LabSpec { overlay: true, pod_mtu: POD_MTU, nodes, ..LabSpec::default() })?)
}

/// To wait until leases with these numbers have their rows on a node, or have none.
pub(super) fn rows(lab: &Lab, node: &str, numbers: Range<u32>, present: bool) -> Order {
    Order::Rows {
        table: lab.bpffs(node).join("overlay/maps/VTEPS4"),
        keys: crowd::rows(numbers),
        present,
        patience_millis: PATIENCE.as_millis() as u64,
    }
}

/// What a subcommand of an agent prints as JSON.
fn show(agent: &Agent, subcommand: &str) -> Result<Value> {
    let output = agent.ask(&[subcommand, "-o", "json"])?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("flannel-agent {subcommand} printed no JSON"))
}

/// Pins in directories named `links`.
fn links(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(links(&path));
        } else if directory.ends_with("links") {
            found.push(path.display().to_string());
        }
    }
    found
}

fn program_names() -> Result<BTreeMap<u64, String>> {
    let programs = bpftool(&["-j", "prog", "show"])?;
    let programs = programs.as_array().context("bpftool lists programs")?;
    let name = |program: &Value| Some((program["id"].as_u64()?, program["name"].as_str()?.into()));
    Ok(programs.iter().filter_map(name).collect())
}

fn bpftool(arguments: &[&str]) -> Result<Value> {
    let bpftool = command::find("bpftool").context("bpftool is missing")?;
    let text = command::read(Command::new(bpftool).args(arguments))?;
    serde_json::from_str(&text).context("bpftool printed no JSON")
}
