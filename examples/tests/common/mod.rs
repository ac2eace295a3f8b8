//! Fixtures, programs and comparisons that the tests share.
#![allow(dead_code)] // Each test file uses its own part.

use std::{
    borrow::BorrowMut,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use ferrotune::{
    libtorch::tch::{Device, Kind, Tensor},
    nn::Weights,
    text::{BpeOptions, Tokenizer},
};
use serde_json::Value;

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}

/// An adapter's folder and what the peer computed with it.
pub fn adapter(model: &str, name: &str) -> (PathBuf, PathBuf) {
    let dir = fixtures().join(model).join("adapters").join(name);
    (dir.join("adapter"), dir.join("expected.safetensors"))
}

/// A copy of a fixture's model in `dir`, with a tokenizer of as many tokens.
pub fn model(name: &str, dir: &Path) -> PathBuf {
    let to = dir.join("model");
    fs::create_dir(&to).unwrap();
    let from = fixtures().join(name).join("model");
    for name in names(&from) {
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
    let texts = ["三加四等于七。", "你好，世界！"];
    let options = BpeOptions {
        vocab_size: 320,
        ..BpeOptions::default()
    };
    let tokenizer = Tokenizer::train_bpe(texts, &options).unwrap();
    tokenizer.save(&to).unwrap();
    to
}

/// The files of a folder, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// An example, which cargo builds before these tests into the folder beside theirs.
pub fn command(example: &str) -> Command {
    let tests = std::env::current_exe().unwrap();
    let profile = tests.parent().unwrap().parent().unwrap();
    let program = profile.join("examples").join(example);
    assert!(
        program.exists(),
        "{} is not built: test the whole package (cargo test -p ferrotune-examples)",
        program.display()
    );
    let mut command = Command::new(program);
    // Tests run side by side, and the models are too small to be split over threads.
    command.stdin(Stdio::null()).env("OMP_NUM_THREADS", "1");
    command
}

/// Runs a program to its end.
pub fn run(mut command: impl BorrowMut<Command>) -> Output {
    command.borrow_mut().output().unwrap()
}

/// Runs a program that must succeed, and returns what it printed.
pub fn succeeds(mut command: impl BorrowMut<Command>) -> String {
    let command = command.borrow_mut();
    let output = run(&mut *command);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a program that must end with exit code 1, print no result and say why; returns what it said.
pub fn fails(mut command: impl BorrowMut<Command>) -> String {
    let command = command.borrow_mut();
    let output = run(&mut *command);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
    assert!(
        said.lines().any(|line| line.starts_with("error: ")),
        "{said}"
    );
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
    said
}

/// A tensor of a safetensors file, as it is stored.
pub fn tensor(file: &Path, name: &str) -> Tensor {
    let file = Weights::open(file).unwrap();
    file.load(name, None, None, Device::Cpu).unwrap()
}

/// Changes a JSON file.
pub fn edit(path: PathBuf, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// The program `merge` with its arguments.
pub fn merge(model: &Path, adapter: &Path, out: &Path) -> Command {
    let mut merge = command("merge");
    merge.arg("--model").arg(model).arg("--adapter");
    merge.arg(adapter).arg("--out").arg(out);
    merge
}

/// `ids[row]` of a recorded output, as the command line takes them.
pub fn ids(expected: &Path, row: i64) -> String {
    let ids = Vec::<i64>::try_from(tensor(expected, "ids").get(row)).unwrap();
    let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
    ids.join(",")
}

/// Runs `logits` on row 1 of the recorded ids.
pub fn logits(model: &Path, adapter: Option<&Path>, expected: &Path, dtype: &str) -> Tensor {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("logits.safetensors");
    let mut logits = command("logits");
    logits.arg("--model").arg(model);
    if let Some(adapter) = adapter {
        logits.arg("--adapter").arg(adapter);
    }
    logits.args(["--ids", &ids(expected, 1), "--dtype", dtype]);
    assert_eq!(succeeds(logits.arg("--out").arg(&out)), "");
    assert_eq!(names(dir.path()), ["logits.safetensors"]);
    let logits = tensor(&out, "logits");
    assert_eq!((logits.kind(), logits.dim()), (Kind::Float, 2));
    logits
}

/// The largest difference, as a part of the expected values' standard deviation, is below `tolerance`.
pub fn close(found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.size(), expected.size());
    let expected = expected.to_kind(Kind::Float);
    let difference = (found - &expected).abs().max().double_value(&[]);
    let std = expected.std(true).double_value(&[]);
    assert!(
        std > 0.1 && difference < tolerance * std,
        "{difference} at a deviation of {std}"
    );
}

/// Runs a script of `peers/` on token ids.
pub fn peer(script: &str, folders: &[(&str, &Path)], ids: &str) {
    let python =
        std::env::var_os("FERROTUNE_PEERS").expect("FERROTUNE_PEERS names the peers' Python");
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../peers");
    let mut command = Command::new(python);
    command.arg(scripts.join(script)).args(["--ids", ids]);
    for (option, folder) in folders {
        command.arg(option).arg(folder);
    }
    succeeds(&mut command);
}
