//! What pretraining and fine-tuning have in common: data from files, and the run from start or
//! checkpoint to the end.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ferrotune::{
    data::{Batch, Dataset, OnBadLine, Source, StreamOptions, Streams, TokenizeOptions, tokenize},
    nn::Decoder,
    text::Tokenizer,
    train::{
        AdamW, Evaluation, Fit, Packed, Run, checkpoint, interrupt,
        loss::causal_lm,
        observe::{Metrics, Progress},
    },
};

/// A run over packed batches of a causal language model.
pub type LmRun = Run<Decoder, AdamW, Packed>;

/// Rows of files as tokens.
///
/// # Errors
/// A bad row, with file and line, unless it is to be skipped; or none at all.
pub fn read(
    files: &[PathBuf],
    tokenizer: &Tokenizer,
    max_length: usize,
    skip_bad_lines: bool,
) -> Result<Dataset> {
    let on_bad = match skip_bad_lines {
        true => OnBadLine::Skip,
        false => OnBadLine::Fail,
    };
    let options = TokenizeOptions {
        max_length,
        ..TokenizeOptions::default()
    };
    let dataset = tokenize(Source::open(files, on_bad)?.stream(), tokenizer, &options)?;
    let skipped = dataset.skipped();
    if skipped.count > 0 {
        eprintln!("skipped {} bad lines, such as:", skipped.count);
        for reason in &skipped.reasons {
            eprintln!("  {reason}");
        }
    }
    if dataset.truncated() > 0 {
        eprintln!(
            "{} conversations lost their end to the maximal length of {max_length} tokens",
            dataset.truncated()
        );
    }
    Ok(dataset)
}

/// All of a dataset in order, packed, to evaluate on.
///
/// # Errors
/// An example longer than `max_length`.
pub fn in_order(dataset: Dataset, max_length: usize, bins: usize) -> Result<Vec<Batch>> {
    let mut streams = Streams::new(
        dataset,
        StreamOptions {
            virtual_streams: 1,
            max_length,
            global_batch: bins,
            epochs: Some(1),
            shuffle: false,
            ..StreamOptions::default()
        },
    )?;
    Ok(std::iter::from_fn(|| streams.next_batch())
        .map(|bins| Batch::collate(&bins))
        .collect())
}

/// How a run is carried through.
#[derive(Debug, Clone)]
pub struct Job<'a> {
    /// Before the progress bar.
    pub name: &'a str,
    /// Gets `metrics.jsonl`, `evaluations.jsonl`, `loss.svg` and `checkpoints/`.
    pub out: &'a Path,
    /// Goes on from the newest checkpoint, if there is one.
    pub resume: bool,
    /// Ends earlier than the data does.
    pub max_steps: Option<u64>,
    /// Steps between checkpoints.
    pub save_every: Option<u64>,
    /// Steps between evaluations.
    pub eval_every: Option<u64>,
    /// What is evaluated on, if anything.
    pub held_out: &'a [Batch],
}

/// Trains to the end, or to Ctrl-C, which saves first. Returns the last evaluation.
///
/// # Errors
/// What stops the run; an end by Ctrl-C, with how to go on.
pub fn train(run: &mut LmRun, job: &Job) -> Result<Option<Evaluation>> {
    interrupt::listen()?;
    std::fs::create_dir_all(job.out)
        .with_context(|| format!("cannot make the folder {}", job.out.display()))?;
    let checkpoints = job.out.join("checkpoints");
    if job.resume {
        let (newest, damaged) = checkpoint::latest(&checkpoints)?;
        for error in damaged {
            eprintln!("passed over: {error}");
        }
        match newest {
            Some(newest) => {
                run.resume(&newest)?;
                eprintln!("resumed from {}", newest.display());
            }
            None => eprintln!("no checkpoint in {}: begins anew", checkpoints.display()),
        }
    }
    let fit = Fit {
        max_steps: job.max_steps,
        save_every: job.save_every,
        eval_every: job.eval_every,
        ..Fit::new(checkpoints)
    };
    let mut judge = |run: &LmRun| {
        run.evaluate(job.held_out, |model, batch, ctx| {
            causal_lm(model, batch, ctx)
        })
    };
    let ended = run.fit(
        &fit,
        causal_lm,
        (!job.held_out.is_empty()).then_some(&mut judge),
        &mut [&mut Progress::new(job.name), &mut Metrics::new(job.out)],
        interrupt::asked,
    )?;
    if ended.interrupted {
        bail!(
            "interrupted after {} steps; --resume goes on from {}",
            run.steps_done(),
            ended.checkpoint.display()
        );
    }
    Ok(ended.evaluation)
}
