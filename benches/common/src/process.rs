//! What this process holds of the machine's memory and took of its cores, as Linux counts it.

use anyhow::{Context, Result};
use std::fs;

/// Bytes resident now.
///
/// # Errors
/// A system without /proc.
pub fn resident() -> Result<u64> {
    status("VmRSS:")
}

/// The most bytes that were resident at one time, since the start or [`restart_peak`].
///
/// # Errors
/// A system without /proc.
pub fn peak() -> Result<u64> {
    status("VmHWM:")
}

/// Lets the peak begin from what is resident now. Some containers do not let a process do that; the
/// peak then stays the one since the start.
pub fn restart_peak() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// Seconds that all threads together have run, to a hundredth.
///
/// # Errors
/// A system without /proc.
pub fn cpu_seconds() -> Result<f64> {
    const PATH: &str = "/proc/self/stat";
    let text = fs::read_to_string(PATH).context(PATH)?;
    // The second field, the name in brackets, may hold anything; 12 fields on are user and system
    // time, in hundredths of a second for every program (USER_HZ).
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks = ticks.map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    Ok(ticks.iter().sum::<u64>() as f64 / 100.0)
}

fn status(key: &str) -> Result<u64> {
    const PATH: &str = "/proc/self/status";
    let text = fs::read_to_string(PATH).context(PATH)?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("{PATH} has no {key}"))? * 1024)
}
