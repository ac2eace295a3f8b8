//! What the test files of several crates share: the recorded fixtures and how to compare with them.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used)]

use ferrotune_nn::libtorch::tch::{Device, Kind, Tensor};
use ferrotune_nn::{Ctx, Decoder, Weights};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The models of peers/models.py.
pub const VARIANTS: [&str; 4] = ["llama", "llama3", "qwen2", "qwen2_tied"];

/// Of the logits' standard deviation.
pub const FP32: f64 = 1e-4;
pub const BF16: f64 = 2e-2;

/// The fixtures in the repository.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// What a peer has recorded in a safetensors file.
pub struct Expected(Weights);

impl Expected {
    pub fn open(file: impl AsRef<Path>) -> Self {
        Self(Weights::open(file).unwrap())
    }
    pub fn get(&self, key: &str) -> Tensor {
        self.0.load(key, None, None, Device::Cpu).unwrap()
    }
    pub fn list(&self, key: &str) -> Vec<i64> {
        Vec::try_from(self.get(key)).unwrap()
    }
}

pub fn json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

pub fn write(path: impl AsRef<Path>, value: &Value) {
    fs::write(path, serde_json::to_vec_pretty(value).unwrap()).unwrap();
}

pub fn load(dir: impl AsRef<Path>, kind: Kind) -> Decoder {
    Decoder::load(dir, kind, Device::Cpu).unwrap()
}

pub fn logits(model: &Decoder, ids: &Tensor) -> Tensor {
    logits_under(model, ids, &Ctx::eval())
}

pub fn logits_under(model: &Decoder, ids: &Tensor, ctx: &Ctx) -> Tensor {
    let logits = model.forward(ids, ctx).unwrap();
    logits.detach().to_kind(Kind::Float)
}

/// How far two tensors lie apart, in standard deviations of the second.
#[derive(Debug, Clone, Copy)]
pub struct Difference {
    pub max: f64,
    pub rms: f64,
}

pub fn difference(found: &Tensor, expected: &Tensor) -> Difference {
    assert_eq!(found.size(), expected.size());
    let (found, expected) = (found.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    let std = expected.std(false).double_value(&[]);
    assert!(std > 0.0 && std.is_finite());
    let apart = found - expected;
    Difference {
        max: apart.abs().max().double_value(&[]) / std,
        rms: apart.square().mean(None).sqrt().double_value(&[]) / std,
    }
}

/// Asserts that the largest difference is below `tolerance`, NaN included.
pub fn close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) -> Difference {
    let apart = difference(found, expected);
    assert!(
        apart.max < tolerance,
        "{what}: {apart:?}, not within {tolerance}"
    );
    apart
}

/// A copy of a folder that the test may spoil.
pub fn copy(dir: &Path) -> tempfile::TempDir {
    let copied = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), copied.path().join(entry.file_name())).unwrap();
        }
    }
    copied
}

/// The files of a folder, sorted.
pub fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Compares one recorded model with ours, and returns how far they lie apart in fp32 and in bf16.
pub fn check_recorded_logits(fixture: &Path) -> [Difference; 2] {
    let name = fixture.file_name().unwrap().to_string_lossy();
    let expected = Expected::open(fixture.join("expected.safetensors"));
    let (ids, right) = (expected.get("ids"), expected.get("logits.f32"));
    assert!(right.std(false).double_value(&[]) >= 1.0, "{name}");
    let found = logits(&load(fixture.join("model"), Kind::Float), &ids);
    let fp32 = close(&format!("{name} in fp32"), &found, &right, FP32);
    let found = logits(&load(fixture.join("model"), Kind::BFloat16), &ids);
    let bf16 = difference(&found, &expected.get("logits.bf16"));
    assert!(bf16.rms < BF16, "{name} in bf16: {bf16:?}");
    [fp32, bf16]
}

/// The variable that names the Python of the peers.
pub const PEERS: &str = "FERROTUNE_PEERS";
/// Of fresh fixtures; the recorded ones have 0.
pub const SEED: &str = "1";

/// A script of peers/, run by the Python that has transformers and PEFT. Returns what it prints.
pub fn peer(script: &str, args: &[&str]) -> String {
    let python = std::env::var_os(PEERS).unwrap_or_else(|| {
        panic!("{PEERS} names no Python: run `cargo xtask peers` and set it to .peers/bin/python")
    });
    // Tests run in their crate's folder; whoever sets the variable stands in the repository's.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let output = Command::new(root.join(python))
        .arg(root.join("peers").join(script))
        .args(args)
        // Cargo puts our libtorch there; torch has its own.
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script} {args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Fixtures as the recorded ones, made now and from another seed.
pub fn fresh_fixtures() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    peer(
        "make_fixtures.py",
        &["--out", dir.path().to_str().unwrap(), "--seed", SEED],
    );
    dir
}

pub fn comma_separated(ids: &[i64]) -> String {
    ids.iter().map(i64::to_string).collect::<Vec<_>>().join(",")
}

/// What a script that writes logits gives for `ids`, f32 `[seq, vocab]`.
pub fn peer_logits(script: &str, args: &[&str], ids: &[i64]) -> Tensor {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("logits.safetensors");
    let ids = comma_separated(ids);
    peer(
        script,
        &[args, &["--ids", &ids, "--out", out.to_str().unwrap()]].concat(),
    );
    Expected::open(&out).get("logits")
}
