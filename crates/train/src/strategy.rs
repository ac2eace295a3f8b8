//! Where the ranks of a run meet.

use crate::Result;
use ferrotune_nn::Param;
use std::fmt::Debug;

/// How the ranks of one run work together. A run alone is [`Single`]; distribution is an
/// implementation in a crate above.
pub trait Strategy: Debug + Send + Sync {
    /// This process among the ranks, from 0.
    fn rank(&self) -> usize;
    /// The number of ranks.
    fn world_size(&self) -> usize;
    /// Replaces each value by its sum over the ranks.
    ///
    /// # Errors
    /// The collective's.
    fn sum(&self, values: &mut [f64]) -> Result<()>;
    /// Makes the gradients, which hold each rank's own sum, those of all ranks together. Comes once
    /// a step, after the last micro-batch.
    ///
    /// # Errors
    /// The collective's.
    fn reduce(&self, params: &[(String, Param)]) -> Result<()>;
}

/// One process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Single;

impl Strategy for Single {
    fn rank(&self) -> usize {
        0
    }
    fn world_size(&self) -> usize {
        1
    }
    fn sum(&self, _: &mut [f64]) -> Result<()> {
        Ok(())
    }
    fn reduce(&self, _: &[(String, Param)]) -> Result<()> {
        Ok(())
    }
}
