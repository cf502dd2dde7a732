//! What makes pods of workloads and gives nodes their subnets: the real kube-controller-manager and
//! kube-scheduler, beside an API server of the lab.

use std::process::Command;

use crate::{
    address::{CLUSTER_CIDR4, CLUSTER_CIDR6, Families, SERVICE_CIDR4, SERVICE_CIDR6},
    api_server::ApiServer,
    error::{Error, Result},
    lab::Lab,
    peers,
    process::{self, Process},
};

/// Both, running. Dropping it ends them.
#[derive(Debug)]
pub struct ControlPlane {
    _processes: [Process; 2],
}

impl ControlPlane {
    /// Starts both where the API server is, without waiting for anything.
    pub fn start(lab: &Lab, place: &str, api: &ApiServer, families: Families) -> Result<Self> {
        let of = |v4: &str, v6: &str| match families {
            Families::Ipv4 => v4.to_owned(),
            Families::Both => format!("{v4},{v6}"),
        };
        let [root, key] = api.service_account_files();
        let controllers = [
            ("--allocate-node-cidrs", "true".to_owned()),
            ("--cluster-cidr", of(CLUSTER_CIDR4, CLUSTER_CIDR6)),
            ("--service-cluster-ip-range", of(SERVICE_CIDR4, SERVICE_CIDR6)),
            ("--root-ca-file", root.display().to_string()),
            ("--service-account-private-key-file", key.display().to_string()),
            ("--use-service-account-credentials", "true".into()),
        ];
        let start = |name: &str, flags: &[(&str, String)]| {
            let binary = peers().join(name);
            if !binary.exists() {
                return Err(Error::NoPeer { path: binary });
            }
            let mut command = Command::new(binary);
            command.args(["--bind-address=127.0.0.1", "--leader-elect=false"]);
            command.arg("--kubeconfig").arg(api.component_kubeconfig(name));
            command.args(flags.iter().map(|(flag, value)| format!("{flag}={value}")));
            process::log_to(&mut command, &lab.directory(place).join(format!("{name}.log")))?;
            lab.spawn(place, command)
        };
        Ok(Self {
            _processes: [
                start("kube-controller-manager", &controllers)?,
                start("kube-scheduler", &[])?,
            ],
        })
    }
}
