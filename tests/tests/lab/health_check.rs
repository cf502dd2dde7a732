//! healthCheckNodePort, as a load balancer outside asks it: which nodes have endpoints of a Service
//! whose traffic stays on the node that it enters.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use lab::{
    agent::SocketLb,
    manifests::{self, Port, Service, Slice},
};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Plan, eventually, ok},
    service::{Exposed, FAMILIES, Family, PORT, TARGET, Target, expose, name},
};

both! {
    load_balancer_is_told_which_nodes_have_endpoints,
    health_check_moves_with_its_port_and_outlives_the_node,
    health_check_listens_only_at_addresses_that_are_named,
}

/// Of Service 10; its NodePort is another.
const HEALTH: u16 = 32_010;

fn balanced(pods: &[&str]) -> Exposed {
    expose(10, pods).with(|service| {
        service
            .set("/spec/type", json!("LoadBalancer"))
            .set("/spec/healthCheckNodePort", json!(HEALTH))
            .external_local()
    })
}

/// What a node answers a load balancer: status line, headers and body.
fn ask(cluster: &Cluster, node: &str, family: Family) -> io::Result<String> {
    ask_at(cluster, node, family, HEALTH)
}

fn ask_at(cluster: &Cluster, node: &str, family: Family, port: u16) -> io::Result<String> {
    let to = SocketAddr::new(cluster.address(node, family), port);
    ok(cluster.lab.enter("client", || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /anything HTTP/1.0\r\nHost: x\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }))
}

/// Waits until a node says so in both families: status and count.
#[track_caller]
fn says(cluster: &Cluster, node: &str, status: u16, count: u64) {
    for family in FAMILIES {
        let what = format!("{node} says {status} for {count} endpoints");
        let text = eventually(&what, || {
            let text = ask(cluster, node, family).ok()?;
            let is_status = text.starts_with(&format!("HTTP/1.0 {status} "));
            (is_status && text.contains(&format!(r#""localEndpoints":{count},"#))).then_some(text)
        });
        let (head, body) = text.split_once("\r\n\r\n").expect("a body");
        let head = head.to_lowercase();
        assert!(head.contains(&format!("x-load-balancing-endpoint-weight: {count}\r\n")), "{head}");
        assert!(head.contains("content-type: application/json\r\n"), "{head}");
        let body: Value = ok(serde_json::from_str(body));
        assert_eq!(
            body,
            json!({
                "service": {"namespace": "default", "name": name(10)},
                "localEndpoints": count,
                "serviceProxyHealthy": true,
            })
        );
    }
}

#[track_caller]
fn is_closed(cluster: &Cluster, node: &str) {
    for family in FAMILIES {
        eventually("nobody listens", || {
            let err = ask(cluster, node, family).err()?;
            (err.kind() == io::ErrorKind::ConnectionRefused).then_some(())
        });
    }
}

fn load_balancer_is_told_which_nodes_have_endpoints(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[balanced(&["pod1a", "pod1b"]), expose(11, &["pod2a"])]);
    says(&cluster, "node1", 200, 2);
    says(&cluster, "node2", 503, 0);
    cluster.publish(&balanced(&["pod1b", "pod2a"]));
    says(&cluster, "node1", 200, 1);
    says(&cluster, "node2", 200, 1);
    cluster.reaches("client", Target::NodePort("node2", 10), &["pod2a"], "client");

    // The pod of node 1 ends: it still serves, but the load balancer is to go elsewhere.
    let ports = [Port::tcp("tcp", PORT, TARGET), Port::udp("udp", PORT, TARGET)];
    let ending = |family: Family| {
        let slice = Slice::new(&name(10), family == Family::V6, &ports);
        let slice = slice.endpoint(cluster.address("pod1b", family), "node1");
        slice.conditions(false, true, true).build()
    };
    let mut documents = balanced(&[]).documents(&cluster.lab);
    documents.truncate(1);
    documents.extend(FAMILIES.map(ending));
    ok(cluster.lab.publish("web10.yaml", &documents));
    says(&cluster, "node1", 503, 0);
    cluster.reaches("client", Target::NodePort("node1", 10), &["pod1b"], "client");

    // A load balancer may ask no more once any node will do, or the Service is gone.
    cluster.publish(&balanced(&["pod1b"]));
    says(&cluster, "node1", 200, 1);
    let anywhere = |service: Service| service.set("/spec/externalTrafficPolicy", json!("Cluster"));
    cluster.publish(&balanced(&["pod1b"]).with(anywhere));
    is_closed(&cluster, "node1");
    is_closed(&cluster, "node2");
    cluster.publish(&balanced(&["pod1b"]));
    says(&cluster, "node1", 200, 1);
    cluster.withdraw(&balanced(&[]));
    is_closed(&cluster, "node1");
    cluster.reaches("client", Target::NodePort("node1", 11), &["pod2a"], "node1");
}

/// A Node that is deleted is told by `/healthz` alone: who asks about a Service asks for endpoints.
fn health_check_moves_with_its_port_and_outlives_the_node(mode: SocketLb) {
    const NODES: &str = "nodes.yaml";
    const MOVED: u16 = HEALTH + 1;
    let cluster = Plan::single(mode).up(&[balanced(&["pod1a"])]);
    let healthz = |wanted: u16| {
        eventually(&format!("/healthz says {wanted}"), || {
            let (status, _) = cluster.agents[0].health("/healthz").ok()?;
            (status == wanted).then_some(())
        });
    };
    says(&cluster, "node1", 200, 1);
    ok(cluster.lab.withdraw(NODES));
    healthz(503);
    says(&cluster, "node1", 200, 1);
    ok(cluster.lab.publish(NODES, &manifests::nodes(&cluster.lab)));
    healthz(200);
    cluster.write(
        &balanced(&["pod1a"])
            .with(|service| service.set("/spec/healthCheckNodePort", json!(MOVED))),
    );
    for family in FAMILIES {
        eventually("it answers at the other port", || {
            let text = ask_at(&cluster, "node1", family, MOVED).ok()?;
            text.starts_with("HTTP/1.0 200 ").then_some(())
        });
    }
    is_closed(&cluster, "node1");
}

fn health_check_listens_only_at_addresses_that_are_named(mode: SocketLb) {
    let plan = Plan::single(mode).extra(&["--nodeport-addresses=192.168.78.0/24"]);
    let cluster = plan.up(&[balanced(&["pod1a"])]);
    eventually("it answers by IPv4", || {
        let text = ask(&cluster, "node1", Family::V4).ok()?;
        text.starts_with("HTTP/1.0 200 ").then_some(())
    });
    let err = ask(&cluster, "node1", Family::V6).expect_err("only IPv4 was named");
    assert_eq!(err.kind(), io::ErrorKind::ConnectionRefused);
}
