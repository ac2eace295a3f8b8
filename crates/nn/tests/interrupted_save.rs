//! A save that fails for want of space or is killed: what stood there before still loads, and
//! nothing that is half written does.
#![allow(clippy::unwrap_used)]
#![cfg(unix)]

mod common;

use common::{copy, files, fixtures, load, logits};
use ferrotune_nn::Decoder;
use ferrotune_nn::libtorch::tch::{Device, Kind, Tensor, no_grad_guard};
use ferrotune_nn::module::params;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const TASK: &str = "FERROTUNE_TEST_TASK";
const FOLDER: &str = "FERROTUNE_TEST_FOLDER";
const SHARD: usize = 90_000;

/// The recorded model, and one that differs from it in every weight.
fn model(scaled: bool) -> Decoder {
    let model = load(fixtures().join("llama/model"), Kind::Float);
    let _guard = no_grad_guard();
    for (_, param) in params(&model).into_iter().filter(|_| scaled) {
        param.assign(&(param.tensor() * 0.9)).unwrap();
    }
    model
}

/// One whose weights and configuration differ.
fn other_model() -> Decoder {
    let dir = copy(&fixtures().join("llama/model"));
    model(true).save(dir.path(), usize::MAX).unwrap();
    let path = dir.path().join("config.json");
    let mut config = common::json(&path);
    config["rms_norm_eps"] = serde_json::json!(0.5);
    common::write(path, &config);
    load(dir.path(), Kind::Float)
}

fn answer(model: &Decoder) -> Tensor {
    logits(model, &Tensor::from_slice(&[5_i64, 9, 200, 7]).unsqueeze(0))
}

/// This program again, for `task` in `folder`.
fn child(task: &str, folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_task_of_a_child", "--nocapture"])
        .env(TASK, task)
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs `task` and kills it so many microseconds after it has begun to save.
fn killed(task: &str, folder: &Path, microseconds: u64) {
    let mut child = child(task, folder);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "saving"));
    std::thread::sleep(Duration::from_micros(microseconds));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Does nothing unless one of the tests below started it.
#[test]
fn the_task_of_a_child() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    let folder = std::path::PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let (task, shards) = task
        .strip_suffix("-shards")
        .map_or((&task[..], usize::MAX), |task| (task, SHARD));
    if task == "full" {
        limit_file_size(85_000);
        let error = model(true).save(&folder, shards).unwrap_err().to_string();
        assert!(
            error.starts_with(folder.to_str().unwrap()) && error.contains("File too large"),
            "{error}"
        );
    } else {
        let second = if task == "other" {
            other_model()
        } else {
            model(true)
        };
        let models = [second, model(false)];
        eprintln!("saving");
        for model in models.iter().cycle() {
            model.save(&folder, shards).unwrap();
        }
    }
}

/// What a full disk is to a process without rights: writes beyond `bytes` of a file fail.
fn limit_file_size(bytes: u64) {
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: bytes,
    };
    // SAFETY: plain system calls; the limit and the ignored signal are this process's own.
    unsafe {
        assert_ne!(libc::signal(libc::SIGXFSZ, libc::SIG_IGN), libc::SIG_ERR);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
}

#[test]
fn a_full_disk_leaves_what_stood_there() {
    // The first shard still fits, the second does not; a single file does not either.
    for task in ["full", "full-shards"] {
        for stood in [usize::MAX, SHARD] {
            let dir = tempfile::tempdir().unwrap();
            model(false).save(dir.path(), stood).unwrap();
            let before = files(dir.path());
            let output = child(task, dir.path()).wait_with_output().unwrap();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            assert_eq!(files(dir.path()), before);
            assert_eq!(
                answer(&load(dir.path(), Kind::Float)),
                answer(&model(false))
            );
        }
        let fresh = tempfile::tempdir().unwrap();
        let output = child(task, &fresh.path().join("new"))
            .wait_with_output()
            .unwrap();
        assert!(output.status.success());
        assert!(files(&fresh.path().join("new")).is_empty());
    }
}

#[test]
fn a_kill_leaves_a_whole_checkpoint() {
    let answers = [answer(&model(false)), answer(&model(true))];
    let (mut interrupted, mut found) = (0, [0, 0]);
    for i in 0..20 {
        // Over a checkpoint of the other kind, too: its file or shards must not mix with the new ones.
        let task = ["kill", "kill-shards"][i % 2];
        let dir = tempfile::tempdir().unwrap();
        model(false)
            .save(dir.path(), [usize::MAX, SHARD, SHARD][i % 3])
            .unwrap();
        killed(task, dir.path(), i as u64 * 1700);
        interrupted += usize::from(
            files(dir.path())
                .iter()
                .any(|name| name.starts_with(".writing-")),
        );
        let loaded = answer(&load(dir.path(), Kind::Float));
        let which = answers
            .iter()
            .position(|answer| *answer == loaded)
            .expect("neither the old one nor the new one");
        found[which] += 1;
    }
    assert!(
        interrupted > 3 && found[1] > 1,
        "the kills came at no interesting moment: {interrupted} {found:?}"
    );
}

#[test]
fn a_kill_in_a_fresh_folder_leaves_all_or_nothing() {
    let whole = [answer(&model(true)), answer(&model(false))];
    let mut nothing = 0;
    for i in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        killed("kill-shards", dir.path(), i * 400);
        match Decoder::load(dir.path(), Kind::Float, Device::Cpu) {
            Ok(model) => assert!(whole.contains(&answer(&model))),
            Err(_) => nothing += 1,
        }
    }
    assert!(nothing > 0, "no kill came before the first checkpoint");
}

/// The weights of both fit either configuration, so that only the order of renames keeps the pairs
/// together.
#[test]
fn another_configuration_never_meets_the_weights_that_stood_there() {
    let (one, other) = (model(false), other_model());
    let answers = [answer(&one), answer(&other)];
    let dir = tempfile::tempdir().unwrap();
    for (model, shards) in [
        (&one, SHARD),
        (&other, usize::MAX),
        (&one, SHARD),
        (&other, SHARD),
    ] {
        model.save(dir.path(), shards).unwrap();
        assert_eq!(answer(&load(dir.path(), Kind::Float)), answer(model));
    }
    for i in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        one.save(dir.path(), usize::MAX).unwrap();
        killed(["other", "other-shards"][i % 2], dir.path(), i as u64 * 900);
        if let Ok(model) = Decoder::load(dir.path(), Kind::Float, Device::Cpu) {
            assert!(answers.contains(&answer(&model)));
        }
    }
}

/// Between two renames a kill would otherwise leave an index over shards of two checkpoints: too short
/// a moment for the tests above to meet.
#[test]
fn new_shards_take_no_name_that_the_index_in_force_uses() {
    let dir = tempfile::tempdir().unwrap();
    let shards = |scaled| {
        model(scaled).save(dir.path(), SHARD).unwrap();
        assert_eq!(
            answer(&load(dir.path(), Kind::Float)),
            answer(&model(scaled))
        );
        let mut names = files(dir.path());
        names.retain(|name| name.contains("-of-"));
        names
    };
    let (first, second, third) = (shards(false), shards(true), shards(false));
    assert!(first.len() > 3 && first.len() == second.len());
    assert!(first.iter().all(|name| !second.contains(name)));
    assert_eq!(first, third);
}

#[test]
fn a_checkpoint_is_as_open_as_any_file_and_old_leavings_go() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let mode = |name: &str| {
        dir.path()
            .join(name)
            .metadata()
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    std::fs::write(dir.path().join("plain"), "x").unwrap();
    let leaving = dir.path().join(".writing-abc");
    let recent = dir.path().join(".writing-def");
    std::fs::write(&leaving, "x").unwrap();
    std::fs::write(&recent, "x").unwrap();
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(7200);
    std::fs::File::options()
        .write(true)
        .open(&leaving)
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    model(false).save(dir.path(), usize::MAX).unwrap();
    assert_eq!(mode("model.safetensors"), mode("plain"));
    assert_eq!(mode("config.json"), mode("plain"));
    assert!(!leaving.exists() && recent.exists());
}
