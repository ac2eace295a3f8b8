//! Autograd functions in Rust: gradients, releases, errors, panics, and growth.
#![allow(clippy::unwrap_used)]

use ferrotune_libtorch::autograd::{Backward, Function, apply, backward, grad};
use ferrotune_libtorch::tch::{Device, Kind, Tensor};
use ferrotune_libtorch::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn leaf(values: &[f64]) -> Tensor {
    Tensor::from_slice(values).set_requires_grad(true)
}

/// a·b², with `a` saved as input and b² as output of its own.
struct Product {
    dropped: Arc<AtomicUsize>,
}

impl Drop for Product {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

impl Function for Product {
    const NAME: &'static str = "Product";
    fn forward(&mut self, x: &[&Tensor], save: &mut Vec<Tensor>) -> Result<Vec<Tensor>> {
        let square = x[1].f_square()?;
        save.extend([
            x[0].shallow_clone(),
            x[1].shallow_clone(),
            square.shallow_clone(),
        ]);
        Ok(vec![x[0].f_mul(&square)?, square])
    }
    fn backward(&self, given: &Backward) -> Result<Vec<Option<Tensor>>> {
        let [a, b, square] = [0, 1, 2].map(|i| given.saved[i].shallow_clone());
        let zero = a.zeros_like();
        let first = given.gradients[0].as_ref().unwrap_or(&zero);
        let second = given.gradients[1].as_ref().unwrap_or(&zero);
        let db = (first * &a + second) * &b * 2.0;
        Ok(vec![
            given.needed[0].then(|| first * &square),
            given.needed[1].then_some(db),
        ])
    }
}

fn product(a: &Tensor, b: &Tensor, dropped: &Arc<AtomicUsize>) -> Vec<Tensor> {
    apply(
        Product {
            dropped: dropped.clone(),
        },
        &[a, b],
    )
    .unwrap()
}

#[test]
fn gradients_match_finite_differences() {
    let dropped = Arc::default();
    let (a, b) = (leaf(&[0.7, -1.3, 2.1]), leaf(&[1.9, 0.4, -0.8]));
    let f = |a: &Tensor, b: &Tensor| {
        let out = product(a, b, &dropped);
        (&out[0] * 3.0 + out[1].sin()).sum(None)
    };
    backward(&[&f(&a, &b)], &[None], false).unwrap();
    for (which, tensor) in [&a, &b].into_iter().enumerate() {
        let analytic = Vec::<f64>::try_from(tensor.grad()).unwrap();
        for (i, analytic) in analytic.iter().enumerate() {
            let shifted = |delta: f64| {
                let mut values = Vec::<f64>::try_from(tensor.detach()).unwrap();
                values[i] += delta;
                let moved = Tensor::from_slice(&values);
                let value = if which == 0 {
                    f(&moved, &b)
                } else {
                    f(&a, &moved)
                };
                value.double_value(&[])
            };
            let numeric = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
            assert!(
                (numeric - analytic).abs() < 1e-7,
                "{which} {i}: {numeric} {analytic}"
            );
        }
    }
}

#[test]
fn second_derivatives_work() {
    let (a, b) = (leaf(&[3.0]), leaf(&[2.0]));
    let out = product(&a, &b, &Arc::default());
    let first = grad(&[&out[0]], &[None], &[&b], true, true)
        .unwrap()
        .remove(0)
        .unwrap();
    assert_eq!(first.double_value(&[0]), 12.0);
    let second = grad(&[&first], &[None], &[&b], false, false)
        .unwrap()
        .remove(0)
        .unwrap();
    assert_eq!(second.double_value(&[0]), 6.0);
}

#[test]
fn a_gradient_of_ones_own_is_used() {
    let (a, b) = (leaf(&[1.0, 1.0]), leaf(&[3.0, 5.0]));
    let out = product(&a, &b, &Arc::default());
    let seed = Tensor::from_slice(&[10.0_f64, 100.0]);
    backward(&[&out[0]], &[Some(&seed)], false).unwrap();
    assert_eq!(Vec::<f64>::try_from(a.grad()).unwrap(), [90.0, 2500.0]);
}

#[test]
fn saved_tensors_are_released_and_a_second_backward_is_refused() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let (a, b) = (leaf(&[1.0]), leaf(&[3.0]));
    let out = product(&a, &b, &dropped);
    backward(&[&out[0]], &[None], true).unwrap();
    assert_eq!(
        dropped.load(Ordering::SeqCst),
        0,
        "a retained graph keeps its state"
    );
    backward(&[&out[0]], &[None], false).unwrap();
    assert_eq!(
        dropped.load(Ordering::SeqCst),
        1,
        "the state goes with the backward"
    );
    let error = backward(&[&out[0]], &[None], false)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("backward through the graph a second time"),
        "{error}"
    );
}

#[test]
fn state_without_a_graph_is_dropped_at_once() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let plain = Tensor::from_slice(&[1.0_f64]);
    let out = product(&plain, &plain, &dropped);
    assert!(!out[0].requires_grad());
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
}

#[test]
fn a_saved_tensor_changed_in_place_is_refused() {
    let (a, b) = (leaf(&[1.0]), leaf(&[3.0]));
    let doubled = &b * 2.0;
    let out = product(&a, &doubled, &Arc::default());
    let _ = doubled.shallow_clone().g_add_scalar_(1.0);
    let error = backward(&[&out[0]], &[None], false)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("modified by an inplace operation"),
        "{error}"
    );
}

/// Fails in backward in the way it is told.
struct Failing(&'static str);

impl Function for Failing {
    const NAME: &'static str = "Failing";
    fn forward(&mut self, x: &[&Tensor], _: &mut Vec<Tensor>) -> Result<Vec<Tensor>> {
        if self.0 == "forward" {
            return Err(Error::function("no forward today"));
        }
        Ok(vec![x[0].shallow_clone()])
    }
    fn backward(&self, given: &Backward) -> Result<Vec<Option<Tensor>>> {
        match self.0 {
            "error" => Err(Error::function("the shard of rank 3 is gone")),
            "panic" => panic!("index {} of {}", 7, 3),
            "count" => Ok(vec![None, None]),
            "shape" => Ok(vec![Some(Tensor::ones([9], (Kind::Double, Device::Cpu)))]),
            _ => Ok(vec![given.gradients[0].as_ref().map(Tensor::shallow_clone)]),
        }
    }
}

#[test]
fn errors_and_panics_become_the_calls_error() {
    let x = leaf(&[1.0, 2.0]);
    let run = |how| {
        let y = apply(Failing(how), &[&x])?.remove(0);
        backward(&[&y.sum(None)], &[None], false)
    };
    let text = |how| run(how).unwrap_err().to_string();
    assert_eq!(text("forward"), "no forward today");
    let error = text("error");
    assert!(
        error.starts_with("backward on [] Double: Failing: the shard of rank 3 is gone"),
        "{error}"
    );
    let panic = text("panic");
    assert!(panic.contains("Failing panicked: index 7 of 3"), "{panic}");
    assert!(text("count").contains("2 gradients for 1 inputs"));
    assert!(text("shape").contains("Failing"), "{}", text("shape"));
    assert!(
        [&error, &panic]
            .iter()
            .all(|text| text.lines().count() == 1)
    );
    // The engine still works, and an output that is the input has a history of its own.
    run("fine").unwrap();
    assert_eq!(Vec::<f64>::try_from(x.grad()).unwrap(), [1.0, 1.0]);
}

#[test]
fn chains_may_be_long() {
    let x = leaf(&[1.0]);
    let mut y = x.shallow_clone();
    for _ in 0..20_000 {
        y = apply(Failing("fine"), &[&y]).unwrap().remove(0);
    }
    backward(&[&y], &[None], false).unwrap();
    assert_eq!(x.grad().double_value(&[0]), 1.0);
}

#[test]
fn memory_does_not_grow_in_a_hundred_thousand_runs() {
    let resident = || {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let dropped = Arc::default();
    let (a, b) = (leaf(&[1.0; 256]), leaf(&[0.5; 256]));
    let run = |times: usize| {
        for _ in 0..times {
            let out = product(&a, &b, &dropped);
            grad(&[&out[0].sum(None)], &[None], &[&a, &b], false, false).unwrap();
        }
    };
    run(5_000);
    let before = resident();
    run(100_000);
    let grown = resident().saturating_sub(before);
    assert!(grown < 8 << 20, "grew by {grown} bytes");
    assert_eq!(dropped.load(Ordering::SeqCst), 105_000);
}
