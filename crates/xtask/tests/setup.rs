//! `setup` on wheels made here and a Python that "downloads" them from a folder: no network.
#![allow(clippy::unwrap_used)]

use sha2::{Digest, Sha256};
use std::{
    ffi::OsString,
    fs,
    io::{Cursor, Write},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;
use xtask::{
    pins::LIBTORCH,
    setup::{Variables, lay_out, own_libtorch},
    wheel::Wheel,
};
use zip::{ZipWriter, write::SimpleFileOptions};

const TORCH: &str = "torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl";
const CUPTI: &str = "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl";
const CUBLAS: &str = "nvidia_cublas-13.1.0.3-py3-none-manylinux_2_27_x86_64.whl";

/// A repository, a shelf of wheels, and a `python3` whose pip copies from the shelf and keeps a log.
struct World {
    folder: TempDir,
    wheels: Vec<(&'static str, String)>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("shelf")).unwrap();
        fs::create_dir_all(folder.path().join("repo")).unwrap();
        fs::write(folder.path().join("repo/Cargo.toml"), "").unwrap();
        let mut world = Self {
            folder,
            wheels: Vec::new(),
        };
        let python = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake_python.sh");
        symlink(python, world.path("python3")).unwrap();
        world.stock(
            TORCH,
            &[
                "torch/include/ATen/ATen.h",
                "torch/lib/libc10.so",
                "torch/lib/libgomp.so.1",
                "torch/lib/libtorch.so",
                "torch/lib/libtorch_cpu.so",
                "torch/lib/libtorch_cuda.so",
                "torch/lib/libtorch_python.so",
                "torch/lib/libshm/err.h",
                "torch/nn/functional.py",
                "torch/include/../../../escaped.h",
            ],
        );
        world.stock(
            CUPTI,
            &[
                "nvidia/cu13/lib/libcupti.so.13",
                "nvidia/cu13/lib/libnvperf_host.so",
                "nvidia/cu13/include/cupti.h",
            ],
        );
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    /// Puts a wheel with these files on the shelf, each file holding its own name.
    fn stock(&mut self, wheel: &'static str, files: &[&str]) {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        for file in files {
            zip.start_file(*file, SimpleFileOptions::default()).unwrap();
            zip.write_all(file.as_bytes()).unwrap();
        }
        let bytes = zip.finish().unwrap().into_inner();
        let digest = format!("{:x}", Sha256::digest(&bytes));
        fs::write(self.path("shelf").join(wheel), bytes).unwrap();
        self.wheels.push((wheel, digest));
    }

    fn lay_out(&self, cuda: bool) -> Result<(), String> {
        let wheels: Vec<Wheel> = self
            .wheels
            .iter()
            .map(|(file, sha256)| Wheel { file, sha256 })
            .collect();
        lay_out(&self.path("repo"), &self.path("python3"), &wheels, cuda)
            .map_err(|error| format!("{error:#}"))
    }

    /// What pip was asked for so far.
    fn asked(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("shelf/log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// All files below `.libtorch`, sorted.
    fn layout(&self) -> Vec<String> {
        let root = self.path("repo/.libtorch");
        let (mut files, mut folders) = (Vec::new(), vec![root.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push(path.strip_prefix(&root).unwrap().display().to_string());
                }
            }
        }
        files.sort();
        files
    }
}

const CPU_LAYOUT: [&str; 8] = [
    "build-version",
    "include/ATen/ATen.h",
    "lib/libc10.so",
    "lib/libcupti.so.13",
    "lib/libgomp.so.1",
    "lib/libtorch.so",
    "lib/libtorch_cpu.so",
    "stamp.json",
];

#[test]
fn a_fresh_layout_holds_what_the_cpu_needs_and_no_more() {
    let world = World::new();
    world.lay_out(false).unwrap();
    assert_eq!(world.layout(), CPU_LAYOUT);
    let library = fs::read_to_string(world.path("repo/.libtorch/lib/libtorch_cpu.so")).unwrap();
    assert_eq!(library, "torch/lib/libtorch_cpu.so");
    let version = fs::read_to_string(world.path("repo/.libtorch/build-version")).unwrap();
    assert_eq!(version, LIBTORCH);
    assert!(!world.path("repo/.libtorch.partial").exists());
    assert!(!world.path("escaped.h").exists() && !world.path("repo/escaped.h").exists());
}

#[test]
fn a_second_run_asks_nobody() {
    let world = World::new();
    world.lay_out(false).unwrap();
    fs::remove_file(world.path("python3")).unwrap();
    world.lay_out(false).unwrap();
    assert_eq!(world.asked().len(), 2);
}

#[test]
fn the_cuda_layout_replaces_the_cpu_one_and_serves_for_both() {
    let mut world = World::new();
    world.lay_out(false).unwrap();
    let cpu_wheels = world.wheels.clone();
    world.stock(CUBLAS, &["nvidia/cu13/lib/libcublas.so.13"]);
    world.lay_out(true).unwrap();
    let files = world.layout();
    for library in [
        "libtorch_cuda.so",
        "libnvperf_host.so",
        "libcublas.so.13",
        "libtorch_cpu.so",
    ] {
        assert!(
            files.contains(&format!("lib/{library}")),
            "{library} in {files:?}"
        );
    }
    assert!(!files.contains(&"lib/libtorch_python.so".to_owned()));

    world.wheels = cpu_wheels;
    world.lay_out(false).unwrap();
    assert_eq!(world.layout(), files);
}

#[test]
fn a_new_pin_makes_the_layout_anew() {
    let mut world = World::new();
    world.lay_out(false).unwrap();
    world.wheels.retain(|(file, _)| *file != TORCH);
    world.stock(TORCH, &["torch/lib/libtorch_cpu.so", "torch/lib/libnew.so"]);
    world.lay_out(false).unwrap();
    assert!(world.layout().contains(&"lib/libnew.so".to_owned()));
    assert!(!world.layout().contains(&"lib/libc10.so".to_owned()));
}

#[test]
fn a_wrong_checksum_names_file_and_digests_and_leaves_nothing() {
    let mut world = World::new();
    let right = std::mem::replace(&mut world.wheels[0].1, "00ff".repeat(16));
    let error = world.lay_out(false).unwrap_err();
    for part in [TORCH, &right, &world.wheels[0].1, "removed"] {
        assert!(error.contains(part), "{part} in {error}");
    }
    assert!(!world.path("repo/.libtorch").exists());
    assert!(
        !world
            .path("repo/.libtorch.partial/wheels")
            .join(TORCH)
            .exists()
    );

    world.wheels[0].1 = right;
    world.lay_out(false).unwrap();
    assert_eq!(world.layout(), CPU_LAYOUT);
}

#[test]
fn an_interrupted_run_is_done_again_and_swept_up() {
    let world = World::new();
    // Killed while unpacking and while downloading, over a folder that someone emptied by half.
    for folder in [
        ".libtorch/lib",
        ".libtorch.partial/fresh/lib",
        ".libtorch.partial/old",
    ] {
        let folder = world.path("repo").join(folder);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("libstray.so"), "half").unwrap();
    }
    let downloads = world.path("repo/.libtorch.partial/wheels");
    fs::create_dir_all(&downloads).unwrap();
    let whole = fs::read(world.path("shelf").join(TORCH)).unwrap();
    fs::write(downloads.join(TORCH), &whole[..whole.len() / 2]).unwrap();

    world.lay_out(false).unwrap();
    assert_eq!(world.layout(), CPU_LAYOUT);
    assert!(!world.path("repo/.libtorch.partial").exists());
}

#[test]
fn a_failed_download_keeps_the_wheels_that_came_whole() {
    let world = World::new();
    let shelved = world.path("shelf").join(CUPTI);
    let aside = world.path("aside.whl");
    fs::rename(&shelved, &aside).unwrap();
    let error = world.lay_out(false).unwrap_err();
    assert!(
        error.contains("could not download nvidia_cuda_cupti==13.0.85"),
        "{error}"
    );
    assert!(
        error.contains("LIBTORCH") && error.contains(CUPTI),
        "{error}"
    );
    assert!(!world.path("repo/.libtorch").exists());

    fs::rename(&aside, &shelved).unwrap();
    world.lay_out(false).unwrap();
    let torch = world
        .asked()
        .iter()
        .filter(|line| line.starts_with("torch=="))
        .count();
    assert_eq!(torch, 1, "torch was downloaded again");
    assert_eq!(world.layout(), CPU_LAYOUT);
}

#[test]
fn a_python_without_pip_says_what_to_install() {
    let world = World::new();
    fs::write(world.path("no-pip"), "").unwrap();
    let error = world.lay_out(false).unwrap_err();
    for part in [
        "has no pip",
        "python3-pip",
        "LIBTORCH",
        "No module named pip",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

/// Runs the program itself, in a world of its own variables: its exit code and what it says.
fn program(world: &World, path: &str, variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("--root")
        .arg(world.path("repo"))
        .arg("setup")
        .env_remove("LIBTORCH")
        .env_remove("LIBTORCH_USE_PYTORCH")
        .env_remove("VIRTUAL_ENV")
        .env("PATH", path)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn without_python_the_program_says_what_to_do_and_exits_with_1() {
    let world = World::new();
    let (code, error) = program(&world, "/nowhere", &[]);
    assert_eq!(code, Some(1));
    for part in [
        "python3 is not on the PATH",
        "apt install python3-pip",
        "LIBTORCH",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn the_torch_of_ones_own_python_is_used_when_its_version_is_right() {
    let world = World::new();
    let path = format!("{}:/usr/bin:/bin", world.path("").display());
    let variables = [("LIBTORCH_USE_PYTORCH", "1")];

    fs::write(world.path("torch-version"), "2.11.0+cu130\n").unwrap();
    let (code, said) = program(&world, &path, &variables);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("torch 2.11.0+cu130 of python3"), "{said}");
    assert!(!world.path("repo/.libtorch").exists());

    fs::write(world.path("torch-version"), "2.9.1\n").unwrap();
    let (code, error) = program(&world, &path, &variables);
    assert_eq!(code, Some(1));
    assert!(
        error.contains("2.9.1") && error.contains("needs 2.11.0"),
        "{error}"
    );

    fs::remove_file(world.path("torch-version")).unwrap();
    let (code, error) = program(&world, &path, &variables);
    assert_eq!(code, Some(1));
    assert!(error.contains("cannot import torch"), "{error}");
}

fn own(root: &Path, libtorch: impl Into<OsString>, cuda: bool) -> Result<Option<String>, String> {
    let variables = Variables {
        libtorch: Some(libtorch.into()),
        use_pytorch: None,
    };
    own_libtorch(root, &variables, cuda).map_err(|error| format!("{error:#}"))
}

#[test]
fn a_libtorch_of_ones_own_is_used_when_its_version_is_right() {
    let world = World::new();
    let (root, folder) = (world.path("repo"), world.path("mine"));
    fs::create_dir_all(folder.join("lib")).unwrap();
    let missing = own(&root, &folder, false).unwrap_err();
    assert!(missing.contains("no libtorch is there"), "{missing}");

    fs::write(
        folder.join("version.py"),
        "__version__ = '2.11.0+cu130'\ncuda = '13.0'\n",
    )
    .unwrap();
    let said = own(&root, &folder, false).unwrap().unwrap();
    assert!(said.contains("2.11.0+cu130"), "{said}");
    let cpu = own(&root, &folder, true).unwrap_err();
    assert!(cpu.contains("--cuda"), "{cpu}");

    fs::write(folder.join("build-version"), "2.10.0+cpu\n").unwrap();
    let wrong = own(&root, &folder, false).unwrap_err();
    assert!(
        wrong.contains("2.10.0") && wrong.contains("2.11.0"),
        "{wrong}"
    );
}

#[test]
fn the_folder_of_the_cargo_config_is_not_the_users_own() {
    let world = World::new();
    let root = world.path("repo");
    assert_eq!(own(&root, root.join(".libtorch"), false), Ok(None));
    symlink(&root, world.path("link")).unwrap();
    assert_eq!(own(&root, world.path("link/.libtorch"), false), Ok(None));
    assert_eq!(
        own_libtorch(&root, &Variables::default(), false).unwrap(),
        None
    );
}

#[test]
fn a_libtorch_variable_that_would_break_the_build_is_refused() {
    let world = World::new();
    let empty = own(&world.path("repo"), "", false).unwrap_err();
    assert!(empty.contains("unset it"), "{empty}");
    let relative = own(&world.path("repo"), "libs/torch", false).unwrap_err();
    assert!(relative.contains("must be absolute"), "{relative}");
}
