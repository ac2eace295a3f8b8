//! A Python wheel as a parcel of files: fetched by pip, checked by SHA-256, unpacked by us.

use crate::process;
use anyhow::{Context, Result, anyhow, bail};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, BufReader, ErrorKind},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use zip::ZipArchive;

/// A wheel by its file name, which by PEP 427 says everything that pip must be asked for, and the
/// digest of its bytes.
#[derive(Debug, Clone, Copy)]
pub struct Wheel<'a> {
    /// `name-version-python-abi-platform.whl`; the platform may be several, joined by dots.
    pub file: &'a str,
    /// SHA-256, lower-case hexadecimal.
    pub sha256: &'a str,
}

impl Wheel<'_> {
    /// What pip calls this wheel (`torch==2.11.0`), and the platforms it is for.
    fn request(&self) -> Result<(String, Vec<&str>)> {
        let parts: Vec<&str> = self.file.trim_end_matches(".whl").split('-').collect();
        let [name, version, _python, _abi, platforms] = parts[..] else {
            bail!("{} is not the name of a wheel", self.file);
        };
        Ok((format!("{name}=={version}"), platforms.split('.').collect()))
    }

    /// The path of this wheel in `folder`, downloaded unless it is there already and whole.
    pub fn fetch(&self, python: &Path, folder: &Path) -> Result<PathBuf> {
        let path = folder.join(self.file);
        // What an earlier run left may be cut short: only its digest says.
        if path.exists() && self.verify(&path).is_ok() {
            return Ok(path);
        }
        let (requirement, platforms) = self.request()?;
        let mut pip = Command::new(python);
        pip.args(["-m", "pip", "download", "--disable-pip-version-check"])
            .args(["--no-deps", "--only-binary=:all:", "--no-input"])
            .args(["--python-version", "3.11", "--implementation", "cp"])
            .args(["--abi", "cp311"]);
        for platform in platforms {
            pip.args(["--platform", platform]);
        }
        pip.arg("--dest").arg(folder).arg(&requirement);
        process::run(&mut pip).with_context(|| {
            format!(
                "pip could not download {requirement}. Without a network, bring the file {} from \
                 elsewhere into {}, or unpack libtorch by hand and set LIBTORCH to its folder",
                self.file,
                folder.display()
            )
        })?;
        self.verify(&path)?;
        Ok(path)
    }

    /// Compares the digest of the file at `path`; a file that differs is removed.
    fn verify(&self, path: &Path) -> Result<()> {
        let open = || format!("cannot read {}", path.display());
        let mut file = BufReader::with_capacity(1 << 20, File::open(path).with_context(open)?);
        let mut hasher = Sha256::new();
        io::copy(&mut file, &mut hasher).with_context(open)?;
        let found = format!("{:x}", hasher.finalize());
        if found != self.sha256 {
            fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
            bail!(
                "{}: its SHA-256 is {found}, pinned is {}; the file is removed",
                path.display(),
                self.sha256
            );
        }
        Ok(())
    }
}

/// Fails, with what to do about it, unless `python` runs and has pip.
pub fn require_pip(python: &Path) -> Result<()> {
    let otherwise = "or unpack libtorch by hand and set LIBTORCH to its folder";
    let answer = Command::new(python)
        .args(["-m", "pip", "--version"])
        .stdin(Stdio::null())
        .output();
    match answer {
        Ok(answer) if answer.status.success() => Ok(()),
        Ok(answer) => Err(anyhow!(
            "{}",
            String::from_utf8_lossy(&answer.stderr).trim().to_owned()
        )
        .context(format!(
            "{} has no pip: install it (Debian, Ubuntu: apt install python3-pip), {otherwise}",
            python.display()
        ))),
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "{} is not on the PATH: install Python 3 with pip (Debian, Ubuntu: apt install \
             python3-pip), {otherwise}",
            python.display()
        ),
        Err(error) => Err(error).with_context(|| format!("cannot run {}", python.display())),
    }
}

/// Writes every file of the archive for which `place` names a path, below `folder`.
pub fn unpack(
    archive: &Path,
    folder: &Path,
    place: impl Fn(&str) -> Option<PathBuf>,
) -> Result<()> {
    let broken = || format!("cannot unpack {}", archive.display());
    let file = File::open(archive).with_context(broken)?;
    let mut zip = ZipArchive::new(BufReader::new(file)).with_context(broken)?;
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).with_context(broken)?;
        // A name that climbs out of the archive gives no enclosed name.
        let Some(name) = entry.enclosed_name().filter(|_| entry.is_file()) else {
            continue;
        };
        let Some(path) = place(&name.to_string_lossy()) else {
            continue;
        };
        let path = folder.join(path);
        let failed = || format!("cannot write {}", path.display());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(failed)?;
        }
        let mut out = File::create(&path).with_context(failed)?;
        io::copy(&mut entry, &mut out).with_context(failed)?;
    }
    Ok(())
}
