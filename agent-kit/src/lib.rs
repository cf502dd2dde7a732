//! What both agents need and neither owns. Of the kernel: tables (maps) behind one trait with a
//! fake that refuses what the kernel refuses, objects loaded with their maps pinned, links
//! that outlive the process, the wait for running programs, word of changed
//! devices and rules. Toward
//! people: the log, problems, the status server, what commands print, what `check` finds. Toward
//! where objects live: clients and watches of Kubernetes and, behind a feature, of etcd.
//!
//! aya loads objects and programs. What it lacks (batches, links by interface index, link
//! updates for cgroups, mapped arrays) is in [`bpf`].

pub mod array;
pub mod ask;
pub mod attach;
pub mod audit;
pub mod barrier;
pub mod bpf;
pub mod clsact;
pub mod code;
pub mod counts;
pub mod descriptor;
pub mod drops;
pub mod dump;
pub mod embedded;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod ethtool;
pub mod fast_path;
pub mod filter;
pub mod finding;
pub mod ipsec;
pub mod kernel;
pub mod kubernetes;
pub mod link;
pub mod log;
pub mod mount;
pub mod netdev;
pub mod netfilter;
pub mod netlink;
pub mod notice;
pub mod object;
pub mod output;
pub mod ports;
pub mod print;
pub mod problems;
pub mod process;
pub mod program;
pub mod reason;
pub mod server;
pub mod socket_diag;
pub mod table;
pub mod watch;

pub use aya::Pod;
