//! The commands of the `bpf` system call that aya 0.14 does not offer, or offers only on
//! objects that hide their descriptor. Structures follow `union bpf_attr` in
//! `include/uapi/linux/bpf.h`; the kernel takes a short structure as one that ends in zeros.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya::Pod;
use libc::{c_int, c_long};

mod command {
    use libc::c_int;

    pub(super) const MAP_CREATE: c_int = 0;
    pub(super) const MAP_LOOKUP: c_int = 1;
    pub(super) const MAP_UPDATE: c_int = 2;
    pub(super) const MAP_DELETE: c_int = 3;
    pub(super) const OBJ_PIN: c_int = 6;
    pub(super) const OBJ_GET: c_int = 7;
    pub(super) const PROG_TEST_RUN: c_int = 10;
    pub(super) const OBJ_GET_INFO_BY_FD: c_int = 15;
    pub(super) const PROG_QUERY: c_int = 16;
    pub(super) const MAP_LOOKUP_BATCH: c_int = 24;
    pub(super) const MAP_UPDATE_BATCH: c_int = 26;
    pub(super) const LINK_CREATE: c_int = 28;
    pub(super) const LINK_UPDATE: c_int = 29;
    pub(super) const LINK_DETACH: c_int = 34;
}

/// `enum bpf_map_type`, as far as we create such maps here.
pub mod map_type {
    pub const HASH: u32 = 1;
    pub const ARRAY: u32 = 2;
    pub const LRU_HASH: u32 = 9;
    pub const ARRAY_OF_MAPS: u32 = 12;
    pub const SK_STORAGE: u32 = 24;
}

/// `enum bpf_attach_type`, as far as we attach.
pub mod attach_type {
    pub const CGROUP_INET4_CONNECT: u32 = 10;
    pub const CGROUP_INET6_CONNECT: u32 = 11;
    pub const CGROUP_UDP4_SENDMSG: u32 = 14;
    pub const CGROUP_UDP6_SENDMSG: u32 = 15;
    pub const CGROUP_UDP4_RECVMSG: u32 = 19;
    pub const CGROUP_UDP6_RECVMSG: u32 = 20;
    pub const CGROUP_INET4_GETPEERNAME: u32 = 29;
    pub const CGROUP_INET6_GETPEERNAME: u32 = 30;
    pub const CGROUP_INET_SOCK_RELEASE: u32 = 34;
    pub const XDP: u32 = 37;
    pub const TCX_INGRESS: u32 = 46;
    pub const TCX_EGRESS: u32 = 47;
}

/// Flag of [`map_create`]: elements of a hash are allocated as they come.
pub const NO_PREALLOC: u32 = 1;
/// Flag of [`map_create`]: an array that user space may map.
pub const MMAPABLE: u32 = 1 << 10;

fn bpf<A>(command: c_int, attr: &mut A) -> io::Result<c_long> {
    // SAFETY: `attr` is a live, initialised structure of the size given, laid out as the
    // kernel's union for this command; each caller keeps the memory it points to alive.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>() as u32)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: c_long) -> OwnedFd {
    // SAFETY: the command succeeded and gave a fresh descriptor that nothing else owns.
    unsafe { OwnedFd::from_raw_fd(result as c_int) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// What a map is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapLayout {
    pub map_type: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
}

/// Takes a link's program off, now: a link that is only let go of is taken off some time after.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(command::LINK_DETACH, &mut raw(link)).map(drop)
}

/// Makes a map that is pinned nowhere. `inner` is the pattern of a map of maps.
pub fn map_create(layout: MapLayout, inner: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        layout: [u32; 5],
        inner_map_fd: u32,
    }
    let MapLayout { map_type, key_size, value_size, max_entries, flags } = layout;
    let mut attr = Attr {
        layout: [map_type, key_size, value_size, max_entries, flags],
        inner_map_fd: inner.map_or(0, raw),
    };
    bpf(command::MAP_CREATE, &mut attr).map(owned)
}

#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Reads one row; `None` if there is none. The sizes of `K` and `V` must be the map's.
pub(crate) fn map_lookup<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = std::mem::MaybeUninit::<V>::uninit();
    let mut attr = ElementAttr {
        map_fd: raw(map),
        pad: 0,
        key: std::ptr::from_ref(key) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    match bpf(command::MAP_LOOKUP, &mut attr) {
        // SAFETY: the kernel filled the value, and any bytes make a valid `Pod`.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(err) if err.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(err) => Err(err),
    }
}

/// Writes one row, whether it was there or not.
pub(crate) fn map_update<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
) -> io::Result<()> {
    const ANY: u64 = 0;
    map_write(map, key, value, ANY)
}

/// Writes one row over what is there: `ENOENT` if nothing is.
pub(crate) fn map_replace<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
) -> io::Result<()> {
    const EXIST: u64 = 2;
    map_write(map, key, value, EXIST)
}

fn map_write<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
    flags: u64,
) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: raw(map),
        pad: 0,
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_ref(value) as u64,
        flags,
    };
    bpf(command::MAP_UPDATE, &mut attr).map(drop)
}

pub(crate) fn map_delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let key = std::ptr::from_ref(key) as u64;
    let mut attr = ElementAttr { map_fd: raw(map), pad: 0, key, value: 0, flags: 0 };
    bpf(command::MAP_DELETE, &mut attr).map(drop)
}

#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Writes rows until one fails; says how many were written, and what stopped it.
pub(crate) fn map_update_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> (usize, io::Result<()>) {
    let count = keys.len().min(values.len());
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: count as u32,
        map_fd: raw(map),
        elem_flags: 0,
        flags: 0,
    };
    match bpf(command::MAP_UPDATE_BATCH, &mut attr) {
        Ok(_) => (count, Ok(())),
        // The kernel leaves `count` as it was when it refuses before the first row (EINVAL,
        // EFAULT, EPERM), and sets it to the rows written otherwise.
        Err(err) => {
            let written = if attr.count as usize == count { 0 } else { attr.count as usize };
            (written, Err(err))
        }
    }
}

/// Where a batched read stands: a bucket of a hash, or a key of a trie; opaque to us.
pub(crate) type Cursor = [u32; 16];

/// Reads the next rows of a hash or trie into `keys` and `values`, from `cursor` on; gives how many and
/// the next cursor, `None` at the end. A bucket's rows come together, so the buffers must hold
/// the fullest bucket: `ENOSPC` asks for larger ones.
pub(crate) fn map_lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    cursor: Option<Cursor>,
    keys: &mut Vec<K>,
    values: &mut Vec<V>,
) -> io::Result<Option<Cursor>> {
    let start = cursor.unwrap_or_default();
    let mut next = Cursor::default();
    keys.clear();
    values.clear();
    let mut attr = BatchAttr {
        in_batch: if cursor.is_some() { start.as_ptr() as u64 } else { 0 },
        out_batch: next.as_mut_ptr() as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: keys.capacity().min(values.capacity()) as u32,
        map_fd: raw(map),
        elem_flags: 0,
        flags: 0,
    };
    let end = match bpf(command::MAP_LOOKUP_BATCH, &mut attr) {
        Ok(_) => false,
        Err(err) if err.raw_os_error() == Some(libc::ENOENT) => true,
        Err(err) => return Err(err),
    };
    // SAFETY: the kernel filled `count` rows of each, no more than the capacities given.
    unsafe {
        keys.set_len(attr.count as usize);
        values.set_len(attr.count as usize);
    }
    Ok((!end).then_some(next))
}

#[repr(C)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Opens what is pinned at `path`, which needs no more than the right to the file: opening by
/// id would need CAP_SYS_ADMIN.
pub fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjAttr { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    bpf(command::OBJ_GET, &mut attr).map(owned)
}

/// Pins an object at `path`, where nothing may be yet.
pub fn obj_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjAttr { pathname: path.as_ptr() as u64, bpf_fd: raw(fd), file_flags: 0 };
    bpf(command::OBJ_PIN, &mut attr).map(drop)
}

#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

fn info<T: Default>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let mut attr = InfoAttr {
        bpf_fd: raw(fd),
        info_len: size_of::<T>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(command::OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// What an open map is made of.
pub fn map_layout(map: BorrowedFd<'_>) -> io::Result<MapLayout> {
    // `struct bpf_map_info`: type, id, key_size, value_size, max_entries, map_flags.
    let [map_type, _id, key_size, value_size, max_entries, flags] = info::<[u32; 6]>(map)?;
    Ok(MapLayout { map_type, key_size, value_size, max_entries, flags })
}

/// The number by which the kernel knows an open map.
pub fn map_id(map: BorrowedFd<'_>) -> io::Result<u32> {
    info::<[u32; 2]>(map).map(|[_type, id]| id)
}

/// A link as `bpftool link show` lists it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkInfo {
    pub id: u32,
    pub program_id: u32,
    /// `enum bpf_link_type`.
    pub link_type: u32,
    /// Of a link on a device: its index in its network namespace, 0 once the device is gone.
    pub ifindex: u32,
    /// Of a link on a cgroup: the cgroup's id, 0 once it is gone.
    pub cgroup: u64,
}

/// `BPF_LINK_TYPE_CGROUP`.
pub const LINK_TYPE_CGROUP: u32 = 3;
/// `BPF_LINK_TYPE_XDP`.
pub const LINK_TYPE_XDP: u32 = 6;
/// `BPF_LINK_TYPE_TCX`.
pub const LINK_TYPE_TCX: u32 = 11;

impl LinkInfo {
    /// False once the device or cgroup is gone, or somebody detached the link.
    pub fn is_attached(&self) -> bool {
        match self.link_type {
            LINK_TYPE_TCX | LINK_TYPE_XDP => self.ifindex != 0,
            LINK_TYPE_CGROUP => self.cgroup != 0,
            _ => true,
        }
    }
}

pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // `struct bpf_link_info`: type, id, prog_id, padding, then by type `{ ifindex,
    // attach_type }`, `{ ifindex }` or `{ cgroup_id: u64, attach_type }`.
    let [link_type, id, program_id, _, first, second, ..] = info::<[u32; 16]>(link)?;
    Ok(LinkInfo {
        id,
        program_id,
        link_type,
        ifindex: if matches!(link_type, LINK_TYPE_TCX | LINK_TYPE_XDP) { first } else { 0 },
        cgroup: if link_type == LINK_TYPE_CGROUP {
            u64::from(first) | u64::from(second) << 32
        } else {
            0
        },
    })
}

/// The id of an open program.
pub fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    let [_, id] = info::<[u32; 2]>(program)?;
    Ok(id)
}

#[repr(C)]
struct LinkCreateAttr {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    expected_revision: u64,
}

/// Where a program stands among those of a device's hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    First,
    Last,
}

/// Attaches a program to the hook of a device, which is named by its index in this thread's
/// network namespace: a name could have moved to another device since it was read.
pub fn link_create_tcx(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: u32,
    place: Place,
) -> io::Result<OwnedFd> {
    const BEFORE: u32 = 1 << 3;
    const AFTER: u32 = 1 << 4;
    let mut attr = LinkCreateAttr {
        prog_fd: raw(program),
        target: ifindex,
        attach_type,
        // Before or after nothing in particular is before or after all.
        flags: match place {
            Place::First => BEFORE,
            Place::Last => AFTER,
        },
        relative: 0,
        pad: 0,
        expected_revision: 0,
    };
    bpf(command::LINK_CREATE, &mut attr).map(owned)
}

/// The ids of all programs that are attached to a device by tcx, whoever has attached them; none where the
/// kernel has no tcx.
pub fn tcx_programs(ifindex: u32) -> io::Result<Vec<u32>> {
    /// More than there ever are on a device.
    const MOST: usize = 64;
    let mut found = Vec::new();
    for attach_type in [attach_type::TCX_INGRESS, attach_type::TCX_EGRESS] {
        let mut ids = [0_u32; MOST];
        let mut attr = ProgQueryAttr {
            target: ifindex,
            attach_type,
            query_flags: 0,
            attach_flags: 0,
            ids: ids.as_mut_ptr() as u64,
            count: MOST as u32,
            pad: 0,
            prog_attach_flags: 0,
            link_ids: 0,
            link_attach_flags: 0,
            revision: 0,
        };
        match bpf(command::PROG_QUERY, &mut attr) {
            Ok(_) => found.extend(&ids[..MOST.min(attr.count as usize)]),
            Err(err) if err.raw_os_error() == Some(libc::EINVAL) => return Ok(Vec::new()),
            Err(err) => return Err(err),
        }
    }
    Ok(found)
}

/// `struct { } query` of `union bpf_attr`.
#[repr(C)]
struct ProgQueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// By whom an XDP program is run: `XDP_FLAGS_DRV_MODE` and `XDP_FLAGS_SKB_MODE`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum XdpMode {
    /// By the device's driver, before there is a socket buffer.
    Native,
    /// By the kernel, with a socket buffer.
    Generic,
}

/// Attaches an XDP program to a device, which may have none, by its index in this thread's network
/// namespace. Fails with `EBUSY` where another program is, `EOPNOTSUPP` where the driver can run none,
/// `EINVAL` or `ERANGE` where the device's settings are in the way.
pub fn link_create_xdp(
    program: BorrowedFd<'_>,
    ifindex: u32,
    mode: XdpMode,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        prog_fd: raw(program),
        target: ifindex,
        attach_type: attach_type::XDP,
        flags: match mode {
            XdpMode::Native => 1 << 2,
            XdpMode::Generic => 1 << 1,
        },
        relative: 0,
        pad: 0,
        expected_revision: 0,
    };
    bpf(command::LINK_CREATE, &mut attr).map(owned)
}

/// Attaches a program to a cgroup, beside those already there.
pub fn link_create_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        prog_fd: u32,
        target_fd: u32,
        attach_type: u32,
        flags: u32,
    }
    let mut attr = Attr { prog_fd: raw(program), target_fd: raw(cgroup), attach_type, flags: 0 };
    bpf(command::LINK_CREATE, &mut attr).map(owned)
}

/// Puts another program behind a link, between two packets.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let mut attr = Attr { link_fd: raw(link), new_prog_fd: raw(program), flags: 0, old_prog_fd: 0 };
    bpf(command::LINK_UPDATE, &mut attr).map(drop)
}

/// Runs a program once, on the packet given, which need not stem from any device; gives what
/// it returned.
pub fn prog_test_run(program: BorrowedFd<'_>, packet: &[u8]) -> io::Result<u32> {
    #[repr(C)]
    struct Attr {
        prog_fd: u32,
        retval: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
    }
    let mut attr = Attr {
        prog_fd: raw(program),
        retval: 0,
        data_size_in: packet.len() as u32,
        data_size_out: 0,
        data_in: packet.as_ptr() as u64,
        data_out: 0,
        repeat: 1,
        duration: 0,
    };
    bpf(command::PROG_TEST_RUN, &mut attr)?;
    Ok(attr.retval)
}
