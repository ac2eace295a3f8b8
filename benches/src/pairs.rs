//! Two processes taking turns, and what their times say.

use crate::limits::Machine;
use crate::peer::Done;
use anyhow::Result;
use ferrotune_benches_common::peer::Process;
use ferrotune_benches_common::quartiles::Quartiles;

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
