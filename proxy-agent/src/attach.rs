//! Where the proxy's programs go: hooks of a cgroup, and of devices by what they lead to.

use std::path::Path;

use agent_kit::{
    attach::{self, AttachError, Hook, Layer},
    bpf::{self, attach_type},
    link::Links,
};
use aya::Ebpf;
use datapath::device::Device;

use crate::{devices::Role, xdp};

/// The devices as they are attached.
pub type Devices = attach::Devices<Role, Device>;

/// A hook of a cgroup, by the name of its program.
#[derive(Clone, Copy, Debug)]
pub struct SocketHook {
    pub program: &'static str,
    pub attach_type: u32,
}

/// The socket path. Answers are turned before questions, so that no application sees a backend
/// as its peer; and before that, sockets are followed to their end, so that no row stays behind.
pub const SOCKET_HOOKS: [SocketHook; 9] = [
    SocketHook { program: "sock_release", attach_type: attach_type::CGROUP_INET_SOCK_RELEASE },
    SocketHook { program: "sock_peername4", attach_type: attach_type::CGROUP_INET4_GETPEERNAME },
    SocketHook { program: "sock_peername6", attach_type: attach_type::CGROUP_INET6_GETPEERNAME },
    SocketHook { program: "sock_recvmsg4", attach_type: attach_type::CGROUP_UDP4_RECVMSG },
    SocketHook { program: "sock_recvmsg6", attach_type: attach_type::CGROUP_UDP6_RECVMSG },
    SocketHook { program: "sock_sendmsg4", attach_type: attach_type::CGROUP_UDP4_SENDMSG },
    SocketHook { program: "sock_sendmsg6", attach_type: attach_type::CGROUP_UDP6_SENDMSG },
    SocketHook { program: "sock_connect4", attach_type: attach_type::CGROUP_INET4_CONNECT },
    SocketHook { program: "sock_connect6", attach_type: attach_type::CGROUP_INET6_CONNECT },
];

/// The packet path. What leaves is turned back before what enters is turned.
pub const DEVICE_HOOKS: [Hook<Role>; 8] = [
    on_device("pod_egress", Role::Pod, false),
    on_device("pod_egress", Role::Bridge, false),
    on_device("pod_ingress", Role::Pod, true),
    on_device("pod_ingress", Role::Port, true),
    on_device("uplink_egress", Role::Uplink, false),
    on_device("uplink_ingress", Role::Uplink, true),
    on_device("uplink_egress", Role::Tunnel, false),
    on_device("tunnel_arrival", Role::Tunnel, true),
];

const fn on_device(program: &'static str, role: Role, is_ingress: bool) -> Hook<Role> {
    Hook { program, role, is_ingress, layer: Layer::Outer }
}

/// Names of all programs that are put somewhere.
pub fn programs() -> impl Iterator<Item = &'static str> {
    let of_sockets = SOCKET_HOOKS.map(|hook| hook.program);
    let of_devices = DEVICE_HOOKS.map(|hook| hook.program);
    of_sockets.into_iter().chain(of_devices).chain([xdp::PROGRAM])
}

/// Puts the socket path on a cgroup.
pub fn attach_sockets(ebpf: &Ebpf, links: &Links, cgroup: &Path) -> Result<(), AttachError> {
    for hook in SOCKET_HOOKS {
        let fd = attach::program_fd(ebpf, hook.program)?;
        links.attach_cgroup(hook.program, fd, cgroup, hook.attach_type)?;
    }
    Ok(())
}

/// Programs of the socket path that are not where they were put: another hand took them off, or
/// their cgroup went.
pub fn lost_sockets(ebpf: &Ebpf, links: &Links) -> Result<Vec<&'static str>, AttachError> {
    let mut lost = Vec::new();
    for SocketHook { program, .. } in SOCKET_HOOKS {
        let id = bpf::program_id(attach::program_fd(ebpf, program)?);
        let id = id.map_err(|source| AttachError::Id { program, source })?;
        let link = links.get(program)?;
        if !link.is_some_and(|link| link.is_attached() && link.info.program_id == id) {
            lost.push(program);
        }
    }
    Ok(lost)
}

/// Takes the socket path off, questions first.
pub fn detach_sockets(links: &Links) -> Result<(), AttachError> {
    for hook in SOCKET_HOOKS.iter().rev() {
        links.detach_now(hook.program)?;
    }
    Ok(())
}
