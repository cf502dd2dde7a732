//! Programs on devices of kernels before 6.6, which have no links for them: filters of the
//! `clsact` queueing discipline. A filter belongs to the device, not to a process. Ours are
//! known by a fixed handle and priority, so that the next process replaces them in place, and
//! by the programs' names, so that a cleanup finds them.

use aya::programs::{
    ProgramError, SchedClassifier, TcAttachType,
    tc::{
        NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
        qdisc_detach_program,
    },
};

/// Tells our filters from others at the same priority.
pub const HANDLE: u16 = 0x4d4c;

/// The order of our filters on one hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Priority {
    First = 1,
    Second = 2,
    Third = 3,
}

/// Has the program run on the device's hook, in place of an earlier one of ours.
pub fn attach(
    program: &mut SchedClassifier,
    device: &str,
    hook: TcAttachType,
    priority: Priority,
) -> Result<(), ProgramError> {
    // Fails if the discipline is there, which is as good; if it is for another reason, the
    // filter fails too and tells.
    let _ = qdisc_add_clsact(device);
    let handle = TcHandle::new(0, HANDLE);
    let options = NlOptions { priority: priority as u16, handle, classid: None };
    let id = match program.attach_with_options(device, hook, TcAttachOptions::Netlink(options)) {
        Ok(id) => id,
        Err(first) => {
            let link = SchedClassifierLink::attached(device, hook, priority as u16, handle, None)
                .map_err(TcError::IoError)?;
            program.attach_to_link(link).map_err(|_| first)?
        }
    };
    // Dropped, it would take the filter off.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Takes our filter off the device; true if there was one. `program` is its name.
pub fn detach(device: &str, hook: TcAttachType, program: &str) -> bool {
    qdisc_detach_program(device, hook, program).is_ok()
}
