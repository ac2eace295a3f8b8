//! A small Llama and its own tokenizer from text files.

use std::process::ExitCode;

use ferrotune_examples::{cli, pretrain::Pretrain};

/// Pretrain a small Llama and its BPE tokenizer from text
#[derive(clap::Parser)]
struct Args {
    #[command(flatten)]
    pretrain: Pretrain,
}

fn main() -> ExitCode {
    cli::run(|args: Args| args.pretrain.run())
}
