//! An adapter merged into its base, as a checkpoint that anything reads.

use std::{path::PathBuf, process::ExitCode};

use ferrotune_examples::{checkpoint, cli};

/// Merge a PEFT adapter into its base and write a checkpoint
#[derive(clap::Parser)]
struct Args {
    /// Folder of the base, a Hugging Face checkpoint
    #[arg(long)]
    model: PathBuf,
    /// Folder of the PEFT adapter
    #[arg(long)]
    adapter: PathBuf,
    /// Folder to write to; an older checkpoint in it is replaced
    #[arg(long)]
    out: PathBuf,
}

fn main() -> ExitCode {
    cli::run(|args: Args| checkpoint::merge(&args.model, &args.adapter, &args.out))
}
