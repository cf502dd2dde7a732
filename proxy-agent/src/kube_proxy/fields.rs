//! Every field of a KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1), closed: its type, its
//! default, the flag that sets it, and what it means to Millrace. kube-proxy's defaults are those of
//! pkg/proxy/apis/config/v1alpha1/defaults.go, its limits those of validation.go beside it.

use jiff::SignedDuration;
use serde_json::Value;

/// What a field may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Text,
    /// One of these, or empty.
    Word(&'static [&'static str]),
    Bool,
    /// From and to, both allowed.
    Number(i64, i64),
    Fraction,
    /// As Go writes it: `1h30m`. Not negative.
    Duration,
    Texts,
    /// Whatever it is, it is not looked into.
    Anything,
}

/// What a field means here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meaning {
    /// It has its place among Millrace's own settings ([`super::mapping`]), or is asked for by
    /// its path ([`super::KubeProxyConfig`]).
    Mapped,
    /// None, and why; who sets it to something is told.
    None(&'static str),
    /// None, but what it asks for is what happens.
    Fulfilled,
}

/// One field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    /// `conntrack.min`.
    pub path: &'static str,
    /// `--conntrack-min` without dashes, if it is one that Millrace has no flag of its own for.
    pub flag: Option<&'static str>,
    pub kind: Kind,
    /// JSON.
    pub default: &'static str,
    pub meaning: Meaning,
}

const COUNT: Kind = Kind::Number(0, i32::MAX as i64);
const BIT: Kind = Kind::Number(0, 31);
const MODES: Kind = Kind::Word(&["iptables", "ipvs", "nftables"]);
const LOCAL_MODES: Kind =
    Kind::Word(&["ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"]);

const PERIODS: Meaning = Meaning::None("a change is programmed when it is told");
const MARKS: Meaning = Meaning::None("packets that are to be masqueraded are marked by bit 12");
const MASQUERADE: Meaning = Meaning::None(
    "a pod's connection to a ClusterIP keeps the pod's address, since its answers come back to this \
     node by themselves; only what would not is masqueraded",
);
const NF_CONNTRACK: Meaning = Meaning::None(
    "flows of Services are in tables of Millrace's own (--capacity flows=ROWS), and netfilter's is \
     left as large as it is; where other rules need it, set net.netfilter.nf_conntrack_max",
);
const IPVS: Meaning = Meaning::None("IPVS is not used");
const CLIENT: Meaning = Meaning::None("the client of the API server needs no tuning");
const WINDOWS: Meaning = Meaning::None("this is Linux");
const UNBUFFERED: Meaning = Meaning::None("nothing is buffered");

const fn field(path: &'static str, kind: Kind, default: &'static str, meaning: Meaning) -> Field {
    Field { path, flag: None, kind, default, meaning }
}

impl Field {
    const fn flag(mut self, flag: &'static str) -> Self {
        self.flag = Some(flag);
        self
    }

    pub const fn is_mapped(&self) -> bool {
        matches!(self.meaning, Meaning::Mapped)
    }

    /// The default, as a value.
    pub fn default_value(&self) -> Value {
        serde_json::from_str(self.default).unwrap_or_default()
    }

    /// Whether this asks for nothing but what is so anyway: kubeadm writes empty values where it
    /// means the default.
    pub fn is_default(&self, value: &Value) -> bool {
        let default = self.default_value();
        let same_duration = match (self.kind, value.as_str(), default.as_str()) {
            (Kind::Duration, Some(value), Some(default)) => {
                duration(value).is_some_and(|value| duration(default) == Some(value))
            }
            _ => false,
        };
        is_zero(value) || *value == default || same_duration
    }

    /// Why a value cannot be, with what to write.
    pub fn fault(&self, value: &Value) -> Option<String> {
        let wanted = match self.kind {
            _ if value.is_null() => return None,
            Kind::Text if value.is_string() => return None,
            Kind::Text => "a text".to_owned(),
            Kind::Word(words) => match value.as_str() {
                Some(word) if word.is_empty() || words.contains(&word) => return None,
                _ => words.join(", "),
            },
            Kind::Bool if value.is_boolean() => return None,
            Kind::Bool => "true or false".to_owned(),
            Kind::Number(from, to) => match value.as_i64() {
                Some(number) if (from..=to).contains(&number) => return None,
                _ => format!("a number from {from} to {to}"),
            },
            Kind::Fraction if value.is_number() => return None,
            Kind::Fraction => "a number".to_owned(),
            Kind::Duration => match value.as_str().and_then(duration) {
                Some(duration) if !duration.is_negative() => return None,
                _ => "a duration such as 30s or 1h30m".to_owned(),
            },
            Kind::Texts => match value.as_array() {
                Some(items) if items.iter().all(Value::is_string) => return None,
                _ => "a list of texts".to_owned(),
            },
            Kind::Anything => return None,
        };
        Some(format!("{value} cannot be; write {wanted}"))
    }
}

/// Go's spelling, which knows `0` too.
pub(super) fn duration(text: &str) -> Option<SignedDuration> {
    if text == "0" { Some(SignedDuration::ZERO) } else { text.parse().ok() }
}

/// Go's zero values, however deep.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty() || duration(text).is_some_and(|it| it.is_zero()),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_zero),
    }
}

/// The field at a path.
pub fn find(path: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.path == path)
}

/// All of them.
pub const FIELDS: &[Field] = &[
    field(
        "featureGates",
        Kind::Anything,
        "{}",
        Meaning::None("Kubernetes' feature gates change nothing in Millrace"),
    )
    .flag("feature-gates"),
    field("clientConnection.kubeconfig", Kind::Text, r#""""#, Meaning::Mapped),
    field("clientConnection.acceptContentTypes", Kind::Text, r#""""#, CLIENT),
    field(
        "clientConnection.contentType",
        Kind::Text,
        r#""application/vnd.kubernetes.protobuf""#,
        CLIENT,
    )
    .flag("kube-api-content-type"),
    field("clientConnection.qps", Kind::Fraction, "5", CLIENT).flag("kube-api-qps"),
    field("clientConnection.burst", COUNT, "10", CLIENT).flag("kube-api-burst"),
    field("logging.format", Kind::Word(&["text", "json"]), r#""text""#, Meaning::Mapped)
        .flag("logging-format"),
    field("logging.verbosity", COUNT, "0", Meaning::Mapped).flag("v"),
    field(
        "logging.vmodule",
        Kind::Anything,
        "[]",
        Meaning::None("there are no such files; set RUST_LOG, such as proxy_agent::apply=debug"),
    )
    .flag("vmodule"),
    field("logging.flushFrequency", Kind::Anything, r#""5s""#, Meaning::Fulfilled)
        .flag("log-flush-frequency"),
    field("logging.options", Kind::Anything, "{}", UNBUFFERED),
    field("hostnameOverride", Kind::Text, r#""""#, Meaning::Mapped),
    field("bindAddress", Kind::Text, r#""0.0.0.0""#, Meaning::Mapped).flag("bind-address"),
    field("healthzBindAddress", Kind::Text, r#""0.0.0.0:10256""#, Meaning::Mapped),
    field("metricsBindAddress", Kind::Text, r#""127.0.0.1:10249""#, Meaning::Mapped),
    field("bindAddressHardFail", Kind::Bool, "false", Meaning::Mapped)
        .flag("bind-address-hard-fail"),
    field(
        "enableProfiling",
        Kind::Bool,
        "false",
        Meaning::None("Go's profiles are not those of this program; /debug/pprof answers 404"),
    )
    .flag("profiling"),
    field("showHiddenMetricsForVersion", Kind::Text, r#""""#, Meaning::None("no metric is hidden"))
        .flag("show-hidden-metrics-for-version"),
    field("mode", MODES, r#""iptables""#, Meaning::Mapped).flag("proxy-mode"),
    field("iptables.masqueradeBit", BIT, "14", MARKS).flag("iptables-masquerade-bit"),
    field("iptables.masqueradeAll", Kind::Bool, "false", MASQUERADE).flag("masquerade-all"),
    field("iptables.localhostNodePorts", Kind::Bool, "true", Meaning::Mapped)
        .flag("iptables-localhost-nodeports"),
    field("iptables.syncPeriod", Kind::Duration, r#""30s""#, PERIODS).flag("iptables-sync-period"),
    field("iptables.minSyncPeriod", Kind::Duration, r#""1s""#, PERIODS)
        .flag("iptables-min-sync-period"),
    field("ipvs.syncPeriod", Kind::Duration, r#""30s""#, PERIODS).flag("ipvs-sync-period"),
    field("ipvs.minSyncPeriod", Kind::Duration, r#""0s""#, PERIODS).flag("ipvs-min-sync-period"),
    field("ipvs.scheduler", Kind::Text, r#""""#, Meaning::Mapped).flag("ipvs-scheduler"),
    field("ipvs.excludeCIDRs", Kind::Texts, "[]", IPVS).flag("ipvs-exclude-cidrs"),
    field("ipvs.strictARP", Kind::Bool, "false", IPVS).flag("ipvs-strict-arp"),
    field("ipvs.tcpTimeout", Kind::Duration, r#""0s""#, IPVS).flag("ipvs-tcp-timeout"),
    field("ipvs.tcpFinTimeout", Kind::Duration, r#""0s""#, IPVS).flag("ipvs-tcpfin-timeout"),
    field("ipvs.udpTimeout", Kind::Duration, r#""0s""#, IPVS).flag("ipvs-udp-timeout"),
    field("nftables.masqueradeBit", BIT, "14", MARKS),
    field("nftables.masqueradeAll", Kind::Bool, "false", MASQUERADE),
    field("nftables.syncPeriod", Kind::Duration, r#""30s""#, PERIODS),
    field("nftables.minSyncPeriod", Kind::Duration, r#""1s""#, PERIODS),
    field("winkernel.networkName", Kind::Text, r#""""#, WINDOWS),
    field("winkernel.sourceVip", Kind::Text, r#""""#, WINDOWS),
    field("winkernel.enableDSR", Kind::Bool, "false", WINDOWS),
    field("winkernel.rootHnsEndpointName", Kind::Text, r#""""#, WINDOWS),
    field("winkernel.forwardHealthCheckVip", Kind::Bool, "false", WINDOWS),
    field("detectLocalMode", LOCAL_MODES, r#""ClusterCIDR""#, Meaning::Mapped)
        .flag("detect-local-mode"),
    field("detectLocal.bridgeInterface", Kind::Text, r#""""#, Meaning::Mapped)
        .flag("pod-bridge-interface"),
    field("detectLocal.interfaceNamePrefix", Kind::Text, r#""""#, Meaning::Mapped)
        .flag("pod-interface-name-prefix"),
    field("clusterCIDR", Kind::Text, r#""""#, Meaning::Mapped),
    field("nodePortAddresses", Kind::Texts, "[]", Meaning::Mapped),
    field("oomScoreAdj", Kind::Number(-1000, 1000), "-999", Meaning::Mapped).flag("oom-score-adj"),
    field("conntrack.maxPerCore", COUNT, "32768", NF_CONNTRACK).flag("conntrack-max-per-core"),
    field("conntrack.min", COUNT, "131072", NF_CONNTRACK).flag("conntrack-min"),
    // A test holds what is said of timeouts to those of the programs.
    field(
        "conntrack.tcpEstablishedTimeout",
        Kind::Duration,
        r#""24h""#,
        Meaning::None(
            "a connection through a Service is forgotten when it was idle for 24h; it is set \
             for what netfilter tracks",
        ),
    )
    .flag("conntrack-tcp-timeout-established"),
    field(
        "conntrack.tcpCloseWaitTimeout",
        Kind::Duration,
        r#""1h""#,
        Meaning::None(
            "a connection through a Service that one side has closed is forgotten when it was idle \
             for 1h; it is set for what netfilter tracks",
        ),
    )
    .flag("conntrack-tcp-timeout-close-wait"),
    field(
        "conntrack.tcpBeLiberal",
        Kind::Bool,
        "false",
        Meaning::None(
            "no segment through a Service is refused for its sequence number; it is set for what \
             netfilter tracks",
        ),
    )
    .flag("conntrack-tcp-be-liberal"),
    field(
        "conntrack.udpTimeout",
        Kind::Duration,
        r#""0s""#,
        Meaning::None(
            "datagrams through a Service that nobody answers are forgotten after 30s; it is set for \
             what netfilter tracks",
        ),
    )
    .flag("conntrack-udp-timeout"),
    field(
        "conntrack.udpStreamTimeout",
        Kind::Duration,
        r#""0s""#,
        Meaning::None(
            "answered datagrams through a Service are forgotten after 2m; it is set for what \
             netfilter tracks",
        ),
    )
    .flag("conntrack-udp-timeout-stream"),
    field(
        "configSyncPeriod",
        Kind::Duration,
        r#""15m""#,
        Meaning::None("objects are followed as they change"),
    )
    .flag("config-sync-period"),
    field("portRange", Kind::Text, r#""""#, Meaning::None("kube-proxy does not use it either")),
    field("windowsRunAsService", Kind::Bool, "false", WINDOWS),
];

#[cfg(test)]
mod tests {
    use datapath::flow::timeout_sec;
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_are_what_the_fields_may_hold() {
        for field in FIELDS {
            let default: Result<Value, _> = serde_json::from_str(field.default);
            let default = default.unwrap_or_else(|err| panic!("{}: {err}", field.path));
            assert_eq!(field.fault(&default), None, "{}", field.path);
            assert!(field.is_default(&default), "{}", field.path);
        }
    }

    #[test]
    fn no_path_and_no_flag_stands_for_two_fields() {
        for (nth, field) in FIELDS.iter().enumerate() {
            let mut others = FIELDS[nth + 1..].iter();
            assert!(!others.any(|other| other.path == field.path
                || (other.flag == field.flag && field.flag.is_some())));
        }
    }

    /// What is said of the programs' timeouts.
    #[test]
    fn timeouts_are_told_as_they_are() {
        for (path, seconds) in [
            ("conntrack.tcpEstablishedTimeout", timeout_sec::TCP_ESTABLISHED),
            ("conntrack.tcpCloseWaitTimeout", timeout_sec::TCP_HALF_CLOSED),
            ("conntrack.udpTimeout", timeout_sec::UDP_UNANSWERED),
            ("conntrack.udpStreamTimeout", timeout_sec::UDP_ANSWERED),
        ] {
            let Meaning::None(why) = find(path).unwrap().meaning else { panic!("{path}") };
            let told = why.split([' ', ';']).find_map(duration);
            assert_eq!(told, Some(SignedDuration::from_secs(seconds.into())), "{path}: {why}");
        }
    }

    #[test]
    fn equal_durations_are_one_however_they_are_written() {
        let field = find("conntrack.tcpEstablishedTimeout").unwrap();
        for same in ["24h", "24h0m0s", "1440m", "0s", ""] {
            assert!(field.is_default(&json!(same)), "{same}");
        }
        assert!(!field.is_default(&json!("23h59m")));
        assert_eq!(
            field.fault(&json!("1 day or so")).unwrap(),
            "\"1 day or so\" cannot be; write a duration such as 30s or 1h30m"
        );
        assert!(field.fault(&json!("-1s")).is_some() && field.fault(&json!(5)).is_some());
    }
}
