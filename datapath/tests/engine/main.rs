//! Cases of the packet engine. They stand on a [`bed::Bed`] over a `machine`: here the engine
//! over plain memory, in the packet tier (`tests/tests/packet`) the programs loaded into the
//! kernel, which includes the same files of cases.

mod bed;
mod machine;
mod plan;
mod sender;

mod affinity;
mod algorithm;
mod answers;
mod cluster_ip;
mod direct;
mod direct_arrival;
mod echo;
mod endpoint_gone;
mod extensions;
mod flows;
mod fragments;
mod icmp;
mod ipmasq;
mod node_port;

mod partial;
mod process;
mod properties;
mod race;
mod sctp;
mod selection;
mod service_network;
mod socket;
mod socket_affinity;
mod socket_algorithm;
mod socket_source_range;
mod source_range;
mod source_rate;
