//! Statistics of measured times: medians, percentiles, ratios.

use openlambda_core::time::Duration;

pub(super) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The nearest-rank quantile; 0 of none.
pub(super) fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

pub(super) fn median(values: Vec<f64>) -> f64 {
    quantile(values, 0.5)
}

/// The lowest and the highest.
pub(super) fn spread(values: Vec<f64>) -> [f64; 2] {
    [quantile(values.clone(), 0.0), quantile(values, 1.0)]
}
