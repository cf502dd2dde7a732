//! Source ranges and processes: pods' calls are left to the packet path, and so are those of a node
//! that no range admits.

use datapath::{
    address::protocol::{TCP, UDP},
    connect::{self, Call},
    frontend::kind,
    service::{
        SetRef,
        service_flags::{NODE_ADMITTED, SOURCE_RANGES},
    },
};

use crate::{
    bed::Bed,
    machine::Side,
    plan::*,
    process::Process::{self, Node, Pod},
};

both! {
    only_a_node_that_is_admitted_is_served,
    other_frontends_are_served_as_ever,
    without_endpoints_only_who_is_admitted_is_told,
    a_socket_that_has_a_backend_keeps_it,
}

/// A Service at its load balancer's address and its cluster IP, and its set.
fn bed<F: Side>() -> (Bed<F>, u32, SetRef) {
    let mut bed = Bed::<F>::new();
    let set = bed.set(&[local(near::<F>(8080))]);
    let service = bed.service_of(set, set, SOURCE_RANGES);
    for proto in [TCP, UDP] {
        bed.frontend(at::<F>(99, 1, 80), proto, service, kind::LOAD_BALANCER);
        bed.frontend(vip::<F>(80), proto, service, kind::CLUSTER_IP);
    }
    (bed, service, set)
}

/// What becomes of `connect` and of `sendto` to the load balancer.
fn calls<F: Side>(bed: &mut Bed<F>, process: Process) -> [Call<F::Address>; 2] {
    let (memory, to) = (&mut bed.machine.memory, at::<F>(99, 1, 80));
    [
        connect::connect::<F, _>(memory, to, TCP, &process),
        connect::send::<F, _>(memory, to, 7, &process),
    ]
}

fn only_a_node_that_is_admitted_is_served<F: Side>() {
    let (mut bed, service, set) = bed::<F>();
    assert_eq!(calls(&mut bed, Pod), [Call::Pass; 2]);
    assert_eq!(calls(&mut bed, Node), [Call::Pass; 2]);
    bed.update(service, set, set, SOURCE_RANGES | NODE_ADMITTED);
    assert_eq!(calls(&mut bed, Pod), [Call::Pass; 2]);
    assert_eq!(calls(&mut bed, Node), [Call::Backend(near::<F>(8080), service); 2]);
}

fn other_frontends_are_served_as_ever<F: Side>() {
    let (mut bed, service, _) = bed::<F>();
    for process in [Pod, Node] {
        let memory = &mut bed.machine.memory;
        let call = connect::connect::<F, _>(memory, vip::<F>(80), TCP, &process);
        assert_eq!(call, Call::Backend(near::<F>(8080), service));
    }
}

fn without_endpoints_only_who_is_admitted_is_told<F: Side>() {
    let (mut bed, service, _) = bed::<F>();
    bed.update(service, SetRef::REJECT, SetRef::REJECT, SOURCE_RANGES);
    assert_eq!(calls(&mut bed, Node), [Call::Pass; 2]);
    bed.update(service, SetRef::REJECT, SetRef::REJECT, SOURCE_RANGES | NODE_ADMITTED);
    assert_eq!(calls(&mut bed, Node), [Call::Refuse; 2]);
}

/// It asked before there were ranges.
fn a_socket_that_has_a_backend_keeps_it<F: Side>() {
    let (mut bed, service, set) = bed::<F>();
    bed.update(service, set, set, 0);
    let [_, first] = calls(&mut bed, Pod);
    assert_eq!(first, Call::Backend(near::<F>(8080), service));
    bed.update(service, set, set, SOURCE_RANGES);
    assert_eq!(calls(&mut bed, Pod)[1], first);
}
