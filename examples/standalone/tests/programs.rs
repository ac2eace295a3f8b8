//! The programs as people run them.
#![allow(clippy::unwrap_used)]

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// An example of this package; cargo builds them before its tests.
fn program(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    Command::new(profile.join("examples").join(name))
}

fn quantize(input: &Path, scheme: &str, out: &Path) -> Output {
    let mut command = program("quantize_file");
    command
        .arg("--input")
        .arg(input)
        .args(["--scheme", scheme])
        .arg("--out")
        .arg(out);
    command.output().unwrap()
}

fn fails(output: &Output, words: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
}

/// A checkpoint of two weights, an embedding and a norm.
fn checkpoint(folder: &Path, bad: bool) -> PathBuf {
    let floats = |n: usize, seed: f32| -> Vec<u8> {
        let values = (0..n).map(|i| (i as f32 * seed).sin());
        let values = values.map(|x| if bad && x > 0.999 { f32::NAN } else { x });
        values.flat_map(f32::to_le_bytes).collect()
    };
    let data = [
        floats(64 * 128, 0.7),
        floats(32 * 256, 0.3),
        floats(10 * 128, 0.9),
        floats(128, 0.2),
    ];
    let names = [
        "layer.q_proj.weight",
        "layer.up_proj.weight",
        "embed_tokens.weight",
        "norm.weight",
    ];
    let shapes = [vec![64, 128], vec![32, 256], vec![10, 128], vec![128]];
    let views = names
        .iter()
        .zip(&data)
        .zip(shapes)
        .map(|((name, data), shape)| (*name, TensorView::new(Dtype::F32, shape, data).unwrap()));
    let path = folder.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &path).unwrap();
    path
}

#[test]
fn embedding_prints_what_it_computed() {
    let output = program("embed_quant").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let error: f32 = text
        .trim()
        .rsplit_once("relative error: ")
        .unwrap()
        .1
        .parse()
        .unwrap();
    assert!(error > 0.0 && error < 0.05, "{text}");
}

#[test]
fn a_file_is_quantized_with_its_errors() {
    let folder = tempfile::tempdir().unwrap();
    let input = checkpoint(folder.path(), false);
    for scheme in [
        "nf4",
        "nf4-nested",
        "fp4",
        "int8",
        "int4",
        "mxfp4",
        "nvfp4",
        "gptq",
        "awq",
    ] {
        let out = folder.path().join(format!("{scheme}.safetensors"));
        let output = quantize(&input, scheme, &out);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        for line in [
            "embed_tokens.weight",
            "copied: kept",
            "copied: not a matrix",
        ] {
            assert!(text.contains(line), "{scheme}: {text}");
        }
        let lines = text
            .lines()
            .filter_map(|line| line.split_once("relative error "));
        let errors: Vec<f64> = lines
            .map(|(_, rest)| rest.split_once(',').unwrap().0.parse().unwrap())
            .collect();
        assert_eq!(errors.len(), 2, "{scheme}: {text}");
        let most = if scheme == "int8" { 0.01 } else { 0.19 };
        assert!(
            errors.iter().all(|error| *error > 0.0 && *error < most),
            "{scheme}: {text}"
        );
        let bytes = std::fs::read(&out).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("norm.weight").unwrap().shape(), [128]);
    }
}

#[test]
fn bad_input_is_named_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.safetensors");
    let missing = folder.path().join("missing.safetensors");
    fails(&quantize(&missing, "nf4", &out), &["missing.safetensors"]);

    let input = checkpoint(folder.path(), true);
    let words = ["model.safetensors", "layer.q_proj.weight", "row", "NaN"];
    fails(&quantize(&input, "nf4", &out), &words);

    let input = checkpoint(folder.path(), false);
    let bytes = std::fs::read(&input).unwrap();
    let cut = folder.path().join("cut.safetensors");
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    fails(&quantize(&cut, "nf4", &out), &["cut.safetensors"]);
    assert!(!out.exists());

    let output = quantize(&input, "nf5", &out);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("nf5"));
}
