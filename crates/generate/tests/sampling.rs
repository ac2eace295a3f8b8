//! Samplers against the distributions they claim.
#![allow(clippy::unwrap_used)]

use ferrotune_generate::{Sampler, Sampling};

const LOGITS: [f32; 6] = [0.5, 2.0, -1.0, 1.2, 2.0, 0.0];

fn frequencies(sampling: Sampling) -> Vec<f64> {
    let mut sampler = Sampler::new(sampling).unwrap();
    let mut counts = vec![0.0; LOGITS.len()];
    const DRAWS: usize = 40_000;
    for _ in 0..DRAWS {
        counts[sampler.sample(&LOGITS).unwrap() as usize] += 1.0 / DRAWS as f64;
    }
    counts
}

fn softmax(temperature: f64, kept: &[usize]) -> Vec<f64> {
    let weight = |i: usize| {
        if kept.contains(&i) {
            (f64::from(LOGITS[i]) / temperature).exp()
        } else {
            0.0
        }
    };
    let total: f64 = (0..6).map(weight).sum();
    (0..6).map(|i| weight(i) / total).collect()
}

fn agree(found: &[f64], expected: &[f64]) {
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 0.01, "{found} {expected}");
        assert!(*expected > 0.0 || *found == 0.0, "a cut token was drawn");
    }
}

#[test]
fn temperature_top_k_and_top_p_follow_the_distribution() {
    let base = Sampling {
        temperature: 0.7,
        top_k: 0,
        top_p: 1.0,
        seed: 1,
    };
    agree(&frequencies(base), &softmax(0.7, &[0, 1, 2, 3, 4, 5]));
    agree(
        &frequencies(Sampling { top_k: 3, ..base }),
        &softmax(0.7, &[1, 3, 4]),
    );
    // At 0.7 tokens 1 and 4 hold 0.72 together: 0.7 keeps both, 0.8 takes token 3 too.
    agree(
        &frequencies(Sampling { top_p: 0.7, ..base }),
        &softmax(0.7, &[1, 4]),
    );
    agree(
        &frequencies(Sampling { top_p: 0.8, ..base }),
        &softmax(0.7, &[1, 3, 4]),
    );
    agree(
        &frequencies(Sampling {
            top_k: 3,
            top_p: 0.7,
            ..base
        }),
        &softmax(0.7, &[1, 4]),
    );
}

#[test]
fn greedy_takes_the_lowest_of_equals() {
    assert_eq!(
        Sampler::new(Sampling::GREEDY)
            .unwrap()
            .sample(&LOGITS)
            .unwrap(),
        1
    );
}

#[test]
fn a_seed_repeats_and_another_differs() {
    let run = |seed| {
        let mut sampler = Sampler::new(Sampling {
            temperature: 1.0,
            seed,
            ..Sampling::GREEDY
        })
        .unwrap();
        (0..50)
            .map(|_| sampler.sample(&LOGITS).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}

#[test]
fn bad_settings_and_nan_are_named() {
    let error = |sampling| Sampler::new(sampling).unwrap_err().to_string();
    assert!(
        error(Sampling {
            temperature: -1.0,
            ..Sampling::GREEDY
        })
        .contains("temperature -1")
    );
    assert!(
        error(Sampling {
            top_p: 0.0,
            ..Sampling::GREEDY
        })
        .contains("top_p 0")
    );
    let nan = Sampler::new(Sampling::GREEDY)
        .unwrap()
        .sample(&[0.0, f32::NAN])
        .unwrap_err();
    assert_eq!(nan.to_string(), "the logit of token 1 is NaN or infinite");
    // A token that is ruled out is no error, one that is infinitely likely is.
    let warm = Sampling {
        temperature: 1.0,
        ..Sampling::GREEDY
    };
    let sample = |logits: &[f32]| Sampler::new(warm).unwrap().sample(logits);
    assert_eq!(sample(&[f32::NEG_INFINITY, 0.5]).unwrap(), 1);
    for logits in [[0.0, f32::INFINITY], [f32::NEG_INFINITY; 2]] {
        assert!(
            sample(&logits)
                .unwrap_err()
                .to_string()
                .contains("infinite")
        );
    }
    assert_eq!(
        sample(&[]).unwrap_err().to_string(),
        "sampling: there are no logits"
    );
}
