//! The checkpoint envelope: everything that a run needs to go on as if it had never stopped.
//!
//! A checkpoint is the folder `step-00000100`: `envelope.json` beside the model's or adapter's own
//! files, `optimizer.safetensors` and `rng-00000.safetensors` (one a rank). It is filled under a
//! hidden name, synced, and renamed, so that whatever stands under its name is whole; the envelope
//! has the SHA-256 of every file, so that what was damaged later is found out.

use crate::{Error, Result};
use ferrotune_nn::files;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// The format that this version writes; it reads no other.
pub const FORMAT: u32 = 1;
/// The optimizer's tensors.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const ENVELOPE: &str = "envelope.json";
const PREFIX: &str = "step-";
const UNFINISHED: &str = ".unfinished-";
const REPLACED: &str = ".replaced-";

/// What `envelope.json` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// [`FORMAT`].
    pub format: u32,
    /// Steps done.
    pub step: u64,
    /// Tokens seen by all ranks.
    pub tokens: u64,
    /// Ranks of the run.
    pub world_size: usize,
    /// The options of the run: schedule, clipping, seed.
    pub options: Value,
    /// The loader's position.
    pub data: Value,
    /// SHA-256 of every other file, by its path in the folder.
    pub files: BTreeMap<String, String>,
}

/// The generators' states of one rank.
pub fn rng_file(rank: usize) -> String {
    format!("rng-{rank:05}.safetensors")
}

/// Writes the checkpoint of `envelope.step` below `dir`: `fill` writes the files, the envelope's
/// list of them is made here. Returns its folder. One of the same step is replaced, unless it is
/// this very one.
///
/// # Errors
/// What `fill` returns, or the system's, a full disk say; earlier checkpoints stay as they are.
pub fn write(
    dir: &Path,
    mut envelope: Envelope,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let name = format!("{PREFIX}{:08}", envelope.step);
    let (path, unfinished) = (dir.join(&name), dir.join(format!("{UNFINISHED}{name}")));
    fs::create_dir_all(dir).map_err(io_error(dir))?;
    if let Ok(standing) = read(&path) {
        envelope.files = standing.files.clone();
        if envelope == standing {
            return Ok(path);
        }
    }
    // What a killed process left.
    remove(&unfinished)?;
    fs::create_dir(&unfinished).map_err(io_error(&unfinished))?;
    let written = fill(&unfinished).and_then(|()| {
        envelope.files = digests(&unfinished)?;
        files::write_json(&unfinished.join(ENVELOPE), &envelope)?;
        sync_folder(&unfinished)?;
        // Another one of this step goes only when this one stands.
        let replaced = dir.join(format!("{REPLACED}{name}"));
        remove(&replaced)?;
        if path.exists() {
            fs::rename(&path, &replaced).map_err(io_error(&path))?;
        }
        fs::rename(&unfinished, &path).map_err(io_error(&path))?;
        sync_folder(dir)?;
        remove(&replaced)
    });
    if let Err(error) = written {
        // The first error matters more than one of cleaning up.
        let _ = fs::remove_dir_all(&unfinished);
        return Err(error);
    }
    Ok(path)
}

/// Reads a checkpoint's envelope and compares every file with its digest.
///
/// # Errors
/// Another format, or a file that is missing or changed.
pub fn read(path: &Path) -> Result<Envelope> {
    let bad = |reason: String| Error::Checkpoint {
        path: path.to_owned(),
        reason,
    };
    let envelope: Value =
        files::read_json(&path.join(ENVELOPE)).map_err(|error| bad(error.to_string()))?;
    let format = &envelope["format"];
    if *format != FORMAT {
        return Err(bad(format!("format {format}, this version reads {FORMAT}")));
    }
    let envelope: Envelope =
        serde_json::from_value(envelope).map_err(|error| bad(format!("{ENVELOPE}: {error}")))?;
    let found = digests(path)?;
    for (name, digest) in &envelope.files {
        match found.get(name) {
            None => return Err(bad(format!("{name} is missing"))),
            Some(found) if found != digest => {
                return Err(bad(format!("{name} is damaged: its SHA-256 differs")));
            }
            Some(_) => {}
        }
    }
    Ok(envelope)
}

/// The newest whole checkpoint below `dir`, and what is wrong with those that are newer.
///
/// # Errors
/// A folder that cannot be read; one that is not there has no checkpoint.
pub fn latest(dir: &Path) -> Result<(Option<PathBuf>, Vec<Error>)> {
    let mut damaged = Vec::new();
    for path in all(dir)?.into_iter().rev() {
        match read(&path) {
            Ok(_) => return Ok((Some(path), damaged)),
            Err(error) => damaged.push(error),
        }
    }
    Ok((None, damaged))
}

/// Removes all checkpoints below `dir` but the newest `keep`.
///
/// # Errors
/// The system's.
pub fn prune(dir: &Path, keep: usize) -> Result<()> {
    let all = all(dir)?;
    let old = all.len().saturating_sub(keep.max(1));
    all[..old].iter().try_for_each(|path| remove(path))
}

/// The checkpoints below `dir`, oldest first.
fn all(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io_error(dir))?,
    };
    let mut steps: Vec<(u64, PathBuf)> = Vec::new();
    for entry in entries {
        let path = entry.map_err(io_error(dir))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(step) = name.and_then(|name| name.strip_prefix(PREFIX)?.parse().ok()) {
            steps.push((step, path));
        }
    }
    steps.sort();
    Ok(steps.into_iter().map(|(_, path)| path).collect())
}

/// SHA-256 of every file below `dir` but the envelope.
fn digests(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(io_error(&folder))? {
            let path = entry.map_err(io_error(&folder))?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(dir).unwrap_or(&path);
            let name = name.to_string_lossy().into_owned();
            if name != ENVELOPE {
                found.insert(name, digest(&path).map_err(io_error(&path))?);
            }
        }
    }
    Ok(found)
}

fn digest(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut hash)?;
    Ok(format!("{:x}", hash.finalize()))
}

fn sync_folder(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(io_error(path))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path)(error)),
        _ => Ok(()),
    }
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    move |source| ferrotune_nn::Error::io(path, source).into()
}
