//! Flags as Go's packages spell them: one dash before a long name, `-v` with a level.

use std::ffi::OsString;

use clap::CommandFactory;

use super::Cli;

/// Levels of klog from which on we say more: below are the ones that manifests usually set.
const DEBUG: u32 = 4;
const TRACE: u32 = 6;

/// The command line as clap takes it.
pub fn spelled(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let names = long_names();
    let mut spelled = Vec::new();
    let mut arguments = arguments.peekable();
    spelled.extend(arguments.next());
    while let Some(argument) = arguments.next() {
        let Some(text) = argument.to_str() else {
            spelled.push(argument);
            continue;
        };
        if text == "--" {
            spelled.push(argument);
            spelled.extend(arguments);
            break;
        }
        let flag = text.strip_prefix("--").or_else(|| text.strip_prefix('-'));
        let Some(flag) = flag.filter(|flag| !flag.is_empty()) else {
            spelled.push(argument);
            continue;
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        };
        if name == "v" {
            let next = arguments.peek().and_then(|next| next.to_str()?.parse().ok());
            let level = match value {
                Some(value) => value.parse().ok(),
                None => next,
            };
            if value.is_none() && next.is_some() {
                arguments.next();
            }
            spelled.extend(std::iter::repeat_n(OsString::from("-v"), verbosity(level)));
        } else if names.iter().any(|known| known == name) {
            spelled.push(format!("--{flag}").into());
        } else {
            spelled.push(argument);
        }
    }
    spelled
}

/// How often `-v` would have to be given; without a level once.
fn verbosity(level: Option<u32>) -> usize {
    match level {
        None => 1,
        Some(level) => usize::from(level >= DEBUG) + usize::from(level >= TRACE),
    }
}

fn long_names() -> Vec<String> {
    let command = Cli::command();
    let all = std::iter::once(&command).chain(command.get_subcommands());
    let own = ["help", "version"].map(String::from);
    all.flat_map(clap::Command::get_arguments)
        .filter_map(|argument| argument.get_long().map(String::from))
        .chain(own)
        .collect()
}

/// What Go's `strconv.ParseBool` takes.
pub(super) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spell(line: &str) -> String {
        let words = spelled(line.split(' ').map(Into::into));
        words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn one_dash_and_two_are_the_same() {
        assert_eq!(
            spell("x -iface=eth0 --public-ip 1.2.3.4"),
            "x --iface=eth0 --public-ip 1.2.3.4"
        );
        assert_eq!(spell("x -iface eth0 -ip-masq"), "x --iface eth0 --ip-masq");
        assert_eq!(spell("x status -o json -help"), "x status -o json --help");
        assert_eq!(spell("x -unknown - -- -iface"), "x -unknown - -- -iface");
    }

    #[test]
    fn levels() {
        assert_eq!(spell("x -v=2 -iface=a"), "x --iface=a");
        assert_eq!(spell("x -v 4"), "x -v");
        assert_eq!(spell("x --v=10"), "x -v -v");
        assert_eq!(spell("x -v -v"), "x -v -v");
    }
}
