//! The catalogue of queue policies.

use super::{Fifo, QueueCatalog, QueueMaker, bypass, edf, fair, fifo, lifo, sjf};
use crate::catalog::Catalog;
use crate::config::ConfigError;

/// What the catalogue's errors call a part.
pub const KIND: &str = "queue policy";

/// The default policy of a worker.
pub const DEFAULT: &str = "fifo";

/// The policies of this module. Add your own with [`Catalog::register`].
pub fn standard() -> QueueCatalog {
    Catalog::of(
        KIND,
        [fifo::entry(), sjf::entry(), edf::entry(), fair::entry(), lifo::entry(), bypass::entry()],
    )
}

/// [`DEFAULT`]'s maker.
pub fn default() -> QueueMaker {
    QueueMaker::new(DEFAULT, || Box::new(Fifo))
}

/// The maker of the standard policy that `text` names, with parameters after commas.
///
/// # Errors
///
/// A name or parameter that is not known, with the nearest that is; a value that is out of range.
pub fn by_name(text: &str) -> Result<QueueMaker, ConfigError> {
    standard().maker_of(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Arrival;
    use crate::scheduler::VersionId;
    use crate::time::Time;

    #[test]
    fn every_entry_builds_with_its_defaults_and_with_them_spelt_out() {
        for entry in standard().entries() {
            let mut text = entry.name.clone();
            assert!(by_name(&text).unwrap().make().rank(&arrival(), Time::ZERO) <= 1 << 40);
            for parameter in &entry.parameters {
                text += &format!(",{}={}", parameter.name, parameter.default);
            }
            by_name(&text).unwrap();
        }
        assert_eq!(default().text(), DEFAULT);
        by_name("bypass,order=sjf").unwrap();
    }

    #[test]
    fn what_is_unknown_is_refused_with_the_nearest() {
        let error = |text: &str| by_name(text).unwrap_err().to_string();
        assert_eq!(error("fif"), "queue: unknown policy \"fif\"; did you mean \"fifo\"?");
        assert!(error("bypass,order=sjff").contains("did you mean \"sjf\"?"));
        assert!(error("edf,stretch=-1").contains("use a number from 0 to 1000000"));
    }

    fn arrival() -> Arrival {
        Arrival { version: VersionId(0), arrived: Time::ZERO, deadline: Time::MAX }
    }
}
