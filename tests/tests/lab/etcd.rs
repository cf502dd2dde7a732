//! Objects in a real etcd, one a key, for nodes without Kubernetes.

use lab::{
    agent::{Agent, AgentOptions, SocketLb},
    etcd::{Etcd, Tls},
    manifests,
};
use serde_json::Value;

use crate::{
    cluster::{Cluster, Plan, backends, eventually, ok, show},
    service::{Exposed, Target, expose, name},
};

both! {
    objects_come_change_and_go_by_key,
}

const PREFIX: &str = "/lab/objects";

/// One node with two pods, an etcd beside it, and an agent that reads there.
struct Bed {
    cluster: Cluster,
    etcd: Etcd,
}

impl Bed {
    /// With this node's object and the Services, and no agent yet.
    fn furnished(services: &[Exposed], tls: bool) -> Self {
        let cluster = Plan::single(SocketLb::On).without_agents(&[]);
        let directory = cluster.lab.directory("fabric").join("tls");
        let tls = tls.then(|| ok(Tls::create(&directory, true)));
        let etcd = ok(Etcd::in_place_with(&cluster.lab, "fabric", tls));
        let bed = Self { cluster, etcd };
        bed.put(&manifests::nodes(&bed.cluster.lab));
        for service in services {
            bed.publish(service);
        }
        bed
    }

    fn up(mode: SocketLb, services: &[Exposed]) -> Self {
        let mut bed = Self::furnished(services, false);
        bed.start(mode, &[]);
        for service in services {
            bed.cluster.wait_programmed(service);
        }
        bed
    }

    fn start(&mut self, socket_lb: SocketLb, extra: &[String]) {
        let source = Some(format!("etcd:{}{PREFIX}", self.etcd.endpoint()));
        let extra = extra.to_vec();
        let options = AgentOptions { socket_lb, source, extra, ..AgentOptions::default() };
        let agent = ok(Agent::start(&self.cluster.lab, "node1", options));
        self.cluster.agents.push(agent);
    }

    fn put(&self, objects: &[Value]) {
        for object in objects {
            ok(self.etcd.put(&key(object), &object.to_string()));
        }
    }

    fn publish(&self, service: &Exposed) {
        self.put(&service.documents(&self.cluster.lab));
    }

    fn delete(&self, service: &Exposed) {
        for object in service.documents(&self.cluster.lab) {
            ok(self.etcd.ctl(&["del", &key(&object)]));
        }
    }

    fn is_programmed(&self, number: u8) -> bool {
        backends(&self.cluster.agents[0], number).is_some()
    }

    fn problems(&self) -> Value {
        show(&self.cluster.agents[0], &["status"])["problems"].clone()
    }

    /// Waits for a problem that names all of these.
    fn wait_problem(&self, words: &[&str]) {
        eventually(&format!("a problem that names {words:?}"), || {
            let problems = self.problems();
            let mut told = problems.as_array()?.iter().map(ToString::to_string);
            told.find(|text| words.iter().all(|word| text.contains(word)))
        });
    }

    fn wait_no_problem(&self) {
        eventually("no problem is left", || {
            (self.problems() == serde_json::json!([])).then_some(())
        });
    }

    /// Has nothing pass between node and etcd, and the node told so whenever it sends.
    fn cut_off(&self, action: &str) {
        for rule in [
            "INPUT -s 192.168.78.11 -p tcp --dport 2379 -j REJECT --reject-with tcp-reset",
            "OUTPUT -d 192.168.78.11 -p tcp --sport 2379 ! --tcp-flags RST RST -j DROP",
        ] {
            ok(self.cluster.lab.shell("fabric", &format!("iptables {action} {rule}")));
        }
    }
}

/// `PREFIX/{services,endpointslices,nodes}/NAMESPACE/NAME`, nodes without namespace.
fn key(object: &Value) -> String {
    let text = |value: &Value| value.as_str().expect("a name").to_owned();
    let name = text(&object["metadata"]["name"]);
    match text(&object["kind"]).as_str() {
        "Node" => format!("{PREFIX}/nodes/{name}"),
        kind => {
            let collection = format!("{}s", kind.to_lowercase());
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
            format!("{PREFIX}/{collection}/{namespace}/{name}")
        }
    }
}

fn service_key(number: u8) -> String {
    format!("{PREFIX}/services/default/{}", name(number))
}

fn objects_come_change_and_go_by_key(mode: SocketLb) {
    let first = expose(10, &["pod1b"]);
    let bed = Bed::up(mode, std::slice::from_ref(&first));
    bed.cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    let second = expose(11, &["pod1b"]);
    bed.publish(&second);
    bed.cluster.wait_programmed(&second);
    bed.cluster.answers("node1", Target::NodePort("node1", 11), &["pod1b"]);
    let changed = expose(10, &["pod1a"]);
    bed.publish(&changed);
    bed.cluster.wait_programmed(&changed);
    bed.cluster.reaches("pod1b", Target::ClusterIp(10), &["pod1a"], "pod1b");
    bed.delete(&changed);
    eventually("the Service is gone", || (!bed.is_programmed(10)).then_some(()));
    bed.cluster.reaches("pod1a", Target::ClusterIp(11), &["pod1b"], "pod1a");
    bed.wait_no_problem();
    let source = show(&bed.cluster.agents[0], &["status"])["source"]["source"].clone();
    assert_eq!(source, format!("etcd:http://192.168.78.1:2379{PREFIX}"));
}

#[test]
fn a_bad_value_leaves_the_last_good_one_and_stops_no_other() {
    let bed = Bed::up(SocketLb::On, &[expose(10, &["pod1b"])]);
    for (value, words) in [
        ("{\"kind\": ", "syntax"),
        (
            r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "other"}}"#,
            "default/other",
        ),
        (
            r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web10"},
                "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 99999}]}}"#,
            "spec.ports[0].port",
        ),
    ] {
        ok(bed.etcd.put(&service_key(10), value));
        bed.wait_problem(&[&service_key(10), words]);
        bed.cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    }
    let other = expose(11, &["pod1b"]);
    bed.publish(&other);
    bed.cluster.wait_programmed(&other);
    ok(bed.etcd.put(&format!("{PREFIX}/service/default/web10"), "{}"));
    bed.wait_problem(&["service/default/web10", "services/NAMESPACE/NAME"]);
    ok(bed.etcd.ctl(&["del", &format!("{PREFIX}/service/default/web10")]));
    bed.publish(&expose(10, &["pod1a"]));
    bed.wait_no_problem();
    bed.cluster.wait_programmed(&expose(10, &["pod1a"]));
}

#[test]
fn an_etcd_that_is_away_takes_nothing_away() {
    let mut bed = Bed::up(SocketLb::On, &[expose(10, &["pod1b"])]);
    bed.etcd.stop();
    bed.wait_problem(&["etcd:http", "what was told before stays in force"]);
    bed.cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    ok(bed.cluster.agents[0].restart_unready());
    bed.wait_problem(&["nothing is programmed or removed"]);
    assert!(show(&bed.cluster.agents[0], &["status"])["source"]["silent_seconds"].is_number());
    assert!(bed.is_programmed(10));
    bed.cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    ok(bed.etcd.start());
    ok(bed.cluster.agents[0].wait_ready());
    bed.wait_no_problem();
    bed.delete(&expose(10, &["pod1b"]));
    eventually("the Service is gone", || (!bed.is_programmed(10)).then_some(()));
}

/// etcd has thrown away what happened meanwhile: all keys are listed again, and what is not among
/// them is gone.
#[test]
fn what_was_compacted_unheard_is_listed_again() {
    let (old, kept, new) = (expose(10, &["pod1b"]), expose(11, &["pod1b"]), expose(12, &["pod1a"]));
    let mut bed = Bed::up(SocketLb::On, &[old.clone(), kept.clone()]);
    // The connection ends, where it would else be found dead only after a while.
    bed.etcd.stop();
    bed.wait_problem(&["etcd:http", "stays in force"]);
    bed.cut_off("-I");
    ok(bed.etcd.start());
    bed.delete(&old);
    bed.publish(&new);
    ok(bed.etcd.compact());
    assert!(bed.is_programmed(10) && !bed.is_programmed(12));
    bed.cut_off("-D");
    bed.cluster.wait_programmed(&new);
    eventually("the old Service is gone", || (!bed.is_programmed(10)).then_some(()));
    assert!(bed.cluster.agents[0].log().contains("forgotten"), "{}", bed.cluster.agents[0].log());
    bed.cluster.reaches("pod1a", Target::ClusterIp(11), &["pod1b"], "pod1a");
    bed.wait_no_problem();
}

#[test]
fn an_etcd_with_certificates_and_one_with_users() {
    let service = expose(10, &["pod1b"]);
    let mut bed = Bed::furnished(std::slice::from_ref(&service), true);
    let file = |name: &str| bed.cluster.lab.directory("fabric").join("tls").join(name);
    let flags = [
        ("--etcd-cafile", file("ca.pem")),
        ("--etcd-certfile", file("client.pem")),
        ("--etcd-keyfile", file("client.key")),
    ];
    let flags = flags.map(|(flag, path)| format!("{flag}={}", path.display()));
    bed.start(SocketLb::On, &flags);
    bed.cluster.wait_programmed(&service);
    drop(bed);

    let mut bed = Bed::furnished(std::slice::from_ref(&service), false);
    for line in ["user add root:secret", "user grant-role root root", "auth enable"] {
        ok(bed.etcd.ctl(&line.split(' ').collect::<Vec<_>>()));
    }
    bed.start(SocketLb::On, &["--etcd-username=root", "--etcd-password=secret"].map(String::from));
    bed.cluster.wait_programmed(&service);
    bed.cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
}
