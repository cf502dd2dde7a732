//! What two proxies made of the same matrix, side by side.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use lab::agent::SocketLb;

use crate::differential::{
    differences::{KNOWN, Request},
    matrix::{Case, Cell},
    outcome::{Outcomes, text},
};

/// What became of each request, with one proxy on all nodes.
pub(crate) type Seen = BTreeMap<Cell, Outcomes>;

/// Cells that nothing explains, and how many each difference does.
pub(crate) struct Comparison {
    /// Cells by what differs in the same way.
    unexplained: BTreeMap<Line, BTreeSet<String>>,
    /// How many cells each difference explains.
    pub(crate) explained: [usize; KNOWN.len()],
}

/// A line of the table.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    case: &'static str,
    frontend: &'static str,
    source: &'static str,
    kube_proxy: String,
    proxy_agent: String,
    /// What was expected, and by which differences.
    expected: String,
}

pub(crate) fn compare(
    cases: &[Case],
    socket_lb: SocketLb,
    kube_proxy: &Seen,
    proxy_agent: &Seen,
) -> Comparison {
    let mut unexplained: BTreeMap<Line, BTreeSet<String>> = BTreeMap::new();
    let mut explained = [0; KNOWN.len()];
    assert!(kube_proxy.keys().eq(proxy_agent.keys()), "both were asked the same");
    let cases: BTreeMap<_, _> = cases.iter().map(|case| (case.name, case)).collect();
    for ((cell, theirs), ours) in kube_proxy.iter().zip(proxy_agent.values()) {
        let request = Request { cell, case: cases[cell.case], socket_lb, kube_proxy };
        let mut expected = theirs.clone();
        let mut rows = Vec::new();
        for (row, difference) in KNOWN.iter().enumerate() {
            let changed = (difference.change)(&request, expected.clone());
            if changed != expected {
                rows.push(row);
                expected = changed;
            }
        }
        if *ours == expected {
            for row in rows {
                explained[row] += 1;
            }
            continue;
        }
        let line = Line {
            case: cell.case,
            frontend: cell.frontend.name(),
            source: cell.source,
            kube_proxy: text(theirs),
            proxy_agent: text(ours),
            expected: if rows.is_empty() {
                "the same".into()
            } else {
                let rows: Vec<_> = rows.iter().map(|row| (row + 1).to_string()).collect();
                format!("{} (difference {})", text(&expected), rows.join(", "))
            },
        };
        let family = if cell.is_v6 { "v6" } else { "v4" };
        let kind = format!("{}/{family}", cell.protocol().name());
        unexplained.entry(line).or_default().insert(kind);
    }
    Comparison { unexplained, explained }
}

impl Comparison {
    pub(crate) fn is_clean(&self) -> bool {
        self.unexplained.is_empty()
    }

    /// A table that a person can scan; empty if there is nothing to tell.
    pub(crate) fn report(&self) -> String {
        let mut rows = vec![
            ["Service", "asked", "by", "how", "kube-proxy", "proxy-agent", "expected"]
                .map(String::from),
        ];
        rows.extend(self.unexplained.iter().map(|(line, kinds)| {
            let kinds: Vec<_> = kinds.iter().map(String::as_str).collect();
            let how = if kinds.len() == 4 { "all".into() } else { kinds.join(" ") };
            [
                line.case.into(),
                line.frontend.into(),
                line.source.into(),
                how,
                line.kube_proxy.clone(),
                line.proxy_agent.clone(),
                line.expected.clone(),
            ]
        }));
        let widths: Vec<usize> = (0..7)
            .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
            .collect();
        let mut report = String::new();
        if rows.len() > 1 {
            for row in &rows {
                for (field, width) in row.iter().zip(&widths) {
                    let _ = write!(report, "{field:width$}  ");
                }
                report.push('\n');
            }
        }
        report
    }
}
