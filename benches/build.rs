//! Tells the programs where libtorch lies, so that they start without cargo too.

fn main() {
    // Passed on by ferrotune-libtorch's own build script.
    if let Ok(lib) = std::env::var("DEP_FERROTUNE_LIBTORCH_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
