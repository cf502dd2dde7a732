//! kube-proxy and proxy-agent told the same by the same API server, and asked the same: who
//! answers, whom the answering server saw, and whether what is not answered is refused or dropped.
//! What differs must stand in [`differences`], and what stands there must differ.

mod compare;
mod differences;
mod matrix;
mod outcome;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    thread,
    time::{Duration, Instant},
};

use lab::{
    Lab, LabSpec, Process,
    agent::{Agent, AgentOptions, SocketLb},
    api_server::{ApiServer, Verb, proxy_roles},
    kube_proxy::{KubeProxy, pass_bridged},
    manifests, peer, peers,
    survey::{Finding, Inquiry, survey},
};

use crate::bed::{eventually, ok};
use compare::{Seen, compare};
use differences::{Difference, KNOWN};
use matrix::{Case, Cell};

const NODES: [&str; 2] = ["node1", "node2"];
/// What is answered or refused at all is within this time. A SYN is sent again after a second:
/// over a veth, the kernel takes note of a refusal only then.
const TIMEOUT: Duration = Duration::from_millis(2_500);
/// Source ports of each round of questions begin here; those of NodePorts lie between.
const FIRST_PORTS: [u16; 3] = [10_000, 33_000, 42_000];
/// How seldom a run may miss a backend by chance.
const CHANCE: f64 = 1e-9;

/// Two nodes with Services, servers, and an outside that answers whatever a proxy lets by.
struct Bed {
    // Dropped in this order: the lab goes last.
    _servers: Vec<Process>,
    api: ApiServer,
    cases: Vec<Case>,
    lab: Lab,
}

impl Bed {
    fn up() -> Self {
        let spec = LabSpec { client_service_routes: true, ..LabSpec::default() };
        let lab = ok(Lab::up(spec));
        route(&lab);
        let port = matrix::TARGET;
        let inside = [format!("--tcp={port}"), format!("--udp={port}")];
        let inside: Vec<_> = inside.iter().map(String::as_str).collect();
        let outside =
            matrix::OUTSIDE.map(|port| [format!("--tcp={port}"), format!("--udp={port}")]);
        let outside: Vec<_> = outside.iter().flatten().map(String::as_str).collect();
        let mut servers = vec![ok(peer::serve(&ok(lab.place("fabric")), &outside))];
        for name in ["pod1a", "pod1b", "pod2a", "pod2b", "node1", "node2"] {
            servers.push(ok(peer::serve(&ok(lab.place(name)), &inside)));
        }
        let api = ok(ApiServer::start(&lab, "fabric", &peers().join("kube-apiserver")));
        ok(api.send(Verb::Create, &[manifests::nodes(&lab), proxy_roles().into()].concat()));
        let bed = Self { _servers: servers, api, cases: matrix::cases(), lab };
        for (number, case) in bed.numbered() {
            ok(bed.api.send(Verb::Create, &case.objects(number, &bed.lab)));
            if let Some(status) = case.status(number) {
                let path = format!("/api/v1/namespaces/default/services/{}/status", case.name);
                ok(bed.api.merge(&path, &status));
            }
        }
        bed
    }

    fn numbered(&self) -> impl Iterator<Item = (u8, &Case)> {
        (1..).zip(&self.cases)
    }

    /// The whole matrix, with kube-proxy on both nodes; nothing of it is left after that.
    fn with_kube_proxy(&self) -> Seen {
        let mut proxies = NODES.map(|node| {
            ok(pass_bridged(&ok(self.lab.place(node))));
            let binary = peers().join("kube-proxy");
            ok(KubeProxy::prepare(&self.lab, node, &binary, &self.api.kubeconfig()))
        });
        for proxy in &mut proxies {
            ok(proxy.launch());
        }
        // It programs a family at a time, and each all at once.
        for (node, proxy) in NODES.into_iter().zip(&proxies) {
            eventually(&format!("kube-proxy's rules\n{}", proxy.log_tail()), || {
                let rules = ok(self.lab.shell(node, "nft list ruleset"));
                (rules.contains("10.96.1.1 ") && rules.contains("fd00:10:96::101 ")).then_some(())
            });
        }
        let seen = self.ask();
        for proxy in &mut proxies {
            ok(proxy.remove());
        }
        seen
    }

    /// The same with proxy-agent.
    fn with_proxy_agent(&self, socket_lb: SocketLb) -> Seen {
        let mut agents = NODES.map(|node| {
            let kubeconfig = format!("--kubeconfig={}", self.api.proxy_kubeconfig().display());
            let (source, extra) = (Some("kubernetes".into()), vec![kubeconfig]);
            let options = AgentOptions { socket_lb, source, extra, ..AgentOptions::default() };
            ok(Agent::start(&self.lab, node, options))
        });
        // Which are out of which network it learns on its own, and waits for it with nothing.
        for agent in &agents {
            eventually("the networks of Services are known", || {
                let status = ok(agent.ask(&["status", "-o", "json"]));
                let status: serde_json::Value = serde_json::from_slice(&status.stdout).ok()?;
                (!status["service_networks"].as_array()?.is_empty()).then_some(())
            });
        }
        let seen = self.ask();
        for agent in &mut agents {
            ok(agent.kill());
            assert!(ok(agent.ask(&["cleanup"])).status.success());
        }
        seen
    }

    /// The whole matrix. On a busy machine an answer may be late, so what was not answered is
    /// asked anew: only what is lost each time counts as dropped. So is what shall stay with a
    /// backend and has not yet, since a client's first connections go out at the same time.
    fn ask(&self) -> Seen {
        let began = Instant::now();
        let cells = self.cases.iter().map(|case| case.cells().len()).sum();
        let questions = self.numbered().flat_map(|(number, case)| {
            let (count, servers) = (requests(case.backends(), cells), case.backends());
            case.cells().into_iter().map(move |cell| {
                let (to, timeout) = (matrix::target(&cell, number), TIMEOUT);
                let protocol = cell.protocol();
                (cell, Inquiry { protocol, to, count, servers, timeout })
            })
        });
        let questions: Vec<_> = questions.collect();
        let affine: Vec<_> =
            self.cases.iter().filter(|case| case.has_affinity()).map(|case| case.name).collect();
        let [first_port, rounds @ ..] = FIRST_PORTS;
        let mut found = self.put(first_port, &questions);
        for first_port in rounds {
            let is_unsure = |cell: &Cell| {
                let finding = &found[cell];
                let is_unsettled = affine.contains(&cell.case) && finding.servers() > 1;
                finding.errors.contains("timeout") || is_unsettled
            };
            let again = questions.iter().filter(|(cell, _)| is_unsure(cell));
            let again: Vec<_> = again.cloned().collect();
            println!("{} cells are asked again", again.len());
            found.extend(self.put(first_port, &again));
        }
        println!("{} cells in {:?}", found.len(), began.elapsed());
        let told = found.into_iter().map(|(cell, finding)| {
            let outcomes = outcome::outcomes(&self.lab, &finding, affine.contains(&cell.case));
            (cell, outcomes)
        });
        told.collect()
    }

    /// Has all places ask at the same time.
    fn put(&self, first_port: u16, questions: &[(Cell, Inquiry)]) -> BTreeMap<Cell, Finding> {
        let mut asked: BTreeMap<&str, (Vec<Cell>, Vec<Inquiry>)> = BTreeMap::new();
        for (cell, inquiry) in questions {
            let (cells, inquiries) = asked.entry(cell.source).or_default();
            cells.push(cell.clone());
            inquiries.push(*inquiry);
        }
        thread::scope(|scope| {
            let asking = asked.into_iter().map(|(source, (cells, inquiries))| {
                let place = ok(self.lab.place(source));
                scope.spawn(move || {
                    cells.into_iter().zip(ok(survey(&place, first_port, &inquiries)))
                })
            });
            let asking: Vec<_> = asking.collect();
            asking.into_iter().flat_map(|asker| asker.join().expect("no panic")).collect()
        })
    }
}

/// Has the client send to addresses of load balancers by one node or the other, and the outside
/// answer for every address that no proxy takes.
fn route(lab: &Lab) {
    for (node, networks) in matrix::ROUTED {
        let [v4, v6] = ok(lab.addresses(node)).both();
        for network in networks {
            let via = if network.contains(':') { v6 } else { v4 };
            ok(lab.shell("client", &format!("ip route add {network} via {via}")));
        }
    }
    let all = matrix::ROUTED.into_iter().flat_map(|(_, networks)| networks);
    for network in all.chain([lab::address::SERVICE_CIDR4, lab::address::SERVICE_CIDR6]) {
        ok(lab.shell("fabric", &format!("ip route add local {network} dev lo")));
    }
    // The answers' source is none of its own addresses.
    ok(lab.shell("fabric", "sysctl -qw net.ipv6.ip_nonlocal_bind=1"));
    // A pod may be its own backend, as bridges of CNI plugins allow it.
    for (_, node) in lab.spec().nodes() {
        for (_, pod) in node.pods() {
            ok(lab.shell(&node.name, &format!("bridge link set dev veth{pod} hairpin on")));
        }
    }
    // Every refusal is told, however many there are.
    for place in lab.spec().names() {
        let limits = "net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0 \
                      net.ipv4.icmp_msgs_per_sec=100000 net.ipv4.icmp_msgs_burst=10000";
        ok(lab.shell(place, &format!("sysctl -eqw {limits}")));
    }
    // Nobody shall learn a way around the proxies.
    for place in ["client", "node1", "node2"] {
        for family in ["ipv4", "ipv6"] {
            let line = format!(
                "for file in /proc/sys/net/{family}/conf/*/accept_redirects; do echo 0 > $file; done"
            );
            ok(lab.shell(place, &line));
        }
    }
}

/// How often to ask, so that none of so many backends stays unheard in any of so many cells, nor
/// in those of the run that it is compared with, more often than once in 10^9 times.
fn requests(backends: usize, cells: usize) -> u32 {
    // Once more than needed where there is no choice: an answer that changes is seen.
    if backends < 2 {
        return 2;
    }
    let [backends, cells] = [backends, 2 * cells]
        .map(|count| f64::from(u32::try_from(count).expect("the matrix is small")));
    let missed = 1.0 - 1.0 / backends;
    let is_enough = |times: &u32| cells * backends * missed.powf((*times).into()) < CHANCE;
    (1..1000).find(is_enough).expect("it sinks with each time")
}

#[test]
fn users_are_told_of_every_difference() {
    let told = include_str!("../../../docs/differences.md");
    for Difference { cells, kube_proxy, proxy_agent, why, .. } in KNOWN {
        let row = format!("| {cells} | {kube_proxy} | {proxy_agent} | {why} |\n");
        assert!(told.contains(&row), "docs/differences.md lacks: {row}");
    }
}

#[test]
fn every_request_ends_as_with_kube_proxy() {
    let bed = Bed::up();
    let kube_proxy = bed.with_kube_proxy();
    let mut reports = String::new();
    let mut explained = [0; KNOWN.len()];
    for socket_lb in [SocketLb::On, SocketLb::Host] {
        let proxy_agent = bed.with_proxy_agent(socket_lb);
        let comparison = compare(&bed.cases, socket_lb, &kube_proxy, &proxy_agent);
        println!("--socket-lb {}: {:?} cells differ", socket_lb.name(), comparison.explained);
        for (all, here) in explained.iter_mut().zip(comparison.explained) {
            *all += here;
        }
        if !comparison.is_clean() {
            let _ = writeln!(reports, "--socket-lb {}:\n{}", socket_lb.name(), comparison.report());
        }
    }
    for (difference, count) in KNOWN.iter().zip(explained) {
        let Difference { cells, kube_proxy, proxy_agent, why, .. } = difference;
        if count == 0 {
            let _ = writeln!(
                reports,
                "does not occur any more: {cells}: kube-proxy: {kube_proxy}; proxy-agent: \
                 {proxy_agent}; because {why}"
            );
        }
    }
    assert!(reports.is_empty(), "\n{reports}");
}
