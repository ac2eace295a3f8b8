//! `setup`: the pinned libtorch into `.libtorch/{lib,include}`, once.
//!
//! Everything is made in `.libtorch.partial/` and renamed at the end, so `.libtorch/` is whole or
//! absent whenever the work is cut short. Wheels that arrived whole are kept there for the next try.

use crate::{
    pins,
    process::{make, remove, write},
    wheel::{self, Wheel},
};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

/// Raised when [`place`] changes, so that folders laid out by an earlier rule are made anew.
const LAYOUT: u32 = 1;
const STAMP: &str = "stamp.json";

/// What a finished layout was made of.
#[derive(Serialize, Deserialize)]
struct Stamp {
    layout: u32,
    libtorch: String,
    /// File name to SHA-256.
    wheels: BTreeMap<String, String>,
}

/// The variables by which a user brings a libtorch of their own, as torch-sys reads them.
#[derive(Debug, Default)]
pub struct Variables {
    /// `LIBTORCH`: a folder with `lib` and `include`.
    pub libtorch: Option<OsString>,
    /// `LIBTORCH_USE_PYTORCH`: the torch package of the Python at hand; wins over `LIBTORCH`.
    pub use_pytorch: Option<OsString>,
}

impl Variables {
    /// Those of this process.
    pub fn from_env() -> Self {
        Self {
            libtorch: env::var_os("LIBTORCH"),
            use_pytorch: env::var_os("LIBTORCH_USE_PYTORCH"),
        }
    }
}

/// Brings libtorch into `root`, or verifies the one that the user brought.
pub fn run(root: &Path, cuda: bool) -> Result<()> {
    let python = Path::new("python3");
    if let Some(own) = own_libtorch(root, &Variables::from_env(), cuda)? {
        eprintln!("using {own}");
        return Ok(());
    }
    let (os, arch) = (env::consts::OS, env::consts::ARCH);
    let Some(wheels) = pins::wheels(os, arch, cuda) else {
        bail!(
            "no libtorch is pinned for {os} on {arch}: unpack libtorch {} by hand and set LIBTORCH \
             to its folder, or install torch {} with pip and set LIBTORCH_USE_PYTORCH=1",
            pins::LIBTORCH,
            pins::LIBTORCH
        );
    };
    lay_out(root, python, wheels, cuda)
}

/// The libtorch that the user's own variables name, in words, its version verified; `None` if they
/// name none. `.cargo/config.toml` sets `LIBTORCH` to our own folder, which does not count; `root` is
/// canonical.
pub fn own_libtorch(root: &Path, variables: &Variables, cuda: bool) -> Result<Option<String>> {
    if variables.use_pytorch.is_some() {
        // The interpreter that torch-sys asks.
        let python = match env::var_os("VIRTUAL_ENV") {
            Some(_) => "python",
            None => "python3",
        };
        return python_torch(Path::new(python)).map(Some);
    }
    let Some(folder) = &variables.libtorch else {
        return Ok(None);
    };
    if folder.is_empty() {
        bail!("LIBTORCH is set but empty, and torch-sys would take that as a folder: unset it");
    }
    let folder = Path::new(folder);
    // Cargo may have come to the root by a link: compare where the folders really are.
    let parent = folder
        .parent()
        .and_then(|parent| parent.canonicalize().ok());
    if folder.ends_with(".libtorch") && parent.as_deref() == Some(root) {
        return Ok(None);
    }
    if folder.is_relative() {
        bail!(
            "LIBTORCH={}: the path must be absolute, since build scripts run in other folders",
            folder.display()
        );
    }
    folder_torch(folder, cuda).map(Some)
}

/// Verifies the torch package that `python` imports.
fn python_torch(python: &Path) -> Result<String> {
    let answer = Command::new(python)
        .args(["-c", "import torch; print(torch.__version__)"])
        .output()
        .with_context(|| {
            format!(
                "LIBTORCH_USE_PYTORCH is set, but {} does not run",
                python.display()
            )
        })?;
    if !answer.status.success() {
        bail!(
            "LIBTORCH_USE_PYTORCH is set, but {} cannot import torch: install torch {} there, or \
             unset the variable",
            python.display(),
            pins::LIBTORCH
        );
    }
    let version = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
    require_version(&version, "LIBTORCH_USE_PYTORCH")?;
    Ok(format!(
        "torch {version} of {} (LIBTORCH_USE_PYTORCH)",
        python.display()
    ))
}

/// Verifies a libtorch folder: that of libtorch's own archive has a `build-version` file, a torch
/// package has `version.py`.
fn folder_torch(folder: &Path, cuda: bool) -> Result<String> {
    let named = format!("LIBTORCH={}", folder.display());
    let version = match fs::read_to_string(folder.join("build-version")) {
        Ok(version) => Some(version.trim().to_owned()),
        Err(_) => fs::read_to_string(folder.join("version.py"))
            .ok()
            .and_then(|text| {
                let line = text.lines().find(|line| line.starts_with("__version__"))?;
                Some(line.split(['\'', '"']).nth(1)?.to_owned())
            }),
    };
    let Some(version) = version else {
        bail!(
            "{named}: no libtorch is there (neither build-version nor version.py); correct it, or \
             unset it to let `cargo xtask setup` bring one"
        );
    };
    require_version(&version, &named)?;
    if cuda && !folder.join("lib/libtorch_cuda.so").exists() {
        bail!("{named}: it is the CPU build (no lib/libtorch_cuda.so), but --cuda was asked for");
    }
    Ok(format!(
        "libtorch {version} in {} (LIBTORCH)",
        folder.display()
    ))
}

fn require_version(version: &str, named: &str) -> Result<()> {
    if version.split('+').next() != Some(pins::LIBTORCH) {
        bail!(
            "{named}: it is version {version}, and tch needs {}; unset the variable to let \
             `cargo xtask setup` bring that one",
            pins::LIBTORCH
        );
    }
    Ok(())
}

/// Makes `.libtorch/` in `root` from `wheels`, unless it stands already. A standing CUDA layout
/// serves for the CPU too.
pub fn lay_out(root: &Path, python: &Path, wheels: &[Wheel], cuda: bool) -> Result<()> {
    // Two setups at once would trip over each other's folder. The lock ends with `_lock`.
    let manifest = root.join("Cargo.toml");
    let _lock = File::open(&manifest)
        .and_then(|file| file.lock().map(|()| file))
        .with_context(|| format!("cannot lock {}", manifest.display()))?;

    let target = root.join(".libtorch");
    let partial = root.join(".libtorch.partial");
    if stands(&target, wheels) {
        eprintln!("libtorch {} stands in {}", pins::LIBTORCH, target.display());
        return remove(&partial);
    }
    wheel::require_pip(python)?;

    let (downloads, fresh, old) = (
        partial.join("wheels"),
        partial.join("fresh"),
        partial.join("old"),
    );
    remove(&fresh)?;
    remove(&old)?;
    for folder in [&downloads, &fresh] {
        make(folder)?;
    }
    for wheel in wheels {
        let archive = wheel.fetch(python, &downloads)?;
        eprintln!("unpacking {}", wheel.file);
        wheel::unpack(&archive, &fresh, |name| place(name, cuda))?;
    }
    let stamp = Stamp {
        layout: LAYOUT,
        libtorch: pins::LIBTORCH.to_owned(),
        wheels: wheels
            .iter()
            .map(|wheel| (wheel.file.to_owned(), wheel.sha256.to_owned()))
            .collect(),
    };
    // torch-sys compares this file with the version it is made for.
    write(&fresh.join("build-version"), pins::LIBTORCH)?;
    write(&fresh.join(STAMP), &serde_json::to_string_pretty(&stamp)?)?;
    if target.exists() {
        rename(&target, &old)?;
    }
    rename(&fresh, &target)?;
    eprintln!(
        "libtorch {} laid out in {}",
        pins::LIBTORCH,
        target.display()
    );
    remove(&partial)
}

/// Whether `target` was laid out, by today's rule, from at least these wheels.
fn stands(target: &Path, wheels: &[Wheel]) -> bool {
    let Some(stamp) = fs::read(target.join(STAMP))
        .ok()
        .and_then(|text| serde_json::from_slice::<Stamp>(&text).ok())
    else {
        return false;
    };
    stamp.layout == LAYOUT
        && wheels
            .iter()
            .all(|wheel| stamp.wheels.get(wheel.file).map(String::as_str) == Some(wheel.sha256))
}

/// Where a file of a wheel goes in the layout; `None` for those that it leaves out. One `lib` folder
/// holds all: libtorch's libraries look beside themselves for what they need.
fn place(name: &str, cuda: bool) -> Option<PathBuf> {
    // Of use to Python only.
    const PYTHON: [&str; 3] = ["libtorch_python", "libtorch_global_deps", "libshm"];
    const GPU: [&str; 4] = [
        "libtorch_cuda",
        "libc10_cuda",
        "libcaffe2_nvrtc",
        "libtorch_nvshmem",
    ];
    // Loaded by libtorch_cpu.so itself.
    const NVIDIA_FOR_CPU: [&str; 2] = ["libcudart.so", "libcupti.so"];

    if let Some(header) = name.strip_prefix("torch/include/") {
        return Some(Path::new("include").join(header));
    }
    let (folder, file) = name.rsplit_once('/')?;
    let begins = |names: &[&str]| names.iter().any(|start| file.starts_with(start));
    let wanted = file.contains(".so")
        && if folder == "torch/lib" {
            !begins(&PYTHON) && (cuda || !begins(&GPU))
        } else {
            folder.starts_with("nvidia/")
                && folder.ends_with("/lib")
                && (cuda || begins(&NVIDIA_FOR_CPU))
        };
    wanted.then(|| Path::new("lib").join(file))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to)
        .with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
}
