//! What a side of the comparison says: when its model stands, and after each piece of work.

use serde::{Deserialize, Serialize};

/// What a process says when its model stands.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    /// Parameters, adapters included.
    pub parameters: u64,
    /// Those that train.
    pub trainable: u64,
    /// Bytes resident before there was a model.
    pub idle_rss_bytes: u64,
    /// The most bytes resident until the model stood.
    pub load_peak_rss_bytes: u64,
}

/// What a piece of work took and gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// By the process's own clock.
    pub seconds: f64,
    /// Of all its threads together: what another program's load changes least.
    pub cpu_seconds: f64,
    /// Tokens trained on, or new ones.
    pub tokens: u64,
    /// The loss of a training step.
    #[serde(default)]
    pub loss: Option<f64>,
    /// The tokens of a continuation.
    #[serde(default)]
    pub ids: Vec<u32>,
    /// The most bytes resident since the model stood.
    pub peak_rss_bytes: u64,
}
