//! Compiles the C++ shim against the libtorch that torch-sys found, and puts that libtorch on the
//! path where `cargo run`, `cargo test` and doctests look for shared libraries.

use std::path::{Path, PathBuf};
use std::{env, fs};

const SOURCES: [&str; 6] = [
    "autograd.cpp",
    "engine.cpp",
    "hooks.cpp",
    "memory.cpp",
    "optim.cpp",
    "random.cpp",
];

fn main() {
    println!("cargo::rerun-if-changed=shim");
    // Printed by torch-sys (`links = "tch"`): the folder with libtorch.so.
    let lib =
        PathBuf::from(env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names its libtorch"));
    let include = lib
        .parent()
        .expect("a lib folder has a parent")
        .join("include");

    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(true)
        .extra_warnings(true)
        .warnings_into_errors(true)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        // libtorch's own headers are not ours to keep free of warnings.
        .flag("-isystem")
        .flag(include.to_str().expect("the path of libtorch is UTF-8"))
        .flag("-isystem")
        .flag(
            include
                .join("torch/csrc/api/include")
                .to_str()
                .expect("UTF-8"),
        )
        .files(SOURCES.iter().map(|file| Path::new("shim").join(file)))
        .compile("ferrotune_shim");

    // Cargo puts a link-search path on the loader's path only if it lies inside target/, so the
    // library folder gets a link there.
    let link = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("libtorch");
    let _ = fs::remove_file(&link);
    #[cfg(unix)]
    std::os::unix::fs::symlink(&lib, &link).expect("a symbolic link in OUT_DIR");
    println!("cargo::rustc-link-search=native={}", link.display());
    println!("cargo::rustc-env=FERROTUNE_LIBTORCH_LIB={}", lib.display());
    // A crate above reads this as DEP_FERROTUNE_LIBTORCH_LIBTORCH_LIB, to give its own binaries an rpath.
    println!("cargo::metadata=libtorch_lib={}", lib.display());
}
