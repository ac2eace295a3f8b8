//! Who watches a run: rows in files, the loss curve, the progress bar.

use crate::{Error, Evaluation, Result, Step, curve};
use ferrotune_nn::files;
use indicatif::{ProgressBar, ProgressStyle};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Is told what happens in a run. Every method defaults to doing nothing.
pub trait Observer {
    /// The run begins, or goes on after `done` steps; `total` is where it will end.
    ///
    /// # Errors
    /// What stops the run.
    fn begin(&mut self, _done: u64, _total: Option<u64>) -> Result<()> {
        Ok(())
    }
    /// A step was taken.
    ///
    /// # Errors
    /// What stops the run.
    fn step(&mut self, _step: &Step) -> Result<()> {
        Ok(())
    }
    /// The model was evaluated after `step` steps.
    ///
    /// # Errors
    /// What stops the run.
    fn evaluation(&mut self, _step: u64, _found: &Evaluation) -> Result<()> {
        Ok(())
    }
    /// The run ended, or stopped on demand.
    ///
    /// # Errors
    /// The system's.
    fn end(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A row of `evaluations.jsonl`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRow {
    /// Steps done.
    pub step: u64,
    /// What was found.
    #[serde(flatten)]
    pub evaluation: Evaluation,
}

/// Writes `metrics.jsonl`, a [`Step`] a row, and `evaluations.jsonl`, an [`EvaluationRow`] a row,
/// each as soon as it is known, and `loss.svg` at the end. A run that goes on keeps the rows up to
/// where it does.
#[derive(Debug)]
pub struct Metrics {
    steps: Log<Step>,
    evaluations: Log<EvaluationRow>,
    curve: PathBuf,
}

impl Metrics {
    /// The files in folder `dir`.
    pub fn new(dir: &Path) -> Self {
        Self {
            steps: Log::new(dir.join("metrics.jsonl")),
            evaluations: Log::new(dir.join("evaluations.jsonl")),
            curve: dir.join("loss.svg"),
        }
    }
}

impl Observer for Metrics {
    fn begin(&mut self, done: u64, _: Option<u64>) -> Result<()> {
        self.steps.open(|row| row.step <= done)?;
        self.evaluations.open(|row| row.step <= done)
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        self.steps.push(*step)
    }

    fn evaluation(&mut self, step: u64, found: &Evaluation) -> Result<()> {
        self.evaluations.push(EvaluationRow {
            step,
            evaluation: *found,
        })
    }

    fn end(&mut self) -> Result<()> {
        let steps: Vec<_> = self
            .steps
            .rows
            .iter()
            .map(|row| (row.step, row.loss))
            .collect();
        let evaluations = self.evaluations.rows.iter();
        let evaluations: Vec<_> = evaluations
            .map(|row| (row.step, row.evaluation.loss))
            .collect();
        write_text(&self.curve, curve::svg(&steps, &evaluations).as_bytes())
    }
}

/// Rows in memory and in a file of JSON lines.
#[derive(Debug)]
struct Log<R> {
    path: PathBuf,
    rows: Vec<R>,
    file: Option<File>,
}

impl<R: Serialize + DeserializeOwned> Log<R> {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            rows: Vec::new(),
            file: None,
        }
    }

    /// Begins with those rows of an earlier run that `keep` accepts.
    fn open(&mut self, keep: impl Fn(&R) -> bool) -> Result<()> {
        let failed = |source| ferrotune_nn::Error::io(&self.path, source);
        let text = match std::fs::read_to_string(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            text => text.map_err(failed)?,
        };
        // A kill may have cut the last line short: it belongs to a step that is taken again.
        let rows = text
            .lines()
            .map_while(|line| serde_json::from_str(line).ok());
        self.rows = rows.filter(keep).collect();
        let lines = self.rows.iter().map(line).collect::<Result<Vec<_>>>()?;
        write_text(&self.path, &lines.concat())?;
        let file = OpenOptions::new().append(true).open(&self.path);
        self.file = Some(file.map_err(failed)?);
        Ok(())
    }

    fn push(&mut self, row: R) -> Result<()> {
        let line = line(&row)?;
        if let Some(file) = &mut self.file {
            file.write_all(&line)
                .map_err(|source| ferrotune_nn::Error::io(&self.path, source))?;
        }
        self.rows.push(row);
        Ok(())
    }
}

fn line(row: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(row).map_err(|error| Error::Config(error.to_string()))?;
    line.push(b'\n');
    Ok(line)
}

fn write_text(path: &Path, text: &[u8]) -> Result<()> {
    Ok(files::replace(path, |temporary| {
        std::fs::write(temporary, text).map_err(|source| ferrotune_nn::Error::io(path, source))
    })?)
}

/// A bar on standard error with loss, learning rate and tokens/s.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    recent: Option<f64>,
}

impl Progress {
    /// A bar that begins with `name`; indicatif hides it where there is no terminal.
    pub fn new(name: &str) -> Self {
        let bar = ProgressBar::no_length().with_prefix(name.to_owned());
        let style = "{prefix} {bar:30} {pos}/{len} [{elapsed} < {eta}] {msg}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        Self { bar, recent: None }
    }
}

impl Observer for Progress {
    fn begin(&mut self, done: u64, total: Option<u64>) -> Result<()> {
        if let Some(total) = total {
            self.bar.set_length(total);
        }
        self.bar.set_position(done);
        self.bar.reset_eta();
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        // Single steps jump; the bar shows their running mean.
        let before = self.recent.unwrap_or(step.loss);
        let recent = 0.9 * before + 0.1 * step.loss;
        self.recent = Some(recent);
        self.bar.set_position(step.step);
        self.bar.set_message(format!(
            "loss {recent:.3}  lr {:.1e}  {:.0} tokens/s",
            step.lr, step.tokens_per_s
        ));
        Ok(())
    }

    fn evaluation(&mut self, step: u64, found: &Evaluation) -> Result<()> {
        let (loss, perplexity) = (found.loss, found.perplexity());
        self.bar.println(format!(
            "step {step}: evaluation loss {loss:.4}, perplexity {perplexity:.2}"
        ));
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.bar.abandon();
        Ok(())
    }
}
