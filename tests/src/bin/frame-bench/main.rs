//! What programs cost a frame, by the kernel's own count: runs each of them over single frames, by
//! BPF_PROG_TEST_RUN, and prints a line of JSON for each case. `cargo xtask bench xdp` runs it; by hand:
//! `frame-bench OBJECT RUNS [FLOWS...]`. Needs root; works in a network namespace of its own.

mod bed;
mod reference;

use std::{env, fs, ops::Range};

use agent_kit::program;
use anyhow::{Context, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    programs::{Program, ProgramInfo, SchedClassifier, TestRun, TestRunOptions, Xdp},
    sys::{Stats, enable_stats},
};
use bed::{Bed, Case};
use datapath::address::{V4, V6};

/// Rounds that a case's runs are divided into; programs take turns.
const ROUNDS: usize = 20;
/// As many as a table of the default size holds beside others, and far more than caches do.
const MANY: u32 = 64_000;

fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let (Some(object), Some(runs)) = (arguments.next(), arguments.next()) else {
        bail!("usage: frame-bench OBJECT RUNS [FLOWS...]");
    };
    let runs: usize = runs.parse().context("RUNS must be a number")?;
    let mut numbers: Vec<u32> = Vec::new();
    for number in arguments {
        numbers.push(number.parse().context("FLOWS must be numbers")?);
    }
    if numbers.is_empty() {
        numbers = vec![1, MANY];
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("needs root")?;
    let device = bed::make_devices()?;
    let bytes = fs::read(&object).with_context(|| format!("cannot read {object}"))?;
    let _stats = enable_stats(Stats::RunTime).context("the kernel counts no run time")?;
    let mut pass = reference::load()?;
    for flows in numbers {
        measure::<V4>(&bytes, &mut pass, device, flows, runs)?;
        measure::<V6>(&bytes, &mut pass, device, flows, runs)?;
    }
    Ok(())
}

/// All cases of a family, over so many flows.
fn measure<F: bed::Family>(
    bytes: &[u8],
    pass: &mut Xdp,
    device: u32,
    flows: u32,
    runs: usize,
) -> Result<()> {
    for case in Case::ALL {
        let mut ebpf = load(bytes)?;
        let bed = Bed::<F>::fill(&ebpf, device, case, flows)?;
        let mut forgets = bed.forgets(&ebpf)?;
        let (mut reference_first, mut first) = (Vec::new(), Vec::new());
        // What is established has been seen.
        if flows > 1 && case != Case::New {
            for nth in 0..ROUNDS {
                let turns = nth * bed.flows() / ROUNDS..(nth + 1) * bed.flows() / ROUNDS;
                reference_first.push(round(pass, device, &bed, turns.clone(), bed::PASS, None)?);
                let xdp = xdp(&mut ebpf, "xdp_ingress")?;
                first.push(round(xdp, device, &bed, turns, case.verdict(), None)?);
            }
        }
        let (mut reference, mut ours) = (Vec::new(), Vec::new());
        let (mut reference_beside, mut beside) = (Vec::new(), Vec::new());
        // Each round goes on where the one before ended.
        let turns = |nth: usize| nth * (runs / ROUNDS)..(nth + 1) * (runs / ROUNDS);
        for nth in 0..ROUNDS {
            reference.push(round(pass, device, &bed, turns(nth), bed::PASS, None)?);
            let xdp = xdp(&mut ebpf, "xdp_ingress")?;
            ours.push(round(xdp, device, &bed, turns(nth), case.verdict(), forgets.as_mut())?);
        }
        // By itself: a frame meets the one program or the other, and neither finds the processor's caches
        // full of what the other needs.
        for nth in 0..ROUNDS {
            reference_beside.push(round(pass, device, &bed, turns(nth), bed::PASS, None)?);
            beside.push(packet_path(&mut ebpf, device, &bed, turns(nth), forgets.as_mut())?);
        }
        let row = serde_json::json!({
            "case": case.name(),
            "family": F::NAME,
            "flows": flows,
            "runs": runs,
            "first_pass_ns": reference_first,
            "first_xdp_ns": first,
            "pass_ns": reference,
            "xdp_ns": ours,
            "packet_path_pass_ns": reference_beside,
            "packet_path_ns": beside,
        });
        println!("{row}");
    }
    Ok(())
}

fn load(bytes: &[u8]) -> Result<Ebpf> {
    let mut ebpf = EbpfLoader::new().btf(None).load(bytes)?;
    for name in ["xdp_ingress", "uplink_ingress"] {
        program::load(ebpf.program_mut(name).with_context(|| format!("no program {name}"))?)?;
    }
    Ok(ebpf)
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    match ebpf.program_mut(name) {
        Some(Program::Xdp(program)) => Ok(program),
        _ => bail!("no XDP program {name}"),
    }
}

/// Nanoseconds a run, of the runs of some turns one by one.
fn round<F: bed::Family>(
    program: &mut Xdp,
    device: u32,
    bed: &Bed<F>,
    turns: Range<usize>,
    verdict: u32,
    mut forgets: Option<&mut bed::Forgets<F>>,
) -> Result<f64> {
    let before = program.info()?;
    let (mut runs, mut others) = (0, 0);
    for turn in turns {
        runs += 1;
        let frame = bed.frame(turn);
        let context = bed::context(frame.len(), device);
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            repeat: 1,
            ..TestRunOptions::default()
        };
        let result = program.test_run(options)?;
        if result.return_value != verdict {
            others += 1;
            // One checksum in 65,536 looks like one that a device has yet to complete.
            if others > 10 + runs / 1_000 {
                bail!("returned {} where {verdict} was expected", result.return_value);
            }
        } else if let Some(forgets) = &mut forgets {
            forgets.forget()?;
        }
    }
    let after = program.info()?;
    Ok(each(&before, &after))
}

/// The same of the program that sees frames which XDP passes.
fn packet_path<F: bed::Family>(
    ebpf: &mut Ebpf,
    device: u32,
    bed: &Bed<F>,
    turns: Range<usize>,
    mut forgets: Option<&mut bed::Forgets<F>>,
) -> Result<f64> {
    let Some(Program::SchedClassifier(program)) = ebpf.program_mut("uplink_ingress") else {
        bail!("no program uplink_ingress");
    };
    let program: &mut SchedClassifier = program;
    let context = bed::skb(device);
    let before = program.info()?;
    for turn in turns {
        let frame = bed.frame(turn);
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            repeat: 1,
            ..TestRunOptions::default()
        };
        let result = program.test_run(options)?;
        if result.return_value != bed::NEXT {
            bail!("the packet path returned {:#x}", result.return_value);
        }
        if let Some(forgets) = &mut forgets {
            forgets.forget()?;
        }
    }
    let after = program.info()?;
    Ok(each(&before, &after))
}

/// Nanoseconds a run between two looks at a program.
#[allow(clippy::cast_precision_loss, reason = "times of a measurement have fewer digits")]
fn each(before: &ProgramInfo, after: &ProgramInfo) -> f64 {
    let time = after.run_time().saturating_sub(before.run_time());
    let count = after.run_count() - before.run_count();
    time.as_nanos() as f64 / count as f64
}
