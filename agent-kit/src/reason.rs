//! Reasons of errors in words: aya tells them only in the sources of its errors.

use std::{error::Error, io};

/// An error with the reasons behind it, each told once.
pub fn chain(err: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut hint = "";
    let mut next = Some(err);
    while let Some(err) = next {
        next = err.source();
        let reason = err.to_string();
        if text.is_empty() {
            text = reason;
        } else if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
        if let Some(err) = err.downcast_ref() {
            hint = self::hint(err);
        }
    }
    text + hint
}

/// What to do about a lack of privileges, if that is the reason.
pub fn hint(err: &io::Error) -> &'static str {
    match err.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "; run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot: {0}")]
    struct Outer(#[source] io::Error);

    #[test]
    fn a_reason_is_told_once_with_what_to_do() {
        let err = Outer(io::Error::from_raw_os_error(libc::EPERM));
        assert_eq!(
            chain(&err),
            "cannot: Operation not permitted (os error 1); run as root, or with CAP_BPF, \
             CAP_PERFMON and CAP_NET_ADMIN"
        );
    }
}
