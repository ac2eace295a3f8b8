//! Threads that stay on a core of their own, on every side: a scheduler may put the two threads of a product
//! of half a millisecond on one core, and leave them there.

use rayon::ThreadPoolBuilder;

/// What libraries with OpenMP are told for the same.
pub const OPENMP: [(&str, &str); 2] = [("OMP_PROC_BIND", "true"), ("OMP_PLACES", "cores")];

/// A pool of so many threads, thread i on core i where the system can be asked for that.
pub fn pinned(threads: usize) -> ThreadPoolBuilder {
    ThreadPoolBuilder::new()
        .num_threads(threads)
        .start_handler(pin)
}

#[cfg(target_os = "linux")]
fn pin(core: usize) {
    let mut cores = rustix::thread::CpuSet::new();
    if core < rustix::thread::CpuSet::MAX_CPU {
        cores.set(core);
        // A machine that does not allow it runs as it likes.
        let _ = rustix::thread::sched_setaffinity(None, &cores);
    }
}

#[cfg(not(target_os = "linux"))]
fn pin(_: usize) {}
