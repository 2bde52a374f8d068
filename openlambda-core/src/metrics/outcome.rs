//! The outcomes of an invocation.

use crate::failure::FailureKind;

/// How an invocation came out, as the label `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The client got the function's whole reply.
    Ok,
    /// The client got a failure; the label is its code.
    Failed(FailureKind),
    /// The reply broke off in the middle.
    BrokenOff,
    /// The client left before the end.
    Cancelled,
}

impl Outcome {
    pub(super) const COUNT: usize = FailureKind::ALL.len() + 3;

    /// The label's value: `ok`, a failure's code, `broken_off`, `cancelled`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Failed(kind) => kind.code(),
            Outcome::BrokenOff => "broken_off",
            Outcome::Cancelled => "cancelled",
        }
    }

    pub(super) fn index(self) -> usize {
        match self {
            Outcome::Ok => 0,
            Outcome::BrokenOff => 1,
            Outcome::Cancelled => 2,
            Outcome::Failed(kind) => {
                3 + FailureKind::ALL.iter().position(|known| *known == kind).unwrap_or_default()
            }
        }
    }

    pub(super) fn at(index: usize) -> Self {
        match index {
            0 => Outcome::Ok,
            1 => Outcome::BrokenOff,
            2 => Outcome::Cancelled,
            more => Outcome::Failed(FailureKind::ALL[more - 3]),
        }
    }
}
