//! Ctrl-C as a question that a run asks between steps.

use crate::{Error, Result};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Listens to Ctrl-C (SIGINT), SIGTERM and SIGHUP from now on; [`asked`] then says whether one came.
///
/// # Errors
/// Another handler that the program has installed.
pub fn listen() -> Result<()> {
    static INSTALLED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let handler = || ASKED.store(true, Ordering::SeqCst);
    INSTALLED
        .get_or_init(|| ctrlc::set_handler(handler).map_err(|error| error.to_string()))
        .clone()
        .map_err(|reason| Error::Config(format!("cannot listen to Ctrl-C: {reason}")))
}

/// Whether an end was asked for since [`listen`].
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
