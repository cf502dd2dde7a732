//! A node with three pods: one that asks, two that answer. With an agent, with kube-proxy, or
//! with neither.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lab::{
    Lab, LabSpec, NodeSpec, Process,
    agent::{Agent, AgentOptions, SocketLb},
    api_server::proxy_roles,
    bench::{self, Driver, Order, Round, Seen, port},
    kube_proxy, manifests,
};
use serde_json::Value;

use super::{
    fleet,
    peer::{self, Peer},
    proxy::Proxy,
    traffic::Way,
};

const NODE: &str = "node1";
const ASKER: &str = "pod1a";
pub(super) const ANSWERERS: [&str; 2] = ["pod1b", "pod1c"];

/// How long a Service may take to answer: kube-proxy has 10,000 ready after half a minute, and
/// much later where the machine does something else.
const PATIENCE: Duration = Duration::from_mins(15);

/// Fields are dropped in this order: the lab goes last.
pub(super) struct Stage {
    driver: Driver,
    _servers: Vec<Process>,
    agent: Option<Agent>,
    peer: Option<Peer>,
    /// Where kube-proxy and kube-apiserver are, if they are measured too.
    peers: Option<PathBuf>,
    /// Services of the fleet that have their files.
    services: u32,
    /// Backend of the measured Service, as its file says.
    backend: Ipv4Addr,
    pub(super) lab: Lab,
}

/// What the counters of the measured Service say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Counts {
    pub(super) socket_connections: u64,
    pub(super) packet_connections: u64,
    pub(super) packets: u64,
}

impl Stage {
    /// Client and server stay on the processor given, if one is. `peers` is where kube-proxy
    /// and kube-apiserver are, if they shall be measured too.
    pub(super) fn raise(cpus: [Option<usize>; 2], peers: Option<&Path>) -> Result<Self> {
        let pods = [ASKER, ANSWERERS[0], ANSWERERS[1]];
        let spec = LabSpec { nodes: vec![NodeSpec::new(NODE, &pods)], ..LabSpec::default() };
        let lab = Lab::up(spec)?;
        for pod in pods {
            bench::prepare(&lab.place(pod)?)?;
        }
        let first = lab.addresses(ANSWERERS[0])?.v4;
        // The first answerer has every address of the fleets' endpoints.
        for fleet::Shape { network, .. } in [fleet::SMALL, fleet::LARGE] {
            lab.shell(ANSWERERS[0], &format!("ip route add local {network} dev lo"))?;
            lab.shell(NODE, &format!("ip route add {network} via {first}"))?;
        }
        let mut servers = Vec::new();
        for pod in ANSWERERS {
            servers.push(bench::serve(&lab.place(pod)?, cpus[1])?);
        }
        let driver = Driver::start(&lab.place(ASKER)?, cpus[0])?;
        if peers.is_some() {
            // For whoever serves the node, and for nobody: or kube-proxy would be compared with
            // a bridge that does less.
            kube_proxy::pass_bridged(&lab.place(NODE)?)?;
        }
        lab.publish("nodes.yaml", &manifests::nodes(&lab))?;
        let stage = Self {
            driver,
            _servers: servers,
            agent: None,
            peer: None,
            peers: peers.map(Path::to_path_buf),
            services: 0,
            backend: first,
            lab,
        };
        fleet::write_bench(&stage.manifests(), first)?;
        Ok(stage)
    }

    pub(super) fn answerer(&self, number: usize) -> Result<Ipv4Addr> {
        Ok(self.lab.addresses(ANSWERERS[number])?.v4)
    }

    pub(super) fn manifests(&self) -> PathBuf {
        self.lab.manifests(NODE)
    }

    /// The file of the measured Service's slice.
    pub(super) fn bench_slice(&self) -> PathBuf {
        self.manifests().join(fleet::BENCH_SLICE)
    }

    /// Backend of the measured Service.
    pub(super) fn backend(&self) -> Ipv4Addr {
        self.backend
    }

    /// The file of the measured Service's slice, and what it says when the Service is pointed
    /// at the other of its two backends; the caller writes it.
    pub(super) fn turn(&mut self) -> Result<(PathBuf, String, Ipv4Addr)> {
        let next = self.other_backend()?;
        let path = self.bench_slice();
        let text = fs::read_to_string(&path)?;
        let text = text.replace(&self.backend.to_string(), &next.to_string());
        self.backend = next;
        Ok((path, text, next))
    }

    /// Points the measured Service at the other of its two backends.
    pub(super) fn turn_over(&mut self) -> Result<()> {
        let (path, text, _) = self.turn()?;
        fs::write(path, text).context("cannot change the slice")
    }

    /// Lets the fleet grow to so many Services, the measured one among them.
    pub(super) fn grow(&mut self, services: u32) -> Result<()> {
        let fleet = services.saturating_sub(1);
        fleet::write(&self.manifests(), self.services, fleet)
            .context("cannot write the manifests")?;
        self.services = self.services.max(fleet);
        Ok(())
    }

    /// Services of the fleet, beside the measured one.
    pub(super) fn fleet(&self) -> u32 {
        self.services
    }

    /// Has Services served, and waits until the measured one is programmed.
    pub(super) fn start(&mut self, proxy: Proxy) -> Result<()> {
        match proxy {
            Proxy::Agent(socket_lb) => self.start_agent(socket_lb),
            Proxy::KubeProxy(mode) => {
                self.prepare_peer()?;
                self.peer()?.launch(mode)?;
                self.await_all()
            }
        }
    }

    /// Ends whatever serves Services, and removes what it left on the node.
    pub(super) fn remove(&mut self) -> Result<()> {
        self.remove_agent()?;
        match &mut self.peer {
            Some(peer) => peer.remove(),
            None => Ok(()),
        }
    }

    /// An API server that knows all that the manifests say, and a kube-proxy that is not
    /// started yet.
    pub(super) fn prepare_peer(&mut self) -> Result<()> {
        if self.peer.is_none() {
            let binaries = self.peers.as_ref().context("no peers have been built")?;
            self.peer = Some(Peer::raise(&self.lab, binaries)?);
        }
        let manifests = self.manifests();
        self.peer()?.tell(&manifests)
    }

    /// An API server that knows a large fleet, of so many Services with the measured one, and
    /// whom agents may ask. No manifest is written of it.
    pub(super) fn prepare_large(&mut self, services: u32) -> Result<()> {
        self.prepare_peer()?;
        self.services = services.saturating_sub(1);
        let fleet = fleet::large(self.services)?;
        let peer = self.peer()?;
        peer.create(&proxy_roles())?;
        peer.create(&fleet)
    }

    pub(super) fn peer(&mut self) -> Result<&mut Peer> {
        self.peer.as_mut().context("no kube-proxy has been prepared")
    }

    /// Waits until every Service answers, the measured one from its backend.
    fn await_all(&mut self) -> Result<()> {
        self.begin_follow(self.backend, Duration::from_millis(5))?;
        self.end_follow()?;
        self.begin_scan(1)?;
        self.end_scan().map(drop)
    }

    /// Connections that the kernel tracks on the node.
    pub(super) fn tracked(&self) -> Result<u64> {
        peer::tracked(&self.lab, NODE)
    }

    /// An agent that is not started yet.
    pub(super) fn prepare_agent(&mut self, socket_lb: SocketLb) -> Result<()> {
        let options =
            AgentOptions { socket_lb, patience: Duration::from_mins(2), ..AgentOptions::default() };
        self.agent = Some(Agent::prepare(&self.lab, NODE, options)?);
        Ok(())
    }

    /// The same, told by the API server.
    pub(super) fn prepare_agent_of_api(&mut self) -> Result<()> {
        let kubeconfig = self.peer()?.api.proxy_kubeconfig();
        let options = AgentOptions {
            source: Some("kubernetes".into()),
            extra: vec![format!("--kubeconfig={}", kubeconfig.display())],
            patience: Duration::from_mins(2),
            ..AgentOptions::default()
        };
        self.agent = Some(Agent::prepare(&self.lab, NODE, options)?);
        Ok(())
    }

    /// Which node is served.
    pub(super) fn node() -> &'static str {
        NODE
    }

    pub(super) fn agent(&mut self) -> Result<&mut Agent> {
        self.agent.as_mut().context("no agent has been prepared")
    }

    /// The process of the agent.
    pub(super) fn agent_id(&mut self) -> Result<u32> {
        self.agent()?.id().context("the agent is not running")
    }

    /// Starts an agent and waits until the measured Service is programmed.
    fn start_agent(&mut self, socket_lb: SocketLb) -> Result<()> {
        self.prepare_agent(socket_lb)?;
        let agent = self.agent()?;
        agent.launch()?;
        agent.wait_ready()?;
        let began = Instant::now();
        while self.counts().is_err() {
            ensure!(began.elapsed() < Duration::from_mins(1), "Service bench is not programmed");
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Ends the agent and removes what it left on the node: no program, no table.
    pub(super) fn remove_agent(&mut self) -> Result<()> {
        let Some(agent) = self.agent.take() else { return Ok(()) };
        remove_agent(agent, &self.lab.bpffs(NODE))
    }

    /// What a subcommand of the agent prints as JSON.
    pub(super) fn show(&self, arguments: &[&str]) -> Result<Value> {
        let agent = self.agent.as_ref().context("no agent has been prepared")?;
        let output = agent.ask(&[arguments, &["-o", "json"]].concat())?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("proxy-agent {} failed: {}", arguments.join(" "), errors.trim());
        }
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("proxy-agent {} printed no JSON", arguments.join(" ")))
    }

    /// Counters of the measured Service; an error unless all its ports have their backend.
    pub(super) fn counts(&self) -> Result<Counts> {
        let shown = self.show(&["services", "default/bench"])?;
        let ports = shown.as_array().context("services are a list")?;
        let ready = ports.iter().filter(|port| {
            port["backends"].as_array().is_some_and(|backends| !backends.is_empty())
        });
        ensure!(ready.count() == 4, "Service bench is not programmed yet");
        let sum = |field: &str| ports.iter().filter_map(|port| port[field].as_u64()).sum();
        Ok(Counts {
            socket_connections: sum("socket_connections"),
            packet_connections: sum("packet_connections"),
            packets: sum("packets"),
        })
    }

    /// Ids and names of the programs that are attached.
    pub(super) fn programs(&self) -> Result<BTreeMap<u64, String>> {
        let status = self.show(&["status"])?;
        let attachments = status["attachments"].as_array().context("status has attachments")?;
        let program = |attachment: &Value| {
            let name = attachment["program"].as_str()?;
            Some((attachment["program_id"].as_u64()?, name.to_owned()))
        };
        Ok(attachments.iter().filter_map(program).collect())
    }

    /// Where traffic goes that takes this way, on this node or beside it.
    pub(super) fn address(&self, way: Way) -> Result<Ipv4Addr> {
        Ok(match way {
            Way::Service => fleet::BENCH,
            Way::Backend | Way::Alone => self.backend,
            Way::Beside => self.other_backend()?,
        })
    }

    fn other_backend(&self) -> Result<Ipv4Addr> {
        let [first, second] = [self.answerer(0)?, self.answerer(1)?];
        Ok(if self.backend == first { second } else { first })
    }

    pub(super) fn round(&mut self, order: &Order) -> Result<Round> {
        Ok(self.driver.round(order)?)
    }

    /// Begins to wait for the measured Service's backend to be this one, asking so often.
    pub(super) fn begin_follow(&mut self, until: Ipv4Addr, pause: Duration) -> Result<()> {
        let pause_micros = pause.as_micros() as u64;
        let to = SocketAddrV4::new(fleet::BENCH, port::ECHO);
        let patience_millis = PATIENCE.as_millis() as u64;
        Ok(self.driver.order(&Order::Follow { to, until, pause_micros, patience_millis })?)
    }

    /// What came of it.
    pub(super) fn end_follow(&mut self) -> Result<Seen> {
        let seen: Seen = self.driver.report()?;
        ensure!(seen.complete, self.late("the change has not reached traffic"));
        Ok(seen)
    }

    /// Waits until no Service answers: the kernel detaches programs some time after their
    /// pins are gone.
    pub(super) fn await_silence(&mut self) -> Result<()> {
        let order = scan(1, 1, 50);
        for _ in 0..100 {
            if !self.driver.see(&order)?.complete {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!("a Service answers though what served it is gone with all it left")
    }

    /// Begins to ask every `step`-th Service of the fleet until it has answered.
    pub(super) fn begin_scan(&mut self, step: u32) -> Result<()> {
        Ok(self.driver.order(&scan(self.services, step, PATIENCE.as_millis() as u64))?)
    }

    /// What came of it.
    pub(super) fn end_scan(&mut self) -> Result<Seen> {
        let seen: Seen = self.driver.report()?;
        ensure!(seen.complete, self.late("not every Service answered"));
        Ok(seen)
    }

    fn late(&self, what: &str) -> String {
        let proxy = self.peer.as_ref().filter(|_| self.agent.is_none());
        let log = proxy.map(Peer::log_tail).unwrap_or_default();
        format!("{what} within {} s\n{log}", PATIENCE.as_secs())
    }
}

/// Ends an agent and removes what it left on its node, whose pins are below this directory.
pub(super) fn remove_agent(mut agent: Agent, bpffs: &Path) -> Result<()> {
    agent.kill()?;
    let output = agent.ask(&["cleanup"])?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "proxy-agent cleanup failed: {}", errors.trim());
    let pins = pins(bpffs);
    ensure!(pins.is_empty(), "proxy-agent cleanup left pins: {pins:?}");
    Ok(())
}

/// Names of pinned links, maps and whatever else is below a directory.
fn pins(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_path_buf()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                left.push(path);
            } else {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

fn scan(count: u32, step: u32, patience_millis: u64) -> Order {
    Order::Scan { first: fleet::FIRST, count, step, port: port::ECHO, patience_millis }
}
