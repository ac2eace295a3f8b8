//! The learning rate over the steps of a run.

use serde::{Deserialize, Serialize};

/// A factor on the learning rate for each step: a linear warm-up, then one of the usual ends.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Steps of the warm-up; the first has 1/`warmup` of the rate, the last all of it.
    pub warmup: u64,
    /// Steps of the whole run, at whose end the decay arrives.
    pub total: u64,
    /// What follows the warm-up.
    pub decay: Decay,
}

/// What follows the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Nothing: the rate stays.
    Constant,
    /// A straight line to zero.
    Linear,
    /// Half a cosine to zero (Loshchilov and Hutter, 2017).
    Cosine,
}

impl Schedule {
    /// The full rate at every step.
    pub const CONSTANT: Self = Self {
        warmup: 0,
        total: 0,
        decay: Decay::Constant,
    };

    /// A warm-up of `warmup` steps, then a cosine that ends after `total`.
    pub fn cosine(warmup: u64, total: u64) -> Self {
        Self {
            warmup,
            total,
            decay: Decay::Cosine,
        }
    }

    /// The factor for `step`, counted from 0.
    ///
    /// transformers' schedules are the same curve a step behind: their first step has the rate zero
    /// and changes nothing.
    pub fn factor(&self, step: u64) -> f64 {
        if step < self.warmup {
            return (step + 1) as f64 / self.warmup as f64;
        }
        let length = self.total.saturating_sub(self.warmup).max(1) as f64;
        let done = ((step - self.warmup) as f64 / length).min(1.0);
        match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear => 1.0 - done,
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_and_decays() {
        let cosine = Schedule::cosine(4, 12);
        let found: Vec<f64> = (0..13).map(|step| cosine.factor(step)).collect();
        assert_eq!(found[..5], [0.25, 0.5, 0.75, 1.0, 1.0]);
        assert!((found[8] - 0.5).abs() < 1e-12, "half way of the cosine");
        assert!((found[6] - 0.853_553_390_593).abs() < 1e-9);
        assert!(found[11] > 0.0 && found[12] == 0.0);
        let linear = Schedule {
            decay: Decay::Linear,
            ..cosine
        };
        assert_eq!(linear.factor(6), 0.75);
        assert_eq!(Schedule::CONSTANT.factor(1_000_000), 1.0);
    }
}
