//! klog's `-v` with a level, which many manifests of kube-proxy have.

use std::ffi::OsString;

/// The command line as clap takes it: `-v=2`, `-v2` and `-v 2` are `--v=2`, whose meaning kube-proxy's
/// flags know. Without a level, `-v` and `-vv` are ours.
pub fn spelled(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut spelled = Vec::new();
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            spelled.push(argument);
            spelled.extend(arguments);
            break;
        }
        let own = argument.to_str().and_then(|text| text.strip_prefix("-v"));
        let level = match own {
            Some("") => arguments.next_if(|next| next.to_str().is_some_and(is_level)),
            // What is no level is refused by the name that kube-proxy has for it.
            Some(text) => match text.strip_prefix('=') {
                Some(level) => Some(level.into()),
                None => is_level(text).then(|| text.into()),
            },
            None => None,
        };
        match level {
            Some(level) => {
                let mut flag = OsString::from("--v=");
                flag.push(level);
                spelled.push(flag);
            }
            None => spelled.push(argument),
        }
    }
    spelled
}

fn is_level(text: &str) -> bool {
    text.parse::<u32>().is_ok()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{config::Cli, kube_proxy};

    fn spell(line: &str) -> String {
        let words = spelled(line.split(' ').map(Into::into));
        words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_level_is_klogs_in_each_spelling() {
        for line in ["x -v=2 -vv", "x -v2 -vv", "x -v 2 -vv", "x --v=2 -vv"] {
            assert_eq!(spell(line), "x --v=2 -vv");
        }
        for line in ["x -v", "x -v -v", "x -vv run", "x -v --v=4", "x -version", "x -- -v=2"] {
            assert_eq!(spell(line), line);
        }
    }

    #[test]
    fn a_level_means_what_kube_proxy_means_by_it() {
        let verbose = |flags: &str| {
            let words = format!("proxy-agent {flags}");
            let cli = Cli::try_parse_from(spelled(words.split(' ').map(Into::into)));
            let mut args = cli.map_err(|err| err.to_string())?.run;
            kube_proxy::resolve(&mut args).map_err(|err| err.to_string())?;
            Ok::<_, String>(args.verbose)
        };
        for (flags, level) in
            [("-v=2", 0), ("-v=4", 1), ("-v6", 2), ("-v 5", 2), ("-v", 1), ("-vv", 2), ("-v -v", 2)]
        {
            assert_eq!(verbose(flags), Ok(level), "{flags}");
        }
        assert!(verbose("-v=much").unwrap_err().contains("--v"));
    }
}
