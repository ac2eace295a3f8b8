//! The outside project: a stranger's program on two of our crates, by path, in a folder of its own,
//! started as the README says: `LIBTORCH=…/.libtorch cargo run`.

use crate::process;
use anyhow::{Context, Result};
use std::{env, fs, path::Path};

/// Makes the project in a temporary folder, builds it and runs it.
///
/// It takes the workspace's lock file, profile and target folder along, only so that libtorch's
/// bindings need not compile again; `.cargo/config.toml` does not reach it.
pub fn run(root: &Path) -> Result<()> {
    let project = tempfile::tempdir().context("cannot make a temporary folder")?;
    let folder = project.path();
    fs::create_dir(folder.join("src")).context("cannot make a folder in the temporary one")?;
    process::write(&folder.join("Cargo.toml"), &manifest(root)?)?;
    process::write(
        &folder.join("src/main.rs"),
        include_str!("../outside/main.rs"),
    )?;
    fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock"))
        .context("cannot copy Cargo.lock")?;

    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), Into::into);
    let mut cargo = process::cargo(folder, &["run", "--quiet"]);
    cargo.env("CARGO_TARGET_DIR", root.join(target));
    if env::var_os("LIBTORCH").is_none() {
        cargo.env("LIBTORCH", root.join(".libtorch"));
    }
    process::run(&mut cargo)
}

fn manifest(root: &Path) -> Result<String> {
    let path = root.join("Cargo.toml");
    let workspace =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let profiles = workspace
        .find("[profile.")
        .map_or("", |start| &workspace[start..]);
    let crates = root.join("crates");
    Ok(format!(
        "[package]\nname = \"outside\"\nedition = \"2024\"\n\n[dependencies]\n\
         ferrotune-nn = {{ path = {:?} }}\nferrotune-lora = {{ path = {:?} }}\n\n{profiles}",
        crates.join("nn"),
        crates.join("lora"),
    ))
}
