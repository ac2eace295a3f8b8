//! The logits of a checkpoint for given token ids, to be compared with another implementation's.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, ensure};
use ferrotune::{
    libtorch::tch::{Device, Kind, Tensor, no_grad_guard},
    nn::{Ctx, weights},
};
use ferrotune_examples::{
    checkpoint,
    cli::{self, Dtype},
};

/// Write a checkpoint's logits to a safetensors file: key `logits`, f32, [seq, vocab]
#[derive(clap::Parser)]
struct Args {
    /// Folder of a Hugging Face checkpoint
    #[arg(long)]
    model: PathBuf,
    /// Folder of a PEFT adapter
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Token ids, as in 1,2,3
    #[arg(
        long,
        required = true,
        value_delimiter = ',',
        allow_negative_numbers = true
    )]
    ids: Vec<i64>,
    /// File to write
    #[arg(long)]
    out: PathBuf,
    /// What to compute in
    #[arg(long, value_enum, default_value_t = Dtype::Fp32)]
    dtype: Dtype,
}

fn main() -> ExitCode {
    cli::run(|args: Args| -> Result<()> {
        // Before the model, which may take minutes to load.
        let folder = args.out.parent().filter(|dir| *dir != "");
        ensure!(
            folder.is_none_or(|dir| dir.is_dir()),
            "cannot write {}: its folder does not exist",
            args.out.display()
        );
        let model = checkpoint::load(&args.model, args.adapter.as_deref(), args.dtype.into())?;
        checkpoint::check_ids(&model, args.ids.iter().copied())?;

        let _guard = no_grad_guard();
        let ids = Tensor::f_from_slice(&args.ids)?
            .f_unsqueeze(0)?
            .f_to_device(model.device())?;
        let logits = model
            .forward(&ids, &Ctx::eval())?
            .f_squeeze_dim(0)?
            .f_to_device(Device::Cpu)?
            .f_to_kind(Kind::Float)?;
        Ok(weights::save_file(&args.out, [("logits", &logits)])?)
    })
}
