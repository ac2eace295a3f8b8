use std::collections::VecDeque;

use crate::{Example, dataset::total};

/// Examples laid one after another, to be attended to each alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bin {
    /// Token ids of all segments.
    pub ids: Vec<u32>,
    /// As in [`Example::weights`]; 0 at each segment's first token.
    pub weights: Vec<f32>,
    /// Tokens of each segment.
    pub lengths: Vec<u32>,
}

impl Bin {
    /// Appends an example as a segment.
    pub fn push(&mut self, example: &Example) {
        let start = self.ids.len();
        self.ids.extend_from_slice(&example.ids);
        self.weights.extend_from_slice(&example.weights);
        if let Some(first) = self.weights.get_mut(start) {
            *first = 0.0;
        }
        self.lengths.push(example.ids.len() as u32);
    }

    /// Sum of the weights. Every rank sees a whole batch's bins, so each knows what the batch weighs without asking
    /// the others.
    pub fn weight(&self) -> f64 {
        total(&self.weights)
    }

    /// Tokens in all.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether it only fills up a batch.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// Examples that wait for a place at any time.
const WINDOW: usize = 32;

/// Deals items of the given lengths into bins of at most `max_length`: each bin begins with the item that has waited
/// longest, then takes the longest of the next 32 that still fits, the earlier of two alike. Gives the positions in
/// `lengths`. Depends on nothing but its arguments; an item longer than `max_length` has a bin to itself.
pub fn pack(lengths: &[usize], max_length: usize) -> Vec<Vec<usize>> {
    let mut coming = 0..lengths.len();
    let mut waiting: VecDeque<usize> = coming.by_ref().take(WINDOW).collect();
    let mut bins = Vec::new();
    while let Some(first) = waiting.pop_front() {
        let mut bin = vec![first];
        let mut room = max_length.saturating_sub(lengths[first]);
        waiting.extend(coming.next());
        loop {
            let fitting = waiting
                .iter()
                .enumerate()
                .filter(|(_, item)| lengths[**item] <= room);
            // `max_by_key` takes the last of equals, so look from the end.
            let Some((place, _)) = fitting.rev().max_by_key(|(_, item)| lengths[**item]) else {
                break;
            };
            if let Some(item) = waiting.remove(place) {
                room -= lengths[item];
                bin.push(item);
            }
            waiting.extend(coming.next());
        }
        bins.push(bin);
    }
    bins
}
