//! What the eBPF programs and the agents agree on: table keys and values, map names,
//! counters and drop reasons; and the engine that decides over each packet.
//!
//! Everything here is pure: packets and tables are reached through the traits
//! [`packet::Packet`] and [`tables::Tables`], implemented by maps and packet pointers in the
//! kernel and by buffers and hash maps in tests. Structs have no hidden padding, and what
//! travels in network byte order says so in its type.
#![cfg_attr(not(any(test, feature = "host")), no_std)]

pub mod address;
pub mod affinity;
pub mod algorithm;
pub mod answer;
pub mod backend;
pub mod capture;
pub mod checksum;
pub mod connect;
pub mod counter;
pub mod crc32c;
pub mod device;
pub mod direct;
pub mod echo;
pub mod egress;
pub mod encapsulation;
pub mod flow;
pub mod flow_cache;
pub mod forward;
pub mod fragment;
pub mod frontend;
pub mod hash;
pub mod header;
pub mod home;
#[cfg(any(test, feature = "host"))]
pub mod host;
pub mod icmp;
pub mod ingress;
pub mod ipmasq;
pub mod maps;
pub mod masquerade;
pub mod nexthop;
pub mod packet;
#[cfg(feature = "user")]
mod pod;
pub mod policy;
pub mod refusal;
pub mod rewrite;
pub mod sctp;
pub mod select;
pub mod service;
pub mod service_network;
pub mod settings;
pub mod socket;
pub mod source_range;
pub mod source_rate;
pub mod syn;
pub mod tables;
pub mod track;
pub mod tunnel;
pub mod underlay;
pub mod vxlan;
pub mod wire;
