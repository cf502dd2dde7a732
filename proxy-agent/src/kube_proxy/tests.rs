//! Files as kubeadm writes them, and the arguments of its DaemonSet.

use clap::Parser;

use super::*;
use crate::config::{Cli, PodLink};

/// What kubeadm 1.35 writes for `--pod-network-cidr=10.244.0.0/16`.
const KUBEADM: &str = include_str!("kubeadm.yaml");

fn parse(line: &str) -> Result<RunArgs, clap::Error> {
    let words = std::iter::once("proxy-agent").chain(line.split_whitespace());
    Cli::try_parse_from(words).map(|cli| cli.run)
}

fn with_file(line: &str, text: &str) -> (RunArgs, Result<KubeProxyConfig, KubeProxyError>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.conf");
    fs::write(&path, text).unwrap();
    let mut args = parse(&format!("{line} --config={}", path.display())).unwrap();
    let resolved = resolve(&mut args);
    (args, resolved)
}

#[test]
fn what_kubeadm_writes_is_taken_without_a_word() {
    let (args, resolved) = with_file("--hostname-override=node7", KUBEADM);
    assert_eq!(resolved.unwrap().told.warnings, [""; 0]);
    assert_eq!(args.hostname_override.as_deref(), Some("node7"));
    assert_eq!(args.cluster_cidr, ["10.244.0.0/16".parse().unwrap()]);
    assert_eq!(args.kubeconfig, Some("/var/lib/kube-proxy/kubeconfig.conf".into()));
    assert_eq!(args.metrics_bind_address, METRICS_ADDRESS.into());
    assert_eq!(args.healthz_bind_address, HEALTHZ_ADDRESS.into());
}

#[test]
fn a_file_goes_before_flags_that_both_have_and_tells() {
    let (args, resolved) = with_file(
        "--cluster-cidr=10.9.0.0/16 --nodeport-addresses=all --proxy-mode=ipvs --v=4 \
         --metrics-port=0 --pod-link=bridge:cni0",
        &KUBEADM.replace("nodePortAddresses: null", "nodePortAddresses: [10.0.0.0/8]\nodd: 1"),
    );
    let resolved = resolved.unwrap();
    assert_eq!(args.cluster_cidr, ["10.244.0.0/16".parse().unwrap()]);
    assert_eq!(args.nodeport_addresses, "10.0.0.0/8".parse().unwrap());
    assert_eq!(args.verbose, 1);
    // Millrace's own.
    assert_eq!(args.pod_link, PodLink::Bridge("cni0".into()));
    let path = resolved.file.as_ref().unwrap().0.display();
    assert_eq!(
        resolved.told.warnings,
        [
            format!("{path}: odd is not known, and left out"),
            "--proxy-mode does not count beside --config".to_owned(),
            "--cluster-cidr does not count beside --config".to_owned(),
            "--nodeport-addresses does not count beside --config".to_owned(),
            "--metrics-port does not count beside --config".to_owned(),
        ]
    );
}

#[test]
fn files_that_cannot_be_taken_are_named_with_all_their_faults() {
    let text = KUBEADM.replace("burst: 0", "burst: many").replace("mode: \"\"", "mode: fast");
    let (_, resolved) = with_file("", &text);
    let message = resolved.unwrap_err().to_string();
    let (first, rest) = message.split_once('\n').unwrap();
    assert!(
        first.starts_with("--config: /") && first.contains("config.conf: clientConnection.burst")
    );
    assert_eq!(rest, "  mode: \"fast\" cannot be; write iptables, ipvs, nftables");
    let mut args = parse("--config=/nowhere/at/all").unwrap();
    let err = resolve(&mut args).unwrap_err().to_string();
    assert!(err.starts_with("--config: cannot read /nowhere/at/all: "), "{err}");
}

#[test]
fn flags_mean_what_their_fields_do() {
    let mut args = parse(
        "--proxy-mode iptables --conntrack-max-per-core=0 --masquerade-all \
         --iptables-sync-period=30s --ipvs-strict-arp=false --bind-address 192.0.2.9 \
         --detect-local-mode=InterfaceNamePrefix --pod-interface-name-prefix=cali \
         --oom-score-adj -998 --feature-gates=A=true --metrics-bind-address=0.0.0.0",
    )
    .unwrap();
    let resolved = resolve(&mut args).unwrap();
    let warnings = resolved.told.warnings.iter();
    let names: Vec<&str> = warnings.filter_map(|line| line.split(": ").next()).collect();
    assert_eq!(names, ["--feature-gates", "--masquerade-all"]);
    assert_eq!((resolved.oom_score_adj(), resolved.must_bind()), (Some(-998), false));
    assert_eq!(args.nodeport_addresses.to_string(), "all,127.0.0.0/8");
    assert_eq!(args.node_ip, ["192.0.2.9".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(args.pod_link, PodLink::Prefix("cali".into()));
    assert_eq!(args.metrics_bind_address.to_string(), "0.0.0.0:10249");
}

#[test]
fn flags_that_cannot_be_are_refused_with_a_remedy() {
    let refused = |line| parse(line).unwrap_err();
    let err = refused("--conntrack-min=-3");
    assert_eq!(err.exit_code(), 2);
    assert_eq!(
        err.to_string().lines().next().unwrap(),
        "error: --conntrack-min: -3 cannot be; write a number from 0 to 2147483647"
    );
    assert!(refused("--conntrack-most=3").to_string().contains("--conntrack-most"));
    assert!(refused("--cleanup=maybe").to_string().contains("--cleanup: \"maybe\" cannot be"));
    for line in ["--iptables-sync-period=0s", "--config-sync-period=0"] {
        let err = resolve(&mut parse(line).unwrap()).unwrap_err().to_string();
        let flag = line.split('=').next().unwrap();
        assert!(err.starts_with(&format!("{flag}: must be longer than 0s")), "{err}");
    }
    assert!(resolve(&mut parse("--iptables-min-sync-period=0").unwrap()).is_ok());
}

#[test]
fn what_is_done_in_place_of_running() {
    let errand = |line| resolve(&mut parse(line).unwrap()).unwrap().errand;
    assert_eq!(errand("--init-only=false --cleanup=false --write-config-to="), None);
    assert_eq!(errand("--init-only"), Some(Errand::Init));
    assert_eq!(errand("--init-only --cleanup"), Some(Errand::Cleanup));
    let path = "/x".into();
    assert_eq!(errand("--cleanup --write-config-to=/x"), Some(Errand::WriteConfig(path)));
    let (_, resolved) = with_file("--cleanup", KUBEADM);
    assert_eq!(resolved.unwrap().errand, Some(Errand::Cleanup));
}

#[test]
fn servers_can_be_left_out() {
    let addresses = |line| {
        let mut args = parse(line).unwrap();
        resolve(&mut args).unwrap();
        format!("{} {}", args.metrics_bind_address, args.healthz_bind_address)
    };
    assert_eq!(addresses("--metrics-bind-address="), " 0.0.0.0:10256");
    assert_eq!(addresses("--healthz-bind-address= --metrics-port=0"), " ");
    assert_eq!(addresses("--healthz-port=0 --metrics-port=7"), "127.0.0.1:10249 ");
    // In a file, to say nothing means the default.
    let (args, _) = with_file("--healthz-port=0", KUBEADM);
    assert_eq!(args.healthz_bind_address, HEALTHZ_ADDRESS.into());
    let (_, resolved) = with_file("", &KUBEADM.replace("HardFail: false", "HardFail: true"));
    assert!(resolved.unwrap().must_bind());
}

/// Written and read again, it says the same.
#[test]
fn what_is_in_force_can_be_written_to_a_file() {
    for line in [
        "",
        "--proxy-mode=nftables --nodeport-addresses=all",
        "--proxy-mode=ipvs --ipvs-scheduler=sh --cluster-cidr=10.1.0.0/16,fd00::/48 --v=4",
        "--hostname-override=n --kubeconfig=/k --metrics-bind-address=[::]:7 --conntrack-min=5 \
         --nodeport-addresses=localhost,10.0.0.0/8 --bind-address=10.0.0.1 --oom-score-adj=-5 \
         --bind-address-hard-fail",
    ] {
        let mut first = parse(line).unwrap();
        let resolved = resolve(&mut first).unwrap();
        let text = resolved.to_file(&first).unwrap();
        let (mut second, again) = with_file("", &text);
        let again = again.unwrap();
        second.config = None;
        assert_eq!(json!(second), json!(first), "{line}: {text}");
        assert_eq!(second.verbose, first.verbose);
        assert_eq!(again.must_bind(), resolved.must_bind());
        assert_eq!(again.to_file(&second).unwrap(), text, "{line}");
    }
    // It is kube-proxy's to read as well, which has no word for all addresses.
    let (args, resolved) = with_file("", KUBEADM);
    assert!(resolved.unwrap().to_file(&args).unwrap().contains("nodePortAddresses: []\n"));
}

#[test]
fn help_names_none_of_them() {
    use clap::CommandFactory;
    let help = Cli::command().render_long_help().to_string();
    assert!(help.contains("--cluster-cidr") && !help.contains("--conntrack"), "{help}");
}

#[test]
fn a_file_that_says_something_else_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.conf");
    fs::write(&path, KUBEADM).unwrap();
    let mut args = parse(&format!("--config={}", path.display())).unwrap();
    let resolved = resolve(&mut args).unwrap();
    assert_eq!(resolved.changed(), None);
    // As a ConfigMap is mounted: written anew, the same.
    fs::remove_file(&path).unwrap();
    assert_eq!(resolved.changed(), None);
    fs::write(&path, KUBEADM).unwrap();
    assert_eq!(resolved.changed(), None);
    fs::write(&path, KUBEADM.replace("10.244", "10.245")).unwrap();
    assert_eq!(resolved.changed(), Some(&*path));
}

#[test]
fn what_is_in_force_is_told_in_kube_proxys_words() {
    let (args, resolved) = with_file("", KUBEADM);
    let told = resolved.unwrap().in_force(&args, "node7");
    assert_eq!(told["kind"], "KubeProxyConfiguration");
    assert_eq!(told["clusterCIDR"], "10.244.0.0/16");
    assert_eq!(told["healthzBindAddress"], "0.0.0.0:10256");
    assert_eq!(told["hostnameOverride"], "node7");
    assert_eq!(told["nodePortAddresses"], json!(["all", "127.0.0.0/8"]));
    assert_eq!(told["conntrack"]["tcpEstablishedTimeout"], "24h");
    // Each field that is told can be read again.
    let text = serde_json::to_string(&told).unwrap();
    assert_eq!(document::read(&text).unwrap().unknown, [""; 0]);
}
