//! A model, its adapter and its tokenizer, as the programs load and write them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use ferrotune::{
    libtorch::{
        cuda,
        tch::{Device, Kind},
    },
    lora::{self, peft},
    nn::{self, Decoder, DecoderConfig, Weights, files},
    text::Tokenizer,
};

/// What belongs to a tokenizer, in the spellings of transformers and of its slow tokenizers.
const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];

/// A checkpoint folder as `kind` on the best device there is, under the adapter of another folder where one is given.
///
/// # Errors
/// What is wrong with either, naming file and tensor.
pub fn load(model: &Path, adapter: Option<&Path>, kind: Kind) -> Result<Decoder> {
    load_on(model, adapter, kind, cuda::best_device()?)
}

fn load_on(model: &Path, adapter: Option<&Path>, kind: Kind, device: Device) -> Result<Decoder> {
    let mut decoder = Decoder::load(model, kind, device)
        .with_context(|| format!("cannot load the model {}", model.display()))?;
    if let Some(adapter) = adapter {
        peft::load(&mut decoder, peft::DEFAULT, adapter)
            .with_context(|| format!("cannot load the adapter {}", adapter.display()))?;
    }
    Ok(decoder)
}

/// The dtype that the weights of a checkpoint folder lie in, whatever its config.json says of it.
///
/// # Errors
/// Weights that cannot be read.
pub fn stored_kind(model: &Path) -> Result<Kind> {
    let read = || -> Result<Kind> {
        DecoderConfig::from_dir(model)?;
        let weights = Weights::open(model)?;
        let names = weights.names();
        // A small projection; norms may be kept in another dtype than what is multiplied by.
        let name = names
            .iter()
            .find(|name| name.ends_with("k_proj.weight"))
            .or(names.first())
            .context("there is no tensor in it")?;
        Ok(weights.load(name, None, None, Device::Cpu)?.kind())
    };
    read().with_context(|| format!("cannot load the model {}", model.display()))
}

/// Where the tokenizer lies: training leaves one beside the adapter, and its chat template is the one that the adapter
/// was trained with.
fn tokenizer_dir<'a>(model: &'a Path, adapter: Option<&'a Path>) -> &'a Path {
    adapter
        .filter(|dir| dir.join(TOKENIZER_FILES[0]).exists())
        .unwrap_or(model)
}

/// The adapter's tokenizer, or else the model's.
///
/// # Errors
/// Files that are missing or no tokenizer.
pub fn tokenizer(model: &Path, adapter: Option<&Path>) -> Result<Tokenizer> {
    let dir = tokenizer_dir(model, adapter);
    Tokenizer::from_dir(dir)
        .with_context(|| format!("cannot load the tokenizer of {}", dir.display()))
}

/// Says whether the model has an embedding for every id.
///
/// # Errors
/// The first that it has none for.
pub fn check_ids(model: &Decoder, ids: impl IntoIterator<Item = i64>) -> Result<()> {
    let vocab = model.config().vocab_size;
    for id in ids {
        ensure!(
            (0..vocab).contains(&id),
            "token id {id} is outside the model's vocabulary of {vocab}"
        );
    }
    Ok(())
}

/// Adds an adapter into its base's weights, in the dtype they are stored in, and writes a checkpoint with the tokenizer
/// and generation_config.json. An older checkpoint in `out` is replaced once the new one is whole.
///
/// # Errors
/// What is wrong with model or adapter, `out` being one of them, or the system's. `out` is then as it was.
pub fn merge(model: &Path, adapter: &Path, out: &Path) -> Result<()> {
    for input in [model, adapter] {
        ensure!(
            !same_folder(input, out),
            "the output folder {} is an input: its weights would be lost",
            out.display()
        );
    }
    let mut decoder = load_on(model, Some(adapter), stored_kind(model)?, Device::Cpu)?;
    lora::merge(&mut decoder, peft::DEFAULT)
        .with_context(|| format!("cannot merge the adapter {}", adapter.display()))?;

    let tokenizer = tokenizer_dir(model, Some(adapter));
    let mut copies: Vec<PathBuf> = TOKENIZER_FILES.map(|name| tokenizer.join(name)).into();
    copies.push(model.join("generation_config.json"));

    let new = !out.exists();
    let written = write(&decoder, &copies, out)
        .with_context(|| format!("cannot write the checkpoint {}", out.display()));
    if new && written.is_err() {
        // Fails, as it should, where something is in it.
        let _ = fs::remove_dir(out);
    }
    written
}

fn write(decoder: &Decoder, copies: &[PathBuf], out: &Path) -> Result<()> {
    /// Transformers' shard size.
    const SHARD_BYTES: usize = 5_000_000_000;

    fs::create_dir_all(out)?;
    let (there, absent): (Vec<_>, Vec<_>) = copies.iter().partition(|from| from.exists());
    let target = |from: &Path| out.join(from.file_name().unwrap_or_default());
    let mut staged = Vec::new();
    for from in there {
        staged.push(files::stage(&target(from), |temporary| {
            let copied = fs::copy(from, temporary).map(drop);
            copied.map_err(|source| nn::Error::io(from, source))
        })?);
    }
    decoder.save(out, SHARD_BYTES)?;
    // An older checkpoint's, which would be read in the place of what this one has not.
    for old in absent.into_iter().map(|from| target(from)) {
        if old.exists() {
            fs::remove_file(&old).map_err(|source| nn::Error::io(old, source))?;
        }
    }
    staged.into_iter().try_for_each(|file| Ok(file.commit()?))
}

fn same_folder(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}
