//! AdamW beside its definition in double precision.
#![allow(clippy::unwrap_used)]

mod common;

use common::{apart, random};
use ferrotune_nn::libtorch::tch::{Kind, Tensor};
use ferrotune_nn::{Param, Weights, weights};
use ferrotune_train::{AdamW, AdamWStep, Optimizer};

const OPTIONS: AdamWStep = AdamWStep {
    lr: 0.02,
    betas: (0.8, 0.95),
    eps: 1e-6,
    weight_decay: 0.3,
};

fn params(kind: Kind) -> Vec<(String, Param)> {
    let param = |name: &str, shape: &[i64], seed| {
        let param = Param::new(random(shape, seed).to_kind(kind));
        param.set_trainable(true).unwrap();
        (name.to_owned(), param)
    };
    vec![
        param("matrix", &[5, 3], 1),
        param("vector", &[7], 2),
        param("idle", &[2, 2], 3),
    ]
}

/// Gradients for all parameters but the last.
fn give(params: &[(String, Param)], step: u64) {
    for (i, (_, param)) in params[..2].iter().enumerate() {
        let tensor = param.tensor();
        let gradient = random(&tensor.size(), 10 * step + i as u64).to_kind(tensor.kind());
        param.set_grad(Some(&gradient)).unwrap();
    }
}

/// Loshchilov and Hutter's algorithm 2, on all steps, in f64; `lrs` is the rate of each step.
fn reference(start: &Tensor, kind: Kind, index: u64, decay: f64, lrs: &[f64]) -> Tensor {
    let mut theta = start.to_kind(Kind::Double);
    let (mut m, mut v) = (theta.zeros_like(), theta.zeros_like());
    let (b1, b2) = OPTIONS.betas;
    for (t, lr) in (1..).zip(lrs) {
        let g = random(&start.size(), 10 * t + index)
            .to_kind(kind)
            .to_kind(Kind::Double);
        theta *= 1.0 - lr * decay;
        m = m * b1 + &g * (1.0 - b1);
        v = v * b2 + g.square() * (1.0 - b2);
        let m_hat = &m / (1.0 - b1.powi(t as i32));
        let v_hat = &v / (1.0 - b2.powi(t as i32));
        theta -= m_hat * *lr / (v_hat.sqrt() + OPTIONS.eps);
    }
    theta
}

#[test]
fn steps_follow_the_definition_and_vectors_do_not_decay() {
    let lrs = [0.02, 0.01, 0.005];
    for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::BFloat16, 2e-2)] {
        let params = params(kind);
        let start: Vec<Tensor> = params
            .iter()
            .map(|(_, p)| p.tensor().detach().copy())
            .collect();
        let mut adamw = AdamW::with(OPTIONS);
        adamw.bind(&params).unwrap();
        for (step, lr) in (1..).zip(lrs) {
            give(&params, step);
            adamw.step(lr).unwrap();
        }
        for (i, decay) in [OPTIONS.weight_decay, 0.0].into_iter().enumerate() {
            let expected = reference(&start[i], kind, i as u64, decay, &lrs);
            let found = params[i].1.tensor().detach().to_kind(Kind::Double);
            assert!(apart(&found, &expected) < tolerance, "{kind:?} {i}");
            // Another decay would show.
            let other = reference(&start[i], kind, i as u64, 0.3 - decay, &lrs);
            assert!(apart(&found, &other) > tolerance / 4.0);
            if kind == Kind::BFloat16 {
                let master = adamw
                    .state()
                    .into_iter()
                    .find(|(name, _)| name == &format!("{}.master", params[i].0));
                let master = master.unwrap().1.to_kind(Kind::Double);
                assert!(apart(&master, &expected) < 1e-6, "the master is exact");
            }
        }
        assert_eq!(
            params[2].1.tensor(),
            &start[2],
            "no gradient, no step, no decay"
        );
    }
}

#[test]
fn a_saved_state_goes_on_bit_for_bit_and_a_wrong_one_is_named() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let (whole, parted) = (params(kind), params(kind));
        let mut one = AdamW::with(OPTIONS);
        one.bind(&whole).unwrap();
        let mut first = AdamW::with(OPTIONS);
        first.bind(&parted).unwrap();
        for step in 1..3 {
            give(&whole, step);
            one.step(0.02).unwrap();
            give(&parted, step);
            first.step(0.02).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("optimizer.safetensors");
        let state = first.state();
        let tensors = || state.iter().map(|(name, tensor)| (name.as_str(), tensor));
        weights::save_file(&path, tensors()).unwrap();
        let mut second = AdamW::with(OPTIONS);
        second.bind(&parted).unwrap();
        second.load_state(&Weights::open(&path).unwrap()).unwrap();
        give(&whole, 3);
        one.step(0.02).unwrap();
        give(&parted, 3);
        second.step(0.02).unwrap();
        for ((name, a), (_, b)) in whole.iter().zip(&parted) {
            assert_eq!(a.tensor(), b.tensor(), "{name}");
        }

        weights::save_file(&path, tensors().skip(1)).unwrap();
        let error = second
            .load_state(&Weights::open(&path).unwrap())
            .unwrap_err();
        assert!(
            error.to_string().contains("`matrix.exp_avg` is missing"),
            "{error}"
        );
        let extra = Tensor::from(1.0_f32);
        weights::save_file(&path, tensors().chain([("spare.step", &extra)])).unwrap();
        let error = second
            .load_state(&Weights::open(&path).unwrap())
            .unwrap_err();
        assert!(error.to_string().contains("spare.step"), "{error}");
    }
}
