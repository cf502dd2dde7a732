//! What is wrong with an input, told to the operator: logged, counted by kind, and shown by
//! `status`. A problem never stops anything but the object it is about.

use std::{fmt, sync::Arc};

use crate::model::ObjectKey;

/// The kinds of problem. Closed, because they label a metric.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ProblemKind {
    /// The source as a whole cannot be read; what it last said stays in force.
    Source,
    /// A document cannot be read; its last good objects stay in force.
    Unreadable,
    /// A document is not YAML or JSON; its last good objects stay in force.
    Syntax,
    /// A field has the wrong type; the object's last good version stays in force.
    Type,
    /// A field has an impossible value; the object's last good version stays in force.
    Value,
    /// An entry that has no meaning and is left out, as kube-proxy does; the rest counts.
    Ignored,
    /// One object in two documents.
    Duplicate,
    /// Two Services with one frontend.
    Conflict,
    /// What cannot be read may hold Services that the last agent programmed; they are kept.
    Kept,
}

impl ProblemKind {
    pub const ALL: [Self; 9] = [
        Self::Source,
        Self::Unreadable,
        Self::Syntax,
        Self::Type,
        Self::Value,
        Self::Ignored,
        Self::Duplicate,
        Self::Conflict,
        Self::Kept,
    ];

    /// The label's value in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Unreadable => "unreadable",
            Self::Syntax => "syntax",
            Self::Type => "type",
            Self::Value => "value",
            Self::Ignored => "ignored",
            Self::Duplicate => "duplicate",
            Self::Conflict => "conflict",
            Self::Kept => "kept",
        }
    }

    /// Whether the object, or the whole document, was refused and an older version, if there is
    /// one, stays in force.
    #[must_use]
    pub const fn refuses(self) -> bool {
        matches!(self, Self::Unreadable | Self::Syntax | Self::Type | Self::Value)
    }
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Problem {
    pub kind: ProblemKind,
    /// File or key it comes from, or the source as a whole.
    pub source: Option<Arc<str>>,
    /// `None` if the document as a whole is meant, or the object could not be told.
    pub object: Option<ObjectKey>,
    /// Path such as `spec.ports[1].nodePort`; empty if no one field is to blame.
    pub field: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl Problem {
    /// Says where it comes from, unless that is the object itself.
    pub fn locate(&mut self, document: &Arc<str>) {
        let is_object = |object: &ObjectKey| object.to_string() == **document;
        if !self.object.as_ref().is_some_and(is_object) {
            self.source = Some(Arc::clone(document));
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(source) = &self.source {
            write!(f, "{source}: ")?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}
