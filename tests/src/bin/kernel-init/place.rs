//! Networks beside the machine's own: each a thread that is in one, and does there what it is told.

use std::{process::Command, sync::mpsc, thread};

use anyhow::{Context, Result, anyhow, bail};
use nix::{sched::CloneFlags, unistd::gettid};

type Job = Box<dyn FnOnce() + Send>;

pub(crate) struct Place {
    thread: i32,
    jobs: mpsc::Sender<Job>,
}

impl Place {
    pub(crate) fn new() -> Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (begun, word) = mpsc::channel();
        thread::spawn(move || {
            let own = nix::sched::unshare(CloneFlags::CLONE_NEWNET).map(|()| gettid().as_raw());
            let is_there = own.is_ok();
            if begun.send(own).is_ok() && is_there {
                for job in inbox {
                    job();
                }
            }
        });
        Ok(Self { thread: word.recv()?.context("a network of its own")?, jobs })
    }

    /// Does it there, and waits for it.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (done, word) = mpsc::channel();
        let job = Box::new(move || drop(done.send(work())));
        self.jobs.send(job).map_err(|_| anyhow!("the thread has ended"))?;
        word.recv()?
    }

    /// Joins it to the machine's network by a pair of devices, of which this one's is called `eth0`.
    pub(crate) fn join(&self, device: &str, address: &str, own: &str, gateway: &str) -> Result<()> {
        ip(&format!("link add {device} type veth peer name eth0 netns {}", self.thread))?;
        ip(&format!("address add {address} dev {device}"))?;
        ip(&format!("link set {device} up"))?;
        let lines = [
            "link set lo up".to_owned(),
            format!("address add {own} dev eth0"),
            "link set eth0 up".to_owned(),
            format!("route add default via {gateway} dev eth0 onlink"),
        ];
        self.run(move || lines.iter().try_for_each(|line| ip(line)))
    }
}

/// Runs `ip` with these arguments in the network of the calling thread.
pub(crate) fn ip(line: &str) -> Result<()> {
    let output = Command::new("/ip").args(line.split(' ')).output().context("/ip")?;
    if !output.status.success() {
        bail!("ip {line}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
