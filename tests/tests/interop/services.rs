//! proxy-agent in a cluster of Kubernetes: Services and EndpointSlices of a real API server reach
//! traffic, and go on without it.

use std::{
    fs::{self, Permissions},
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
    thread::sleep,
    time::Duration,
};

use lab::{
    Lab, LabSpec, Process,
    agent::{Agent, AgentOptions},
    api_server::{ApiServer, Verb, proxy_roles},
    manifests::{self, Port, Service, Slice},
    peer::{self, Answer, Protocol},
    peers,
};
use serde_json::{Value, json};

use crate::bed::{eventually, ok};

mod churn;

/// What the servers in pods listen on.
const PORTS: [&str; 2] = ["--tcp=8080", "--udp=8080"];
/// The label by which a Service is another proxy's.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The label by which a Service is nobody's, whatever address it has.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// Two nodes with two pods each, an API server beside them, and an agent on the first node.
struct Cluster {
    // Dropped in this order: the lab goes last.
    agent: Agent,
    _servers: Vec<Process>,
    api: ApiServer,
    lab: Lab,
}

impl Cluster {
    /// With Nodes and what the agent may do, before the agent is started.
    fn furnished() -> Self {
        let cluster = Self::without_rights();
        ok(cluster.api.send(Verb::Create, &proxy_roles()));
        cluster
    }

    fn without_rights() -> Self {
        let lab = ok(Lab::up(LabSpec::default()));
        let api = ok(ApiServer::start(&lab, "fabric", &peers().join("kube-apiserver")));
        ok(api.send(Verb::Create, &manifests::nodes(&lab)));
        let pods = ["pod1a", "pod1b", "pod2a", "pod2b"];
        let servers = pods.map(|pod| ok(peer::serve(&ok(lab.place(pod)), &PORTS)));
        let agent = agent(&lab, &api, &[]);
        Self { agent, _servers: servers.into(), api, lab }
    }

    fn up() -> Self {
        let mut cluster = Self::furnished();
        ok(cluster.agent.launch());
        ok(cluster.agent.wait_ready());
        cluster
    }

    fn create(&self, number: u8, pods: &[&str]) {
        ok(self
            .api
            .send(Verb::Create, &[vec![service(number)], self.slices(number, pods)].concat()));
    }

    fn slices(&self, number: u8, pods: &[&str]) -> Vec<Value> {
        ok(manifests::slices(&self.lab, &name(number), &ports(), pods)).into()
    }

    fn path(number: u8) -> String {
        format!("/api/v1/namespaces/default/services/{}", name(number))
    }

    fn ask(&self, number: u8, protocol: Protocol, nth: usize) -> Answer {
        let to = SocketAddr::new(addresses(number)[nth], 80);
        ok(peer::ask(&ok(self.lab.place("pod1a")), protocol, to))
    }

    /// Waits until one of these pods answers, and has each protocol and family answer then.
    fn wait_answered(&self, number: u8, by: &[&str]) {
        let is_by = |answer: &Answer| answer.name().is_some_and(|name| by.contains(&name));
        eventually(&format!("{number} is answered by {by:?}\n{}", self.agent.log()), || {
            is_by(&self.ask(number, Protocol::Tcp, 0)).then_some(())
        });
        for (protocol, nth) in
            [Protocol::Tcp, Protocol::Udp].into_iter().flat_map(|it| [(it, 0), (it, 1)])
        {
            let answer = self.ask(number, protocol, nth);
            assert!(is_by(&answer), "{answer:?}\n{}", self.agent.log());
        }
    }

    fn services(&self) -> Vec<String> {
        let shown = self.show("services");
        let names = shown.as_array().into_iter().flatten();
        names.filter_map(|it| Some(it["name"].as_str()?.to_owned())).collect()
    }

    /// Backends of Services whose names begin so.
    fn backends(&self, begin: &str) -> Vec<String> {
        let shown = self.show("services");
        let services = shown.as_array().into_iter().flatten();
        let ours =
            services.filter(|it| it["name"].as_str().is_some_and(|it| it.starts_with(begin)));
        let backends = ours.flat_map(|it| it["backends"].as_array().into_iter().flatten());
        backends.filter_map(|it| Some(it["address"].as_str()?.to_owned())).collect()
    }

    fn has(&self, number: u8) -> bool {
        self.services().contains(&name(number))
    }

    fn wait_gone(&self, number: u8) {
        let what = format!("{} is gone\n{}", name(number), self.agent.log());
        eventually(&what, || (!self.has(number)).then_some(()));
    }

    fn show(&self, what: &str) -> Value {
        let output = ok(self.agent.ask(&[what, "-o", "json"]));
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn problems(&self) -> String {
        self.show("status")["problems"].to_string()
    }

    fn wait_no_problem(&self) {
        eventually(&format!("no problem is left\n{}", self.agent.log()), || {
            (self.problems() == "[]").then_some(())
        });
    }

    /// What the agent says of its source, once it answers.
    fn source(&self) -> Value {
        eventually("the agent answers", || {
            let source = self.show("status")["source"].clone();
            source.is_object().then_some(source)
        })
    }

    /// Whether the source says that it cannot be heard.
    fn is_silent(&self) -> bool {
        self.source()["silent_seconds"].is_number()
    }

    /// Has nothing pass between node and API server, and the node told so whenever it sends.
    fn cut_off(&self, action: &str) {
        for rule in [
            "INPUT -s 192.168.78.11 -p tcp --dport 6443 -j REJECT --reject-with tcp-reset",
            "OUTPUT -d 192.168.78.11 -p tcp --sport 6443 ! --tcp-flags RST RST -j DROP",
        ] {
            ok(self.lab.shell("fabric", &format!("iptables {action} {rule}")));
        }
    }
}

/// The agent of the first node.
fn agent(lab: &Lab, api: &ApiServer, more: &[&str]) -> Agent {
    let kubeconfig = format!("--kubeconfig={}", api.proxy_kubeconfig().display());
    let extra = [kubeconfig].into_iter().chain(more.iter().map(ToString::to_string)).collect();
    let source = Some("kubernetes".into());
    ok(Agent::prepare(lab, "node1", AgentOptions { source, extra, ..AgentOptions::default() }))
}

fn name(number: u8) -> String {
    format!("web{number}")
}

fn addresses(number: u8) -> [std::net::IpAddr; 2] {
    let v6 = format!("fd00:10:96::{number}").parse().expect("decimal digits are hexadecimal ones");
    [[10, 96, 0, number].into(), v6]
}

fn ports() -> [Port; 2] {
    [Port::tcp("tcp", 80, 8080), Port::udp("udp", 80, 8080)]
}

fn service(number: u8) -> Value {
    let [v4, v6] = addresses(number);
    let service = Service::new(&name(number)).cluster_ip(v4).cluster_ip(v6);
    ports().into_iter().fold(service, Service::port).build()
}

/// The agent's start, and that a port is taken which a load balancer would ask.
#[test]
fn events_tell_what_kube_proxys_would() {
    let mut cluster = Cluster::furnished();
    let taken = ok(ok(cluster.lab.place("node1")).enter(|| TcpListener::bind("0.0.0.0:32100")));
    let balanced = Service::new(&name(10))
        .cluster_ip(addresses(10)[0])
        .port(ports()[0])
        .set("/spec/type", json!("LoadBalancer"))
        .set("/spec/externalTrafficPolicy", json!("Local"))
        .set("/spec/healthCheckNodePort", json!(32100));
    ok(cluster.api.send(Verb::Create, &[balanced.build()]));
    ok(cluster.agent.launch());
    ok(cluster.agent.wait_ready());
    let told = || -> Vec<[String; 4]> {
        let path = "/apis/events.k8s.io/v1/namespaces/default/events";
        let found = ok(cluster.api.read(path));
        let items = found["items"].as_array().into_iter().flatten();
        let own = items.filter(|it| it["reportingController"] == "kube-proxy");
        let text = |it: &Value, at: &str| {
            it.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let fields = ["/type", "/reason", "/regarding/kind", "/regarding/name"];
        own.map(|it| fields.map(|at| text(it, at))).collect()
    };
    for event in [
        ["Normal", "Starting", "Node", "node1"],
        ["Warning", "FailedToStartServiceHealthcheck", "Service", "web10"],
    ] {
        let what = format!("{event:?}\n{}", cluster.agent.log());
        eventually(&what, || told().contains(&event.map(String::from)).then_some(()));
    }
    drop(taken);
    cluster.wait_no_problem();
    // Each was told once, however often it was tried.
    assert_eq!(told().len(), 2, "{:?}", told());
}

#[test]
fn networks_of_services_are_those_of_the_api_server() {
    let cluster = Cluster::up();
    let wait = |wanted: Value| {
        eventually(&format!("{wanted}\n{}", cluster.agent.log()), || {
            (cluster.show("status")["service_networks"] == wanted).then_some(())
        });
    };
    wait(json!(["10.96.0.0/16", "fd00:10:96::/112"]));
    let more = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "more"},
        "spec": {"cidrs": ["10.97.0.0/24"]},
    });
    ok(cluster.api.send(Verb::Create, &[more]));
    wait(json!(["10.96.0.0/16", "10.97.0.0/24", "fd00:10:96::/112"]));
    ok(cluster.api.delete("/apis/networking.k8s.io/v1/servicecidrs/more"));
    wait(json!(["10.96.0.0/16", "fd00:10:96::/112"]));
    cluster.wait_no_problem();
}

#[test]
fn services_of_the_cluster_come_change_and_go() {
    let cluster = Cluster::up();
    cluster.create(10, &["pod1b"]);
    cluster.create(11, &["pod2b"]);
    cluster.wait_answered(10, &["pod1b"]);
    cluster.wait_answered(11, &["pod2b"]);
    cluster.wait_no_problem();
    ok(cluster.api.send(Verb::Replace, &cluster.slices(10, &["pod2a"])));
    cluster.wait_answered(10, &["pod2a"]);
    // Given to another proxy, or to nobody, and taken back.
    for label in [PROXY_NAME, HEADLESS] {
        for (value, is_ours) in [(json!("other"), false), (Value::Null, true)] {
            let labels = json!({ "metadata": { "labels": { label: value } } });
            ok(cluster.api.merge(&Cluster::path(10), &labels));
            if is_ours {
                cluster.wait_answered(10, &["pod2a"]);
            } else {
                cluster.wait_gone(10);
            }
        }
    }
    // As is one that is a name for something outside, for as long as it is.
    let addresses = addresses(10).map(|ip| ip.to_string());
    for (spec, is_ours) in [
        (
            json!({"type": "ExternalName", "externalName": "example.com", "clusterIP": null,
                   "clusterIPs": null, "ipFamilies": null, "ipFamilyPolicy": null}),
            false,
        ),
        (
            json!({"type": "ClusterIP", "externalName": null, "clusterIP": addresses[0],
                   "clusterIPs": addresses, "ipFamilyPolicy": "PreferDualStack"}),
            true,
        ),
    ] {
        ok(cluster.api.merge(&Cluster::path(10), &json!({ "spec": spec })));
        if is_ours {
            cluster.wait_answered(10, &["pod2a"]);
        } else {
            cluster.wait_gone(10);
        }
    }
    // What kube-apiserver tells of itself is there as well, and other Services were left alone.
    let services = cluster.services();
    assert!(services.contains(&"kubernetes".into()), "{services:?}");
    cluster.wait_answered(11, &["pod2b"]);
    ok(cluster.api.delete(&Cluster::path(10)));
    cluster.wait_gone(10);
    assert!(cluster.has(11));
    let source = cluster.source();
    assert_eq!(source["source"], "kubernetes https://192.168.78.1:6443/");
    assert!(source["silent_seconds"].is_null() && source["is_synced"] == true, "{source}");
}

#[test]
fn an_api_server_that_is_away_takes_nothing_away() {
    let mut cluster = Cluster::up();
    cluster.create(10, &["pod1b"]);
    cluster.wait_answered(10, &["pod1b"]);
    cluster.api.stop();
    eventually("the outage is told", || cluster.is_silent().then_some(()));
    assert!(cluster.problems().contains("stays in force"), "{}", cluster.problems());
    cluster.wait_answered(10, &["pod1b"]);
    // An agent that starts meanwhile serves what the last one did, and is not ready.
    ok(cluster.agent.restart_unready());
    eventually("it says what it waits for", || {
        cluster.problems().contains("nothing is").then_some(())
    });
    assert!(cluster.agent.health("/healthz").is_ok_and(|(status, _)| status == 503));
    assert!(cluster.has(10));
    cluster.wait_answered(10, &["pod1b"]);
    ok(cluster.api.resume());
    ok(cluster.agent.wait_ready());
    cluster.wait_no_problem();
    assert!(!cluster.is_silent());
    cluster.wait_answered(10, &["pod1b"]);
    // And what happens now is heard again.
    ok(cluster.api.send(Verb::Replace, &cluster.slices(10, &["pod2a"])));
    cluster.wait_answered(10, &["pod2a"]);
}

#[test]
fn what_happened_unheard_is_caught_up() {
    let cluster = Cluster::up();
    cluster.create(10, &["pod1b"]);
    cluster.create(11, &["pod1b"]);
    cluster.wait_answered(11, &["pod1b"]);
    cluster.cut_off("-I");
    eventually("the silence is told", || cluster.is_silent().then_some(()));
    ok(cluster.api.delete(&Cluster::path(10)));
    cluster.create(12, &["pod2b"]);
    sleep(Duration::from_secs(1));
    assert!(cluster.has(10) && !cluster.has(12));
    cluster.cut_off("-D");
    cluster.wait_answered(12, &["pod2b"]);
    cluster.wait_gone(10);
    cluster.wait_answered(11, &["pod1b"]);
}

/// The server forgets what it was, so that no watch can be resumed: everything is listed again.
#[test]
fn what_happened_while_the_server_was_restarted_is_listed_again() {
    let mut cluster = Cluster::up();
    cluster.create(10, &["pod1b"]);
    cluster.create(11, &["pod1b"]);
    cluster.wait_answered(11, &["pod1b"]);
    cluster.cut_off("-I");
    ok(cluster.api.delete(&Cluster::path(10)));
    cluster.create(12, &["pod2b"]);
    cluster.api.stop();
    ok(cluster.api.resume());
    assert!(cluster.has(10) && !cluster.has(12));
    cluster.cut_off("-D");
    cluster.wait_answered(12, &["pod2b"]);
    cluster.wait_gone(10);
    cluster.wait_answered(11, &["pod1b"]);
}

#[test]
fn an_account_without_rights_is_told_what_it_lacks() {
    let mut cluster = Cluster::without_rights();
    cluster.create(10, &["pod1b"]);
    ok(cluster.agent.launch());
    for kind in ["services", "endpointslices", "nodes", "servicecidrs", "pods"] {
        eventually(&format!("{kind} are missed\n{}", cluster.agent.log()), || {
            let problems = cluster.problems();
            let is_told = problems.contains("allow the account get, list and watch")
                && problems.contains(&format!("the watch on {kind} broke"));
            is_told.then_some(())
        });
    }
    // kube-proxy's account may not list pods, and Services do not wait for them.
    let mut roles = proxy_roles();
    let mut rules = roles.iter_mut().filter_map(|role| role["rules"].as_array_mut()).flatten();
    let of_core = rules.find(|rule| rule["apiGroups"] == json!([""])).expect("a rule");
    of_core["resources"] = json!(["nodes", "services"]);
    ok(cluster.api.send(Verb::Create, &roles));
    ok(cluster.agent.wait_ready());
    cluster.wait_answered(10, &["pod1b"]);
    eventually("nothing but pods is missed", || {
        let problems = cluster.problems();
        (problems.contains("the watch on pods broke") && !problems.contains("servicecidrs"))
            .then_some(())
    });
    ok(cluster.api.send(Verb::Replace, &proxy_roles()));
    cluster.wait_no_problem();
}

/// As in a pod: the address stands in the environment, the account in files.
#[test]
fn in_a_pod_its_own_account_is_used() {
    let mut cluster = Cluster::furnished();
    cluster.create(10, &["pod1b"]);
    let (token, authority) = cluster.api.proxy_account();
    let binary = cluster.lab.directory("node1").join("agent-in-pod");
    let account = "/run/secrets/kubernetes.io/serviceaccount";
    // What the agent needs of /run is open already, or handed on here.
    let script = format!(
        "#!/bin/sh\n\
         authority=$(cat {authority})\n\
         mount -t tmpfs none /run && mkdir -p {account} && cd {account} || exit 1\n\
         printf '%s' \"$authority\" > ca.crt; printf {token} > token; printf default > namespace\n\
         exec {agent} \"$@\"\n",
        authority = authority.display(),
        agent = AgentOptions::default().binary.display(),
    );
    ok(fs::write(binary.with_extension("sh"), script));
    let script = format!("#!/bin/sh\nexec unshare --mount {}.sh \"$@\"\n", binary.display());
    ok(fs::write(&binary, script));
    for path in [binary.with_extension("sh"), binary.clone()] {
        ok(fs::set_permissions(path, Permissions::from_mode(0o755)));
    }
    let source = Some("kubernetes".into());
    let options = AgentOptions { source, binary, ..AgentOptions::default() };
    cluster.agent = ok(Agent::prepare(&cluster.lab, "node1", options));
    cluster.agent.set_variable("KUBERNETES_SERVICE_HOST", "192.168.78.1");
    cluster.agent.set_variable("KUBERNETES_SERVICE_PORT", "6443");
    ok(cluster.agent.launch());
    ok(cluster.agent.wait_ready());
    cluster.wait_answered(10, &["pod1b"]);
    assert_eq!(cluster.source()["source"], "kubernetes https://192.168.78.1:6443/");
    cluster.wait_no_problem();
}

/// The agent knows the API server by a Service that it carries itself.
#[test]
fn the_api_servers_own_service_goes_on_without_it() {
    let mut cluster = Cluster::up();
    cluster.create(10, &["pod1b"]);
    cluster.wait_answered(10, &["pod1b"]);
    ok(cluster.agent.kill());
    cluster.agent = agent(&cluster.lab, &cluster.api, &["--master", "https://10.96.0.1:443"]);
    ok(cluster.agent.launch());
    ok(cluster.agent.wait_ready());
    assert_eq!(cluster.source()["source"], "kubernetes https://10.96.0.1:443/");
    cluster.api.stop();
    eventually("the outage is told", || cluster.is_silent().then_some(()));
    ok(cluster.agent.restart_unready());
    eventually("it says what it waits for", || {
        cluster.problems().contains("nothing is").then_some(())
    });
    assert!(cluster.services().contains(&"kubernetes".into()), "{:?}", cluster.services());
    ok(cluster.api.resume());
    ok(cluster.agent.wait_ready());
    ok(cluster.api.send(Verb::Replace, &cluster.slices(10, &["pod2a"])));
    cluster.wait_answered(10, &["pod2a"]);
}

/// Service `number` of many, and its slice with an endpoint that nobody has.
fn one_of_many(number: u16, endpoint: [u8; 4]) -> [Value; 2] {
    let name = format!("many-{number}");
    let [high, low] = number.to_be_bytes();
    let service = Service::new(&name).cluster_ip([10, 96, 128 + high, low].into());
    let service = ports().into_iter().fold(service, Service::port);
    let slice = Slice::new(&name, false, &ports()).endpoint(endpoint.into(), "node2");
    [service.build(), slice.build()]
}

/// More than fit into one page of a list, found at the start; a third of them change in a burst.
#[test]
fn hundreds_of_services_come_in_pages_and_change_in_a_burst() {
    const MANY: u16 = 600;
    let (first, second) = ([10, 244, 2, 200], [10, 244, 2, 201]);
    let mut cluster = Cluster::furnished();
    let all: Vec<_> = (0..MANY).flat_map(|number| one_of_many(number, first)).collect();
    ok(cluster.api.send(Verb::Create, &all));
    ok(cluster.agent.launch());
    ok(cluster.agent.wait_ready());
    // Each has two ports.
    let told = cluster.backends("many-");
    assert_eq!(told.len(), 2 * usize::from(MANY));
    assert!(told.iter().all(|address| address == "10.244.2.200"));
    let some = (0..MANY).step_by(3).map(|number| one_of_many(number, second)[1].clone());
    ok(cluster.api.send(Verb::Replace, &some.collect::<Vec<_>>()));
    let changed = 2 * usize::from(MANY.div_ceil(3));
    eventually("the burst is programmed", || {
        let told = cluster.backends("many-");
        assert_eq!(told.len(), 2 * usize::from(MANY));
        (told.iter().filter(|it| *it == "10.244.2.201").count() == changed).then_some(())
    });
    println!("memory of the agent: {}", memory(&cluster));
    cluster.wait_no_problem();
}

/// Resident memory now and at its most.
fn memory(cluster: &Cluster) -> String {
    let id = cluster.agent.id().expect("it runs");
    let status = ok(std::fs::read_to_string(format!("/proc/{id}/status")));
    let lines =
        status.lines().filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"));
    lines.collect::<Vec<_>>().join(" ")
}
