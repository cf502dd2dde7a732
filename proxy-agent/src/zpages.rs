//! `/flagz` and `/statusz`: a process' flags and age, as Kubernetes' components tell people who look
//! at any of them (KEP-4827, KEP-4828). Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

/// Groups of flags, which are one object in a configuration.
const GROUPS: [&str; 3] = ["etcd", "reserved_ports", "netfilter"];

fn head(page: &str) -> String {
    format!(
        "\nproxy-agent {page}\nWarning: This endpoint is not meant to be machine parseable, has no \
         formatting compatibility guarantees and is for debugging purposes only.\n\n"
    )
}

/// Every flag with the value in force, by name. `config` is the configuration as `/configz` has it.
pub fn flagz(config: &Value) -> String {
    let mut lines = Vec::new();
    for (name, value) in fields(config) {
        if GROUPS.contains(&name.as_str()) {
            lines.extend(fields(value).map(line));
        } else {
            lines.push(line((name, value)));
        }
    }
    lines.sort();
    head("flagz") + &lines.concat()
}

fn fields(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn line((name, value): (&String, &Value)) -> String {
    let name = name.replace('_', "-");
    match value {
        Value::Null => format!("{name}=\n"),
        Value::String(text) => format!("{name}={text}\n"),
        other => format!("{name}={other}\n"),
    }
}

/// Since when this process runs, and of which version it is.
pub fn statusz(version: &str, now: Timestamp, age: Duration, paths: &[&str]) -> String {
    let started = now - SignedDuration::try_from(age).unwrap_or_default();
    let started = started.strftime("%a %b %e %H:%M:%S UTC %Y");
    let seconds = age.as_secs();
    let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
    format!(
        "{}Started: {started}\nUp: {hours} hr {minutes:02} min {:02} sec\nBinary version: {version}\n\
         Paths: {}\n",
        head("statusz"),
        seconds % 60,
        paths.join(" "),
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::Cli;

    #[test]
    fn flags_are_told_by_their_names() {
        let line = "proxy-agent --source=dir:/x --node-ip=10.0.0.1 --etcd-cafile=/ca \
                    --nodeport-addresses=primary,localhost --healthz-bind-address=";
        let args = Cli::parse_from(line.split_whitespace()).run;
        let text = flagz(&serde_json::to_value(&args).unwrap());
        for line in [
            "\nproxy-agent flagz\nWarning: ",
            "\nalgorithm=\n",
            "\netcd-cafile=/ca\n",
            "\nhealthz-bind-address=\n",
            "\nnode-ip=[\"10.0.0.1\"]\n",
            "\nnodeport-addresses=[\"primary\",\"localhost\"]\n",
            "\nreserved-ports-file=/proc/sys/net/ipv4/ip_local_reserved_ports\n",
            "\nsource={\"dir\":\"/x\"}\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        // Each is one that the command line takes.
        let command = <Cli as clap::CommandFactory>::command();
        let flags: Vec<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
        let told = text.split("\n\n").nth(1).unwrap().lines();
        for name in told.map(|line| line.split('=').next().unwrap()) {
            assert!(flags.contains(&name), "{name}");
        }
        assert!(!text.contains("password"), "{text}");
    }

    #[test]
    fn age_and_version() {
        let now = "2026-03-04T13:01:05Z".parse().unwrap();
        let text = statusz("1.2.3", now, Duration::from_secs(3_665), &["/healthz", "/livez"]);
        let (head, rest) = text.split_once("\n\n").unwrap();
        assert!(head.starts_with("\nproxy-agent statusz\nWarning: "), "{text}");
        assert_eq!(
            rest,
            "Started: Wed Mar  4 12:00:00 UTC 2026\nUp: 1 hr 01 min 05 sec\n\
             Binary version: 1.2.3\nPaths: /healthz /livez\n"
        );
    }
}
