//! The suites that every implementation of a trait runs, ours and yours.
//!
//! A suite is a function that takes a maker of fresh values. It panics when an implementation breaks a
//! promise of the trait's documentation, and says what was promised and what happened. An
//! implementation declares what it cannot do by its nature; then the suite demands errors that say so.

pub mod balancing;
pub mod keep_alive;
pub mod registry;
pub mod sandbox;

/// How many times as many histories, or rounds of killing and of create and destroy, as they usually do
/// the suites and the tests beside them shall do: `OPENLAMBDA_TEST_TIMES`, 1 unless it is set.
///
/// # Panics
///
/// When it is set to anything but a positive number.
pub fn times() -> u64 {
    let named = std::env::var("OPENLAMBDA_TEST_TIMES");
    let times = named.map_or(Ok(1), |times| times.parse()).ok().filter(|times| *times > 0);
    times.expect("OPENLAMBDA_TEST_TIMES is a positive number")
}
