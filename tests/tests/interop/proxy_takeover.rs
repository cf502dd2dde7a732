//! A node goes from kube-proxy to proxy-agent and back while its Services are talked to: which
//! order of steps loses nothing, and what a step costs where it cannot be helped.

use std::{net::SocketAddr, process::Command, thread::sleep, time::Duration};

use lab::{
    Lab, LabSpec, Process,
    agent::{Agent, AgentOptions},
    api_server::{ApiServer, Verb, proxy_roles},
    dist,
    kube_proxy::{KubeProxy, pass_bridged},
    manifests::{self, Port, Service},
    peer::{self, Load, Loading},
    peers,
};

use crate::bed::{eventually, ok};

const NODE: &str = "node1";
const SERVICE4: &str = "10.96.0.10";
const SERVICE6: &str = "fd00:10:96::10";
const NODE_PORT: u16 = 30_080;
/// Long enough for every kind of traffic to pass several times.
const A_WHILE: Duration = Duration::from_secs(2);

/// A Service with a backend on each node, and one node that is switched.
struct Cluster {
    // Dropped in this order: the lab goes last.
    agent: Agent,
    kube_proxy: KubeProxy,
    _servers: Vec<Process>,
    _api: ApiServer,
    lab: Lab,
}

/// Who talks: a pod and a process of the node by the ClusterIP, a client by the NodePort.
struct Traffic(Vec<(&'static str, Loading)>);

impl Cluster {
    fn up() -> Self {
        let lab = ok(Lab::up(LabSpec::default()));
        let ports = [Port::tcp("tcp", 80, 8080), Port::udp("udp", 80, 8080)];
        let inside = ["--tcp=8080", "--udp=8080"];
        let servers = ["pod1b", "pod2b"].map(|pod| ok(peer::serve(&ok(lab.place(pod)), &inside)));
        let api = ok(ApiServer::start(&lab, "fabric", &peers().join("kube-apiserver")));
        let mut service = Service::new("web");
        for ip in [SERVICE4, SERVICE6] {
            service = service.cluster_ip(ip.parse().expect("an address"));
        }
        for port in ports {
            service = service.port(port).node_port(NODE_PORT);
        }
        let slices = ok(manifests::slices(&lab, "web", &ports, &["pod1b", "pod2b"]));
        let objects = [manifests::nodes(&lab), proxy_roles().into(), slices.into()].concat();
        ok(api.send(Verb::Create, &[objects, vec![service.build()]].concat()));

        ok(pass_bridged(&ok(lab.place(NODE))));
        // The kernel gives a connection another port where a tracked one that is over has the same
        // answers, and forgets that with kube-proxy's rules. Nobody here waits two minutes for it.
        for timeout in ["time_wait", "close", "fin_wait", "last_ack"] {
            let name = format!("net.netfilter.nf_conntrack_tcp_timeout_{timeout}");
            ok(lab.shell(NODE, &format!("sysctl --quiet --write {name}=1")));
        }
        let binary = peers().join("kube-proxy");
        let kube_proxy = ok(KubeProxy::prepare(&lab, NODE, &binary, &api.kubeconfig()));
        let extra = vec![format!("--kubeconfig={}", api.proxy_kubeconfig().display())];
        let options =
            AgentOptions { source: Some("kubernetes".into()), extra, ..AgentOptions::default() };
        let agent = ok(Agent::prepare(&lab, NODE, options));
        Self { agent, kube_proxy, _servers: servers.into(), _api: api, lab }
    }

    fn start_kube_proxy(&mut self) {
        ok(self.kube_proxy.launch());
        eventually(&format!("kube-proxy's rules\n{}", self.kube_proxy.log_tail()), || {
            let rules = ok(self.lab.shell(NODE, "nft list ruleset"));
            (rules.contains(SERVICE4) && rules.contains(SERVICE6)).then_some(())
        });
    }

    fn start_agent(&mut self) {
        ok(self.agent.launch());
        ok(self.agent.wait_ready());
    }

    fn clean_up(&self, arguments: &[&str]) {
        let mut cleanup = Command::new(dist().join("proxy-agent"));
        cleanup.arg("cleanup").args(arguments).arg("--bpffs").arg(self.lab.bpffs(NODE));
        let output = ok(ok(self.lab.place(NODE)).run(cleanup));
        assert!(output.status.success(), "{output:?}");
    }

    /// Begins traffic; `lasting` connections by each way stay open until it ends.
    fn talk(&self, lasting: u32) -> Traffic {
        let node = ok(self.lab.addresses(NODE));
        let at = |ip: &str, port| SocketAddr::new(ip.parse().expect("an address"), port);
        let cluster = [at(SERVICE4, 80), at(SERVICE6, 80)];
        let outside = node.both().map(|ip| SocketAddr::new(ip, NODE_PORT));
        let begin = |place, targets: [SocketAddr; 2]| {
            let mut arguments = vec![
                format!("--lasting={lasting}"),
                "--rate=20".into(),
                "--requests=20".into(),
                "--datagrams=50".into(),
            ];
            arguments.extend(peer::targets(targets));
            let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
            (place, ok(peer::load(&ok(self.lab.place(place)), &arguments)))
        };
        let traffic =
            Traffic(vec![begin("pod1a", cluster), begin(NODE, cluster), begin("client", outside)]);
        sleep(A_WHILE);
        traffic
    }
}

impl Traffic {
    fn end(self, what: &str) -> Vec<(&'static str, Load)> {
        let loads = self.0.into_iter().map(|(place, loading)| (place, ok(loading.stop())));
        let loads: Vec<_> = loads.collect();
        for (place, load) in &loads {
            assert!(load.connections > 0 && load.udp_sent > 0, "{what}: {place}: {load:?}");
            println!("{what}: {place}: {load:?}");
        }
        loads
    }

    /// Nothing may have failed.
    fn end_whole(self, what: &str) {
        for (place, load) in self.end(what) {
            let lost = (load.failed, load.resets, load.udp_missing);
            assert_eq!(lost, (0, 0, 0), "{what}: {place}: {load:?}");
        }
    }
}

#[test]
fn a_node_is_taken_over_from_kube_proxy_and_given_back() {
    let mut cluster = Cluster::up();
    cluster.start_kube_proxy();

    let of_kube_proxy = cluster.talk(2);
    ok(cluster.kube_proxy.kill());
    sleep(A_WHILE);
    cluster.start_agent();
    let said = ok(cluster.agent.ask(&["check"])).stdout;
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("nftables chain ip kube-proxy"), "{said}");
    sleep(A_WHILE);
    let of_agent = cluster.talk(2);
    sleep(A_WHILE);
    of_kube_proxy.end_whole("begun with kube-proxy");
    cluster.clean_up(&["--kube-proxy"]);
    sleep(A_WHILE);
    of_agent.end_whole("over the removal of kube-proxy's rules");

    let of_agent = cluster.talk(2);
    assert!(ok(cluster.agent.end()).success());
    cluster.start_kube_proxy();
    sleep(A_WHILE);
    of_agent.end_whole("over the return of kube-proxy");

    let last = cluster.talk(2);
    cluster.clean_up(&[]);
    let of_kube_proxy = cluster.talk(2);
    for (place, load) in last.end("over the removal of proxy-agent's programs") {
        // Only connections that stay open and were translated in packets end; at once, by a reset.
        let most = if place == "client" { 4 } else { 0 };
        assert!(load.failed <= most && load.failed == load.resets, "{place}: {load:?}");
        assert!(load.udp_missing <= 20, "{place}: {load:?}");
    }
    of_kube_proxy.end_whole("with kube-proxy again");
}
