//! What both agents need of the kernel and neither owns: tables (maps) behind one trait with a
//! fake that refuses what the kernel refuses, objects loaded with their maps pinned, links
//! that outlive the process, and the wait for running programs.
//!
//! aya loads objects and programs. What it lacks (batches, links by interface index, link
//! updates for cgroups, mapped arrays) is in [`bpf`].

pub mod array;
pub mod ask;
pub mod barrier;
pub mod bpf;
pub mod clsact;
pub mod filter;
pub mod finding;
pub mod link;
pub mod log;
pub mod mount;
pub mod notice;
pub mod object;
pub mod output;
pub mod print;
pub mod reason;
pub mod table;

pub use aya::Pod;
