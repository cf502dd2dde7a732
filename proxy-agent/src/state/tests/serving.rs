//! Which flows have to end with their endpoint.

use datapath::address::protocol;

use super::*;
use crate::serving::Ending;

const FRONTEND: &str = "10.0.0.1:53";

fn dns(spec: &str) -> String {
    service("dns", &format!("{{clusterIP: 10.0.0.1, ports: [{{port: 53, protocol: UDP}}]{spec}}}"))
}

fn endpoints(endpoints: &str) -> String {
    slice("dns", "dns", endpoints).replace("{port: 8080}", "{port: 53, protocol: UDP}")
}

fn place(text: &str) -> Place {
    let address: std::net::SocketAddr = text.parse().unwrap();
    (address.ip(), address.port())
}

/// Whether a flow to the frontend stays with an endpoint, after what has changed since the last
/// question.
fn stays(state: &mut State, endpoint: &str) -> bool {
    state.take_serving(false).keeps(protocol::UDP, place(FRONTEND), place(endpoint))
}

/// A node's state with a Service of two endpoints, asked once.
fn settled() -> State {
    let mut state = state();
    state.apply(puts(&dns("")));
    state.apply(puts(&endpoints("[{addresses: [10.1.0.1]}, {addresses: [10.1.0.2]}]")));
    assert!(!state.take_serving(true).is_empty());
    assert!(state.take_serving(false).is_empty(), "asked once, nothing is left to do");
    state
}

#[test]
fn flows_leave_an_endpoint_that_is_gone_or_has_another_port() {
    let mut state = settled();
    state.apply(puts(&endpoints("[{addresses: [10.1.0.2]}]")));
    let serving = state.take_serving(false);
    assert!(!serving.keeps(protocol::UDP, place(FRONTEND), place("10.1.0.1:53")));
    assert!(!serving.keeps(protocol::UDP, place(FRONTEND), place("10.1.0.2:5353")));
    assert!(serving.keeps(protocol::UDP, place(FRONTEND), place("10.1.0.2:53")));
    assert!(
        serving.keeps(protocol::UDP, place("10.0.0.9:53"), place("10.1.0.1:53")),
        "nobody's business"
    );
}

#[test]
fn flows_end_whatever_frontend_they_came_by() {
    let balanced = format!(
        "{}status: {{loadBalancer: {{ingress: [{{ip: 203.0.113.1}}]}}}}\n",
        dns(", type: LoadBalancer, externalIPs: [198.51.100.1]")
            .replace("{port: 53,", "{port: 53, nodePort: 30053,")
    );
    let mut state = settled();
    state.apply(puts(&balanced));
    state.take_serving(false);
    state.apply(puts(&endpoints("[{addresses: [10.1.0.2]}]")));
    let serving = state.take_serving(false);
    for frontend in [FRONTEND, "203.0.113.1:53", "198.51.100.1:53", "192.0.2.1:30053"] {
        let keeps = |endpoint| serving.keeps(protocol::UDP, place(frontend), place(endpoint));
        assert_eq!([keeps("10.1.0.1:53"), keeps("10.1.0.2:53")], [false, true], "{frontend}");
    }
    // Somebody else's port of the same number.
    assert!(serving.keeps(protocol::UDP, place("192.0.2.77:30053"), place("192.0.2.77:30053")));
}

#[test]
fn flows_stay_with_what_serves_though_nothing_new_goes_there() {
    let mut state = settled();
    let conditions = "conditions: {ready: false, serving: true, terminating: true}";
    let leaving = format!("[{{addresses: [10.1.0.1], {conditions}}}, {{addresses: [10.1.0.2]}}]");
    state.apply(puts(&endpoints(&leaving)));
    assert!(stays(&mut state, "10.1.0.1:53"), "it finishes what it began");
    state.apply(puts(&dns(", internalTrafficPolicy: Local")));
    assert!(stays(&mut state, "10.1.0.2:53"), "policies do not matter");
    state.apply(puts(&endpoints(&leaving.replace("serving: true", "serving: false"))));
    assert!(!stays(&mut state, "10.1.0.1:53"));
}

#[test]
fn without_endpoints_and_without_its_service_a_flow_ends() {
    let mut state = settled();
    state.apply(puts(&endpoints("[]")));
    assert!(!stays(&mut state, "10.1.0.1:53"));
    let mut state = settled();
    state.apply(delete(&dns("")));
    assert!(!stays(&mut state, "10.1.0.1:53"));
    // Whoever has the frontend next decides.
    let heir = dns("").replace("name: dns", "name: heir");
    let mut state = settled();
    let mut batch = delete(&dns(""));
    batch.extend(puts(&heir));
    state.apply(batch);
    assert!(!stays(&mut state, "10.1.0.1:53"));
}

#[test]
fn after_a_restart_all_flows_are_looked_at() {
    let mut state = settled();
    let serving = state.take_serving(true);
    assert!(serving.keeps(protocol::UDP, place(FRONTEND), place("10.1.0.1:53")));
    assert!(
        !serving.keeps(protocol::UDP, place("10.0.0.9:53"), place("10.1.0.1:53")),
        "no Service has it"
    );
}

#[test]
fn endpoints_of_which_nothing_can_be_read_serve() {
    let mut last = state();
    last.apply(puts(&dns("")));
    last.apply(puts(&endpoints("[{addresses: [10.1.0.1]}]")));
    let mut next = state();
    next.apply(puts(&dns("")));
    next.doubt(&[crate::doubt::Doubt { document: "broken.yaml".into(), object: None }].into());
    next.adopt(last.desired().clone());
    let serving = next.take_serving(true);
    assert!(serving.keeps(protocol::UDP, place(FRONTEND), place("10.1.0.1:53")));
    assert!(!serving.keeps(protocol::UDP, place(FRONTEND), place("10.1.0.2:53")));
}

#[test]
fn tcp_is_left_alone() {
    let mut state = state();
    state.apply(puts(&service("web", "{clusterIP: 10.0.0.2, ports: [{port: 80}]}")));
    state.apply(puts(&slice("web", "web", "[{addresses: [10.1.0.1]}]")));
    assert!(state.take_serving(false).is_empty());
}

/// The state of a node that ends connections too, with a Service of TCP and UDP at one port.
fn resetting() -> State {
    let mut state = State::new(NodeFacts { ending: Ending::UdpAndTcp, ..facts() });
    let ports = "[{name: t, port: 53}, {name: u, port: 53, protocol: UDP}]";
    state.apply(puts(&service("dns", &format!("{{clusterIP: 10.0.0.1, ports: {ports}}}"))));
    state.apply(puts(&both("[{addresses: [10.1.0.1]}, {addresses: [10.1.0.2]}]")));
    state.take_serving(true);
    state
}

fn both(endpoints: &str) -> String {
    let ports = "{name: t, port: 53}, {name: u, port: 53, protocol: UDP}";
    slice("dns", "dns", endpoints).replace("{port: 8080}", ports)
}

/// Whether flows of TCP and of UDP stay with an endpoint.
fn stay(state: &mut State, endpoint: &str) -> [bool; 2] {
    let serving = state.take_serving(false);
    [protocol::TCP, protocol::UDP]
        .map(|proto| serving.keeps(proto, place(FRONTEND), place(endpoint)))
}

#[test]
fn connections_stay_until_their_endpoint_is_gone() {
    let mut state = resetting();
    for (conditions, udp_stays) in [
        ("{ready: false, serving: true, terminating: true}", true),
        ("{ready: false, serving: false, terminating: true}", false),
        ("{ready: false, serving: false, terminating: false}", false),
    ] {
        let first = format!("{{addresses: [10.1.0.1], conditions: {conditions}}}");
        state.apply(puts(&both(&format!("[{first}, {{addresses: [10.1.0.2]}}]"))));
        assert_eq!(stay(&mut state, "10.1.0.1:53"), [true, udp_stays], "{conditions}");
    }
    state.apply(puts(&both("[{addresses: [10.1.0.2]}]")));
    let serving = state.take_serving(false);
    assert!(!serving.keeps(protocol::TCP, place(FRONTEND), place("10.1.0.1:53")));
    assert!(serving.keeps(protocol::TCP, place(FRONTEND), place("10.1.0.2:53")));
    assert!(serving.keeps(protocol::TCP, place("10.0.0.9:53"), place("10.1.0.1:53")));
}

#[test]
fn connections_end_with_their_service_and_associations_do_not() {
    let mut state = resetting();
    let serving = state.take_serving(true);
    assert!(!serving.keeps(protocol::TCP, place("10.0.0.9:53"), place("10.1.0.1:53")));
    assert!(serving.keeps(protocol::SCTP, place("10.0.0.9:53"), place("10.1.0.1:53")));
    let ports = "[{name: u, port: 53, protocol: UDP}]";
    state.apply(puts(&service("dns", &format!("{{clusterIP: 10.0.0.1, ports: {ports}}}"))));
    assert_eq!(stay(&mut state, "10.1.0.1:53"), [false, true], "only UDP is spoken there now");
}

#[test]
fn without_the_option_connections_are_kept_whatever_is_known_of_them() {
    let serving = settled().take_serving(true);
    assert!(serving.keeps(protocol::TCP, place(FRONTEND), place("10.1.0.1:53")));
}
