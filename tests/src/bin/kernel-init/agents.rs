//! The agents on a kernel without IPv6: they serve all that is of IPv4, say once that the other family
//! is left out, and find nothing wrong with that.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    Report, machine,
    place::{Place, ip},
    traffic::{answer, connect, exchange, exchange_datagrams},
};

/// The verifier takes half a minute here.
const PATIENCE: Duration = Duration::from_mins(3);

const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 78, 1);
const POD: Ipv4Addr = Ipv4Addr::new(10, 245, 1, 10);
const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const PORT: u16 = 80;
const NODE_PORT: u16 = 30_080;
const TARGET: u16 = 8080;
const HEALTH_CHECK: u16 = 32_000;

/// What proxy-agent's log says.
const WARNING: &str = "the kernel has no IPv6";

pub(crate) fn run(report: &mut Report) {
    let Some(()) = report.check("file systems", machine::mount()) else { return };
    report.check("modules", machine::insert_modules());
    report.check("no IPv6", without_ipv6());
    let Some([client, pod, caller]) = report.check("networks", networks()) else { return };
    let server = pod.run(|| Ok(answer((POD, TARGET).into())?));
    let Some(_) = report.check("a pod that answers", server) else { return };
    proxy(report, &client, &caller);
    flannel(report);
}

fn without_ipv6() -> Result<()> {
    ensure!(!Path::new("/proc/net/if_inet6").exists(), "the kernel has it");
    Ok(())
}

/// A client outside, a pod that answers and one that asks.
fn networks() -> Result<[Place; 3]> {
    ip("link set lo up")?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    let places = [Place::new()?, Place::new()?, Place::new()?];
    let [client, pod, caller] = &places;
    client.join("eth0", "192.168.78.1/24", "192.168.78.2/24", "192.168.78.1")?;
    pod.join("veth1", "10.245.1.1/32", "10.245.1.10/32", "10.245.1.1")?;
    caller.join("veth2", "10.245.1.1/32", "10.245.1.11/32", "10.245.1.1")?;
    ip("route add 10.245.1.10 dev veth1")?;
    ip("route add 10.245.1.11 dev veth2")?;
    Ok(places)
}

fn proxy(report: &mut Report, client: &Place, caller: &Place) {
    let started = manifests().and_then(|()| {
        start(
            "proxy-agent",
            &[
                "--source=dir:/tmp/manifests",
                "--hostname-override=node1",
                "--node-ip=192.168.78.1",
                "--uplink=eth0",
                "--pod-link=prefix:veth",
                "--healthz-bind-address=0.0.0.0:10256",
                "--cgroup-root=/sys/fs/cgroup",
            ],
        )
    });
    let Some(mut agent) = report.check("proxy-agent starts", started) else { return };
    let ready = agent.wait(|| ask((Ipv4Addr::LOCALHOST, 10_256).into(), "/healthz"));
    report.check("proxy-agent is ready", ready);
    let cluster_ip = SocketAddr::from((CLUSTER_IP, PORT));
    let node_port = SocketAddr::from((NODE, NODE_PORT));
    let both = |to: SocketAddr| exchange(None, to, to).and_then(|()| exchange_datagrams(None, to));
    report.check("the node by ClusterIP", both(cluster_ip));
    report.check("the node by NodePort", both(node_port));
    report.check("a pod by ClusterIP", caller.run(move || both(cluster_ip)));
    report.check("a pod by NodePort", caller.run(move || both(node_port)));
    report.check("a client by NodePort", client.run(move || both(node_port)));
    let health = (NODE, HEALTH_CHECK).into();
    report.check("a client's health check", client.run(move || ask(health, "/healthz")));
    report.check("proxy-agent's status", agent.is_content());
    report.check("proxy-agent's log", agent.has_warned());
    report.check("proxy-agent's check", agent.finds_itself_fit());
}

/// A Service of both families, and one with a port for health checks, which is open to both where they
/// are there.
fn manifests() -> Result<()> {
    let ports = json!([
        { "name": "tcp", "protocol": "TCP", "port": PORT, "targetPort": TARGET, "nodePort": NODE_PORT },
        { "name": "udp", "protocol": "UDP", "port": PORT, "targetPort": TARGET, "nodePort": NODE_PORT },
    ]);
    let both = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "both", "namespace": "default" },
        "spec": {
            "type": "NodePort", "clusterIP": CLUSTER_IP, "clusterIPs": [CLUSTER_IP, "fd00:96::10"],
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack", "ports": ports,
        },
    });
    let local = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "local", "namespace": "default" },
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.11", "externalTrafficPolicy": "Local",
            "healthCheckNodePort": HEALTH_CHECK,
            "ports": [{ "name": "tcp", "protocol": "TCP", "port": PORT, "nodePort": 30_081 }],
        },
    });
    let slice = |service: &str, family: &str, address: &str, port_names: &[&str]| {
        let ports: Vec<Value> = port_names
            .iter()
            .map(|name| json!({ "name": name, "protocol": name.to_uppercase(), "port": TARGET }))
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {
                "name": format!("{service}-{}", family.to_lowercase()), "namespace": "default",
                "labels": { "kubernetes.io/service-name": service },
            },
            "endpoints": [{ "addresses": [address], "nodeName": "node1" }],
            "ports": ports,
        })
    };
    let pod = POD.to_string();
    fs::create_dir_all("/tmp/manifests")?;
    for (name, object) in [
        ("both", both),
        ("local", local),
        ("both4", slice("both", "IPv4", &pod, &["tcp", "udp"])),
        ("both6", slice("both", "IPv6", "fd00:10:245::10", &["tcp", "udp"])),
        ("local4", slice("local", "IPv4", &pod, &["tcp"])),
    ] {
        fs::write(format!("/tmp/manifests/{name}.yaml"), object.to_string())?;
    }
    Ok(())
}

fn flannel(report: &mut Report) {
    let config = json!({ "Network": "10.244.0.0/16", "Backend": { "Type": "vxlan" } });
    let started = fs::create_dir_all("/tmp/leases")
        .and_then(|()| fs::write("/tmp/leases/config.json", config.to_string()))
        .map_err(Into::into)
        .and_then(|()| {
            start(
                "flannel-agent",
                &[
                    "--subnet-store=dir:/tmp/leases",
                    "--subnet-file=/tmp/subnet.env",
                    "--iface=eth0",
                    "--ip-masq",
                    "--healthz-port=8081",
                ],
            )
        });
    let Some(mut agent) = report.check("flannel-agent starts", started) else { return };
    let ready = agent.wait(|| ask((Ipv4Addr::LOCALHOST, 8081).into(), "/readyz"));
    report.check("flannel-agent is ready", ready);
    let file = fs::read_to_string("/tmp/subnet.env").context("subnet.env");
    report.check("subnet.env", file.map(|text| print!("{text}")));
    report.check("flannel.1", ip("link show flannel.1"));
    report.check("flannel-agent's status", agent.is_content());
}

/// An agent that runs, with its log in a file.
struct Agent {
    name: &'static str,
    process: Child,
}

fn start(name: &'static str, arguments: &[&str]) -> Result<Agent> {
    let log = File::create(log(name))?;
    let process = Command::new(format!("/{name}"))
        .arg("run")
        .args(arguments)
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| name)?;
    Ok(Agent { name, process })
}

fn log(name: &str) -> String {
    format!("/tmp/{name}.log")
}

impl Agent {
    fn log(&self) -> String {
        fs::read_to_string(log(self.name)).unwrap_or_default()
    }

    /// Until that is so; the log goes to the console if it never is.
    fn wait(&mut self, is_so: impl Fn() -> Result<()>) -> Result<()> {
        let began = Instant::now();
        loop {
            let Err(err) = is_so() else { return Ok(()) };
            let ended = self.process.try_wait()?;
            if ended.is_some() || began.elapsed() > PATIENCE {
                print!("{}", self.log());
                let state = ended.map_or("runs".to_owned(), |status| status.to_string());
                bail!("{err:#}; {} {state}", self.name);
            }
            thread::sleep(Duration::from_millis(500));
        }
    }

    fn show(&self, command: &str) -> Result<Value> {
        let program = format!("/{}", self.name);
        let output = Command::new(program).args([command, "-o", "json"]).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        print!("{text}");
        serde_json::from_str(&text)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// It knows of no problem.
    fn is_content(&mut self) -> Result<()> {
        let status = self.show("status")?;
        if status["problems"] != json!([]) {
            print!("{}", self.log());
            bail!("{}", status["problems"]);
        }
        Ok(())
    }

    /// It says once what it leaves out, and warns of nothing else that has to do with it.
    fn has_warned(&self) -> Result<()> {
        let log = self.log();
        print!("{log}");
        let about = log.lines().filter(|line| line.contains("IPv6") && line.contains("WARN"));
        let about: Vec<&str> = about.collect();
        ensure!(about.len() == 1 && about[0].contains(WARNING), "{about:?}");
        ensure!(!log.contains("ERROR"), "there is an error");
        Ok(())
    }

    /// `check` has no complaint that names the family.
    fn finds_itself_fit(&self) -> Result<()> {
        let findings = self.show("check")?;
        let findings = findings.as_array().context("no list of findings")?;
        let about = |one: &&Value| one["subject"].as_str().is_some_and(|it| it.contains("IPv6"));
        for finding in findings.iter().filter(about) {
            ensure!(finding["verdict"] == "ok", "{finding}");
        }
        Ok(())
    }
}

/// Asks by HTTP; an error unless the answer is 200.
fn ask(at: SocketAddr, path: &str) -> Result<()> {
    let from = at.ip().is_loopback().then_some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let mut stream = connect(from, at).with_context(|| at.to_string())?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {at}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let first = answer.lines().next().unwrap_or_default();
    ensure!(first.contains(" 200 "), "{at}{path}: {answer}");
    Ok(())
}
