//! Two processes taking turns, and what their times say.

use crate::limits::Machine;
use crate::peer::{Done, Process};
use anyhow::Result;
use std::fmt;

/// The answers of two sides, pair by pair, and the machine's speed after each pair.
#[derive(Debug, Clone, Default)]
pub struct Pairs {
    /// All of theirs, those before the clock counted included.
    pub theirs: Vec<Done>,
    /// All of ours.
    pub ours: Vec<Done>,
    /// Of the counted pairs.
    pub machine: Vec<Machine>,
    /// Pairs that only warm up: their losses count, their times do not.
    pub warm: usize,
}

impl Pairs {
    /// Runs `warm` and then `count` pairs. Only one of the three processes works at a time; the two
    /// sides take turns in going first, so that a machine that slows down favours neither.
    ///
    /// # Errors
    /// A process that ended.
    pub fn run(
        theirs: &mut Process,
        ours: &mut Process,
        machine: &mut Process,
        warm: usize,
        count: usize,
    ) -> Result<Self> {
        let mut pairs = Self {
            warm,
            ..Self::default()
        };
        for i in 0..warm + count {
            if i % 2 == 0 {
                pairs.theirs.push(theirs.ask()?);
                pairs.ours.push(ours.ask()?);
            } else {
                pairs.ours.push(ours.ask()?);
                pairs.theirs.push(theirs.ask()?);
            }
            if i >= warm {
                pairs.machine.push(machine.ask()?);
            }
        }
        Ok(pairs)
    }

    /// Of the counted pieces of one side, `self.ours` or `self.theirs`.
    pub fn of(&self, side: &[Done], figure: fn(&Done) -> f64) -> Quartiles {
        Quartiles::of(side.iter().skip(self.warm).map(figure))
    }

    /// Their figure over ours in each counted pair.
    pub fn ratio(&self, figure: fn(&Done) -> f64) -> Quartiles {
        let pairs = self.theirs.iter().zip(&self.ours).skip(self.warm);
        Quartiles::of(pairs.map(|(theirs, ours)| figure(theirs) / figure(ours)))
    }

    /// The machine's speed, the median of each figure.
    pub fn machine(&self) -> Machine {
        Machine {
            flops: Quartiles::of(self.machine.iter().map(|machine| machine.flops)).median,
            bytes: Quartiles::of(self.machine.iter().map(|machine| machine.bytes)).median,
        }
    }
}

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
