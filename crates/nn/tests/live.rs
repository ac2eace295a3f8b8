//! Models and the real transformers, both ways: fresh checkpoints of its, and ours in its hands.
#![allow(clippy::unwrap_used)]

mod common;

use common::{
    BF16, Expected, FP32, VARIANTS, check_recorded_logits, close, load, logits, peer_logits,
};
use ferrotune_nn::libtorch::tch::{Device, Kind, Tensor};
use ferrotune_nn::{Decoder, DecoderConfig, Factory};
use serde_json::json;

const IDS: [i64; 11] = [5, 9, 200, 7, 31, 9, 150, 3, 319, 44, 5];

#[test]
#[ignore = "needs the Python peers: cargo xtask peers, or cargo xtask check --full"]
fn fresh_checkpoints_give_the_logits_of_transformers() {
    let fresh = common::fresh_fixtures();
    for name in VARIANTS {
        // Both ran on this machine, on the same libtorch: even single bf16 logits must agree.
        let [_, bf16] = check_recorded_logits(&fresh.path().join(name));
        assert!(bf16.max < BF16, "{name}: {bf16:?}");
        let recorded = Expected::open(common::fixtures().join(name).join("expected.safetensors"));
        let made = Expected::open(fresh.path().join(name).join("expected.safetensors"));
        assert_ne!(
            recorded.get("logits.f32"),
            made.get("logits.f32"),
            "another seed"
        );
    }
}

/// A checkpoint that only we have made, in the older spelling and with grouped heads of odd number.
fn ours(kind: Kind) -> Decoder {
    let config: DecoderConfig = serde_json::from_value(json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 320, "hidden_size": 60,
        "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3,
        "rms_norm_eps": 1e-6, "rope_theta": 50000.0, "initializer_range": 0.2, "tie_word_embeddings": true
    }))
    .unwrap();
    Decoder::new(
        &Factory::random(8, kind, Device::Cpu).unwrap(),
        config,
        kind,
    )
    .unwrap()
}

#[test]
#[ignore = "needs the Python peers: cargo xtask peers, or cargo xtask check --full"]
fn checkpoints_that_we_wrote_give_our_logits_in_transformers() {
    let row = Tensor::from_slice(&IDS).unsqueeze(0);
    for (kind, dtype, tolerance) in [(Kind::Float, "fp32", FP32), (Kind::BFloat16, "bf16", BF16)] {
        let recorded = VARIANTS.map(|name| load(common::fixtures().join(name).join("model"), kind));
        for (i, model) in recorded.into_iter().chain([ours(kind)]).enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let shards = [usize::MAX, 60_000][i % 2];
            model.save(dir.path(), shards).unwrap();
            let path = dir.path().to_str().unwrap();
            let theirs = peer_logits("check_model.py", &["--model", path, "--dtype", dtype], &IDS);
            let found = logits(&model, &row).squeeze_dim(0);
            let apart = close(&format!("model {i} in {dtype}"), &found, &theirs, tolerance);
            eprintln!("model {i} in {dtype}: {apart:?}");
        }
    }
}
