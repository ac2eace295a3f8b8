//! Hooks, generators, the fused optimizer and memory statistics.
#![allow(clippy::unwrap_used)]

use ferrotune_libtorch::autograd::{backward, set_grad};
use ferrotune_libtorch::optim::{AdamWSlot, AdamWStep, fused_adamw};
use ferrotune_libtorch::random::Generator;
use ferrotune_libtorch::tch::{Device, Kind, Tensor};
use ferrotune_libtorch::{Error, cuda, hooks, memory};
use std::sync::{Arc, Mutex};

#[test]
fn a_hook_sees_the_accumulated_gradient_until_it_is_dropped() {
    let x = Tensor::from_slice(&[1.0_f32, 2.0]).set_requires_grad(true);
    let seen: Arc<Mutex<Vec<Vec<f32>>>> = Arc::default();
    let log = seen.clone();
    let handle = hooks::on_grad_accumulated(&x, move |leaf| {
        log.lock()
            .unwrap()
            .push(Vec::<f32>::try_from(leaf.grad()).unwrap());
        set_grad(leaf, None)
    })
    .unwrap();
    for _ in 0..2 {
        backward(&[&(&x * &x).sum(None)], &[None], false).unwrap();
        assert!(!x.grad().defined(), "the hook cleared it");
    }
    drop(handle);
    backward(&[&(&x * &x).sum(None)], &[None], false).unwrap();
    assert_eq!(*seen.lock().unwrap(), [[2.0, 4.0], [2.0, 4.0]]);
    assert_eq!(Vec::<f32>::try_from(x.grad()).unwrap(), [2.0, 4.0]);
}

#[test]
fn a_replaced_hook_takes_nothing_away_when_its_handle_goes() {
    let x = Tensor::from_slice(&[3.0_f32]).set_requires_grad(true);
    let calls: Arc<Mutex<Vec<&str>>> = Arc::default();
    let hook = |name: &'static str| {
        let calls = calls.clone();
        hooks::on_grad_accumulated(&x, move |_| {
            calls.lock().unwrap().push(name);
            Ok(())
        })
        .unwrap()
    };
    let first = hook("first");
    let second = hook("second");
    drop(first);
    backward(&[&(&x * 2.0)], &[None], false).unwrap();
    drop(second);
    backward(&[&(&x * 2.0)], &[None], false).unwrap();
    assert_eq!(*calls.lock().unwrap(), ["second"]);
}

#[test]
fn a_hook_may_fail_and_needs_a_leaf() {
    let x = Tensor::from_slice(&[1.0_f32]).set_requires_grad(true);
    let _handle = hooks::on_grad_accumulated(&x, |_| Err(Error::function("full"))).unwrap();
    let error = backward(&[&(&x * 2.0)], &[None], false)
        .unwrap_err()
        .to_string();
    assert!(error.contains("gradient hook: full"), "{error}");
    let error = hooks::on_grad_accumulated(&(&x * 2.0), |_| Ok(()))
        .unwrap_err()
        .to_string();
    assert!(error.contains("needs a leaf"), "{error}");
}

#[test]
fn a_generator_repeats_from_its_seed_and_from_its_state() {
    let generator = Generator::new(Device::Cpu, 11).unwrap();
    let draw = || {
        let mut tensor = Tensor::zeros([64], (Kind::Float, Device::Cpu));
        generator.normal(&mut tensor, 1.0, 2.0).unwrap();
        Vec::<f32>::try_from(tensor).unwrap()
    };
    let first = draw();
    let state = generator.state().unwrap();
    assert_eq!(state.size(), [5056]);
    let second = draw();
    assert_ne!(first, second);
    generator.set_state(&state).unwrap();
    assert_eq!(draw(), second);
    generator.seed(11).unwrap();
    assert_eq!(draw(), first);
    assert!(
        generator
            .set_state(&Tensor::zeros([3], (Kind::Uint8, Device::Cpu)))
            .is_err()
    );
}

#[test]
fn a_generator_draws_what_manual_seed_draws() {
    let generator = Generator::new(Device::Cpu, 5).unwrap();
    let mut ours = Tensor::zeros([100], (Kind::Float, Device::Cpu));
    generator.uniform(&mut ours, -1.0, 1.0).unwrap();
    let default = Generator::default_of(Device::Cpu).unwrap();
    default.seed(5).unwrap();
    let mut theirs = Tensor::zeros([100], (Kind::Float, Device::Cpu));
    let _ = theirs.uniform_(-1.0, 1.0);
    assert_eq!(ours, theirs);
    let mut mask = Tensor::zeros([10_000], (Kind::Float, Device::Cpu));
    generator.bernoulli(&mut mask, 0.9).unwrap();
    let mean = mask.mean(None).double_value(&[]);
    assert!((mean - 0.9).abs() < 0.015, "{mean}");
}

/// AdamW as its authors write it, in f64.
fn reference(p: f64, g: f64, state: &mut (f64, f64), t: i32, o: AdamWStep) -> f64 {
    let (b1, b2) = o.betas;
    state.0 = b1 * state.0 + (1.0 - b1) * g;
    state.1 = b2 * state.1 + (1.0 - b2) * g * g;
    let (m, v) = (state.0 / (1.0 - b1.powi(t)), state.1 / (1.0 - b2.powi(t)));
    p - o.lr * o.weight_decay * p - o.lr * m / (v.sqrt() + o.eps)
}

#[test]
fn fused_adamw_is_adamw() {
    let options = AdamWStep {
        lr: 0.02,
        betas: (0.9, 0.95),
        eps: 1e-8,
        weight_decay: 0.1,
    };
    let values = [0.5, -1.5, 2.0];
    let like = |value: f64| Tensor::full([3], value, (Kind::Double, Device::Cpu));
    let (parameter, average, square) = (Tensor::from_slice(&values), like(0.0), like(0.0));
    let step = Tensor::from(0.0_f32);
    let mut expected = values;
    let mut states = [(0.0, 0.0); 3];
    for t in 1..=5 {
        let gradients = [0.3 * t as f64, -0.7, 0.01];
        let slot = AdamWSlot {
            parameter: parameter.shallow_clone(),
            gradient: Tensor::from_slice(&gradients),
            exp_avg: average.shallow_clone(),
            exp_avg_sq: square.shallow_clone(),
            step: step.shallow_clone(),
        };
        fused_adamw(&[slot], options).unwrap();
        for i in 0..3 {
            expected[i] = reference(expected[i], gradients[i], &mut states[i], t, options);
        }
    }
    for (ours, theirs) in Vec::<f64>::try_from(parameter)
        .unwrap()
        .iter()
        .zip(expected)
    {
        assert!((ours - theirs).abs() < 1e-9, "{ours} {theirs}");
    }
    assert_eq!(step.double_value(&[]), 5.0);
}

#[test]
fn fused_adamw_refuses_mixed_dtypes() {
    let tensor = |kind| Tensor::ones([2], (kind, Device::Cpu));
    let slot = AdamWSlot {
        parameter: tensor(Kind::BFloat16),
        gradient: tensor(Kind::BFloat16),
        exp_avg: tensor(Kind::Float),
        exp_avg_sq: tensor(Kind::Float),
        step: Tensor::from(0.0_f32),
    };
    let options = AdamWStep {
        lr: 0.1,
        betas: (0.9, 0.999),
        eps: 1e-8,
        weight_decay: 0.0,
    };
    let error = fused_adamw(&[slot], options).unwrap_err().to_string();
    assert_eq!(
        error,
        "fused_adamw on [2] BFloat16, [2] Float: shape or dtype differs"
    );
}

#[test]
fn the_cpu_says_that_it_has_no_caching_allocator() {
    for error in [
        memory::stats(Device::Cpu).unwrap_err(),
        memory::empty_cache(Device::Cpu).unwrap_err(),
        memory::reset_peak(Device::Cpu).unwrap_err(),
    ] {
        assert!(
            error
                .to_string()
                .contains("the CPU has no caching allocator"),
            "{error}"
        );
    }
}

#[test]
fn without_cuda_libraries_the_best_device_is_the_cpu() {
    if !cuda::enable().unwrap() {
        assert_eq!(cuda::best_device().unwrap(), Device::Cpu);
        assert!(memory::stats(Device::Cuda(0)).is_err());
    }
}
