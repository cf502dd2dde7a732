//! A real kube-apiserver with an etcd of its own, for what watches Services or Nodes there:
//! started, given objects, asked for them, stopped and started again with what it holds.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    address::{SERVICE_CIDR4, SERVICE_CIDR6},
    error::{At, Error, Result},
    etcd::Etcd,
    lab::Lab,
    place::Place,
    process::{self, Process},
};

const PORT: u16 = 6443;
const RBAC: &str = "rbac.authorization.k8s.io/v1";
const PATIENCE: Duration = Duration::from_mins(2);
/// May do everything. Names are tokens too, known to everybody: nothing but the lab reaches this
/// server.
const ADMINISTRATOR: &str = "lab";
/// May do what roles allow it: [`flannel_roles`].
const FLANNEL: &str = "flannel";
/// The same: [`proxy_roles`].
const PROXY: &str = "proxy";
/// Parts of a cluster, which every API server has roles for, by `system:NAME`.
const COMPONENTS: [&str; 2] = ["kube-controller-manager", "kube-scheduler"];

/// kube-apiserver and its etcd, running or stopped. Dropping it ends both.
#[derive(Debug)]
pub struct ApiServer {
    place: Place,
    binary: PathBuf,
    directory: PathBuf,
    etcd: Etcd,
    kind: Kind,
    process: Option<Process>,
}

/// Whom an API server is for.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Kind {
    /// For what watches: objects stand in namespaces that nobody has made, and no pod is real.
    Bare,
    /// For a whole cluster, with kubelets on these nodes.
    Cluster { nodes: Vec<String> },
}

/// What shall become of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    Create,
    Replace,
    Delete,
}

impl ApiServer {
    /// Starts both in a place of a lab, at its address, and waits until objects are taken.
    pub fn start(lab: &Lab, place: &str, binary: &Path) -> Result<Self> {
        Self::start_as(Kind::Bare, lab, place, binary)
    }

    /// The same for a cluster whose nodes are those of the lab: each with rights of its own, and
    /// accounts that pods are given.
    pub fn start_for_cluster(lab: &Lab, place: &str, binary: &Path) -> Result<Self> {
        let nodes = lab.spec().nodes.iter().map(|node| node.name.clone()).collect();
        Self::start_as(Kind::Cluster { nodes }, lab, place, binary)
    }

    fn start_as(kind: Kind, lab: &Lab, place: &str, binary: &Path) -> Result<Self> {
        if !binary.exists() {
            return Err(Error::NoPeer { path: binary.into() });
        }
        let directory = lab.directory(place).join("api-server");
        fs::create_dir_all(&directory).at("create", &directory)?;
        let etcd = Etcd::in_place(lab, place)?;
        let place = lab.place(place)?;
        let binary = binary.into();
        let mut server = Self { place, binary, directory, etcd, kind, process: None };
        server.write_files()?;
        server.launch()?;
        Ok(server)
    }

    fn write_files(&self) -> Result<()> {
        let users = self.users();
        let tokens = users.iter().map(User::token_line).collect();
        let kubeconfigs = users.iter().map(|user| {
            let name = match user.token.as_str() {
                ADMINISTRATOR => "kubeconfig".into(),
                token => format!("kubeconfig-{token}"),
            };
            (name, kubeconfig(&self.url(), &user.token))
        });
        std::iter::once(("tokens.csv".into(), tokens)).chain(kubeconfigs).try_for_each(
            |(name, text): (String, String)| {
                let path = self.directory.join(name);
                fs::write(&path, text).at("write", path)
            },
        )
    }

    fn users(&self) -> Vec<User> {
        let mut users = vec![
            User { group: Some("system:masters"), ..User::named(ADMINISTRATOR) },
            User::named(FLANNEL),
            User::named(PROXY),
        ];
        if let Kind::Cluster { nodes } = &self.kind {
            users.extend(
                COMPONENTS.map(|name| User { name: format!("system:{name}"), ..User::named(name) }),
            );
            users.extend(nodes.iter().map(|node| User {
                token: node.clone(),
                name: format!("system:node:{node}"),
                group: Some("system:nodes"),
            }));
        }
        users
    }

    fn url(&self) -> String {
        format!("https://{}:{PORT}", self.place.addresses.v4)
    }

    /// For `--kubeconfig`, of an administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// For `--kubeconfig-file` of flanneld and flannel-agent, with the rights that
    /// [`flannel_roles`] give.
    pub fn flannel_kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig-flannel")
    }

    /// For `--kubeconfig` of proxy-agent, with the rights that [`proxy_roles`] give.
    pub fn proxy_kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig-proxy")
    }

    /// For `--kubeconfig` of a node's kubelet, in a cluster.
    pub fn node_kubeconfig(&self, node: &str) -> PathBuf {
        self.directory.join(format!("kubeconfig-{node}"))
    }

    /// For `--kubeconfig` of kube-controller-manager or kube-scheduler, in a cluster.
    pub fn component_kubeconfig(&self, name: &str) -> PathBuf {
        self.directory.join(format!("kubeconfig-{name}"))
    }

    /// What pods know the server by, and the key that their accounts' tokens are signed with.
    pub fn service_account_files(&self) -> [PathBuf; 2] {
        ["apiserver.crt", "apiserver.key"].map(|name| self.directory.join("certs").join(name))
    }

    /// Where agents find it that cannot ask for its ClusterIP.
    pub fn endpoint(&self) -> (String, u16) {
        (self.place.addresses.v4.to_string(), PORT)
    }

    /// What a pod of proxy-agent would find of its account: token and authority.
    pub fn proxy_account(&self) -> (&'static str, PathBuf) {
        (PROXY, self.directory.join("certs/apiserver.crt"))
    }

    fn launch(&mut self) -> Result<()> {
        let address = self.place.addresses.v4.to_string();
        let file = |name: &str| self.directory.join(name).display().to_string();
        let flags = [
            ("--etcd-servers", self.etcd.endpoint()),
            ("--bind-address", address.clone()),
            ("--advertise-address", address),
            ("--secure-port", PORT.to_string()),
            // It makes a certificate of its own there.
            ("--cert-dir", file("certs")),
            ("--token-auth-file", file("tokens.csv")),
            ("--authorization-mode", "Node,RBAC".into()),
            ("--service-cluster-ip-range", format!("{SERVICE_CIDR4},{SERVICE_CIDR6}")),
            // Bare, nobody asks for such accounts, but it does not start without a key for them.
            ("--service-account-issuer", "https://lab".into()),
            ("--service-account-key-file", file("certs/apiserver.key")),
            ("--service-account-signing-key-file", file("certs/apiserver.key")),
        ];
        let further: &[&str] = match self.kind {
            Kind::Bare => {
                &["--disable-admission-plugins=NamespaceLifecycle,PodSecurity,ServiceAccount"]
            }
            Kind::Cluster { .. } => &[
                "--enable-admission-plugins=NodeRestriction",
                "--allow-privileged=true",
                "--kubelet-preferred-address-types=InternalIP",
            ],
        };
        let mut command = Command::new(&self.binary);
        command.args(flags.map(|(flag, value)| format!("{flag}={value}"))).args(further);
        process::log_to(&mut command, &self.log())?;
        self.process = Some(self.place.spawn(command)?);
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if self.is_ready()? {
                return Ok(());
            }
            if self.process.as_mut().is_none_or(|process| process.ended().is_some()) {
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
        Err(Error::NotReady {
            what: "kube-apiserver".into(),
            seconds: began.elapsed().as_secs(),
            log: process::log_tail(&self.log()),
        })
    }

    fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    fn is_ready(&self) -> Result<bool> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--insecure", "--fail", "--max-time", "2", "--header"]);
        curl.arg(authorization()).arg(format!("{}/readyz", self.url()));
        Ok(self.place.run(curl)?.status.success())
    }

    /// Sends objects, many at once, by one `curl`. What they were called and when they were
    /// made elsewhere is left out, which the server refuses or decides itself.
    pub fn send(&self, verb: Verb, objects: &[Value]) -> Result<()> {
        if objects.is_empty() {
            return Ok(());
        }
        let mut text = String::new();
        for object in objects {
            transfer(&mut text, &self.url(), verb, object)?;
        }
        let config = self.directory.join("curl.conf");
        fs::write(&config, text).at("write", &config)?;
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--parallel", "--parallel-max", "32"]);
        curl.args(["--fail-early", "--config"]).arg(&config);
        let output = self.place.run(curl)?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::Command {
            place: self.place.name.clone(),
            command: format!("curl: {} objects for kube-apiserver", objects.len()),
            message: String::from_utf8_lossy(&output.stderr).trim().into(),
        })
    }

    /// Fetches what stands at these paths, all at once, by one `curl` in a place, with the rights of
    /// proxy-agent; returns where it was put, in their order.
    pub fn fetch(&self, from: &Place, paths: &[&str]) -> Result<Vec<PathBuf>> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--insecure", "--fail", "--parallel", "--header"]);
        curl.arg(format!("Authorization: Bearer {PROXY}"));
        let mut files = Vec::new();
        for (number, path) in paths.iter().enumerate() {
            let file = self.directory.join(format!("list{number}.json"));
            curl.arg("--output").arg(&file).arg(format!("{}{path}", self.url()));
            files.push(file);
        }
        let output = from.run(curl)?;
        if output.status.success() {
            return Ok(files);
        }
        Err(Error::Command {
            place: from.name.clone(),
            command: format!("curl: {} lists of kube-apiserver", paths.len()),
            message: String::from_utf8_lossy(&output.stderr).trim().into(),
        })
    }

    /// What the server would make of an object, of which it keeps nothing; refuses unknown fields,
    /// fields that stand there twice, and values that it would not take.
    pub fn dry_run(&self, object: &Value) -> Result<Value> {
        let collection = collection(object).ok_or_else(|| unknown(object))?;
        let path = format!("{collection}?dryRun=All&fieldValidation=Strict");
        self.ask("POST", &path, Some(("application/json", object)))
    }

    /// The object at a path such as `/api/v1/nodes/node1`.
    pub fn read(&self, path: &str) -> Result<Value> {
        self.ask("GET", path, None)
    }

    /// Merges a patch (RFC 7396) into the object at a path.
    pub fn merge(&self, path: &str, patch: &Value) -> Result<()> {
        self.ask("PATCH", path, Some(("application/merge-patch+json", patch))).map(drop)
    }

    /// Removes the object at a path.
    pub fn delete(&self, path: &str) -> Result<()> {
        self.ask("DELETE", path, None).map(drop)
    }

    /// `body` has its media type before it.
    fn ask(&self, method: &str, path: &str, body: Option<(&str, &Value)>) -> Result<Value> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--insecure", "--fail-with-body"]);
        curl.args(["--max-time", "10", "--request", method, "--header"]).arg(authorization());
        if let Some((media_type, value)) = body {
            curl.arg("--header").arg(format!("Content-Type: {media_type}"));
            curl.arg("--data-raw").arg(value.to_string());
        }
        curl.arg(format!("{}{path}", self.url()));
        let output = self.place.run(curl)?;
        let failed = |message: String| Error::Command {
            place: self.place.name.clone(),
            command: format!("curl: {method} {path} of kube-apiserver"),
            message,
        };
        if !output.status.success() {
            let said = [output.stderr, output.stdout].map(String::from_utf8);
            let said: Vec<_> = said.into_iter().flatten().collect();
            return Err(failed(said.concat().trim().into()));
        }
        serde_json::from_slice(&output.stdout).map_err(|err| failed(err.to_string()))
    }

    /// Ends both as a crash would; what they hold stays.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
        }
        self.etcd.stop();
    }

    /// Has etcd forget all that was before now, as it does every few minutes.
    pub fn compact(&self) -> Result<()> {
        self.etcd.compact()
    }

    /// Starts both again, if they were stopped.
    pub fn resume(&mut self) -> Result<()> {
        if self.process.is_some() {
            return Ok(());
        }
        self.etcd.start()?;
        self.launch()
    }
}

/// Who may show a token, which is no secret.
struct User {
    token: String,
    name: String,
    group: Option<&'static str>,
}

impl User {
    /// Whose token is his name.
    fn named(name: &str) -> Self {
        Self { token: name.into(), name: name.into(), group: None }
    }

    /// A line of `--token-auth-file`: token, name, uid and groups.
    fn token_line(&self) -> String {
        let Self { token, name, group } = self;
        group.map_or_else(
            || format!("{token},{name},{name}\n"),
            |group| format!("{token},{name},{name},{group}\n"),
        )
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn authorization() -> String {
    format!("Authorization: Bearer {ADMINISTRATOR}")
}

fn kubeconfig(url: &str, token: &str) -> String {
    format!(
        "apiVersion: v1
kind: Config
clusters: [{{name: lab, cluster: {{server: \"{url}\", insecure-skip-tls-verify: true}}}}]
users: [{{name: lab, user: {{token: {token}}}}}]
contexts: [{{name: lab, context: {{cluster: lab, user: lab}}}}]
current-context: lab
"
    )
}

/// Appends one transfer to a configuration of `curl`.
fn transfer(text: &mut String, url: &str, verb: Verb, object: &Value) -> Result<()> {
    let collection = collection(object).ok_or_else(|| unknown(object))?;
    let name = object["metadata"]["name"].as_str().ok_or_else(|| unknown(object))?;
    let (method, path) = match verb {
        Verb::Create => ("POST", collection),
        Verb::Replace => ("PUT", format!("{collection}/{name}")),
        Verb::Delete => ("DELETE", format!("{collection}/{name}")),
    };
    let body = if verb == Verb::Delete { Value::Null } else { fresh(object) };
    let entries = [
        ("url", format!("{url}{path}")),
        ("request", method.into()),
        ("header", authorization()),
        ("header", "Content-Type: application/json".into()),
        ("data-raw", body.to_string()),
        ("output", "/dev/null".into()),
        ("write-out", format!("%{{onerror}}%{{stderr}}{method} {path}: %{{http_code}}\\n")),
    ];
    if !text.is_empty() {
        text.push_str("next\n");
    }
    text.push_str("insecure\nfail\n");
    for (option, value) in entries {
        let value = if option == "write-out" { value } else { escaped(&value) };
        let _ = writeln!(text, "{option} = \"{value}\"");
    }
    Ok(())
}

/// Inside the quotes of curl's configuration.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"")
}

fn unknown(object: &Value) -> Error {
    Error::BadSpec {
        what: "an object",
        name: object["kind"].to_string(),
        reason: "it is of no kind that the lab knows, or has no name",
    }
}

/// What flannel's manifest (`Documentation/kube-flannel.yml` of v0.28.4) allows flanneld.
pub fn flannel_roles() -> [Value; 2] {
    let rules = [
        rule("", &["pods"], &["get"]),
        rule("", &["nodes"], &["get", "list", "watch"]),
        rule("", &["nodes/status"], &["patch"]),
    ];
    role(FLANNEL, &rules)
}

/// All that proxy-agent needs.
pub fn proxy_roles() -> [Value; 2] {
    let verbs = ["get", "list", "watch"];
    let slices = rule("discovery.k8s.io", &["endpointslices"], &verbs);
    let cidrs = rule("networking.k8s.io", &["servicecidrs"], &verbs);
    let events = rule("events.k8s.io", &["events"], &["create", "patch"]);
    role(PROXY, &[rule("", &["services", "nodes", "pods"], &verbs), slices, cidrs, events])
}

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": [group], "resources": resources, "verbs": verbs})
}

/// A role of a user by his name, and that it is his.
fn role(user: &str, rules: &[Value]) -> [Value; 2] {
    let group = "rbac.authorization.k8s.io";
    [
        json!({
            "apiVersion": RBAC,
            "kind": "ClusterRole",
            "metadata": {"name": user},
            "rules": rules,
        }),
        json!({
            "apiVersion": RBAC,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": user},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": user},
            "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
        }),
    ]
}

/// The path below which objects of this kind and namespace are made.
fn collection(object: &Value) -> Option<String> {
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
    Some(match (object["apiVersion"].as_str()?, object["kind"].as_str()?) {
        ("v1", "Node") => "/api/v1/nodes".into(),
        ("v1", "Namespace") => "/api/v1/namespaces".into(),
        ("v1", "ConfigMap") => format!("/api/v1/namespaces/{namespace}/configmaps"),
        ("v1", "ServiceAccount") => format!("/api/v1/namespaces/{namespace}/serviceaccounts"),
        ("apps/v1", "DaemonSet") => format!("/apis/apps/v1/namespaces/{namespace}/daemonsets"),
        ("v1", "Pod") => format!("/api/v1/namespaces/{namespace}/pods"),
        ("v1", "Service") => format!("/api/v1/namespaces/{namespace}/services"),
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices")
        }
        ("networking.k8s.io/v1", "ServiceCIDR") => "/apis/networking.k8s.io/v1/servicecidrs".into(),
        ("authorization.k8s.io/v1", "SubjectAccessReview") => {
            "/apis/authorization.k8s.io/v1/subjectaccessreviews".into()
        }
        (RBAC, "ClusterRole") => format!("/apis/{RBAC}/clusterroles"),
        (RBAC, "ClusterRoleBinding") => format!("/apis/{RBAC}/clusterrolebindings"),
        _ => return None,
    })
}

/// The object without what a server gives it.
fn fresh(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in ["uid", "resourceVersion", "creationTimestamp", "generation"] {
            metadata.remove(field);
        }
    }
    object
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_is_sent_as_a_new_one() {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "web-1", "namespace": "fleet", "uid": "5f0c", "resourceVersion": "7",
                "labels": {"a": "\"b\\"},
            },
        });
        let mut text = String::new();
        transfer(&mut text, "https://10.0.0.1:6443", Verb::Create, &slice).unwrap();
        let path = "/apis/discovery.k8s.io/v1/namespaces/fleet/endpointslices";
        assert!(text.contains(&format!("url = \"https://10.0.0.1:6443{path}\"\n")), "{text}");
        assert!(text.contains("request = \"POST\"\n"));
        assert!(!text.contains("next\n") && !text.contains("resourceVersion"), "{text}");
        // As curl reads it: a quote of JSON, which is escaped once more.
        assert!(text.contains(r#"\"a\":\"\\\"b\\\\\""#), "{text}");
        transfer(&mut text, "https://10.0.0.1:6443", Verb::Replace, &slice).unwrap();
        assert!(text.contains(&format!(
            "next\ninsecure\nfail\nurl = \"https://10.0.0.1:6443{path}/web-1\""
        )));
        assert!(text.contains("request = \"PUT\"\n"));
    }

    #[test]
    fn objects_without_namespace_stand_in_the_default_one() {
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}});
        assert_eq!(collection(&service).unwrap(), "/api/v1/namespaces/default/services");
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}});
        assert!(transfer(&mut String::new(), "", Verb::Create, &secret).is_err());
    }
}
