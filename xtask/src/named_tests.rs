//! docs/kube-proxy.md names the tests that hold proxy-agent to each rule of kube-proxy's: each must
//! be there, and a rule without one must say why. How names are written, the document tells.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::machine::Machine;

const DOCUMENT: &str = "docs/kube-proxy.md";
/// What stands over the column that names tests.
const COLUMN: &str = "held by";

pub(crate) fn check(machine: &Machine) -> Result<()> {
    let path = machine.root.join(DOCUMENT);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {DOCUMENT}"))?;
    let faults = faults(&machine.root, &text);
    if !faults.is_empty() {
        bail!("{DOCUMENT}:\n{}", faults.join("\n"));
    }
    Ok(())
}

fn faults(root: &Path, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for (rule, held_by) in rows(text) {
        let mut names = names(held_by).peekable();
        if names.peek().is_none() && !held_by.contains("not:") && !held_by.contains("not yet") {
            faults.push(format!("{rule:?} names no test; name one, or say \"not: \" and why"));
        }
        faults.extend(names.filter(|name| !is_there(root, name)).map(|name| {
            format!("{rule:?} names {name}, which is not there; name the test as it is called now")
        }));
    }
    faults
}

/// Rule and tests of each row, in tables that tell tests.
fn rows(text: &str) -> Vec<(&str, &str)> {
    let mut rows = Vec::new();
    let mut tells_tests = false;
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        match cells[..] {
            ["", _, COLUMN, ""] => tells_tests = true,
            ["", rule, held_by, ""] if tells_tests && !rule.starts_with("---") => {
                rows.push((rule, held_by));
            }
            ["", _, _, ""] => {}
            _ => tells_tests = false,
        }
    }
    rows
}

/// What is set as code and has the look of a path.
fn names(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2).filter(|span| span.contains("::"))
}

fn is_there(root: &Path, name: &str) -> bool {
    let Some((begin, rest)) = name.split_once("::") else { return false };
    let quotes = |file: &str| {
        let text = fs::read_to_string(root.join(file)).unwrap_or_default();
        text.contains(&format!("\"{rest}\""))
    };
    match begin {
        "golden" => ["yaml", "txt"]
            .iter()
            .all(|kind| root.join(format!("proxy-agent/tests/golden/{rest}.{kind}")).exists()),
        "selection" => quotes("proxy-agent/src/topology/tests.rs"),
        "matrix" => quotes("tests/tests/interop/differential/matrix.rs"),
        "engine" => is_test(&root.join("datapath/tests/engine"), rest),
        _ => {
            let tier = root.join("tests/tests").join(begin);
            let of_crate = root.join(begin).join("src");
            is_test(if tier.is_dir() { &tier } else { &of_crate }, rest)
        }
    }
}

/// Whether a path of modules below a directory of sources ends in a test.
fn is_test(dir: &Path, path: &str) -> bool {
    let mut modules: Vec<&str> = path.split("::").collect();
    let case = modules.pop().unwrap_or_default();
    // Modules without a file of their own stand in that of one above.
    let found = (0..=modules.len()).rev().find_map(|depth| {
        let (with_file, within) = modules.split_at(depth);
        Some((source(dir, with_file)?, within))
    });
    found.is_some_and(|(text, within)| {
        within.iter().all(|module| text.contains(&format!("mod {module} {{")))
            && tests(&text).any(|name| name == case)
    })
}

fn source(dir: &Path, modules: &[&str]) -> Option<String> {
    let path = dir.join(modules.join("/"));
    let files = match modules {
        [] => [dir.join("main.rs"), dir.join("lib.rs")],
        _ => [path.with_extension("rs"), path.join("mod.rs")],
    };
    files.iter().find_map(|file| fs::read_to_string(file).ok())
}

/// Functions that are marked as tests, and those that `both!` makes tests of.
fn tests(text: &str) -> impl Iterator<Item = &str> {
    let mut is_marked = false;
    let marked = text.lines().filter_map(move |line| {
        let line = line.trim();
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_marked = true;
        }
        let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")?;
        std::mem::take(&mut is_marked).then(|| function.split(['(', '<']).next()).flatten()
    });
    let lists = text.split("both! {").skip(1).filter_map(|rest| rest.split('}').next());
    marked.chain(lists.flat_map(|list| list.split(',')).map(str::trim))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
    }

    #[test]
    fn names_of_each_kind_are_found_and_others_are_not() {
        for (name, other) in [
            ("golden::headless", "golden::headfull"),
            ("selection::node without zone", "selection::node without zones"),
            ("matrix::external-other", "matrix::external"),
            ("engine::answers::a_stray_segment_is_reset", "engine::answers::unreachable"),
            (
                "lab::refusal::no_endpoints_is_refused_at_once",
                "lab::answers::no_endpoints_is_refused_at_once",
            ),
            // A test of the tier's main file, and a test beside a function that is none.
            ("watch::promtool_takes_the_rules", "watch::promtool"),
            (
                "interop::services::churn::thousands_of_services_are_churned_while_everything_fails",
                "interop::churn",
            ),
            (
                "xtask::named_tests::tests::names_of_each_kind_are_found_and_others_are_not",
                "xtask::named_tests::tests::root",
            ),
            // Made by a macro, and of another crate.
            (
                "proxy-agent::state::tests::step_by_step_or_at_once_is_the_same",
                "proxy-agent::nothing",
            ),
            ("agent-kit::table::tests::memory_refuses_what_the_kernel_refuses", "agent::table"),
        ] {
            assert!(is_there(root(), name), "{name}");
            assert!(!is_there(root(), other), "{other}");
        }
    }

    #[test]
    fn the_document_names_what_is_there() {
        let text = fs::read_to_string(root().join(DOCUMENT)).unwrap();
        assert!(rows(&text).len() > 200);
        assert_eq!(faults(root(), &text), [""; 0]);
    }

    #[test]
    fn rules_without_a_test_and_tests_that_are_not_there_are_told() {
        let text = "| a name | is |\n|---|---|\n| `x::` | whatever |\n\n| rule | held by |\n\
                    |---|---|\n| one | `golden::headless` and `plain` |\n| two | not: a reason |\n\
                    | three | a word |\n| four | not yet: `golden::nowhere` |\n\nText\n\
                    | five | six |\n";
        let faults = faults(root(), text);
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].starts_with("\"three\" names no test"), "{faults:?}");
        assert!(faults[1].starts_with("\"four\" names golden::nowhere"), "{faults:?}");
    }
}
