//! What a checkpoint keeps of a model.

use crate::Result;
use ferrotune_lora::{LoraConfig, peft};
use ferrotune_nn::module::trainable;
use ferrotune_nn::{Module, Weights, weights};
use std::fmt::Debug;
use std::path::Path;

/// Writes what trains of a model into a folder, in a form that others read too, and reads it back.
pub trait Artifact: Debug + Send + Sync {
    /// Writes into `dir`, which is there.
    ///
    /// # Errors
    /// The system's.
    fn save(&self, model: &dyn Module, dir: &Path) -> Result<()>;
    /// Reads from `dir` into the model's parameters.
    ///
    /// # Errors
    /// A tensor that is missing, unknown or of another shape.
    fn load(&self, model: &dyn Module, dir: &Path) -> Result<()>;
}

/// The trainable parameters under their paths, which are Hugging Face's names for a whole model.
#[derive(Debug, Clone, Copy, Default)]
pub struct Parameters;

impl Artifact for Parameters {
    fn save(&self, model: &dyn Module, dir: &Path) -> Result<()> {
        let params = trainable(model);
        let tensors = params
            .iter()
            .map(|(path, param)| (path.as_str(), param.tensor()));
        Ok(weights::save_file(
            &dir.join(weights::SINGLE_FILE),
            tensors,
        )?)
    }

    fn load(&self, model: &dyn Module, dir: &Path) -> Result<()> {
        Ok(Weights::open(dir.join(weights::SINGLE_FILE))?.assign(&trainable(model))?)
    }
}

/// One LoRA adapter, as PEFT's two files.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Its name on the model.
    pub name: String,
    /// Its settings.
    pub config: LoraConfig,
}

impl Artifact for Adapter {
    fn save(&self, model: &dyn Module, dir: &Path) -> Result<()> {
        Ok(peft::save(model, &self.name, &self.config, dir)?)
    }

    fn load(&self, model: &dyn Module, dir: &Path) -> Result<()> {
        Ok(peft::reload(
            model,
            &self.name,
            &peft::folder(dir, &self.name),
        )?)
    }
}
