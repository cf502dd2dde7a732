//! The program's own code in memory. Most of it runs once, when an agent starts: it need not stay
//! resident for months after.

use std::{fs, io};

use rustix::mm::{Advice, madvise};
use tracing::debug;

/// Gives the pages of code back. Those that run again come from the file again, mostly without a
/// read: the kernel's cache of the file keeps them for as long as there is room.
pub fn let_go() {
    if let Err(err) = try_let_go() {
        debug!(%err, "the program's code stays in memory");
    }
}

fn try_let_go() -> io::Result<()> {
    let program = fs::read_link("/proc/self/exe")?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    for (start, length) in code(&maps, &program.to_string_lossy()) {
        // SAFETY: whole pages of a file's mapping that nobody may write to, so that they hold what
        // the file does, from which the kernel fills them again where they are used.
        unsafe { madvise(start as *mut _, length, Advice::LinuxDontNeed) }?;
    }
    Ok(())
}

/// Where a program's code lies: start and length of each mapping of its file that may be run and
/// not be written to, out of /proc/PID/maps (proc_pid_maps(5)).
fn code<'a>(maps: &'a str, program: &'a str) -> impl Iterator<Item = (usize, usize)> + 'a {
    maps.lines().filter_map(move |line| {
        let mut words = line.split_ascii_whitespace();
        let (range, access) = (words.next()?, words.next()?);
        // Offset, device and inode.
        let path = words.nth(3)?;
        if access != "r-xp" || path != program {
            return None;
        }
        let (start, end) = range.split_once('-')?;
        let at = |text| usize::from_str_radix(text, 16).ok();
        let (start, end) = (at(start)?, at(end)?);
        Some((start, end.checked_sub(start)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_the_program_itself() {
        let maps = "\
55893633e000-558936340000 r--p 00000000 fe:00 247026  /usr/bin/agent
558936340000-558936345000 r-xp 00002000 fe:00 247026  /usr/bin/agent
558936348000-558936349000 r--p 00009000 fe:00 247026  /usr/bin/agent
558936349000-55893634a000 rw-p 0000a000 fe:00 247026  /usr/bin/agent
7f0000000000-7f0000001000 r-xp 00000000 fe:00 9  /lib/libc.so
7ffc00000000-7ffc00001000 r-xp 00000000 00:00 0  [vdso]
";
        let found: Vec<_> = code(maps, "/usr/bin/agent").collect();
        assert_eq!(found, [(0x5589_3634_0000, 0x5000)]);
        assert_eq!(code("nonsense\n1-2 r-xp", "x").count(), 0);
    }

    #[test]
    fn what_runs_goes_on() {
        try_let_go().unwrap();
        try_let_go().unwrap();
    }
}
