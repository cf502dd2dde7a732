//! Programs, whatever their kind.

use aya::programs::{Program, ProgramError};

/// Has the kernel verify a program. Refuses kinds that no agent uses.
pub fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::Xdp(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}
