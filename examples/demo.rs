//! The main job from end to end: pretrain, fine-tune, merge, ask.

use std::{io, process::ExitCode};

use ferrotune_examples::{cli, demo::Demo};

/// Pretrain a small Llama on generated Chinese, fine-tune it with LoRA, merge it, and ask it
#[derive(clap::Parser)]
struct Args {
    #[command(flatten)]
    demo: Demo,
}

fn main() -> ExitCode {
    cli::run(|args: Args| args.demo.run(&mut io::stdout()))
}
