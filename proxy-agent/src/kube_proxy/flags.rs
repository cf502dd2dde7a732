//! kube-proxy's flags that Millrace has no flag for, so that the arguments of its DaemonSet start
//! this agent. `--help` does not list them: each means what its field of the configuration does.

use clap::{
    Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches, error::ErrorKind,
    parser::ValueSource,
};

use super::{
    document::{Given, flag_value},
    fields::{FIELDS, Kind},
};

/// Flags of neither a field nor a meaning, with what to use instead.
const IDLE: &[(&str, &str)] = &[
    ("healthz-port", "use --healthz-bind-address"),
    ("metrics-port", "use --metrics-bind-address"),
    ("log-json-info-buffer-size", "nothing is buffered"),
    ("log-json-split-stream", "the log goes to standard error"),
    ("log-text-info-buffer-size", "nothing is buffered"),
    ("log-text-split-stream", "the log goes to standard error"),
];

/// Flags that have kube-proxy do something else than run: to go on would surprise.
const OTHER: &[(&str, &str)] = &[
    ("cleanup", "run `proxy-agent cleanup --kube-proxy`"),
    ("init-only", "leave the step out: the agent needs none before it runs"),
    ("write-config-to", "ask a running agent: /configz at --metrics-bind-address"),
];

/// Flags of both, which a file goes before. Names as in [`crate::config::RunArgs`].
const SHARED: &[(&str, &str)] = &[
    ("kubeconfig", "--kubeconfig"),
    ("cluster_cidr", "--cluster-cidr"),
    ("nodeport_addresses", "--nodeport-addresses"),
    ("metrics_bind_address", "--metrics-bind-address"),
    ("healthz_bind_address", "--healthz-bind-address"),
];

/// What was given on the command line.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct KubeProxyFlags {
    pub given: Vec<Given>,
    /// Those without meaning, each with what to do instead.
    pub idle: Vec<String>,
    /// Names of flags that both have.
    pub shared: Vec<&'static str>,
}

fn arg(name: &'static str, is_switch: bool) -> Arg {
    let arg = Arg::new(name).long(name).hide(true).action(ArgAction::Set);
    if is_switch {
        // Go's way: `--flag` and `--flag=false`, but not `--flag false`.
        return arg.num_args(0..=1).require_equals(true).default_missing_value("true");
    }
    arg.allow_hyphen_values(true)
}

impl Args for KubeProxyFlags {
    fn augment_args(command: Command) -> Command {
        let fields = FIELDS.iter().filter_map(|field| Some((field.flag?, field.kind)));
        let fields = fields.map(|(flag, kind)| arg(flag, kind == Kind::Bool));
        let idle = IDLE.iter().map(|&(name, _)| arg(name, name.ends_with("-stream")));
        let other = OTHER.iter().map(|&(name, _)| arg(name, name != "write-config-to"));
        command.args(fields.chain(idle).chain(other))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for KubeProxyFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let text = |name: &str| matches.get_one::<String>(name);
        let mut flags = Self::default();
        for &(name, instead) in OTHER {
            if text(name).is_some_and(|text| text != "false") {
                let message = format!("--{name} of kube-proxy is not understood: {instead}");
                return Err(Error::raw(ErrorKind::UnknownArgument, message));
            }
        }
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
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
