//! Greedy decoding and the real transformers, on fresh checkpoints.
#![allow(clippy::unwrap_used)]

mod common;

use common::nn::{VARIANTS, comma_separated, fresh_fixtures, load, peer};
use common::{check_recorded_greedy, collect};
use ferrotune_generate::Options;
use ferrotune_nn::libtorch::tch::Kind;

#[test]
#[ignore = "needs the Python peers: cargo xtask peers, or cargo xtask check --full"]
fn greedy_tokens_on_fresh_checkpoints_are_those_of_transformers() {
    let fresh = fresh_fixtures();
    for name in VARIANTS {
        check_recorded_greedy(&fresh.path().join(name));
    }
    // A checkpoint that we wrote, decoded by transformers.
    let dir = tempfile::tempdir().unwrap();
    let model = load(fresh.path().join("llama3/model"), Kind::Float);
    model.save(dir.path(), 100_000).unwrap();
    let (prompt, steps) = ([7, 100, 31], 12);
    let options = Options {
        max_tokens: steps,
        ..Options::default()
    };
    let ours: Vec<i64> = collect(&model, &prompt, &options)
        .into_iter()
        .map(i64::from)
        .collect();
    let (path, steps) = (dir.path().to_str().unwrap(), steps.to_string());
    let ids = comma_separated(&prompt.map(i64::from));
    let theirs = peer(
        "generate.py",
        &["--model", path, "--ids", &ids, "--steps", &steps],
    );
    assert_eq!(comma_separated(&ours), theirs.trim());
}
