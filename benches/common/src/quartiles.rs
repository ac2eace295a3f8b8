//! What several measurements of one thing say.

use std::fmt;

/// Median and quartiles, between two values as NumPy interpolates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quartiles {
    /// A quarter of the values lie below.
    pub low: f64,
    /// Half of them.
    pub median: f64,
    /// Three quarters.
    pub high: f64,
}

impl Quartiles {
    /// Of any values; NaN of none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let place = part * values.len().saturating_sub(1) as f64;
            let (below, above) = (place.floor() as usize, place.ceil() as usize);
            match (values.get(below), values.get(above)) {
                (Some(below), Some(above)) => below + (above - below) * place.fract(),
                _ => f64::NAN,
            }
        };
        Self {
            low: at(0.25),
            median: at(0.5),
            high: at(0.75),
        }
    }
}

impl fmt::Display for Quartiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let precision = f.precision().unwrap_or(3);
        let Self { low, median, high } = self;
        write!(
            f,
            "{median:.precision$} ({low:.precision$} to {high:.precision$})"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_numpys() {
        let found = Quartiles::of([4.0, 1.0, 2.0, 8.0]);
        assert_eq!((found.low, found.median, found.high), (1.75, 3.0, 5.0));
        let one = Quartiles::of([2.0]);
        assert_eq!((one.low, one.median, one.high), (2.0, 2.0, 2.0));
        assert!(Quartiles::of([]).median.is_nan());
    }
}
