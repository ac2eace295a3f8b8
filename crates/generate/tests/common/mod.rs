//! How recorded decoding is compared, on top of what nn's tests share.
#![allow(clippy::unwrap_used)]

#[path = "../../../nn/tests/common/mod.rs"]
pub mod nn;

use ferrotune_generate::{Options, tokens};
use ferrotune_nn::Decoder;
use ferrotune_nn::libtorch::tch::Kind;
use nn::{Expected, load};
use std::path::Path;

pub fn collect(model: &Decoder, prompt: &[u32], options: &Options) -> Vec<u32> {
    let mut all = Vec::new();
    tokens(model, prompt, options, |token| {
        all.push(token);
        Ok(true)
    })
    .unwrap();
    all
}

/// The recorded prompt and what transformers continued it with.
pub fn recorded(fixture: &Path) -> (Vec<u32>, Vec<u32>) {
    let expected = Expected::open(fixture.join("expected.safetensors"));
    let ids = |key| expected.list(key).into_iter().map(|id| id as u32).collect();
    (ids("greedy.prompt"), ids("greedy.ids"))
}

/// 64 greedy tokens of one recorded model, equal to transformers'.
pub fn check_recorded_greedy(fixture: &Path) {
    let (prompt, right) = recorded(fixture);
    let model = load(fixture.join("model"), Kind::Float);
    let options = Options {
        max_tokens: 64,
        ..Options::default()
    };
    assert_eq!(
        collect(&model, &prompt, &options),
        right,
        "{}",
        fixture.display()
    );
    let mut distinct = right.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert!(right.len() == 64 && distinct.len() >= 16);
}
