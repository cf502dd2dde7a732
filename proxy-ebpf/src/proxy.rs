//! Entry points of the proxy object: the socket path on cgroups, the packet path on devices.
//! Each hands its packet and the tables to the engine in the crate `datapath`.
#![no_std]
#![no_main]

mod maps;

use aya_ebpf::{
    macros::{cgroup_sock_addr, classifier},
    programs::{SockAddrContext, TcContext},
};

/// `TCX_NEXT`: not ours, or done with; the next program of the chain goes on.
const NEXT: i32 = -1;

macro_rules! stubs { ($($k:ident $n:ident),*) => {$(
    #[cgroup_sock_addr($k)]
    pub fn $n(_ctx: SockAddrContext) -> i32 { 1 }
)*}}
stubs! { connect4 sock_connect4, connect6 sock_connect6, sendmsg4 sock_sendmsg4, sendmsg6 sock_sendmsg6,
 recvmsg4 sock_recvmsg4, recvmsg6 sock_recvmsg6, getpeername4 sock_peername4, getpeername6 sock_peername6 }

macro_rules! tcs { ($($n:ident),*) => {$(
    #[classifier]
    pub fn $n(_ctx: TcContext) -> i32 { NEXT }
)*}}
tcs! { pod_ingress, pod_egress, uplink_ingress, uplink_egress, flow_sweep }

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // No program contains a reachable panic: the verifier would refuse the endless loop.
    loop {}
}
