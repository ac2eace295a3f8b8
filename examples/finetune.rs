//! A LoRA adapter for a checkpoint, from instruction rows.

use std::process::ExitCode;

use ferrotune_examples::{cli, finetune::Finetune};

/// Fine-tune a causal language model with LoRA and write the adapter as PEFT does
#[derive(clap::Parser)]
struct Args {
    #[command(flatten)]
    finetune: Finetune,
}

fn main() -> ExitCode {
    cli::run(|args: Args| args.finetune.run().map(|_| ()))
}
