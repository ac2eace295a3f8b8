//! The checks that only `ferrotune-quant` has: without `std`, on another processor, in an interpreter,
//! under a sanitizer, and fuzzed. What this machine lacks the tools for is said, and left out.

use crate::process;
use anyhow::Result;
use std::path::Path;
use std::process::{Command, Stdio};

const PACKAGE: &str = "ferrotune-quant";
const FEATURES: &str = "rayon,ndarray,files";
const AARCH64: &str = "aarch64-unknown-linux-gnu";
/// A target without an operating system, and so without `std`.
const BARE: &str = "aarch64-unknown-none";
const X86_64: &str = "x86_64-unknown-linux-gnu";

/// Seconds for each fuzz target: long enough to see that it still runs and finds nothing new at once.
const FUZZ_SECONDS: &str = "30";

/// All features without libtorch, then the kernel of the crate without `std`.
pub fn alone(root: &Path) -> Result<()> {
    let mut test = process::cargo(root, &["test", "--package", PACKAGE]);
    test.args(["--features", FEATURES])
        .env("LIBTORCH", root.join("no-libtorch-here"))
        .env_remove("LIBTORCH_USE_PYTORCH");
    process::run(&mut test)?;
    let mut check = process::cargo(root, &["check", "--package", PACKAGE]);
    process::run(check.arg("--no-default-features"))
}

/// AArch64: compiled if rustup can bring its standard library, for no operating system too, and tested if there are a linker and an
/// emulator (Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user).
pub fn aarch64(root: &Path) -> Result<()> {
    if !works(Command::new("rustup").args(["target", "add", AARCH64])) {
        return skip("AArch64", "rustup cannot bring its standard library");
    }
    let folder = root.join("target/aarch64");
    if works(Command::new("rustup").args(["target", "add", BARE])) {
        let mut bare = process::cargo(root, &["check", "--package", PACKAGE, "--target", BARE]);
        process::run(
            bare.arg("--no-default-features")
                .arg("--target-dir")
                .arg(&folder),
        )?;
    } else {
        skip(
            "no operating system",
            "rustup cannot bring its core library",
        )?;
    }
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root);
    let tools = works(Command::new("qemu-aarch64").arg("--version"))
        && works(Command::new("aarch64-linux-gnu-gcc").arg("--version"));
    if !tools {
        skip(
            "tests on AArch64",
            "no qemu-aarch64 or no aarch64-linux-gnu-gcc: compiling only",
        )?;
    }
    // The library's own tests and those of its kernels; what other tests see is not the processor.
    cargo
        .arg(if tools { "test" } else { "check" })
        .args(["--release", "--package", PACKAGE, "--target", AARCH64])
        .args(["--features", "rayon,ndarray", "--target-dir"])
        .arg(folder)
        .env(
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER",
            "aarch64-linux-gnu-gcc",
        )
        .env(
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER",
            "qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu",
        );
    if tools {
        cargo.args(["--lib", "--test", "kernels", "--test", "golden"]);
        cargo.args(["--test", "products", "--test", "properties"]);
    }
    process::run(&mut cargo)
}

/// The scalar path in Miri, which sees every read out of bounds and every misuse of a pointer.
pub fn miri(root: &Path) -> Result<()> {
    if !works(nightly().args(["miri", "--version"])) {
        return skip("Miri", "no nightly toolchain with miri and rust-src");
    }
    let mut miri = nightly();
    miri.current_dir(root)
        .args(["miri", "test", "--package", PACKAGE, "--test", "properties"])
        .arg("--target-dir")
        .arg(root.join("target/miri"))
        // proptest reads its own source's folder.
        .env("MIRIFLAGS", "-Zmiri-disable-isolation");
    process::run(&mut miri)
}

/// Every instruction set of this machine under AddressSanitizer.
pub fn sanitizer(root: &Path) -> Result<()> {
    if !works(nightly().arg("--version")) {
        return skip("AddressSanitizer", "no nightly toolchain");
    }
    let mut test = nightly();
    test.current_dir(root)
        .args([
            "test",
            "--release",
            "--package",
            PACKAGE,
            "--target",
            X86_64,
        ])
        .args(["--features", FEATURES, "--tests", "--target-dir"])
        .arg(root.join("target/sanitizer"))
        .env("RUSTFLAGS", "-Zsanitizer=address");
    process::run(&mut test)
}

/// Each parser on damaged files, half a minute, from the recorded ones on.
pub fn fuzz(root: &Path) -> Result<()> {
    if !works(nightly().args(["fuzz", "--version"])) {
        return skip("fuzzing", "no nightly toolchain with cargo-fuzz");
    }
    let folder = root.join("crates/quant");
    process::run(Command::new("sh").arg(folder.join("fuzz/seeds.sh")))?;
    let list = nightly()
        .current_dir(&folder)
        .args(["fuzz", "list"])
        .output()?;
    for target in String::from_utf8_lossy(&list.stdout).lines() {
        let mut fuzz = nightly();
        fuzz.current_dir(&folder)
            .args(["fuzz", "run", target, "--target", X86_64, "--"])
            .arg(format!("-max_total_time={FUZZ_SECONDS}"))
            .arg("-rss_limit_mb=2048");
        process::run(&mut fuzz)?;
    }
    Ok(())
}

/// Cargo of the nightly toolchain. The variables of the cargo that runs us would choose another.
fn nightly() -> Command {
    let mut command = Command::new("rustup");
    command
        .args(["run", "nightly", "cargo"])
        .env_remove("CARGO")
        .env_remove("RUSTUP_TOOLCHAIN");
    command
}

fn works(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null());
    let status = quiet.stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn skip(what: &str, why: &str) -> Result<()> {
    eprintln!("\nSKIPPED: {what}: {why}\n");
    Ok(())
}
