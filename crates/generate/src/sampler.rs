//! One token from a row of logits.

use crate::{Error, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Only the `k` most likely tokens; 0 means all.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability (Holtzman et al., 2020).
    pub top_p: f64,
    /// Repeats a run.
    pub seed: u64,
}

impl Sampling {
    /// Always the most likely token.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        seed: 0,
    };
}

impl Default for Sampling {
    fn default() -> Self {
        Self::GREEDY
    }
}

/// Draws tokens one after the other.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
    order: Vec<u32>,
}

impl Sampler {
    /// A sampler at the start of its seed's sequence.
    ///
    /// # Errors
    /// A temperature below 0, or a top-p outside (0, 1].
    pub fn new(sampling: Sampling) -> Result<Self> {
        if !(sampling.temperature >= 0.0 && sampling.temperature.is_finite()) {
            return Err(Error::Sampling(format!(
                "temperature {}",
                sampling.temperature
            )));
        }
        if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
            return Err(Error::Sampling(format!(
                "top_p {} is not in (0, 1]",
                sampling.top_p
            )));
        }
        Ok(Self {
            sampling,
            rng: ChaCha8Rng::seed_from_u64(sampling.seed),
            order: Vec::new(),
        })
    }

    /// A token for `logits [vocab]`. Of equal logits the lowest token is the more likely.
    ///
    /// # Errors
    /// Logits that are empty, hold NaN, or whose largest is infinite.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        if let Some(token) = logits.iter().position(|logit| logit.is_nan()) {
            return Err(Error::NotFinite { token });
        }
        let best = (0..logits.len())
            .rev()
            .max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        let best = best.ok_or_else(|| Error::Sampling("there are no logits".to_owned()))?;
        if !logits[best].is_finite() {
            return Err(Error::NotFinite { token: best });
        }
        if self.sampling.temperature == 0.0 {
            return Ok(best as u32);
        }
        let draw: f64 = self.rng.random();
        let kept = self.keep(logits);
        let weight = |token: u32| self.weight(logits, token, logits[best]);
        let mut left = draw * kept.iter().map(|token| weight(*token)).sum::<f64>();
        let mut chosen = best as u32;
        for &token in &kept {
            let weight = weight(token);
            if weight == 0.0 {
                continue;
            }
            chosen = token;
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
        self.order = kept;
        Ok(chosen)
    }

    /// The probability of `token`, up to a common factor.
    fn weight(&self, logits: &[f32], token: u32, best: f32) -> f64 {
        (f64::from(logits[token as usize] - best) / self.sampling.temperature).exp()
    }

    /// The tokens that top-k and then top-p leave, most likely first.
    fn keep(&mut self, logits: &[f32]) -> Vec<u32> {
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        order.extend(0..logits.len() as u32);
        let descending = |a: &u32, b: &u32| {
            logits[*b as usize]
                .total_cmp(&logits[*a as usize])
                .then(a.cmp(b))
        };
        let k = self.sampling.top_k;
        if k > 0 && k < order.len() {
            order.select_nth_unstable_by(k - 1, descending);
            order.truncate(k);
        }
        if self.sampling.top_p < 1.0 {
            order.sort_unstable_by(descending);
            let best = logits[order[0] as usize];
            let total: f64 = order
                .iter()
                .map(|token| self.weight(logits, *token, best))
                .sum();
            let mut sum = 0.0;
            let enough = order.iter().position(|token| {
                sum += self.weight(logits, *token, best);
                sum >= self.sampling.top_p * total
            });
            order.truncate(enough.map_or(order.len(), |last| last + 1));
        }
        order
    }
}
