//! Attention against a plain softmax in f64, forward and backward, and the KV cache's buffers.
#![allow(clippy::unwrap_used)]

mod common;

use common::close;
use ferrotune_nn::KvCache;
use ferrotune_nn::attention::{Mask, attention};
use ferrotune_nn::libtorch::autograd::grad;
use ferrotune_nn::libtorch::random::Generator;
use ferrotune_nn::libtorch::tch::{Device, Kind, Tensor};

const HEADS: i64 = 6;
const KV_HEADS: i64 = 2;
const DIM: i64 = 10;

fn random(shape: &[i64], seed: u64) -> Tensor {
    let mut tensor = Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let draw = Generator::new(Device::Cpu, seed).unwrap();
    draw.normal(&mut tensor, 0.0, 1.5).unwrap();
    tensor
}

/// q, k and v as projections give them: heads behind the sequence in memory.
fn operands(batch: i64, queries: i64, keys: i64) -> [Tensor; 3] {
    [
        (HEADS, queries, 1),
        (KV_HEADS, keys, 2),
        (KV_HEADS, keys, 3),
    ]
    .map(|(heads, seq, seed)| {
        let tensor = random(&[batch, seq, heads, DIM], seed).transpose(1, 2);
        assert!(seq == 1 || !tensor.is_contiguous());
        tensor.set_requires_grad(true)
    })
}

/// Softmax over the scores plus `bias`, which broadcasts to `[batch, heads, queries, keys]`.
fn plain(q: &Tensor, k: &Tensor, v: &Tensor, bias: &Tensor) -> Tensor {
    let heads: Vec<i64> = (0..HEADS).map(|head| head / (HEADS / KV_HEADS)).collect();
    let of_head = Tensor::from_slice(&heads);
    let (k, v) = (k.index_select(1, &of_head), v.index_select(1, &of_head));
    let scores = q.matmul(&k.transpose(2, 3)) / (DIM as f64).sqrt() + bias;
    scores.softmax(-1, Kind::Double).matmul(&v)
}

fn forbidden(allowed: &Tensor) -> Tensor {
    let zeros = allowed.zeros_like().to_kind(Kind::Double);
    zeros.masked_fill(&allowed.logical_not(), f64::NEG_INFINITY)
}

/// Values and all three gradients, to 1e-5 of the reference's deviation.
fn check(what: &str, operands: [Tensor; 3], mask: Mask<'_>, bias: &Tensor) {
    let [q, k, v] = &operands;
    let wide = operands
        .each_ref()
        .map(|t| t.detach().to_kind(Kind::Double).set_requires_grad(true));
    let right = plain(&wide[0], &wide[1], &wide[2], bias);
    let found = attention(q, k, v, mask).unwrap();
    close(what, &found.detach(), &right.detach(), 1e-5);
    let gradient = random(&right.size(), 9);
    let gradients = |y: &Tensor, inputs: &[Tensor; 3]| {
        let gradient = gradient.to_kind(y.kind());
        grad(&[y], &[Some(&gradient)], &inputs.each_ref(), false, false).unwrap()
    };
    for (found, right) in gradients(&found, &operands)
        .into_iter()
        .zip(gradients(&right, &wide))
    {
        close(what, &found.unwrap(), &right.unwrap(), 1e-5);
    }
}

fn allow(queries: i64, keys: i64, rule: impl Fn(i64, i64) -> bool) -> Tensor {
    let list: Vec<bool> = (0..queries)
        .flat_map(|q| (0..keys).map(move |k| (q, k)))
        .map(|(q, k)| rule(q, k))
        .collect();
    Tensor::from_slice(&list).view([queries, keys])
}

#[test]
fn full_attention_also_across_sequences() {
    let none = Tensor::from(0.0_f64);
    check("self", operands(2, 7, 7), Mask::Full, &none);
    check("cross, more keys", operands(2, 5, 11), Mask::Full, &none);
    check("cross, fewer keys", operands(3, 9, 4), Mask::Full, &none);
    check("one query", operands(2, 1, 13), Mask::Full, &none);
}

#[test]
fn causal_attention_with_and_without_a_past() {
    for (queries, keys) in [(7, 7), (5, 12), (1, 9), (33, 33), (2, 3)] {
        let allowed = allow(queries, keys, |q, k| k <= q + keys - queries);
        check(
            "causal",
            operands(2, queries, keys),
            Mask::Causal,
            &forbidden(&allowed),
        );
    }
}

#[test]
fn a_mask_of_either_kind() {
    let allowed = allow(5, 9, |q, k| (q * 5 + k * 3) % 4 != 1);
    check(
        "bool",
        operands(2, 5, 9),
        Mask::Tensor(&allowed),
        &forbidden(&allowed),
    );
    let additive = random(&[2, 1, 5, 9], 4);
    check(
        "additive",
        operands(2, 5, 9),
        Mask::Tensor(&additive),
        &additive.to_kind(Kind::Double),
    );
    // An additive mask need not have the queries' dtype.
    let wide = additive.to_kind(Kind::Double);
    check(
        "additive in f64",
        operands(2, 5, 9),
        Mask::Tensor(&wide),
        &wide,
    );
    let per_head = random(&[1, HEADS, 5, 9], 5);
    check(
        "per head",
        operands(2, 5, 9),
        Mask::Tensor(&per_head),
        &per_head.to_kind(Kind::Double),
    );
}

#[test]
fn packed_attention_both_ways() {
    // Many sequences go through one padded call, but not where one is much longer than the others.
    let many = [0, 5, 9, 11, 14, 19, 24, 25, 30, 32];
    let uneven = [0, 2, 4, 6, 8, 10, 12, 14, 60];
    for bounds in [&many[..], &uneven, &[0, 5, 9, 16], &[0, 12], &[0, 1, 4]] {
        let row = bounds[bounds.len() - 1];
        let of = |token: i64| bounds.iter().filter(|bound| **bound <= token).count();
        let allowed = allow(row, row, |q, k| k <= q && of(q) == of(k));
        for batch in [1, 2] {
            check(
                &format!("{bounds:?}"),
                operands(batch, row, row),
                Mask::Packed(bounds),
                &forbidden(&allowed),
            );
        }
    }
}

fn error(operands: [Tensor; 3], mask: Mask<'_>) -> String {
    let [q, k, v] = operands;
    attention(&q, &k, &v, mask).unwrap_err().to_string()
}

#[test]
fn operands_that_do_not_fit_are_named() {
    let [q, k, v] = operands(2, 5, 5);
    let with = |q: &Tensor, k: &Tensor, v: &Tensor| {
        error([q, k, v].map(Tensor::shallow_clone), Mask::Full)
    };
    assert_eq!(
        with(&q.narrow(1, 0, 5), &k, &v),
        "attention over q [2, 5, 5, 10], k [2, 2, 5, 10], v [2, 2, 5, 10]"
    );
    for text in [
        with(&q.narrow(0, 0, 1), &k, &v),
        with(&q.narrow(3, 0, 4), &k, &v),
        with(&q, &k, &v.narrow(2, 0, 4)),
        with(&q.select(0, 0), &k, &v),
        with(&q, &k.narrow(1, 0, 0), &v.narrow(1, 0, 0)),
    ] {
        assert!(text.starts_with("attention over q ["), "{text}");
    }
    assert_eq!(
        error(operands(1, 6, 5), Mask::Causal),
        "6 queries but only 5 keys under a causal mask"
    );
    let text = error(operands(1, 5, 6), Mask::Packed(&[0, 2, 6]));
    assert_eq!(text, "5 queries but 6 keys in a packed row");
    for bounds in [
        &[][..],
        &[0],
        &[0, 4],
        &[1, 5],
        &[0, 3, 3, 5],
        &[0, 4, 3, 5],
        &[0, 9, 5],
        &[0, -1, 5],
    ] {
        let text = error(operands(1, 5, 5), Mask::Packed(bounds));
        assert!(
            text.starts_with(&format!("cu_seqlens {bounds:?} do not cut a row of 5")),
            "{text}"
        );
    }
    let wrong = allow(4, 5, |_, _| true);
    let text = error(operands(1, 5, 5), Mask::Tensor(&wrong));
    assert!(
        text.starts_with("attention on [1, 6, 5, 10] Float") && !text.contains('\n'),
        "{text}"
    );
}

#[test]
fn the_cache_moves_only_when_it_is_full() {
    let step = |seed| {
        [
            random(&[2, KV_HEADS, 1, DIM], seed),
            random(&[2, KV_HEADS, 1, DIM], seed + 100),
        ]
    };
    let mut cache = KvCache::new(8);
    let mut places = Vec::new();
    for i in 0..20 {
        let [k, v] = step(i);
        let (all_k, all_v) = cache.append(0, &k, &v).unwrap();
        places.push((all_k.data_ptr() as usize, all_v.data_ptr() as usize));
        for j in 0..=i {
            let [k, v] = step(j);
            assert_eq!(all_k.narrow(2, j as i64, 1), k);
            assert_eq!(all_v.narrow(2, j as i64, 1), v);
        }
    }
    assert_eq!(cache.len(), 20);
    // Room for 8, then 16, then 32.
    for range in [0..8, 8..16, 16..20] {
        let here = &places[range];
        assert!(here.iter().all(|place| place == &here[0]));
    }
    cache.truncate(5);
    let [k, v] = step(50);
    let (all_k, _) = cache.append(0, &k, &v).unwrap();
    assert_eq!(all_k.size(), [2, KV_HEADS, 6, DIM]);
    assert_eq!(all_k.narrow(2, 4, 1), step(4)[0]);
    assert_eq!(all_k.narrow(2, 5, 1), k);
}

#[test]
fn the_cache_refuses_what_it_would_spoil() {
    let mut cache = KvCache::new(4);
    let kv = |shape: &[i64]| random(shape, 1);
    let three = kv(&[2, 2, 3, 4]);
    let _ = cache.append(0, &three, &three).unwrap();
    let mut error = |k: &Tensor, v: &Tensor| cache.append(0, k, v).unwrap_err().to_string();
    // Batch 1 would be broadcast, and another dtype converted, in silence.
    for shape in [[1, 2, 1, 4], [2, 1, 1, 4], [2, 2, 1, 1]] {
        assert!(error(&kv(&shape), &kv(&shape)).contains(&format!("keys {shape:?}")));
    }
    let one = kv(&[2, 2, 1, 4]);
    assert!(error(&one, &kv(&[2, 2, 2, 4])).contains("values [2, 2, 2, 4]"));
    assert!(error(&one.to_kind(Kind::Double), &one.to_kind(Kind::Double)).contains("Double"));
    assert!(!error(&one.select(0, 0), &one).is_empty());
    let tracked = one.copy().set_requires_grad(true);
    assert!(error(&tracked, &one).contains("run under no_grad"));
    assert_eq!(cache.len(), 3);
}
