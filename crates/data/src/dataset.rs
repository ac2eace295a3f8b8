use sha2::{Digest, Sha256};

use crate::{Error, Result, Skipped};

/// A tokenized row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    /// Token ids.
    pub ids: Vec<u32>,
    /// `weights[i]` is the weight in the loss of predicting `ids[i]` from the tokens before it. The first is 0.
    pub weights: Vec<f32>,
}

impl Example {
    /// An example of these tokens; the first counts for nothing, since nothing is before it.
    pub fn new(ids: Vec<u32>, mut weights: Vec<f32>) -> Self {
        if let Some(first) = weights.first_mut() {
            *first = 0.0;
        }
        Self { ids, weights }
    }

    /// Sum of the weights.
    pub fn weight(&self) -> f64 {
        total(&self.weights)
    }
}

/// The sum of weights, in double precision: a batch may have very many.
pub(crate) fn total(weights: &[f32]) -> f64 {
    weights.iter().map(|&weight| f64::from(weight)).sum()
}

/// Examples in memory, in the order of the files.
#[derive(Clone, Debug)]
pub struct Dataset {
    examples: Vec<Example>,
    fingerprint: String,
    pub(crate) skipped: Skipped,
    pub(crate) truncated: usize,
}

impl Dataset {
    /// A dataset of examples. None at all is an error, and so is one that the loss could do nothing with.
    pub fn new(examples: Vec<Example>) -> Result<Self> {
        if examples.is_empty() {
            return Err(Error::EmptyDataset {
                skipped: 0,
                first: None,
            });
        }
        let mut hash = Sha256::new();
        for (index, example) in examples.iter().enumerate() {
            let bad = |reason: String| Err(Error::Example { index, reason });
            if example.ids.len() != example.weights.len() {
                return bad(format!(
                    "{} ids and {} weights",
                    example.ids.len(),
                    example.weights.len()
                ));
            }
            if let Some(weight) = example
                .weights
                .iter()
                .find(|weight| !weight.is_finite() || **weight < 0.0)
            {
                return bad(format!("a weight of {weight}"));
            }
            if !example.weights.iter().skip(1).any(|&weight| weight > 0.0) {
                return bad("no token counts in the loss".to_owned());
            }
            hash.update((example.ids.len() as u64).to_le_bytes());
            for (id, weight) in example.ids.iter().zip(&example.weights) {
                hash.update(id.to_le_bytes());
                hash.update(weight.to_le_bytes());
            }
        }
        let fingerprint = hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Ok(Self {
            examples,
            fingerprint,
            skipped: Skipped::default(),
            truncated: 0,
        })
    }

    /// The examples.
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Never: an empty dataset is not made.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// SHA-256 of every token and weight, in hexadecimal: two datasets with one fingerprint are one.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Rows left out on the way here.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// Conversations that lost their end to `max_length`.
    pub fn truncated(&self) -> usize {
        self.truncated
    }

    /// Tokens in all.
    pub fn tokens(&self) -> usize {
        self.examples.iter().map(|example| example.ids.len()).sum()
    }
}
