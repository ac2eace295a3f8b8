use crate::{Error, Result};

/// How a signature is cut: texts that agree in all rows of any band are candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bands {
    /// Bands.
    pub count: usize,
    /// Places of a signature that a band has.
    pub rows: usize,
}

impl Bands {
    /// Those of all that fit into a signature whose mistakes weigh least: the area under the
    /// [`probability`](Self::probability) below the threshold, pairs found in vain, and the area over it above the
    /// threshold, pairs missed, count alike.
    ///
    /// # Errors
    /// A threshold that is not between 0 and 1, no place.
    pub fn for_threshold(threshold: f64, permutations: usize) -> Result<Self> {
        if !(threshold > 0.0 && threshold < 1.0) {
            return Err(Error::Threshold { threshold });
        }
        let all = (1..=permutations)
            .flat_map(|rows| (1..=permutations / rows).map(move |count| Self { count, rows }));
        let mistakes = |bands: &Self| {
            const STEPS: usize = 200;
            let area = |begin: f64, end: f64, height: &dyn Fn(f64) -> f64| -> f64 {
                let width = (end - begin) / STEPS as f64;
                let middles = (0..STEPS).map(|i| begin + (i as f64 + 0.5) * width);
                middles.map(height).sum::<f64>() * width
            };
            area(0.0, threshold, &|s| bands.probability(s))
                + area(threshold, 1.0, &|s| 1.0 - bands.probability(s))
        };
        let weighed = all.map(|bands| (mistakes(&bands), bands));
        let least = weighed.min_by(|left, right| left.0.total_cmp(&right.0));
        least.map(|(_, bands)| bands).ok_or(Error::Option {
            option: "permutations",
            value: permutations,
            reason: "a signature has one place at least",
        })
    }

    /// With what probability two texts of Jaccard similarity `s` are candidates.
    pub fn probability(&self, s: f64) -> f64 {
        1.0 - (1.0 - s.powi(self.rows as i32)).powi(self.count as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// datasketch 1.6, `MinHashLSH(threshold, num_perm)` with its default weights: `(b, r)`.
    #[test]
    fn bands_are_datasketchs() {
        for (threshold, permutations, count, rows) in [
            (0.8, 128, 9, 13),
            (0.7, 128, 14, 9),
            (0.5, 128, 25, 5),
            (0.9, 128, 5, 25),
        ] {
            let bands = Bands::for_threshold(threshold, permutations).unwrap();
            assert_eq!((bands.count, bands.rows), (count, rows), "{threshold}");
        }
    }

    /// FineWeb's 14 bands of 8: P(0.8) = 0.924, a half at about 0.72.
    #[test]
    fn probabilities_are_the_formulas() {
        let bands = Bands { count: 14, rows: 8 };
        assert!((bands.probability(0.8) - 0.924).abs() < 5e-4);
        assert_eq!((bands.probability(0.0), bands.probability(1.0)), (0.0, 1.0));
    }

    #[test]
    fn a_threshold_is_between_0_and_1() {
        for threshold in [0.0, 1.0, -0.5, f64::NAN, 2.0] {
            let error = Bands::for_threshold(threshold, 128).unwrap_err();
            assert!(error.to_string().contains(&threshold.to_string()));
        }
        assert!(Bands::for_threshold(0.5, 0).is_err());
    }
}
