//! `cargo xtask demo`: two nodes joined by the overlay, both agents, and every way to reach a
//! Service, as a table.

mod xdp;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};
use clap::Args;
use lab::{
    Lab, Lifetime, Place, Process, address,
    agent::SocketLb,
    manifests::{self, Port, Service},
    peer::{self, Answer, Protocol},
};

use crate::{
    SetupArgs, agents,
    joined::{self, Joined},
    lab::{DEFAULT, describe},
    machine::Machine,
    object, setup,
};

#[derive(Args)]
pub(crate) struct DemoArgs {
    /// Leave it up and print what to try next
    #[arg(long)]
    keep: bool,
    /// Who meets the socket path; the rest is served by the packet path
    #[arg(long, default_value = "on")]
    socket_lb: SocketLb,
    #[command(flatten)]
    setup: SetupArgs,
}

/// The ports of every Service of the demo, and what its pods listen on.
const PORTS: [Port; 3] =
    [Port::tcp("http", 80, 8000), Port::tcp("tcp", 7, 8080), Port::udp("udp", 7, 8080)];

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Http];

/// A Service of the demo: the last number of its address, its pods, its first NodePort.
struct Sample {
    name: &'static str,
    number: u16,
    pods: &'static [&'static str],
    node_port: u16,
}

const WEB: Sample = Sample {
    name: "web",
    number: 10,
    pods: &["pod1a", "pod1b", "pod2a", "pod2b"],
    node_port: 30080,
};
const NEAR: Sample = Sample { name: "near", number: 11, pods: &["pod1b"], node_port: 30180 };
const FAR: Sample = Sample { name: "far", number: 12, pods: &["pod2a"], node_port: 30280 };
const LOOP: Sample = Sample { name: "self", number: 13, pods: &["pod1a"], node_port: 30380 };
const HOST: Sample = Sample { name: "host", number: 14, pods: &["node2"], node_port: 30480 };
const EMPTY: Sample = Sample { name: "empty", number: 15, pods: &[], node_port: 30580 };

const SAMPLES: [&Sample; 6] = [&WEB, &NEAR, &FAR, &LOOP, &HOST, &EMPTY];

/// Where a request goes.
#[derive(Clone, Copy)]
enum Target {
    ClusterIp(&'static Sample),
    NodePort(&'static Sample, &'static str),
    /// A pod, or the router that stands for the outside, by its own address.
    Direct(&'static str),
}

/// One thing to try, and what must come of it.
struct Trial {
    what: &'static str,
    from: &'static str,
    to: Target,
    /// Who may answer; nobody means that the request is refused.
    answers: &'static [&'static str],
    /// Whose address the server may see as the source. `gateway1` is the pods' gateway on node1,
    /// `tunnel1` that node's end of the overlay.
    sources: &'static [&'static str],
}

const fn trial(
    what: &'static str,
    from: &'static str,
    to: Target,
    answers: &'static [&'static str],
    sources: &'static [&'static str],
) -> Trial {
    Trial { what, from, to, answers, sources }
}

const TRIALS: &[Trial] = &[
    trial("pod to pod, no Service", "pod1a", Target::Direct("pod2a"), &["pod2a"], &["pod1a"]),
    trial("pod to the outside", "pod1a", Target::Direct("fabric"), &["fabric"], &["node1"]),
    trial("ClusterIP, other node", "pod1a", Target::ClusterIp(&FAR), FAR.pods, &["pod1a"]),
    trial("ClusterIP, same node", "pod1a", Target::ClusterIp(&NEAR), NEAR.pods, &["pod1a"]),
    trial(
        "ClusterIP, four pods",
        "pod2b",
        Target::ClusterIp(&WEB),
        WEB.pods,
        &["pod2b", "gateway2"],
    ),
    trial("ClusterIP, host process", "pod1a", Target::ClusterIp(&HOST), HOST.pods, &["node1"]),
    trial(
        "ClusterIP, pod to itself",
        "pod1a",
        Target::ClusterIp(&LOOP),
        LOOP.pods,
        &["pod1a", "gateway1", "node1"],
    ),
    trial("node to ClusterIP, remote", "node1", Target::ClusterIp(&FAR), FAR.pods, &["tunnel1"]),
    trial("node to ClusterIP, local", "node1", Target::ClusterIp(&NEAR), NEAR.pods, &["gateway1"]),
    trial(
        "pod to own node's NodePort",
        "pod1a",
        Target::NodePort(&FAR, "node1"),
        FAR.pods,
        &["pod1a"],
    ),
    trial(
        "client to NodePort, local",
        "client",
        Target::NodePort(&NEAR, "node1"),
        NEAR.pods,
        &["client"],
    ),
    trial(
        "client to NodePort, remote",
        "client",
        Target::NodePort(&FAR, "node1"),
        FAR.pods,
        &["tunnel1"],
    ),
    trial(
        "client to NodePort, any",
        "client",
        Target::NodePort(&WEB, "node2"),
        WEB.pods,
        &["client", "tunnel2"],
    ),
    trial("ClusterIP without pods", "pod1a", Target::ClusterIp(&EMPTY), &[], &[]),
    trial("NodePort without pods", "client", Target::NodePort(&EMPTY, "node1"), &[], &[]),
];

/// What stays alive while the demo asks.
struct Stage {
    joined: Joined,
    servers: Vec<Process>,
    lab: Lab,
}

/// Fails if any answer was wrong.
pub(crate) fn run(args: &DemoArgs) -> Result<()> {
    let machine = Machine::new(args.setup.offline)?;
    setup::root("the demo makes network namespaces and loads eBPF programs")?;
    machine.provide(&setup::demo())?;
    let objects = object::build(&machine)?;
    agents::build_with_peer(&machine, &objects)?;
    let mut stage = raise(args)?;
    let mut wrong = ask_all(&stage.lab)?;
    wrong += xdp::show(&stage.lab, stage.joined.first_proxy()?)?;
    if wrong > 0 {
        for agent in stage.joined.agents() {
            eprintln!("an agent of {} said last:\n{}\n", agent.node(), agent.log_tail());
        }
    }
    if args.keep {
        keep(stage)?;
    } else {
        let Stage { joined, servers, lab } = stage;
        drop((joined, servers));
        lab.down()?;
    }
    if wrong > 0 {
        bail!("{wrong} answers were wrong; they are marked in the table");
    }
    Ok(())
}

fn raise(args: &DemoArgs) -> Result<Stage> {
    let spec = joined::spec();
    let lab =
        if args.keep { Lab::raise(DEFAULT.into(), spec, Lifetime::Kept)? } else { Lab::up(spec)? };
    lab.publish("nodes.yaml", &manifests::nodes(&lab))?;
    for sample in SAMPLES {
        publish(&lab, sample)?;
    }
    let mut servers = Vec::new();
    for name in ["pod1a", "pod1b", "pod2a", "pod2b", "node2", "fabric"] {
        let ports = ["--tcp=8080", "--udp=8080", "--http=8000"];
        servers.push(peer::serve(&lab.place(name)?, &ports)?);
    }
    let joined = Joined::start(&lab, args.socket_lb)?;
    Ok(Stage { joined, servers, lab })
}

fn publish(lab: &Lab, sample: &Sample) -> Result<()> {
    let [v4, v6] = cluster_ips(sample);
    let mut service = Service::new(sample.name).cluster_ip(v4).cluster_ip(v6);
    for (port, number) in PORTS.into_iter().zip(sample.node_port..) {
        service = service.port(port).node_port(number);
    }
    let mut documents = vec![service.build()];
    documents.extend(manifests::slices(lab, sample.name, &PORTS, sample.pods)?);
    Ok(lab.publish(&format!("{}.yaml", sample.name), &documents)?)
}

/// 10.96.0.10 and fd00:10:96::10, say.
fn cluster_ips(sample: &Sample) -> [IpAddr; 2] {
    let v6 = format!("fd00:10:96::{}", sample.number);
    [
        IpAddr::from([10, 96, 0, sample.number as u8]),
        v6.parse().expect("decimal digits are hexadecimal ones too"),
    ]
}

/// Asks everything, prints the table, and returns how many answers were wrong.
fn ask_all(lab: &Lab) -> Result<usize> {
    println!(
        "\n{:<27} {:<7} {:<12} {:<19} {:<13} {:<26} RESULT",
        "WHAT", "FROM", "PROTOCOLS", "ASKED", "ANSWERED", "SOURCE SEEN"
    );
    let mut wrong = 0;
    for trial in TRIALS {
        for v6 in [false, true] {
            wrong += ask(lab, trial, v6)?;
        }
    }
    let asked = TRIALS.len() * 2 * PROTOCOLS.len();
    println!("\n{} of {asked} answers right", asked - wrong);
    Ok(wrong)
}

/// Tries one thing in one family by all protocols; what came out alike shares a row.
fn ask(lab: &Lab, trial: &Trial, v6: bool) -> Result<usize> {
    let place = lab.place(trial.from)?;
    let mut rows: Vec<Row> = Vec::new();
    for protocol in PROTOCOLS {
        let row = Row::ask(lab, &place, trial, protocol, v6)?;
        match rows.last_mut() {
            Some(last) if last.is_like(&row) => last.protocols.push(protocol),
            _ => rows.push(row),
        }
    }
    for row in &rows {
        println!(
            "{:<27} {:<7} {:<12} {:<19} {:<13} {:<26} {}",
            trial.what,
            trial.from,
            row.protocols.iter().map(|p| p.name()).collect::<Vec<_>>().join(" "),
            row.asked,
            row.answered,
            row.source,
            row.fault.as_deref().unwrap_or("ok"),
        );
    }
    Ok(rows.iter().filter(|row| row.fault.is_some()).map(|row| row.protocols.len()).sum())
}

struct Row {
    protocols: Vec<Protocol>,
    asked: IpAddr,
    answered: String,
    source: String,
    fault: Option<String>,
}

impl Row {
    fn ask(lab: &Lab, place: &Place, trial: &Trial, protocol: Protocol, v6: bool) -> Result<Self> {
        let to = trial.to.address(lab, protocol, v6)?;
        let answer = peer::ask(place, protocol, to)?;
        let fault = fault(lab, trial, &answer, v6)?;
        let error = answer.error.clone().unwrap_or_default();
        Ok(Self {
            protocols: vec![protocol],
            asked: to.ip(),
            answered: answer.name().map_or(error, String::from),
            source: answer.source().map(|source| source.ip().to_string()).unwrap_or_default(),
            fault,
        })
    }

    fn is_like(&self, other: &Self) -> bool {
        self.answered == other.answered && self.source == other.source && self.fault == other.fault
    }
}

impl Target {
    fn address(self, lab: &Lab, protocol: Protocol, v6: bool) -> Result<SocketAddr> {
        let family = usize::from(v6);
        let port = match protocol {
            Protocol::Http => 0,
            Protocol::Tcp => 1,
            Protocol::Udp => 2,
        };
        Ok(match self {
            Self::ClusterIp(sample) => {
                SocketAddr::new(cluster_ips(sample)[family], PORTS[port].port)
            }
            Self::NodePort(sample, node) => {
                let number = sample.node_port + port as u16;
                SocketAddr::new(lab.addresses(node)?.both()[family], number)
            }
            Self::Direct(place) => {
                SocketAddr::new(lab.addresses(place)?.both()[family], PORTS[port].target)
            }
        })
    }
}

/// What is wrong with an answer, in words.
fn fault(lab: &Lab, trial: &Trial, answer: &Answer, v6: bool) -> Result<Option<String>> {
    let Some(greeting) = &answer.answer else {
        let refused = trial.answers.is_empty() && answer.is_refused();
        return Ok((!refused).then(|| match trial.answers {
            [] => "WRONG: should be refused".into(),
            names => format!("WRONG: {} should answer", names.join(" or ")),
        }));
    };
    if !trial.answers.contains(&greeting.name.as_str()) {
        return Ok(Some(match trial.answers {
            [] => "WRONG: should be refused".into(),
            names => format!("WRONG: {} should answer", names.join(" or ")),
        }));
    }
    // The application must see what it asked for as its peer, whatever was translated below.
    let seen = answer.from.or(answer.peer).unwrap_or(answer.to);
    if seen != answer.to {
        return Ok(Some(format!("WRONG: the client sees {seen} as its peer")));
    }
    let mut right = Vec::new();
    for name in trial.sources {
        right.push(source(lab, name, v6)?);
    }
    let wrong = !right.contains(&greeting.source.ip());
    Ok(wrong.then(|| {
        let right: Vec<String> = right.iter().map(ToString::to_string).collect();
        format!("WRONG: source should be {}", right.join(" or "))
    }))
}

fn source(lab: &Lab, name: &str, v6: bool) -> Result<IpAddr> {
    let gateway = |node| {
        if v6 { address::gateway6(node).into() } else { address::gateway4(node).into() }
    };
    let tunnel = |node| {
        if v6 { address::tunnel6(node).into() } else { address::tunnel4(node).into() }
    };
    Ok(match name {
        "gateway1" => gateway(1),
        "gateway2" => gateway(2),
        "tunnel1" => tunnel(1),
        "tunnel2" => tunnel(2),
        name => lab.addresses(name)?.both()[usize::from(v6)],
    })
}

/// Leaves everything running, and says what to do with it.
fn keep(stage: Stage) -> Result<()> {
    let Stage { joined, servers, lab } = stage;
    joined.let_go();
    servers.into_iter().for_each(Process::let_go);
    describe(&lab);
    let [v4, v6] = cluster_ips(&WEB);
    let node = lab.addresses("node1")?.v4;
    let exec = "cargo xtask lab exec";
    println!("\ntry next:");
    println!("  {exec} pod1a -- lab-peer ask http {v4}:80 --count 5");
    println!("  {exec} pod1a -- lab-peer ask udp [{v6}]:7 --count 5");
    println!("  {exec} client -- lab-peer ask http {node}:{}", WEB.node_port);
    joined::suggest(&lab);
    println!("  edit {}", lab.manifests("node1").join("web.yaml").display());
    println!("  cargo xtask lab down");
    lab.keep();
    Ok(())
}
