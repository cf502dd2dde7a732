//! A lab with an agent on each node and a server in each pod, and what cases ask of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use lab::{
    Lab, LabSpec, NodeSpec, Place, Process,
    agent::{Agent, AgentOptions, SocketLb},
    manifests,
    peer::{self, Answer, Protocol, Question},
};
use serde_json::Value;

use crate::{
    exposition,
    service::{Exposed, FAMILIES, Family, TARGET, Target, name},
};

/// Longer than any change may take; nothing waits for it unless something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// What is dropped does not answer within this time.
pub(crate) const SILENCE: Duration = Duration::from_millis(400);
/// Over a veth the answer to a SYN comes while the kernel still holds the socket, and the error
/// is taken note of only when the SYN is sent again, after a second; kube-proxy's rules have
/// the same effect.
pub(crate) const AT_ONCE: Duration = Duration::from_millis(1_800);
/// The socket path refuses within the call, without any packet.
pub(crate) const THE_CALL: Duration = Duration::from_millis(500);

/// The value, or the end of the case with the error as people read it.
#[track_caller]
pub(crate) fn ok<T, E: Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|err| panic!("{err}"))
}

/// Waits until `look` finds what it looks for.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < give_up, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Dropped in this order: the lab goes last.
pub(crate) struct Cluster {
    pub(crate) agents: Vec<Agent>,
    servers: BTreeMap<String, Process>,
    pub(crate) lab: Lab,
}

/// How a cluster is raised.
pub(crate) struct Plan {
    pub(crate) spec: LabSpec,
    pub(crate) mode: SocketLb,
    /// Whether agents are told their addresses by `--node-ip`, and not by their Node objects.
    pub(crate) is_told_node_ip: bool,
    /// Further arguments of the agents.
    pub(crate) extra: Vec<String>,
}

impl Plan {
    /// Two nodes with two pods each, and a client that knows the way to cluster IPs.
    pub(crate) fn new(mode: SocketLb) -> Self {
        let spec = LabSpec { client_service_routes: true, ..LabSpec::default() };
        Self { spec, mode, is_told_node_ip: true, extra: Vec::new() }
    }

    /// One node with two pods: enough where nothing crosses nodes.
    pub(crate) fn single(mode: SocketLb) -> Self {
        let mut plan = Self::new(mode);
        plan.spec.nodes = vec![NodeSpec::new("node1", &["pod1a", "pod1b"])];
        plan
    }

    #[must_use]
    pub(crate) fn extra(mut self, arguments: &[&str]) -> Self {
        self.extra.extend(arguments.iter().map(ToString::to_string));
        self
    }

    /// Raises it, with the agents ready and the Services programmed.
    pub(crate) fn up(self, services: &[Exposed]) -> Cluster {
        let options = self.options();
        let mut cluster = self.without_agents(services);
        for node in cluster.nodes() {
            let agent = ok(Agent::start(&cluster.lab, &node, options.clone()));
            cluster.agents.push(agent);
        }
        for service in services {
            cluster.wait_programmed(service);
        }
        cluster
    }

    pub(crate) fn options(&self) -> AgentOptions {
        let (socket_lb, is_told_node_ip) = (self.mode, self.is_told_node_ip);
        let extra = self.extra.clone();
        AgentOptions { socket_lb, is_told_node_ip, extra, ..AgentOptions::default() }
    }

    /// The lab with its manifests and servers, and no agent yet.
    pub(crate) fn without_agents(self, services: &[Exposed]) -> Cluster {
        let lab = ok(Lab::up(self.spec));
        ok(lab.publish("nodes.yaml", &manifests::nodes(&lab)));
        let mut cluster = Cluster { agents: Vec::new(), servers: BTreeMap::new(), lab };
        for service in services {
            cluster.write(service);
        }
        let pods =
            cluster.lab.spec().nodes().flat_map(|(_, node)| {
                node.pods().map(|(_, pod)| pod.to_owned()).collect::<Vec<_>>()
            });
        for pod in pods.collect::<Vec<_>>() {
            cluster.serve(&pod);
        }
        cluster
    }
}

impl Cluster {
    pub(crate) fn up(mode: SocketLb, services: &[Exposed]) -> Self {
        Plan::new(mode).up(services)
    }

    /// Starts a server in a place, where pods have theirs.
    pub(crate) fn serve(&mut self, place: &str) {
        let ports = [format!("--tcp={TARGET}"), format!("--udp={TARGET}")];
        let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
        let server = ok(peer::serve(&self.place(place), &ports));
        self.servers.insert(place.to_owned(), server);
    }

    pub(crate) fn nodes(&self) -> Vec<String> {
        self.lab.spec().nodes.iter().map(|node| node.name.clone()).collect()
    }

    pub(crate) fn place(&self, name: &str) -> Place {
        ok(self.lab.place(name))
    }

    pub(crate) fn address(&self, place: &str, family: Family) -> IpAddr {
        family.of(ok(self.lab.addresses(place)).both())
    }

    /// Writes a Service's file without waiting for anything.
    pub(crate) fn write(&self, service: &Exposed) {
        ok(self.lab.publish(&service.file(), &service.documents(&self.lab)));
    }

    /// Writes a Service's file and waits until it is in force.
    pub(crate) fn publish(&self, service: &Exposed) {
        self.write(service);
        self.wait_programmed(service);
    }

    /// A Service's documents with one of its pods terminating.
    pub(crate) fn draining(&self, service: &Exposed, pod: &str) -> Vec<Value> {
        let addresses = ok(self.lab.addresses(pod)).both().map(|address| address.to_string());
        let mut documents = service.documents(&self.lab);
        let lists = documents.iter_mut().filter_map(|document| document.get_mut("endpoints"));
        for endpoint in lists.filter_map(Value::as_array_mut).flatten() {
            if addresses.iter().any(|address| endpoint["addresses"][0] == *address) {
                endpoint["conditions"] =
                    serde_json::json!({"ready": false, "serving": true, "terminating": true});
            }
        }
        documents
    }

    /// Takes a Service's file away and waits until the Service is gone.
    pub(crate) fn withdraw(&self, service: &Exposed) {
        ok(self.lab.withdraw(&service.file()));
        for agent in &self.agents {
            eventually("the Service is gone", || {
                backends(agent, service.number).is_none().then_some(())
            });
        }
    }

    pub(crate) fn wait_programmed(&self, service: &Exposed) {
        let wanted: BTreeSet<SocketAddr> = service.backends(&self.lab).into_iter().collect();
        for agent in &self.agents {
            let mut found = None;
            let what = format!("{} has the backends {wanted:?}", name(service.number));
            eventually(&what, || {
                found = backends(agent, service.number);
                (found.as_ref() == Some(&wanted)).then_some(())
            });
        }
    }

    /// Asks once.
    #[track_caller]
    pub(crate) fn ask(&self, from: &str, protocol: Protocol, to: SocketAddr) -> Answer {
        ok(peer::ask(&self.place(from), protocol, to))
    }

    #[track_caller]
    pub(crate) fn ask_with(
        &self,
        from: &str,
        protocol: Protocol,
        to: SocketAddr,
        question: &Question,
    ) -> Vec<Answer> {
        ok(peer::ask_with(&self.place(from), protocol, to, question))
    }

    /// Asks by TCP and UDP in both families: one of `by` must answer, must have seen the
    /// address of the place `source`, and the asker must see whom it asked.
    #[track_caller]
    pub(crate) fn reaches(&self, from: &str, target: Target, by: &[&str], source: &str) {
        for family in FAMILIES {
            let source = self.address(source, family);
            self.reaches_from(from, target, family, by, &[source]);
        }
    }

    /// The same, whatever source was seen.
    #[track_caller]
    pub(crate) fn answers(&self, from: &str, target: Target, by: &[&str]) {
        for family in FAMILIES {
            self.reaches_from(from, target, family, by, &[]);
        }
    }

    /// The same in one family, with the sources that may be seen, any if none is named.
    #[track_caller]
    pub(crate) fn reaches_from(
        &self,
        from: &str,
        target: Target,
        family: Family,
        by: &[&str],
        sources: &[IpAddr],
    ) {
        let to = target.address(&self.lab, family);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let answer = self.ask(from, protocol, to);
            let what = format!("{from} asks {to} by {}: {answer:?}", protocol.name());
            assert!(answer.name().is_some_and(|name| by.contains(&name)), "{what}");
            let seen = answer.source().map(|source| source.ip());
            let is_right = |seen| sources.is_empty() || sources.contains(&seen);
            assert!(seen.is_some_and(is_right), "not {sources:?}: {what}");
            assert_eq!(answer.from.or(answer.peer), Some(to), "{what}");
        }
    }

    /// TCP and UDP are refused at once in both families.
    #[track_caller]
    pub(crate) fn is_refused(&self, from: &str, target: Target) {
        self.is_refused_within(from, target, AT_ONCE);
    }

    #[track_caller]
    pub(crate) fn is_refused_within(&self, from: &str, target: Target, time: Duration) {
        for family in FAMILIES {
            let to = target.address(&self.lab, family);
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let answer = self.ask(from, protocol, to);
                let what = format!("{from} asks {to} by {}: {answer:?}", protocol.name());
                assert!(answer.is_refused(), "{what}");
                assert!(Duration::from_micros(answer.micros) < time, "{what}");
            }
        }
    }

    /// Neither TCP nor UDP is answered at all.
    #[track_caller]
    pub(crate) fn is_silent(&self, from: &str, target: Target) {
        let question = Question { timeout: Some(SILENCE), ..Question::default() };
        for family in FAMILIES {
            let to = target.address(&self.lab, family);
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let answer = self.ask_with(from, protocol, to, &question).remove(0);
                let what = format!("{from} asks {to} by {}: {answer:?}", protocol.name());
                assert_eq!(answer.error.as_deref(), Some("timeout"), "{what}");
            }
        }
    }

    /// Who answers each of these questions, one after another.
    #[track_caller]
    pub(crate) fn answerers(
        &self,
        from: &str,
        protocol: Protocol,
        to: SocketAddr,
        count: u32,
    ) -> Vec<String> {
        let question = Question { count: Some(count), ..Question::default() };
        let name = |answer: Answer| {
            assert_eq!(answer.from.or(answer.peer), Some(to), "{from}: {answer:?}");
            answer.name().unwrap_or_else(|| panic!("{from} asks {to}: {answer:?}")).to_owned()
        };
        self.ask_with(from, protocol, to, &question).into_iter().map(name).collect()
    }

    /// The program of each link on this machine, by the link's id.
    #[track_caller]
    pub(crate) fn links(&self) -> BTreeMap<u64, u64> {
        // Where a link is just being made, in whichever case, the kernel answers EAGAIN, which ends
        // bpftool's list (`bpf_link_by_id`).
        let text = eventually("bpftool lists all links", || {
            self.lab.shell("node1", "bpftool -j link show").ok()
        });
        let links: Value = ok(serde_json::from_str(&text));
        let ids = |link: &Value| Some((link["id"].as_u64()?, link["prog_id"].as_u64()?));
        links.as_array().into_iter().flatten().filter_map(ids).collect()
    }

    /// What a subcommand of the first node's agent prints as JSON.
    #[track_caller]
    pub(crate) fn show(&self, arguments: &[&str]) -> Value {
        show(&self.agents[0], arguments)
    }

    /// Connections to a Service that each path of the first node has begun: socket, packet.
    #[track_caller]
    pub(crate) fn connections(&self, number: u8) -> [u64; 2] {
        let shown = self.show(&["services", &name(number)]);
        ["socket_connections", "packet_connections"].map(|path| {
            let services = shown.as_array().into_iter().flatten();
            services.map(|service| service[path].as_u64().expect("a number")).sum()
        })
    }

    /// The value of a metric of the first node's agent, summed over all samples that carry
    /// the labels.
    #[track_caller]
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let text = ok(self.agents[0].metrics());
        let samples = ok(exposition::parse(&text));
        let fits = |sample: &&exposition::Sample| {
            sample.name == name
                && labels.iter().all(|(label, value)| {
                    sample.labels.get(*label).is_some_and(|found| found == value)
                })
        };
        samples.iter().filter(fits).map(|sample| sample.value).sum()
    }
}

/// What a subcommand beside an agent prints as JSON.
#[track_caller]
pub(crate) fn show(agent: &Agent, arguments: &[&str]) -> Value {
    let mut arguments = arguments.to_vec();
    arguments.extend(["-o", "json"]);
    let output = ok(agent.ask(&arguments));
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    serde_json::from_str(&text).unwrap_or_else(|err| panic!("{arguments:?}: {err}: {text}"))
}

/// The backends of a Service, both families, as an agent has programmed them; none if it has
/// no such Service.
pub(crate) fn backends(agent: &Agent, number: u8) -> Option<BTreeSet<SocketAddr>> {
    let output = ok(agent.ask(&["services", &name(number), "-o", "json"]));
    let shown: Value = serde_json::from_slice(&output.stdout).ok()?;
    let lists = shown.as_array()?.iter().map(|service| &service["backends"]);
    let rows = lists.filter_map(Value::as_array).flatten();
    let address = |row: &Value| {
        let ip = row["address"].as_str()?.parse().ok()?;
        let port = row["port"].as_u64()?.try_into().ok()?;
        Some(SocketAddr::new(ip, port))
    };
    Some(rows.filter_map(address).collect())
}

impl Drop for Cluster {
    /// Tells what the agents have to say about a case that failed.
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        for (node, agent) in self.nodes().iter().zip(&self.agents) {
            let log = agent.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(20)..];
            eprintln!("--- log of proxy-agent on {node}, its end:\n{}", tail.join("\n"));
            let metrics = agent.metrics().unwrap_or_default();
            let drops: Vec<&str> = metrics
                .lines()
                .filter(|line| line.starts_with("millrace_drops_total") && !line.ends_with(" 0"))
                .collect();
            eprintln!("--- drops on {node}:\n{}", drops.join("\n"));
            for arguments in [&["status"][..], &["services"], &["flows"]] {
                if let Ok(output) = agent.ask(arguments) {
                    let text = String::from_utf8_lossy(&output.stdout).into_owned();
                    let head: Vec<&str> = text.lines().take(60).collect();
                    eprintln!("--- {arguments:?} on {node}:\n{}", head.join("\n"));
                }
            }
        }
    }
}
