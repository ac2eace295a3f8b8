//! Measurements that take turns.

use anyhow::Result;
use ferrotune_benches_common::quartiles::Quartiles;
use std::time::{Duration, Instant};

/// One of those that take turns: seconds of a piece of work, or whatever else it measures.
pub type Side<'a> = Box<dyn FnMut() -> Result<f64> + 'a>;

/// What each side measured, round by round.
#[derive(Debug, Clone)]
pub struct Rounds(Vec<Vec<f64>>);

impl Rounds {
    /// Runs `warm` rounds that do not count and `count` that do. In every second one the sides go in
    /// reverse, so that a machine that slows down favours none; before each there is a pause, in which
    /// the threads of the one before stop spinning.
    ///
    /// # Errors
    /// Those of the sides.
    pub fn run(warm: usize, count: usize, sides: &mut [Side]) -> Result<Self> {
        const PAUSE: Duration = Duration::from_millis(20);
        let mut measured = vec![Vec::with_capacity(count); sides.len()];
        for round in 0..warm + count {
            for turn in 0..sides.len() {
                let side = if round % 2 == 0 {
                    turn
                } else {
                    sides.len() - 1 - turn
                };
                std::thread::sleep(PAUSE);
                let figure = sides[side]()?;
                if round >= warm {
                    measured[side].push(figure);
                }
            }
        }
        Ok(Self(measured))
    }

    /// What a side measured.
    pub fn of(&self, side: usize) -> Quartiles {
        Quartiles::of(self.0[side].iter().copied())
    }

    /// What one side measured over what another did in the same round.
    pub fn ratio(&self, above: usize, below: usize) -> Quartiles {
        self.combine(above, below, |above, below| above / below)
    }

    /// Something else of what two sides measured in the same round.
    pub fn combine(&self, a: usize, b: usize, figure: impl Fn(f64, f64) -> f64) -> Quartiles {
        let pairs = self.0[a].iter().zip(&self.0[b]);
        Quartiles::of(pairs.map(|(a, b)| figure(*a, *b)))
    }
}

/// Seconds that a piece of work takes, of several in a row after one that does not count.
///
/// # Errors
/// Those of the work.
pub fn seconds(times: usize, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    work()?;
    let begin = Instant::now();
    for _ in 0..times {
        work()?;
    }
    Ok(begin.elapsed().as_secs_f64() / times as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn sides_take_turns_and_only_counted_rounds_count() -> Result<()> {
        let order = RefCell::new(String::new());
        let side = |name: char, start: f64| -> Side<'_> {
            let (order, mut value) = (&order, start);
            Box::new(move || {
                order.borrow_mut().push(name);
                value *= 2.0;
                Ok(value)
            })
        };
        let rounds = Rounds::run(1, 2, &mut [side('a', 1.0), side('b', 4.0)])?;
        assert_eq!(*order.borrow(), "abbaab");
        assert_eq!(rounds.of(0).median, 6.0);
        assert_eq!(rounds.ratio(1, 0).median, 4.0);
        Ok(())
    }
}
