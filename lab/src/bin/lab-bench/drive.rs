//! The driver: orders in, reports out.

use std::{
    io::{self, BufRead, Write},
    time::Duration,
};

use lab::bench::Order;

use crate::{
    frames::{self, Net},
    rounds, rows, watch,
};

/// Does as it is told until its input ends.
pub(crate) fn run() -> io::Result<()> {
    let mut net = Net::default();
    for line in io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        let report = report(&order, &mut net)
            .map_err(|err| io::Error::new(err.kind(), format!("{order:?}: {err}")))?;
        let mut out = io::stdout().lock();
        writeln!(out, "{report}")?;
        out.flush()?;
    }
    Ok(())
}

fn report(order: &Order, net: &mut Net) -> io::Result<String> {
    let round = |round: io::Result<_>| Ok(serde_json::to_string(&round?)?);
    let seen = |seen: io::Result<_>| Ok(serde_json::to_string(&seen?)?);
    let caught = |frames: io::Result<u64>| Ok(serde_json::to_string(&frames?)?);
    match *order {
        Order::Connect { to, count } => round(rounds::connect(to, count)),
        Order::Latency { to, count } => round(rounds::latency(to, count)),
        Order::Bulk { to, parts, bytes } => round(rounds::bulk(to, parts, bytes)),
        Order::Flood { to, parts, datagrams } => round(rounds::flood(to, parts, datagrams)),
        Order::Follow { to, until, pause_micros, patience_millis } => {
            let pause = Duration::from_micros(pause_micros);
            seen(Ok(watch::follow(to, until, pause, patience_millis)))
        }
        Order::Scan { first, count, step, port, patience_millis } => {
            seen(watch::scan(first, count, step, port, patience_millis))
        }
        Order::Rows { ref table, ref keys, present, patience_millis } => {
            seen(rows::watch(table, keys, present, patience_millis))
        }
        Order::Greet { to, first, count } => seen(watch::greet(to, first, count)),
        Order::Catch { ref device, at, ref like } => caught(net.spread(device, at, like)),
        Order::Count => caught(net.count()),
        Order::Shoot { ref device, frame, millis, rate } => {
            Ok(serde_json::to_string(&frames::shoot(device, frame, millis, rate)?)?)
        }
    }
}
