//! Processes of a lab: started inside a place, ended when dropped.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio},
    sync::{
        OnceLock,
        mpsc::{self, Sender},
    },
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::{prctl::set_pdeathsig, signal::Signal},
    unistd::Pid,
};

use crate::{
    error::{At, Error, Result},
    namespace::Namespace,
    record::end_if_interrupted,
};

/// A running process. Dropping it kills it, unless it was told to outlive its starter.
#[derive(Debug)]
pub struct Process {
    /// None once it was let go.
    child: Option<Child>,
}

impl Process {
    /// Starts a command in a network namespace and a cgroup. A process that is not `kept`
    /// also ends when this process does, however that ends.
    pub(crate) fn start(
        namespace: &Namespace,
        cgroup: &Path,
        mut command: Command,
        kept: bool,
    ) -> Result<Self> {
        end_if_interrupted();
        let program = command.get_program().to_string_lossy().into_owned();
        let file = namespace.open()?;
        let procs = cgroup.join("cgroup.procs");
        let mut joined = OpenOptions::new().write(true).open(&procs).at("open", procs)?;
        let enter = move || {
            joined.write_all(b"0")?;
            setns(&file, CloneFlags::CLONE_NEWNET)?;
            if !kept {
                set_pdeathsig(Signal::SIGKILL)?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec only system calls on descriptors opened before.
        unsafe { command.pre_exec(enter) };
        let child = spawn(command).map_err(|source| Error::Start { program, source })?;
        Ok(Self { child: Some(child) })
    }

    fn child(&mut self) -> &mut Child {
        self.child.as_mut().expect("present until the process is let go, which consumes it")
    }

    pub fn id(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child().stdin.take()
    }

    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child().stdout.take()
    }

    pub fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.id()) {
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
        }
    }

    /// Ends it by SIGKILL and waits until it is gone.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.child().kill()?;
        self.child().wait()
    }

    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child().wait()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child().try_wait().ok().flatten()
    }

    /// Waits, and returns what it printed to pipes.
    pub fn output(mut self) -> io::Result<Output> {
        self.child.take().expect("present until here").wait_with_output()
    }

    /// Leaves it running when this value and this process are gone.
    pub fn let_go(mut self) {
        self.child = None;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Has a command append all that it prints to a log, and read nothing.
pub(crate) fn log_to(command: &mut Command, path: &Path) -> Result<()> {
    let log = OpenOptions::new().create(true).append(true).open(path).at("open", path)?;
    let errors = log.try_clone().at("open", path)?;
    command.stdin(Stdio::null()).stdout(log).stderr(errors);
    Ok(())
}

/// The last lines of a log, for a failure's report.
pub(crate) fn log_tail(path: &Path) -> String {
    let log = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

type Order = (Command, Sender<io::Result<Child>>);

/// Starts a command from a thread that lives as long as the process: the signal at the
/// parent's death comes when the parent's *thread* ends, and threads of tests are short-lived.
fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        });
        orders
    });
    let (reply, answer) = mpsc::channel();
    let gone = || io::Error::other("the thread that starts processes is gone");
    spawner.send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}
