//! Where the batches of a run come from.

use crate::{Error, Result};
use ferrotune_data::{Batch, Streams, for_rank, micro_batches};
use serde_json::Value;
use std::sync::Arc;

/// Gives the micro-batches of each step, and a position that can be saved.
pub trait Loader {
    /// What the model's loss is computed from.
    type Batch;
    /// This rank's micro-batches of the next step, or `None` at the end.
    ///
    /// # Errors
    /// What stops the source.
    fn next_step(&mut self) -> Result<Option<Vec<Self::Batch>>>;
    /// Steps from the beginning to the end, if there is one.
    fn steps(&self) -> Option<u64>;
    /// Where it stands, before the next step.
    ///
    /// # Errors
    /// A position that cannot be written down.
    fn state(&self) -> Result<Value>;
    /// Goes to where a state was saved.
    ///
    /// # Errors
    /// The state of another source.
    fn resume(&mut self, state: &Value) -> Result<()>;
}

/// Packed batches of a [`Streams`], a step's bins dealt into micro-batches.
#[derive(Debug, Clone)]
pub struct Packed {
    streams: Streams,
    accumulate: usize,
    rank: usize,
    world_size: usize,
}

impl Packed {
    /// A step has the streams' `global_batch` bins, in `accumulate` micro-batches a rank.
    ///
    /// # Errors
    /// `accumulate` = 0.
    pub fn new(streams: Streams, accumulate: usize) -> Result<Self> {
        micro_batches(&[], accumulate)?;
        Ok(Self {
            streams,
            accumulate,
            rank: 0,
            world_size: 1,
        })
    }

    /// This rank's share of every batch.
    ///
    /// # Errors
    /// A rank that is not below `world_size`.
    pub fn for_rank(self, rank: usize, world_size: usize) -> Result<Self> {
        for_rank(&[], rank, world_size)?;
        Ok(Self {
            rank,
            world_size,
            ..self
        })
    }

    /// The streams.
    pub fn streams(&self) -> &Streams {
        &self.streams
    }
}

impl Loader for Packed {
    type Batch = Batch;

    fn next_step(&mut self) -> Result<Option<Vec<Batch>>> {
        let Some(bins) = self.streams.next_batch() else {
            return Ok(None);
        };
        let share = for_rank(&bins, self.rank, self.world_size)?;
        Ok(Some(micro_batches(share, self.accumulate)?))
    }

    fn steps(&self) -> Option<u64> {
        self.streams.total_batches().map(|steps| steps as u64)
    }

    fn state(&self) -> Result<Value> {
        serde_json::to_value(self.streams.state()).map_err(|error| Error::Config(error.to_string()))
    }

    fn resume(&mut self, state: &Value) -> Result<()> {
        let state = serde_json::from_value(state.clone())
            .map_err(|error| Error::Config(format!("the data state: {error}")))?;
        Ok(self.streams.resume(&state)?)
    }
}

/// Batches in memory, one a step, the whole list again and again.
#[derive(Debug, Clone)]
pub struct Repeat<B> {
    batches: Vec<Arc<B>>,
    steps: u64,
    at: u64,
}

impl<B> Repeat<B> {
    /// `steps` steps over `batches`, in their order.
    pub fn new(batches: impl IntoIterator<Item = B>, steps: u64) -> Self {
        Self {
            batches: batches.into_iter().map(Arc::new).collect(),
            steps,
            at: 0,
        }
    }
}

impl<B> Loader for Repeat<B> {
    type Batch = Arc<B>;

    fn next_step(&mut self) -> Result<Option<Vec<Arc<B>>>> {
        if self.at >= self.steps || self.batches.is_empty() {
            return Ok(None);
        }
        let batch = self.batches[(self.at % self.batches.len() as u64) as usize].clone();
        self.at += 1;
        Ok(Some(vec![batch]))
    }

    fn steps(&self) -> Option<u64> {
        Some(self.steps)
    }

    fn state(&self) -> Result<Value> {
        Ok(self.at.into())
    }

    fn resume(&mut self, state: &Value) -> Result<()> {
        self.at = state
            .as_u64()
            .ok_or_else(|| Error::Config(format!("the data state {state} is no position")))?;
        Ok(())
    }
}
