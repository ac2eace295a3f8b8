//! Text from a checkpoint: one prompt, or a chat.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result};
use ferrotune::{
    generate::{self, Options, Sampling},
    nn::Decoder,
    text::{Message, Tokenizer},
};
use ferrotune_examples::{
    checkpoint,
    cli::{self, Dtype},
};

/// Generate text from a checkpoint; without a prompt, chat (a line of stdin is a turn, its end the end)
#[derive(clap::Parser)]
struct Args {
    /// Folder of a Hugging Face checkpoint with its tokenizer
    #[arg(long)]
    model: PathBuf,
    /// Folder of a PEFT adapter
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Text to continue
    #[arg(long, allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Answer the prompt as a user's message, by the checkpoint's chat template
    #[arg(long)]
    chat: bool,
    /// At most this many new tokens
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
    /// Divides the logits; 0 always takes the most likely token
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f64,
    /// Draw from this many most likely tokens only; 0 is all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Draw from the most likely tokens that together reach this probability
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Repeats a run
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// End at this string, which is not printed; may be given several times
    #[arg(long, allow_hyphen_values = true)]
    stop: Vec<String>,
    /// What to compute in, if not what the weights are stored in
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
}

fn main() -> ExitCode {
    cli::run(|args: Args| {
        let speaker = Speaker::new(&args)?;
        match &args.prompt {
            Some(prompt) if args.chat => speaker.answer(&[Message::user(prompt)]).map(drop),
            Some(prompt) => speaker
                .say(&speaker.tokenizer.encode(prompt, true)?, 0)
                .map(drop),
            None => speaker.chat(),
        }
    })
}

struct Speaker {
    model: Decoder,
    tokenizer: Tokenizer,
    options: Options,
}

impl Speaker {
    fn new(args: &Args) -> Result<Self> {
        let adapter = args.adapter.as_deref();
        let tokenizer = checkpoint::tokenizer(&args.model, adapter)?;
        let kind = match args.dtype {
            Some(dtype) => dtype.into(),
            None => checkpoint::stored_kind(&args.model)?,
        };
        let model = checkpoint::load(&args.model, adapter, kind)?;
        let mut eos = generate::eos_of(&args.model)?;
        eos.extend(tokenizer.eos());
        let sampling = Sampling {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            seed: args.seed,
        };
        let options = Options {
            max_tokens: args.max_tokens,
            eos,
            stop: args.stop.clone(),
            sampling,
            ..Options::default()
        };
        Ok(Self {
            model,
            tokenizer,
            options,
        })
    }

    /// Continues a prompt on stdout, and returns the new text.
    fn say(&self, prompt: &[u32], turn: usize) -> Result<String> {
        checkpoint::check_ids(&self.model, prompt.iter().map(|&id| id.into()))?;
        let mut options = self.options.clone();
        options.sampling.seed = options.sampling.seed.wrapping_add(turn as u64);
        let mut out = io::stdout().lock();
        let mut printed = Ok(());
        let text = generate::text(&self.model, &self.tokenizer, prompt, &options, |piece| {
            if printed.is_ok() {
                printed = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
            }
        })?;
        printed
            .and_then(|()| writeln!(out))
            .context("cannot write to stdout")?;
        Ok(text)
    }

    fn answer(&self, messages: &[Message]) -> Result<String> {
        let template = self
            .tokenizer
            .chat_template()
            .context("the checkpoint has no chat template; give --prompt without --chat")?;
        let prompt = self
            .tokenizer
            .encode(&template.render(messages, true)?, false)?;
        self.say(&prompt, messages.len() / 2)
    }

    fn chat(&self) -> Result<()> {
        let invite = || {
            if io::stdin().is_terminal() {
                eprint!("> ");
            }
        };
        let mut messages = Vec::new();
        invite();
        for line in io::stdin().lock().lines() {
            let line = line.context("cannot read stdin")?;
            if !line.trim().is_empty() {
                messages.push(Message::user(line));
                let answer = self.answer(&messages)?;
                messages.push(Message::assistant(answer));
            }
            invite();
        }
        Ok(())
    }
}
