use crate::{Bin, dataset::total};

/// The label of a token that has no successor in its segment: what cross-entropy ignores.
pub const IGNORE: i64 = -100;

/// Bins for one forward pass: all their segments in a row, without padding, and where each begins. `T` is the number
/// of tokens, `S` of segments; both are 0 for a share that only fills up a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Token ids, `[T]`.
    pub ids: Vec<i64>,
    /// The token after each, shifted already, `[T]`; [`IGNORE`] at the last of each segment.
    pub labels: Vec<i64>,
    /// Weight of each label in the loss, `[T]`; 0 where it is [`IGNORE`].
    pub weights: Vec<f32>,
    /// Position within the segment, `[T]`.
    pub positions: Vec<i64>,
    /// Where segments begin, and T at the end, `[S + 1]`.
    pub cu_seqlens: Vec<i32>,
    /// Tokens of the longest segment.
    pub max_seqlen: usize,
}

impl Batch {
    /// Lays bins out in a row.
    pub fn collate(bins: &[Bin]) -> Self {
        let mut batch = Self {
            cu_seqlens: vec![0],
            ..Self::default()
        };
        for bin in bins {
            let mut start = 0;
            for &length in &bin.lengths {
                let length = length as usize;
                let ids = &bin.ids[start..start + length];
                batch.ids.extend(ids.iter().copied().map(i64::from));
                batch.labels.extend(
                    ids.iter()
                        .skip(1)
                        .copied()
                        .map(i64::from)
                        .chain([IGNORE])
                        .take(length),
                );
                let weights = &bin.weights[start..start + length];
                batch
                    .weights
                    .extend(weights.iter().skip(1).copied().chain([0.0]).take(length));
                batch.positions.extend(0..length as i64);
                // A device's memory ends long before 2^31 tokens do.
                batch.cu_seqlens.push(batch.ids.len() as i32);
                batch.max_seqlen = batch.max_seqlen.max(length);
                start += length;
            }
        }
        batch
    }

    /// Sum of the weights: what a summed loss is divided by.
    pub fn weight(&self) -> f64 {
        total(&self.weights)
    }

    /// Tokens in all.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }
}
