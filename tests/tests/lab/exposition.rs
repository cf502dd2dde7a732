//! A strict reader of what Prometheus reads: OpenMetrics text, version 1.0.

use std::collections::{BTreeMap, BTreeSet};

/// One line with a value.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

/// Every sample, or the first line that is not as the format demands: families described
/// before their samples and all in one place, no sample twice, names and labels well formed,
/// counters ending in `_total`, one end mark and nothing behind it.
pub(crate) fn parse(text: &str) -> Result<Vec<Sample>, String> {
    let body = text.strip_suffix("# EOF\n").ok_or("the text does not end with # EOF")?;
    let mut samples: Vec<Sample> = Vec::new();
    let mut families: BTreeMap<String, String> = BTreeMap::new();
    let mut family = String::new();
    let mut about = String::new();
    let mut seen = BTreeSet::new();
    for line in body.lines() {
        let wrong = |why: &str| format!("{why}: {line}");
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or_else(|| wrong("a type without one"))?;
            if families.insert(name.to_owned(), kind.to_owned()).is_some() {
                return Err(wrong("a family in two places"));
            }
            if !about.is_empty() && about != name {
                return Err(wrong("not of the family described above it"));
            }
            name.clone_into(&mut family);
        } else if let Some(rest) = line.strip_prefix("# HELP ").or(line.strip_prefix("# UNIT ")) {
            // Before its type or behind it.
            rest.split(' ').next().unwrap_or_default().clone_into(&mut about);
        } else {
            if !about.is_empty() && about != family {
                return Err(wrong("a description without its type"));
            }
            about.clear();
            let sample = sample(line).ok_or_else(|| wrong("no sample"))?;
            let kind = families.get(&family).ok_or_else(|| wrong("a sample before its type"))?;
            let suffix = sample.name.strip_prefix(family.as_str());
            let suffix = suffix.ok_or_else(|| wrong("not of the family above it"))?;
            if !suffixes(kind).contains(&suffix) {
                return Err(wrong("a suffix that its type does not have"));
            }
            if !seen.insert((sample.name.clone(), sample.labels.clone())) {
                return Err(wrong("twice"));
            }
            samples.push(sample);
        }
    }
    Ok(samples)
}

fn suffixes(kind: &str) -> &'static [&'static str] {
    match kind {
        "counter" => &["_total", "_created"],
        "gauge" => &[""],
        "info" => &["_info"],
        "histogram" => &["_bucket", "_sum", "_count", "_created"],
        _ => &[],
    }
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, value) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    let value = value.strip_prefix(' ')?;
    let is_name = !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
        && !name.starts_with(|c: char| c.is_ascii_digit());
    let value = if value == "+Inf" { f64::INFINITY } else { value.parse().ok()? };
    is_name.then(|| Sample { name: name.into(), labels, value })
}

/// Labels up to the closing brace, and what stands behind it.
fn labels(mut text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        let (name, rest) = text.split_once("=\"")?;
        let (value, rest) = quoted(rest)?;
        let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name || labels.insert(name.to_owned(), value).is_some() {
            return None;
        }
        match rest.strip_prefix(',') {
            Some(rest) => text = rest,
            None => return Some((labels, rest.strip_prefix('}')?)),
        }
    }
}

fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                c @ ('\\' | '"') => c,
                _ => return None,
            }),
            '\n' => return None,
            c => value.push(c),
        }
    }
    None
}

#[test]
fn what_is_not_the_format_is_refused() {
    let good = "# HELP a b\n# TYPE a counter\na_total{x=\"1\\\"\"} 2\n# EOF\n";
    assert_eq!(parse(good).map(|samples| samples[0].value), Ok(2.0));
    for bad in ["# EOF", "a 1\n# EOF\n", "# TYPE a counter\na 1\n# EOF\n"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
    let twice = "# TYPE a gauge\na 1\na 2\n# EOF\n";
    assert!(parse(twice).is_err());
}
