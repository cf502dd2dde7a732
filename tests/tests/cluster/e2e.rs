//! Kubernetes' own end-to-end tests (`e2e.test`), run by ginkgo where the cluster's API server is.

use std::{
    fmt::{self, Display, Formatter},
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use lab::kubernetes::Kubernetes;
use serde::Deserialize;

use crate::{bed::AGENTS, manifest::ok};

/// Images by the names that `xtask/src/image/e2e.rs` gives them.
const REGISTRIES: &str = "promoterE2eRegistry: localhost/millrace
buildImageRegistry: localhost/millrace
gcRegistry: localhost/millrace
";

/// Which tests are run: those whose names match `focus` and not `skip` (regular expressions of Go).
pub(crate) struct Selection<'a> {
    /// Of the directory in `target/e2e` that holds logs and the report.
    pub(crate) name: &'a str,
    pub(crate) focus: &'a str,
    pub(crate) skip: Option<&'a str>,
}

/// Tests that were run, and where their log is.
pub(crate) struct Outcome {
    pub(crate) specs: Vec<Spec>,
    pub(crate) log: PathBuf,
}

/// A test, or one of the steps before and after all tests.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) name: String,
    /// Whether it is a test.
    pub(crate) is_test: bool,
    pub(crate) state: State,
    pub(crate) took: Duration,
}

#[derive(PartialEq, Eq, Debug)]
pub(crate) enum State {
    Passed,
    /// By what the test found when it ran.
    Skipped(String),
    Failed(String),
}

/// Runs tests, as many at once as `processes`, with no other limit of time than ginkgo's own.
pub(crate) fn run(cluster: &Kubernetes, selection: &Selection, processes: u8) -> Outcome {
    let directory = lab::dist().with_file_name("e2e").join(selection.name);
    ok(fs::create_dir_all(&directory));
    let (report, log) = (directory.join("report.json"), directory.join("log"));
    if report.exists() {
        ok(fs::remove_file(&report));
    }
    let command = command(cluster, selection, processes, &directory);
    let output = ok(File::create(&log));
    let status = ok(ok(ok(cluster.centre()).spawn(to(command, output))).wait());
    // It fails if a test does, which the report tells more of.
    let text = fs::read(&report).unwrap_or_else(|err| {
        panic!("ginkgo ended with {status} and left no report ({err}): {}", log.display())
    });
    let outcome = Outcome { specs: parse(&text), log };
    if outcome.failures().next().is_some() {
        keep_logs(cluster, &directory);
    }
    outcome
}

fn command(
    cluster: &Kubernetes,
    selection: &Selection,
    processes: u8,
    directory: &Path,
) -> Command {
    let registries = directory.join("registries.yaml");
    ok(fs::write(&registries, REGISTRIES));
    let peers = lab::peers();
    let kubeconfig = cluster.api.kubeconfig();
    let mut ginkgo = Command::new(peers.join("ginkgo"));
    ginkgo.arg(format!("--procs={processes}")).args(["--no-color", "--timeout=2h"]);
    // Else it waits for whatever inherited its output, be it that the test is long over.
    ginkgo.arg("--output-interceptor-mode=none");
    ginkgo.arg(format!("--output-dir={}", directory.display())).arg("--json-report=report.json");
    ginkgo.arg(format!("--focus={}", selection.focus));
    ginkgo.args(selection.skip.map(|skip| format!("--skip={skip}")));
    ginkgo.arg(peers.join("e2e.test")).args(["--", "--provider=skeleton"]);
    ginkgo.arg(format!("--kubeconfig={}", kubeconfig.display()));
    ginkgo.arg(format!("--kubectl-path={}", peers.join("kubectl").display()));
    ginkgo.arg(format!("--num-nodes={}", cluster.machines.len()));
    ginkgo.arg("--disable-log-dump=true");
    ginkgo.env("KUBECONFIG", kubeconfig).env("KUBE_TEST_REPO_LIST", registries);
    ginkgo.current_dir(directory);
    ginkgo
}

fn to(mut command: Command, log: File) -> Command {
    command.stdin(std::process::Stdio::null());
    command.stderr(ok(log.try_clone())).stdout(log);
    command
}

/// What the cluster and the agents tell, which goes with the cluster.
fn keep_logs(cluster: &Kubernetes, directory: &Path) {
    ok(fs::write(directory.join("cluster.log"), cluster.report()));
    for (namespace, agent) in AGENTS {
        let selector = format!("app.kubernetes.io/name={agent}");
        let logs = ["--namespace", namespace, "logs", "--prefix", "--tail=-1", "--selector"];
        let said = cluster.kubectl(&[&logs[..], &[&selector]].concat());
        let said = said.unwrap_or_else(|err| err.to_string());
        ok(fs::write(directory.join(format!("{agent}.log")), said));
    }
}

impl Outcome {
    /// The tests, without the steps before and after.
    pub(crate) fn tests(&self) -> impl Iterator<Item = &Spec> {
        self.specs.iter().filter(|spec| spec.is_test)
    }

    /// Tests and steps that failed.
    pub(crate) fn failures(&self) -> impl Iterator<Item = &Spec> {
        self.specs.iter().filter(|spec| matches!(spec.state, State::Failed(_)))
    }
}

impl Display for Outcome {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        writeln!(to, "{} tests, log: {}", self.tests().count(), self.log.display())?;
        self.specs.iter().filter(|spec| spec.state != State::Passed).try_for_each(|spec| {
            let (state, message) = match &spec.state {
                State::Passed => ("passed", ""),
                State::Skipped(message) => ("skipped", message.as_str()),
                State::Failed(message) => ("FAILED", message.as_str()),
            };
            let seconds = spec.took.as_secs_f32();
            writeln!(to, "{state} after {seconds:.1} s: {}", spec.name)?;
            message.lines().try_for_each(|line| writeln!(to, "    {line}"))
        })
    }
}

/// Ginkgo's JSON report (`types.Report`), as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    #[serde(default)]
    special_suite_failure_reasons: Option<Vec<String>>,
    #[serde(default)]
    spec_reports: Option<Vec<SpecReport>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SpecReport {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    /// In nanoseconds.
    run_time: u64,
    failure: Option<Failure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    message: String,
    location: Location,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Location {
    file_name: String,
    line_number: u64,
}

/// What was run. The report has all tests there are; those that were not selected are left out.
fn parse(report: &[u8]) -> Vec<Spec> {
    let suites: Vec<Suite> = ok(serde_json::from_slice(report));
    let mut specs = Vec::new();
    for suite in suites {
        specs.extend(suite.spec_reports.into_iter().flatten().filter_map(SpecReport::spec));
        let reasons = suite.special_suite_failure_reasons.unwrap_or_default();
        specs.extend(reasons.into_iter().map(|reason| Spec {
            name: "the whole run".into(),
            is_test: false,
            state: State::Failed(reason),
            took: Duration::ZERO,
        }));
    }
    specs
}

impl SpecReport {
    fn spec(self) -> Option<Spec> {
        let message = self.failure.map(|Failure { message, location }| {
            format!("{}\nat {}:{}", message.trim_end(), location.file_name, location.line_number)
        });
        let state = match (self.state.as_str(), message) {
            ("passed", _) => State::Passed,
            ("skipped" | "pending", None) => return None,
            ("skipped", Some(message)) => State::Skipped(message),
            (state, message) => State::Failed(message.unwrap_or_else(|| state.into())),
        };
        let is_test = self.leaf_node_type == "It";
        let leaf = if is_test { self.leaf_node_text } else { self.leaf_node_type };
        let texts = self.container_hierarchy_texts.into_iter().flatten().chain([leaf]);
        let name = texts.collect::<Vec<_>>().join(" ");
        Some(Spec { name, is_test, state, took: Duration::from_nanos(self.run_time) })
    }
}

#[test]
fn a_report_tells_what_was_run_and_what_became_of_it() {
    let report = r#"[{"SpecialSuiteFailureReasons": null, "SpecReports": [
        {"ContainerHierarchyTexts": null, "LeafNodeType": "SynchronizedBeforeSuite",
         "LeafNodeText": "", "State": "passed", "RunTime": 1},
        {"ContainerHierarchyTexts": ["[sig-network] DNS"], "LeafNodeType": "It",
         "LeafNodeText": "is asked", "State": "passed", "RunTime": 1500000000},
        {"ContainerHierarchyTexts": ["[sig-network] DNS"], "LeafNodeType": "It",
         "LeafNodeText": "was not selected", "State": "skipped", "RunTime": 0},
        {"ContainerHierarchyTexts": ["[sig-network] DNS"], "LeafNodeType": "It",
         "LeafNodeText": "wants more nodes", "State": "skipped", "RunTime": 1,
         "Failure": {"Message": "too few", "Location": {"FileName": "dns.go", "LineNumber": 7}}},
        {"ContainerHierarchyTexts": [], "LeafNodeType": "It",
         "LeafNodeText": "waits", "State": "timedout", "RunTime": 1,
         "Failure": {"Message": "still\n", "Location": {"FileName": "dns.go", "LineNumber": 9}}}
    ]}, {"SpecialSuiteFailureReasons": ["interrupted"], "SpecReports": []}]"#;
    let outcome = Outcome { specs: parse(report.as_bytes()), log: "log".into() };
    let found: Vec<_> = outcome.tests().map(|spec| (spec.name.as_str(), &spec.state)).collect();
    let expected = [
        ("[sig-network] DNS is asked", &State::Passed),
        ("[sig-network] DNS wants more nodes", &State::Skipped("too few\nat dns.go:7".into())),
        ("waits", &State::Failed("still\nat dns.go:9".into())),
    ];
    assert_eq!(found, expected);
    assert_eq!(outcome.failures().count(), 2);
    let told = outcome.to_string();
    assert!(told.contains("FAILED after 0.0 s: the whole run\n    interrupted\n"), "{told}");
    assert!(told.contains("FAILED after 0.0 s: waits\n    still\n    at dns.go:9\n"), "{told}");
}
