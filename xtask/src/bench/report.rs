//! What was measured, as a table for people and as JSON for programs.

use std::{fmt::Write as _, path::Path};

use anyhow::Result;
use lab::agent::SocketLb;
use serde_json::json;

use super::{
    api_control, control,
    cost::Cost,
    files,
    host::Host,
    kind::Kind,
    node_port::{self, Target},
    peer_control,
    proxy::{Mode, Proxy},
    row::{Goal, Row, Unit},
    statistics::{median, quantile},
    traffic::{self, Way},
};

/// The lines about traffic: one for each figure of the agent, with kube-proxy's beside it.
pub(super) fn traffic(found: &[traffic::Found]) -> Vec<Row> {
    let of_agent = found.iter().filter(|found| found.proxy.is_agent());
    let mut rows: Vec<Row> = of_agent
        .map(|one| {
            let peer = |mode| {
                let is_counterpart = |other: &&traffic::Found| {
                    other.proxy == Proxy::KubeProxy(mode)
                        && (other.kind, other.way, other.services)
                            == (one.kind, one.way, one.services)
                };
                found.iter().find(is_counterpart).map(traffic_row)
            };
            traffic_row(one)
                .beside(peer(Mode::Nftables).as_ref(), elsewhere(one.kind, one.way))
                .beside_iptables(peer(Mode::Iptables).as_ref())
        })
        .collect();
    for kind in traffic::KINDS {
        let peer = |mode| growth(found, kind, Proxy::KubeProxy(mode));
        let [nftables, iptables] = Mode::ALL.map(peer);
        for socket_lb in [SocketLb::On, SocketLb::Host] {
            let row = growth(found, kind, Proxy::Agent(socket_lb));
            rows.extend(row.map(|row| {
                row.goal(Goal::Same)
                    .beside(nftables.as_ref(), None)
                    .beside_iptables(iptables.as_ref())
            }));
        }
    }
    rows
}

/// The lines about NodePorts asked from outside. The agent's only mode is its default one: what
/// comes from outside meets no socket of the node.
pub(super) fn node_port(found: &[node_port::Found]) -> Vec<Row> {
    let of_agent = found.iter().filter(|found| found.proxy.is_agent());
    let row = |one: &node_port::Found| {
        Row::ratio(node_port_name(one), one.ratio, one.rounds)
            .at(node_port::SERVICES, socket_lb(one.proxy))
    };
    of_agent
        .map(|one| {
            let peer = |mode| {
                let is_counterpart = |other: &&node_port::Found| {
                    other.proxy == Proxy::KubeProxy(mode)
                        && (other.kind, other.target, other.figure)
                            == (one.kind, one.target, one.figure)
                };
                found.iter().find(is_counterpart).map(row)
            };
            let own = match node_port_goal(one) {
                Some(goal) => row(one).goal(goal),
                None => row(one),
            };
            own.beside(peer(Mode::Nftables).as_ref(), node_port_elsewhere(one))
                .beside_iptables(peer(Mode::Iptables).as_ref())
        })
        .collect()
}

fn node_port_name(found: &node_port::Found) -> String {
    use node_port::Way::{Alone, NodePort, Shortest};
    let what = found.kind.name();
    let pod = match found.target {
        Target::Local => "local pod",
        Target::Remote => "remote pod",
    };
    let whom = whom(found.proxy);
    match (found.figure.way, found.figure.to) {
        (NodePort, Alone) => format!("{what} from outside, NodePort, {pod}"),
        (NodePort, Shortest) => {
            format!("{what} from outside, NodePort, {pod}, over routed by its own node")
        }
        (NodePort, _) => {
            format!("{what} from outside, NodePort, {pod}, over routed directly beside {whom}")
        }
        _ => format!("{what} from outside, routed directly beside {whom}, {pod}"),
    }
}

/// How near a NodePort shall come to the same routed directly, in rates and in the inverse of times.
fn node_port_goal(found: &node_port::Found) -> Option<Goal> {
    if found.figure != node_port::GOAL {
        return None;
    }
    Some(match (found.kind, found.target) {
        (Kind::Latency, Target::Local) => Goal::AtMost(1.02),
        (Kind::Latency, Target::Remote) => Goal::AtMost(1.05),
        (_, Target::Local) => Goal::AtLeast(0.98),
        (_, Target::Remote) => Goal::AtLeast(0.95),
    })
}

/// What kube-proxy came to when it was not measured in the same run.
fn node_port_elsewhere(found: &node_port::Found) -> Option<&'static str> {
    // Of which kind of traffic is not known; it is no time.
    node_port_goal(found).filter(|_| found.kind != Kind::Latency).map(|_| match found.target {
        Target::Local => "0.96",
        Target::Remote => "0.77",
    })
}

fn program(proxy: Proxy) -> &'static str {
    match proxy {
        Proxy::Agent(_) => "proxy-agent",
        Proxy::KubeProxy(Mode::Nftables) => "kube-proxy",
        Proxy::KubeProxy(Mode::Iptables) => "kube-proxy, iptables",
    }
}

/// How the ratio at the largest number of Services compares with that at the smallest.
fn growth(found: &[traffic::Found], kind: Kind, proxy: Proxy) -> Option<Row> {
    let of_proxy = || {
        found
            .iter()
            .filter(|found| (found.kind, found.way, found.proxy) == (kind, Way::Service, proxy))
    };
    let least = of_proxy().min_by_key(|found| found.services)?;
    let most = of_proxy().max_by_key(|found| found.services)?;
    if least.services == most.services {
        return None;
    }
    let name = name(kind, Way::Service, proxy);
    let figure = format!("{name} as a ratio to that at {}", least.services);
    let row = Row::ratio(figure, most.ratio.over(&least.ratio), most.rounds);
    Some(row.at(most.services, socket_lb(proxy)))
}

fn name(kind: Kind, way: Way, proxy: Proxy) -> String {
    let what = kind.name();
    let whom = whom(proxy);
    match way {
        Way::Service => format!("{what}, ClusterIP"),
        Way::Backend => {
            format!("{what}, pod to pod beside {whom}, pair that a Service joins too")
        }
        Way::Beside | Way::Alone => format!("{what}, pod to pod beside {whom}"),
    }
}

fn whom(proxy: Proxy) -> &'static str {
    match proxy {
        Proxy::Agent(_) => "the agent",
        Proxy::KubeProxy(_) => "kube-proxy",
    }
}

fn socket_lb(proxy: Proxy) -> Option<&'static str> {
    match proxy {
        Proxy::Agent(socket_lb) => Some(socket_lb.name()),
        Proxy::KubeProxy(_) => None,
    }
}

/// What kube-proxy came to when it was not measured in the same run.
fn elsewhere(kind: Kind, way: Way) -> Option<&'static str> {
    match (kind, way) {
        (Kind::Connections, Way::Service) => Some("0.83"),
        (Kind::Latency, Way::Service) => Some("1.15"),
        (Kind::Bulk, Way::Service) | (Kind::Datagrams, _) | (_, Way::Backend | Way::Alone) => None,
        (Kind::Latency, Way::Beside) => Some("1.10–1.18"),
        (Kind::Connections | Kind::Bulk, Way::Beside) => Some("0.82–0.90"),
    }
}

fn traffic_row(found: &traffic::Found) -> Row {
    let goal = match (found.kind, found.way) {
        (Kind::Connections, Way::Service) => Some(Goal::AtLeast(0.97)),
        (Kind::Bulk, Way::Service) | (Kind::Datagrams, _) | (_, Way::Backend | Way::Alone) => None,
        (Kind::Latency, Way::Service | Way::Beside) => Some(Goal::AtMost(1.02)),
        (Kind::Connections | Kind::Bulk, Way::Beside) => Some(Goal::AtLeast(0.98)),
    };
    let name = name(found.kind, found.way, found.proxy);
    let row = Row::ratio(name, found.ratio, found.rounds);
    let row = row.at(found.services, socket_lb(found.proxy));
    match goal {
        Some(goal) => row.goal(goal),
        None => row,
    }
}

/// The lines about the control plane that a directory tells.
pub(super) fn control(found: &control::Found) -> Vec<Row> {
    let services = found.services;
    let time = |figure, values: &[f64], part| {
        Row::measured(figure, Unit::Seconds, values, part).at(services, None)
    };
    let bytes = |figure, bytes: u64| {
        Row::measured(figure, Unit::Bytes, &[bytes as f64], 0.5).at(services, None)
    };
    let maps = found.maps.values().map(|(_, bytes)| bytes).sum();
    vec![
        time("start to the last Service answering, nothing pinned", &found.cold, 0.5)
            .goal(Goal::AtMost(1.0))
            .beside(None, Some("30 s")),
        time("start to a missed change in force, state pinned", &found.warm, 0.5)
            .goal(Goal::AtMost(1.0)),
        time("one file renamed to traffic following, median", &found.renamed, 0.5),
        time("one file renamed to traffic following, 99th percentile", &found.renamed, 0.99)
            .goal(Goal::AtMost(0.02))
            .beside(None, Some("0.9–10 s")),
        time("one file written to traffic following, median", &found.written, 0.5),
        time("one file written to traffic following, 99th percentile", &found.written, 0.99)
            .goal(Goal::AtMost(0.02))
            .beside(None, Some("0.9–10 s")),
        bytes("memory of the agent, resident", found.resident)
            .goal(Goal::AtMost(60e6))
            .beside(None, Some("201 MB")),
        bytes("memory of the agent, proportional", found.proportional),
        bytes("kernel memory of the maps at default sizes", maps).goal(Goal::AtMost(64e6)),
    ]
}

/// The lines about the control plane that an API server tells, with kube-proxy's beside them.
pub(super) fn api_control(
    found: &api_control::Found,
    peers: &[(Mode, peer_control::Found)],
) -> Vec<Row> {
    let endpoints = found.endpoints;
    let measured = |figure: &str, unit, values: &[f64], part| {
        let figure = format!("API server, {endpoints} endpoints: {figure}");
        Row::measured(&figure, unit, values, part).at(found.services, None)
    };
    let time = |figure: &str, values: &[f64], part| measured(figure, Unit::Seconds, values, part);
    let bytes = |figure: &str, bytes: u64| measured(figure, Unit::Bytes, &[bytes as f64], 0.5);
    let beside = |row: Row, counterpart: &dyn Fn(&peer_control::Found) -> Row| {
        let [nftables, iptables] = Mode::ALL.map(|mode| {
            let found = peers.iter().find(|(of, _)| *of == mode);
            found.map(|(_, found)| counterpart(found))
        });
        row.beside(nftables.as_ref(), None).beside_iptables(iptables.as_ref())
    };
    let beyond: Vec<f64> =
        found.cold.iter().zip(&found.plain).map(|(cold, plain)| cold - plain).collect();
    let maps = found.maps.values().map(|(_, bytes)| bytes).sum();
    let followed = |part| {
        let name = if part < 0.9 { "median" } else { "99th percentile" };
        let name = format!("API server's answer to traffic following, {name}");
        let row = time(&name, &found.followed, part);
        beside(row, &|peer| time("", &peer.changed, part))
    };
    vec![
        beside(time("start to the last Service answering", &found.cold, 0.5), &|peer| {
            time("", &peer.cold, 0.5)
        }),
        time("the same lists fetched by a plain client", &found.plain, 0.5),
        time("start, beyond what the plain client took before it", &beyond, 0.5)
            .goal(Goal::AtMost(1.5)),
        time("word of a change to tables, median", &found.programmed, 0.5),
        time("word of a change to tables, 99th percentile", &found.programmed, 0.99)
            .goal(Goal::AtMost(0.01)),
        followed(0.5),
        followed(0.99),
        beside(time("processor time of a change", &[found.cpu], 0.5), &|peer| {
            time("", &[peer.cpu], 0.5)
        }),
        beside(bytes("memory, resident", found.resident).goal(Goal::AtMost(80e6)), &|peer| {
            bytes("", peer.resident)
        }),
        bytes("kernel memory of the maps at default sizes", maps),
    ]
}

/// Everything that was found.
pub(super) struct Report {
    pub(super) host: Host,
    pub(super) quick: bool,
    /// Whether kube-proxy was measured too.
    pub(super) peers: bool,
    pub(super) rows: Vec<Row>,
    pub(super) traffic: Vec<traffic::Found>,
    pub(super) costs: Vec<Cost>,
    pub(super) node_port: Vec<node_port::Found>,
    pub(super) control: Option<control::Found>,
    pub(super) api_control: Option<api_control::Found>,
    pub(super) peer_control: Vec<(Mode, peer_control::Found)>,
}

/// What a reader must know of kube-proxy's column.
const IN_THIS_RUN: &str = "kube-proxy v1.35.4, in its modes nftables and iptables, was measured \
    in this run as the agent was: the same Services, told by a kube-apiserver, the same traffic, \
    and ratios to the same traffic on the same nodes without it, with the interval or spread and \
    the rounds behind each. On all nodes of this run, with a proxy or without, packets between \
    pods of one bridge pass netfilter (`bridge-nf-call-iptables`), without which kube-proxy cannot \
    serve such pods; so its rules and connection tracking meet traffic beside Services too. \
    Figures that begin with \"API server\" come from the control plane that it tells, agent and \
    kube-proxy alike; the agent ran with its default capacities.\n\n";
const ELSEWHERE: &str = "kube-proxy's figures were measured on this kind of machine at another \
    time; `--peers` measures it in the same run.\n\n";

impl Report {
    /// Writes `service.md` and `service.json`; returns the former's text.
    pub(super) fn write(&self, directory: &Path) -> Result<String> {
        files::write(directory, "service", self.markdown(), &self.json())
    }

    fn json(&self) -> serde_json::Value {
        let traffic = self.traffic.iter().map(|found| {
            json!({
                "figure": name(found.kind, found.way, found.proxy),
                "services": found.services,
                "proxy": program(found.proxy),
                "socket_lb": socket_lb(found.proxy),
                "unit": found.kind.absolute_unit(),
                "value": found.value,
                "reference": found.reference,
                "ratio_of_means": {
                    "value": found.of_means.value,
                    "low": found.of_means.low,
                    "high": found.of_means.high,
                },
            })
        });
        let costs = self.costs.iter().map(|cost| {
            json!({
                "figure": name(cost.kind, cost.way, Proxy::Agent(cost.socket_lb)),
                "socket_lb": cost.socket_lb.name(),
                "program": cost.program,
                "runs_each": cost.runs,
                "nanoseconds_each_run": cost.nanos,
            })
        });
        let control = self.control.as_ref().map(|found| {
            let maps = found
                .maps
                .iter()
                .map(|(id, (name, bytes))| json!({"id": id, "name": name, "bytes": bytes}));
            json!({
                "cold_start_seconds": found.cold,
                "pinned_start_seconds": found.warm,
                "rename_seconds": found.renamed,
                "write_seconds": found.written,
                "maps": maps.collect::<Vec<_>>(),
            })
        });
        let node_port = self.node_port.iter().map(|found| {
            json!({
                "figure": node_port_name(found),
                "proxy": program(found.proxy),
                "unit": found.kind.absolute_unit(),
                "value": found.value,
                "reference": found.reference,
            })
        });
        let api_control = self.api_control.as_ref().map(|found| {
            json!({
                "services": found.services,
                "endpoints": found.endpoints,
                "cold_start_seconds": found.cold,
                "plain_client_seconds": found.plain,
                "change_to_tables_seconds": found.programmed,
                "change_to_traffic_seconds": found.followed,
                "change_cpu_seconds": found.cpu,
                "resident_bytes": found.resident,
            })
        });
        let peer_control = self.peer_control.iter().map(|(mode, found)| {
            json!({
                "mode": mode.name(),
                "cold_start_seconds": found.cold,
                "change_seconds": found.changed,
                "change_cpu_seconds": found.cpu,
                "resident_bytes": found.resident,
            })
        });
        json!({
            "benchmark": "service",
            "quick": self.quick,
            "peers": self.peers,
            "host": self.host,
            "rows": self.rows,
            "traffic": traffic.collect::<Vec<_>>(),
            "programs": costs.collect::<Vec<_>>(),
            "control": control,
            "node_port": node_port.collect::<Vec<_>>(),
            "api_control": api_control,
            "kube_proxy_control": peer_control.collect::<Vec<_>>(),
        })
    }

    fn markdown(&self) -> String {
        let mut text = format!("{}\n\n", self.host);
        if self.quick {
            text += "A smoke run (`--quick`): too few rounds for a verdict that counts.\n\n";
        }
        text += if self.peers { IN_THIS_RUN } else { ELSEWHERE };
        let (kube_proxy, rule) = if self.peers {
            ("kube-proxy, nftables | kube-proxy, iptables", "--:|--:|")
        } else {
            ("kube-proxy, elsewhere", "--:|")
        };
        let _ = writeln!(
            text,
            "| figure | Services | socket-lb | value | interval or spread | rounds | goal | \
             {kube_proxy} | verdict |\n|---|--:|---|--:|--:|--:|--:|{rule}---|",
        );
        for row in &self.rows {
            let _ = writeln!(text, "{}", row.line_with(self.peers));
        }
        if !self.traffic.is_empty() || !self.node_port.is_empty() {
            text += "\nThe same traffic in absolute numbers, medians:\n\n\
                     | traffic | Services | served by | value | compared with |\n\
                     |---|--:|---|--:|--:|\n";
            for found in &self.traffic {
                let _ = writeln!(
                    text,
                    "| {} | {} | {} | {} | {} |",
                    name(found.kind, found.way, found.proxy),
                    found.services,
                    found.proxy.name(),
                    found.kind.absolute(found.value),
                    found.kind.absolute(found.reference),
                );
            }
            for found in self.node_port.iter().filter(|found| found.figure == node_port::GOAL) {
                let _ = writeln!(
                    text,
                    "| {} | {} | {} | {} | {} |",
                    node_port_name(found),
                    node_port::SERVICES,
                    found.proxy.name(),
                    found.kind.absolute(found.value),
                    found.kind.absolute(found.reference),
                );
            }
        }
        if !self.costs.is_empty() {
            text += "\nWhat the programs cost, as the kernel counts it:\n\n\
                     | traffic | socket-lb | program | runs | ns a run | ns in all |\n\
                     |---|---|---|--:|--:|--:|\n";
            for cost in &self.costs {
                let each = cost.kind.unit();
                let _ = writeln!(
                    text,
                    "| {} | {} | `{}` | {:.2} {each} | {:.0} | {:.0} |",
                    name(cost.kind, cost.way, Proxy::Agent(cost.socket_lb)),
                    cost.socket_lb.name(),
                    cost.program,
                    cost.runs,
                    cost.nanos,
                    cost.runs * cost.nanos,
                );
            }
        }
        if let Some(found) = &self.control {
            text += "\nKernel memory of the maps:\n\n| map | MB |\n|---|--:|\n";
            let mut maps: Vec<_> = found.maps.values().collect();
            maps.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
            for (name, bytes) in maps.iter().filter(|(_, bytes)| *bytes >= 100_000) {
                let _ = writeln!(text, "| `{name}` | {:.2} |", *bytes as f64 / 1e6);
            }
            let slowest = |values: &[f64]| quantile(values, 1.0) * 1e3;
            let _ = writeln!(
                text,
                "\nSlowest change: {:.1} ms by rename, {:.1} ms by write; median start {:.0} ms \
                 cold, {:.0} ms with pinned state.",
                slowest(&found.renamed),
                slowest(&found.written),
                median(&found.cold) * 1e3,
                median(&found.warm) * 1e3,
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::statistics::Ratio;

    fn found(proxy: Proxy, services: u32, value: f64) -> traffic::Found {
        let ratio = Ratio { value, low: value - 0.01, high: value + 0.01, pairs: 5 };
        traffic::Found {
            kind: Kind::Connections,
            way: Way::Service,
            services,
            proxy,
            ratio,
            of_means: ratio,
            rounds: 10,
            value: 0.0,
            reference: 0.0,
        }
    }

    #[test]
    fn kube_proxy_stands_beside_the_same_figure_of_the_same_run() {
        let agent = Proxy::Agent(SocketLb::On);
        let alone = traffic(&[found(agent, 10, 0.97)]);
        assert!(alone[0].line().ends_with("| 0.83 | holds |"), "{}", alone[0].line());
        let rows = traffic(&[
            found(agent, 10, 0.97),
            found(Proxy::KubeProxy(Mode::Nftables), 10, 0.8),
            found(agent, 1_000, 0.96),
            found(Proxy::KubeProxy(Mode::Nftables), 1_000, 0.7),
            found(Proxy::KubeProxy(Mode::Iptables), 1_000, 0.6),
        ]);
        let lines: Vec<String> = rows.iter().map(Row::line).collect();
        // Two sizes, and how they compare: no line is kube-proxy's own.
        assert_eq!(lines.len(), 3);
        assert!(lines[0].contains("| 0.970 | 0.960 – 0.980 | 10 |"), "{}", lines[0]);
        assert!(lines[0].ends_with("| 0.800 (0.790 – 0.810; 10) | holds |"), "{}", lines[0]);
        assert!(lines[1].ends_with("| 0.700 (0.690 – 0.710; 10) | holds |"), "{}", lines[1]);
        assert!(lines[2].contains("| 1 | 0.875 ("), "{}", lines[2]);
        let both = rows[1].line_with(true);
        assert!(
            both.ends_with("| 0.700 (0.690 – 0.710; 10) | 0.600 (0.590 – 0.610; 10) | holds |")
        );
        assert!(rows[0].line_with(true).ends_with("(0.790 – 0.810; 10) |  | holds |"));
        let json = serde_json::to_value(&rows[0]).unwrap();
        assert_eq!(json["kube_proxy"]["measured"], "in_this_run");
        assert_eq!(json["kube_proxy"]["value"], 0.8);
    }

    #[test]
    fn a_node_port_is_judged_by_the_same_way_with_no_proxy() {
        let found = |proxy, target, figure, value: f64| node_port::Found {
            kind: Kind::Connections,
            target,
            figure,
            proxy,
            ratio: Ratio { value, low: value - 0.001, high: value + 0.001, pairs: 5 },
            rounds: 10,
            value: 0.0,
            reference: 0.0,
        };
        let agent = Proxy::Agent(SocketLb::On);
        let beside = node_port::Figure { to: node_port::Way::Beside, ..node_port::GOAL };
        let rows = node_port(&[
            found(agent, Target::Local, node_port::GOAL, 0.97),
            found(agent, Target::Local, beside, 0.99),
            found(agent, Target::Remote, node_port::GOAL, 0.96),
            found(Proxy::KubeProxy(Mode::Iptables), Target::Remote, node_port::GOAL, 0.7),
        ]);
        let lines: Vec<String> = rows.iter().map(|row| row.line_with(true)).collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].contains("NodePort, local pod |"), "{}", lines[0]);
        assert!(lines[0].ends_with("| ≥ 0.980 | 0.96 |  | **missed** |"), "{}", lines[0]);
        assert!(lines[1].ends_with("|  |  |  |  |"), "{}", lines[1]);
        let iptables = "| ≥ 0.950 | 0.77 | 0.700 (0.699 – 0.701; 10) | holds |";
        assert!(lines[2].ends_with(iptables), "{}", lines[2]);
    }
}
