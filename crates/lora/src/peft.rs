//! Adapters on disk, as PEFT reads and writes them.

use crate::manage::{attach_with, own_params};
use crate::{Error, LoraConfig, Result};
use ferrotune_nn::libtorch::tch::{Kind, Tensor};
use ferrotune_nn::{Module, Weights, weights};
use std::path::{Path, PathBuf};

/// The weights' file in an adapter's folder.
pub const ADAPTER_FILE: &str = "adapter_model.safetensors";
/// The name of an adapter that lies in the folder itself; others lie in a sub-folder of their name.
pub const DEFAULT: &str = "default";

/// The folder of adapter `name` below `dir`.
pub fn folder(dir: &Path, name: &str) -> PathBuf {
    if name == DEFAULT {
        dir.to_owned()
    } else {
        dir.join(name)
    }
}

/// Saves adapter `name` below `dir` as PEFT's `save_pretrained` does: the weights first, then the
/// configuration, each whole or not at all.
///
/// # Errors
/// A name that the model lacks, or the system's.
pub fn save(model: &dyn Module, name: &str, config: &LoraConfig, dir: &Path) -> Result<()> {
    let params = own_params(model, name);
    if params.is_empty() {
        return Err(Error::Unknown(name.to_owned()));
    }
    let dir = folder(dir, name);
    std::fs::create_dir_all(&dir).map_err(|source| ferrotune_nn::Error::io(&dir, source))?;
    let tensors: Vec<(String, Tensor)> = params
        .into_iter()
        .map(|(key, param)| (key, param.tensor().detach()))
        .collect();
    weights::save_file(
        &dir.join(ADAPTER_FILE),
        tensors.iter().map(|(key, tensor)| (key.as_str(), tensor)),
    )?;
    config.save(&dir)
}

/// Loads an adapter folder onto the model under `name`, its matrices in fp32, and returns its
/// configuration.
///
/// # Errors
/// Files that are missing or corrupt, matrices that are missing, unknown or of other shapes, or
/// targets that the model lacks.
pub fn load(model: &mut dyn Module, name: &str, dir: &Path) -> Result<LoraConfig> {
    let config = LoraConfig::from_dir(dir)?;
    let weights = Weights::open(dir.join(ADAPTER_FILE))?;
    attach_with(model, name, &config, |path, linear, r| {
        let (out, inputs) = linear.op().shape();
        let read = |matrix: &str, shape: [i64; 2]| {
            let key = format!("base_model.model.{path}.{matrix}.weight");
            weights.load(&key, Some(&shape), Some(Kind::Float), linear.op().device())
        };
        Ok((read("lora_A", [r, inputs])?, read("lora_B", [out, r])?))
    })?;
    if let Err(error) = weights.finish(|_| false) {
        crate::detach(model, name)?;
        return Err(error.into());
    }
    Ok(config)
}

/// Reads an adapter folder into adapter `name`, which the model has already.
///
/// # Errors
/// A name that the model lacks; files that are missing or corrupt, or do not hold exactly this
/// adapter's matrices.
pub fn reload(model: &dyn Module, name: &str, dir: &Path) -> Result<()> {
    let params = own_params(model, name);
    if params.is_empty() {
        return Err(Error::Unknown(name.to_owned()));
    }
    Ok(Weights::open(dir.join(ADAPTER_FILE))?.assign(&params)?)
}
