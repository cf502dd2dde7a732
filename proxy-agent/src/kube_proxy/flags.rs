//! kube-proxy's flags that Millrace has no flag for, so that the arguments of its DaemonSet start
//! this agent. `--help` does not list them: each means what its field of the configuration does.

use std::path::PathBuf;

use clap::{
    Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches, error::ErrorKind,
    parser::ValueSource, value_parser,
};

use super::{
    document::{Given, flag_value},
    fields::{FIELDS, Kind},
};

/// Flags of neither a field nor a meaning, with what to use instead.
const IDLE: &[(&str, &str)] = &[
    ("log-json-info-buffer-size", "nothing is buffered"),
    ("log-json-split-stream", "the log goes to standard error"),
    ("log-text-info-buffer-size", "nothing is buffered"),
    ("log-text-split-stream", "the log goes to standard error"),
];

/// Ports of the servers, which are none if 0: kube-proxy's addresses have ports of their own, before
/// which another number does not count.
const PORTS: [(&str, &str, &str); 2] = [
    ("healthz-port", "--healthz-port", HEALTHZ_BIND_ADDRESS),
    ("metrics-port", "--metrics-port", METRICS_BIND_ADDRESS),
];

pub const HEALTHZ_BIND_ADDRESS: &str = "--healthz-bind-address";
pub const METRICS_BIND_ADDRESS: &str = "--metrics-bind-address";

const CLEANUP: &str = "cleanup";
const INIT_ONLY: &str = "init-only";
const WRITE_CONFIG_TO: &str = "write-config-to";

/// What is done in place of running.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Errand {
    /// `--write-config-to`: writes the configuration that is in force.
    WriteConfig(PathBuf),
    /// `--cleanup`: removes what proxies left.
    Cleanup,
    /// `--init-only`: what takes more rights than running does.
    Init,
}

/// Flags of both, which a file goes before. Names as in [`crate::config::RunArgs`].
const SHARED: &[(&str, &str)] = &[
    ("kubeconfig", "--kubeconfig"),
    ("cluster_cidr", "--cluster-cidr"),
    ("nodeport_addresses", "--nodeport-addresses"),
    ("metrics_bind_address", METRICS_BIND_ADDRESS),
    ("healthz_bind_address", HEALTHZ_BIND_ADDRESS),
];

/// What was given on the command line.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct KubeProxyFlags {
    pub given: Vec<Given>,
    /// Those without meaning, each with what to do instead.
    pub idle: Vec<String>,
    /// Names of flags that a file goes before.
    pub shared: Vec<&'static str>,
    /// Flags of the addresses at which no server shall be.
    pub disabled: Vec<&'static str>,
    pub errand: Option<Errand>,
}

fn arg(name: &'static str, is_switch: bool) -> Arg {
    let arg = Arg::new(name).long(name).hide(true).action(ArgAction::Set);
    if is_switch {
        // Go's way: `--flag` and `--flag=false`, but not `--flag false`.
        return arg.num_args(0..=1).require_equals(true).default_missing_value("true");
    }
    arg.allow_hyphen_values(true)
}

/// As with kube-proxy, one goes before another.
fn errand<'a>(text: impl Fn(&str) -> Option<&'a String>) -> Result<Option<Errand>, Error> {
    let is_set = |name: &str| match text(name).map(String::as_str) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => {
            let message = format!("--{name}: {other:?} cannot be; write true or false");
            Err(Error::raw(ErrorKind::InvalidValue, message))
        }
    };
    let (cleans, inits) = (is_set(CLEANUP)?, is_set(INIT_ONLY)?);
    let path = text(WRITE_CONFIG_TO).filter(|path| !path.is_empty());
    Ok(match path {
        Some(path) => Some(Errand::WriteConfig(path.into())),
        None if cleans => Some(Errand::Cleanup),
        None => inits.then_some(Errand::Init),
    })
}

impl Args for KubeProxyFlags {
    fn augment_args(command: Command) -> Command {
        let fields = FIELDS.iter().filter_map(|field| Some((field.flag?, field.kind)));
        let fields = fields.map(|(flag, kind)| arg(flag, kind == Kind::Bool));
        let idle = IDLE.iter().map(|&(name, _)| arg(name, name.ends_with("-stream")));
        let ports =
            PORTS.iter().map(|&(name, ..)| arg(name, false).value_parser(value_parser!(u16)));
        let errands = [(CLEANUP, true), (INIT_ONLY, true), (WRITE_CONFIG_TO, false)];
        let errands = errands.into_iter().map(|(name, is_switch)| arg(name, is_switch));
        command.args(fields.chain(idle).chain(ports).chain(errands))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for KubeProxyFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let text = |name: &str| matches.get_one::<String>(name);
        let mut flags = Self { errand: errand(text)?, ..Self::default() };
        for field in FIELDS {
            let Some((flag, text)) = field.flag.and_then(|flag| Some((flag, text(flag)?))) else {
                continue;
            };
            let (name, value) = (format!("--{flag}"), flag_value(field.kind, text));
            if let Some(message) = field.fault(&value) {
                return Err(Error::raw(ErrorKind::InvalidValue, format!("{name}: {message}")));
            }
            flags.given.push(Given { name, field, value });
        }
        let idle = IDLE.iter().filter(|(name, _)| text(name).is_some());
        flags.idle = idle
            .map(|(name, instead)| format!("--{name} has no meaning here: {instead}"))
            .collect();
        let is_given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        let shared = SHARED.iter().filter(|(id, _)| is_given(id));
        flags.shared = shared.map(|&(_, flag)| flag).collect();
        for (id, name, instead) in PORTS {
            match matches.get_one::<u16>(id) {
                Some(0) => {
                    flags.disabled.push(instead);
                    flags.shared.push(name);
                }
                Some(_) => flags.idle.push(format!("{name} does not count: {instead} does")),
                None => {}
            }
        }
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
