//! How long Criterion measures: a matrix that is larger than the caches takes its time.

use criterion::Criterion;
use std::time::Duration;

pub fn settings() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}
