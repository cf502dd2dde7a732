//! A cluster of both families, whose agents come by the Helm chart: a Service of both is answered at each
//! of its addresses, whoever asks.

use std::net::{IpAddr, SocketAddr};

use lab::{kubernetes::Kubernetes, peer::Protocol};
use serde_json::{Value, json};

use crate::{
    bed::{self, AGENTS},
    daemon_set::{ASKED, ask_from, ask_in, assert_both_answer, both_are_endpoints, pod, pods},
    manifest::ok,
};

const NAME: &str = "both";
const NODE_PORT: u16 = 30081;

#[test]
fn a_service_of_both_families_is_served_where_helm_installed_the_agents() {
    let cluster = bed::installed_by_helm(2);
    let [servers, mut service] = bed::servers(NAME, NODE_PORT);
    service["spec"]["ipFamilyPolicy"] = json!("RequireDualStack");
    ok(cluster.apply(&[servers, service]));
    ok(cluster.rolled_out("default", &format!("daemonset/{NAME}")));
    both_are_endpoints(&cluster, NAME);
    let addresses = cluster_ips(&cluster);
    assert_eq!(addresses.iter().filter(|address| address.is_ipv6()).count(), 1, "{addresses:?}");
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    let client = ok(cluster.lab.place("client"));
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for machine in &cluster.machines {
            let from = pod(&cluster, NAME, machine.name());
            for &address in &addresses {
                let to = SocketAddr::new(address, 80);
                assert_both_answer(&ask_in(&cluster, &from, protocol, to, ASKED));
                assert_both_answer(&ask_from(machine.place(), protocol, to));
            }
            for address in machine.place().addresses.both() {
                let to = SocketAddr::new(address, NODE_PORT);
                assert_both_answer(&ask_from(&client, protocol, to));
                assert_both_answer(&ask_in(&cluster, &from, protocol, to, ASKED));
            }
        }
    }
    the_agents_find_nothing_wrong(&cluster);
}

fn cluster_ips(cluster: &Kubernetes) -> Vec<IpAddr> {
    let service = ok(cluster.api.read(&format!("/api/v1/namespaces/default/services/{NAME}")));
    let addresses = service["spec"]["clusterIPs"].as_array().into_iter().flatten();
    addresses.map(|address| ok(address.as_str().unwrap_or_default().parse())).collect()
}

fn the_agents_find_nothing_wrong(cluster: &Kubernetes) {
    for (namespace, agent) in AGENTS {
        for pod in pods(cluster, namespace, &format!("app.kubernetes.io/name={agent}")) {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let status = [agent, "status", "--output=json"];
            let arguments = [&["--namespace", namespace, "exec", name, "--"], &status[..]].concat();
            let status: Value = ok(serde_json::from_str(&ok(cluster.kubectl(&arguments))));
            assert_eq!(status["problems"], json!([]), "{name}");
        }
    }
}
