//! The packet tier: the programs as they are shipped, loaded into the kernel and run by
//! BPF_PROG_TEST_RUN. Needs root, and the object that `cargo xtask build` makes.
//!
//! The cases are those of the engine on plain memory (`datapath/tests/engine`), over a machine
//! whose tables are maps; what only the loaded programs can show stands beside them.

#[path = "../../../datapath/tests/engine/bed.rs"]
mod bed;
mod machine;
mod object;
#[path = "../../../datapath/tests/engine/plan.rs"]
mod plan;
#[path = "../../../datapath/tests/engine/sender.rs"]
mod sender;

#[path = "../../../datapath/tests/engine/affinity.rs"]
mod affinity;
#[path = "../../../datapath/tests/engine/algorithm.rs"]
mod algorithm;
#[path = "../../../datapath/tests/engine/answers.rs"]
mod answers;
#[path = "../../../datapath/tests/engine/cluster_ip.rs"]
mod cluster_ip;
#[path = "../../../datapath/tests/engine/direct.rs"]
mod direct;
#[path = "../../../datapath/tests/engine/echo.rs"]
mod echo;
#[path = "../../../datapath/tests/engine/endpoint_gone.rs"]
mod endpoint_gone;
#[path = "../../../datapath/tests/engine/extensions.rs"]
mod extensions;
#[path = "../../../datapath/tests/engine/flows.rs"]
mod flows;
#[path = "../../../datapath/tests/engine/fragments.rs"]
mod fragments;
#[path = "../../../datapath/tests/engine/icmp.rs"]
mod icmp;
#[path = "../../../datapath/tests/engine/ipmasq.rs"]
mod ipmasq;
#[path = "../../../datapath/tests/engine/node_port.rs"]
mod node_port;
#[path = "../../../datapath/tests/engine/sctp.rs"]
mod sctp;
#[path = "../../../datapath/tests/engine/service_network.rs"]
mod service_network;
#[path = "../../../datapath/tests/engine/source_range.rs"]
mod source_range;
#[path = "../../../datapath/tests/engine/source_rate.rs"]
mod source_rate;

mod differential;
mod differential_masq;
mod forward;
mod frame;
#[allow(dead_code, reason = "the comparison asks less of it than the cases do")]
#[path = "../../../datapath/tests/engine/machine.rs"]
mod host;
mod swap;
mod tunnel;
mod twins;
mod uplinks;
mod wire;
#[allow(dead_code, reason = "the engine's own cases ask for more")]
#[path = "../../../datapath/tests/wire/scene.rs"]
mod wire_scene;
