//! `peers`: `.peers/`, a Python environment with exactly what `peers/requirements.txt` pins; and for the
//! benchmarks what `peers/requirements-bench.txt` pins, on top.

use crate::process;
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The variable by which tests and benchmarks learn the Python of the peers.
pub const VARIABLE: &str = "FERROTUNE_PEERS";

/// Makes the environment unless it stands, and returns its Python.
///
/// The stamp is written last, and an environment without the right one is made anew.
pub fn ensure(root: &Path) -> Result<PathBuf> {
    let requirements = root.join("peers/requirements.txt");
    let wanted = digest(&requirements)?;

    let environment = root.join(".peers");
    let python = environment.join("bin/python");
    let stamp = environment.join("requirements.sha256");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        eprintln!("the peers stand in {}", environment.display());
        return Ok(python);
    }
    process::remove(&environment)?;
    process::run(
        Command::new("python3")
            .args(["-m", "venv"])
            .arg(&environment),
    )
    .context(
        "cannot make a Python environment: install Python 3.11 or later with its venv module \
         (Debian, Ubuntu: apt install python3-venv)",
    )?;
    install(&python, &requirements, &[])?;
    process::write(&stamp, &wanted)?;
    eprintln!("the peers are in {}", environment.display());
    Ok(python)
}

/// The same with what only the benchmarks compare with. A stamp of its own, which goes with the
/// environment when that is made anew.
pub fn ensure_for_bench(root: &Path) -> Result<PathBuf> {
    let python = ensure(root)?;
    let requirements = root.join("peers/requirements-bench.txt");
    let wanted = digest(&requirements)?;
    let stamp = root.join(".peers/requirements-bench.sha256");
    if !fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        // GCC 12 takes what ggml's AMX kernels configure tiles with for dead stores: on a processor with
        // AMX the library would end its process. Nor may pip take an earlier build out of its cache.
        install(
            &python,
            &requirements,
            &[
                ("CXXFLAGS", "-fno-dse -fno-tree-dse"),
                ("PIP_NO_CACHE_DIR", "1"),
            ],
        )?;
        process::write(&stamp, &wanted)?;
    }
    Ok(python)
}

fn digest(requirements: &Path) -> Result<String> {
    let pinned = fs::read(requirements)
        .with_context(|| format!("cannot read {}", requirements.display()))?;
    Ok(format!("{:x}", Sha256::digest(&pinned)))
}

/// The file names every package there is to install: torch itself would ask for 1 GB of CUDA more.
fn install(python: &Path, requirements: &Path, variables: &[(&str, &str)]) -> Result<()> {
    let mut pip = Command::new(python);
    pip.args([
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-deps",
    ])
    .arg("--requirement")
    .arg(requirements)
    .envs(variables.iter().copied());
    process::run(&mut pip).context("pip could not install the peers; its own message is above")
}
