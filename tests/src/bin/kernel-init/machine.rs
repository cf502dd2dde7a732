//! What a distribution's start-up would do: file systems, modules, the loopback device.

use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::MsFlags,
    sys::reboot::{RebootMode, reboot},
};

/// Where the initramfs has the modules to insert, in the order of their names.
const MODULES: &str = "/modules";
/// The index of `lo` in every network namespace.
pub(crate) const LOOPBACK: u32 = 1;

pub(crate) fn mount() -> Result<()> {
    for (kind, target) in [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("bpf", "/sys/fs/bpf"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("tmpfs", "/tmp"),
    ] {
        fs::create_dir_all(target).with_context(|| target.to_owned())?;
        nix::mount::mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| target.to_owned())?;
    }
    Ok(())
}

pub(crate) fn insert_modules() -> Result<()> {
    let mut modules: Vec<_> =
        fs::read_dir(MODULES)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    modules.sort();
    for path in modules {
        finit_module(File::open(&path)?, c"", ModuleInitFlags::empty())
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Sets `lo` up, with the addresses that [`crate::traffic`] uses.
pub(crate) fn raise_loopback() -> Result<()> {
    let socket = socket(libc::AF_INET6)?;
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l'.cast_signed(), b'o'.cast_signed()]);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_LOOPBACK) as libc::c_short;
    // SAFETY: the request is a live `ifreq`, as this command takes it.
    result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) })
        .context("lo up")?;
    // As what the kernel takes for its own when a socket has no address yet, hence the client's.
    let [_, address, _] = crate::traffic::LOCAL4;
    add4(address).with_context(|| address.to_string())?;
    for address in crate::traffic::LOCAL6 {
        add(&socket, address).with_context(|| address.to_string())?;
    }
    Ok(())
}

fn socket(family: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    result(fd)?;
    // SAFETY: a fresh descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// All of 10.0.0.0/8: without another word the kernel takes the network for one of class A, and all
/// of a network on `lo` for this machine's addresses.
fn add4(address: Ipv4Addr) -> io::Result<()> {
    let socket = socket(libc::AF_INET)?;
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo:1") {
        *to = from.cast_signed();
    }
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: both are 16 bytes, and valid whatever they hold.
    request.ifr_ifru.ifru_addr =
        unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) };
    // SAFETY: the request is a live `ifreq`, as this command takes it on an IPv4 socket.
    result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFADDR as _, &raw mut request) })
}

fn add(socket: &OwnedFd, address: Ipv6Addr) -> io::Result<()> {
    let mut request = libc::in6_ifreq {
        ifr6_addr: libc::in6_addr { s6_addr: address.octets() },
        ifr6_prefixlen: 128,
        ifr6_ifindex: LOOPBACK.cast_signed(),
    };
    // SAFETY: the request is a live `in6_ifreq`, as this command takes it on an IPv6 socket.
    result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFADDR as _, &raw mut request) })
}

fn result(returned: libc::c_int) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Ends the machine.
pub(crate) fn power_off() {
    let Err(err) = reboot(RebootMode::RB_POWER_OFF);
    println!("cannot power off: {err}");
}
