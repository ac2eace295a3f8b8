//! Ranks that meet through a `Strategy`: two threads here, each with a model and half of every batch.
#![allow(clippy::unwrap_used)]

mod common;

use common::{apart, llama, streams};
use ferrotune_nn::Param;
use ferrotune_nn::libtorch::tch::{Kind, Tensor};
use ferrotune_nn::module::trainable;
use ferrotune_train::loss::causal_lm;
use ferrotune_train::{AdamW, Packed, Result, Single, Strategy, prepare};
use std::sync::{Arc, Barrier, Mutex};

/// What each rank has put down for the others.
type Shelf<T> = Mutex<[Option<T>; 2]>;

#[derive(Debug)]
struct Meeting {
    barrier: Barrier,
    values: Shelf<Vec<f64>>,
    gradients: Shelf<Vec<Tensor>>,
}

#[derive(Debug)]
struct Rank(Arc<Meeting>, usize);

impl Rank {
    /// Puts `own` down and looks at both once both are there.
    fn exchange<T, R>(&self, shelf: &Shelf<T>, own: T, look: impl FnOnce(&T, &T) -> R) -> R {
        shelf.lock().unwrap()[self.1] = Some(own);
        self.0.barrier.wait();
        let seen = {
            let shelf = shelf.lock().unwrap();
            look(shelf[0].as_ref().unwrap(), shelf[1].as_ref().unwrap())
        };
        self.0.barrier.wait();
        seen
    }
}

impl Strategy for Rank {
    fn rank(&self) -> usize {
        self.1
    }
    fn world_size(&self) -> usize {
        2
    }
    fn sum(&self, values: &mut [f64]) -> Result<()> {
        let sums = self.exchange(&self.0.values, values.to_vec(), |a, b| {
            a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<_>>()
        });
        values.copy_from_slice(&sums);
        Ok(())
    }
    fn reduce(&self, params: &[(String, Param)]) -> Result<()> {
        let own = params.iter().map(|(_, p)| p.grad().unwrap().copy());
        let sums = self.exchange(&self.0.gradients, own.collect(), |a, b| {
            a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<_>>()
        });
        for ((_, param), sum) in params.iter().zip(&sums) {
            param.set_grad(Some(sum))?;
        }
        Ok(())
    }
}

/// Losses, norms and final parameters of eight steps.
fn run(strategy: Arc<dyn Strategy>) -> (Vec<(f64, f64, u64)>, Vec<Tensor>) {
    let loader = Packed::new(streams(6, None), 2).unwrap();
    let loader = loader
        .for_rank(strategy.rank(), strategy.world_size())
        .unwrap();
    let mut run = prepare(llama(3, Kind::Float), AdamW::new(3e-3), loader)
        .unwrap()
        .across(strategy)
        .unwrap();
    let steps = (0..8).map(|_| run.step(causal_lm).unwrap().unwrap());
    let steps = steps.map(|s| (s.loss, s.grad_norm, s.tokens)).collect();
    let params = trainable(run.model());
    let params = params.iter().map(|(_, p)| p.tensor().detach()).collect();
    (steps, params)
}

#[test]
fn two_ranks_with_different_data_are_one_run() {
    let (alone, expected) = run(Arc::new(Single));
    let meeting = Arc::new(Meeting {
        barrier: Barrier::new(2),
        values: Mutex::default(),
        gradients: Mutex::default(),
    });
    let ranks: Vec<_> = std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..2)
            .map(|rank| {
                let strategy = Arc::new(Rank(meeting.clone(), rank));
                scope.spawn(move || run(strategy))
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    for (steps, params) in &ranks {
        for (found, expected) in steps.iter().zip(&alone) {
            assert!(
                (found.0 - expected.0).abs() < 1e-5 * expected.0,
                "{steps:?}"
            );
            assert!(
                (found.1 - expected.1).abs() < 1e-4 * expected.1,
                "{steps:?}"
            );
            assert_eq!(found.2, expected.2, "tokens of both");
        }
        for (found, expected) in params.iter().zip(&expected) {
            assert!(apart(found, expected) < 1e-4);
        }
    }
    assert_eq!(ranks[0], ranks[1], "both ranks hold the same model");
}
