//! `check`: everything that must hold, cheapest first.

use crate::{cli, outside, peers, process, quant, readme, setup};
use anyhow::{Context, Result};
use std::{
    fmt::Write,
    path::Path,
    time::{Duration, Instant},
};

/// One thing to check.
pub struct Step<'a> {
    name: &'static str,
    work: Box<dyn Fn() -> Result<()> + 'a>,
}

impl<'a> Step<'a> {
    /// A step that holds if `work` succeeds.
    pub fn new(name: &'static str, work: impl Fn() -> Result<()> + 'a) -> Self {
        Self {
            name,
            work: Box::new(work),
        }
    }

    fn cargo(name: &'static str, root: &'a Path, args: &'static [&'static str]) -> Self {
        Self::new(name, move || process::run(&mut process::cargo(root, args)))
    }
}

/// Runs all steps on the repository at `root`. All build in one target folder with one profile, so
/// that libtorch's bindings compile once.
pub fn run(root: &Path, full: bool) -> Result<()> {
    let mut steps = vec![
        Step::cargo("format", root, &["fmt", "--all", "--check"]),
        Step::new("setup", || setup::run(root, false)),
        Step::cargo(
            "clippy",
            root,
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ],
        ),
        Step::new("docs", || {
            let mut doc = process::cargo(root, &["doc", "--workspace", "--no-deps"]);
            process::run(doc.env("RUSTDOCFLAGS", "-D warnings"))
        }),
        Step::new("text without libtorch", || {
            without_libtorch(root, "ferrotune-text")
        }),
        Step::new("data without libtorch", || {
            without_libtorch(root, "ferrotune-data")
        }),
        Step::new("quant without libtorch", || quant::alone(root)),
        Step::cargo("tests", root, &["test", "--workspace"]),
        Step::new("outside project", || outside::run(root)),
        Step::new("documented commands", || {
            readme::run(root, readme::When::Check)
        }),
    ];
    if full {
        steps.extend([
            Step::new("quant on AArch64", || quant::aarch64(root)),
            Step::new("quant under a sanitizer", || quant::sanitizer(root)),
            Step::new("quant in Miri", || quant::miri(root)),
            Step::new("quant fuzzed", || quant::fuzz(root)),
            Step::new("peers", || peers::ensure(root).map(|_| ())),
            Step::new("tests with live peers", || {
                // Not doctests: `--ignored` would run those that are marked as not to be run.
                let mut test = process::cargo(root, &["test", "--workspace", "--tests"]);
                test.args(["--", "--ignored"]);
                process::run(test.env(peers::VARIABLE, peers::ensure(root)?))
            }),
            Step::new("demo", || cli::demo(root, None)),
            Step::new("documented commands after the demo", || {
                readme::run(root, readme::When::AfterDemo)
            }),
        ]);
    }
    run_steps(&steps)
}

/// Builds and tests a crate alone (a workspace build would lend it other crates' features), on what
/// looks like a machine without libtorch: if torch-sys crept in, its build would fail.
fn without_libtorch(root: &Path, package: &str) -> Result<()> {
    let mut test = process::cargo(root, &["test", "--package", package]);
    test.env("LIBTORCH", root.join("no-libtorch-here"))
        .env_remove("LIBTORCH_USE_PYTORCH");
    process::run(&mut test)
}

/// Runs the steps in order up to the first that fails, and prints the table either way.
pub fn run_steps(steps: &[Step]) -> Result<()> {
    let mut times = Vec::new();
    let mut outcome = Ok(());
    for step in steps {
        eprintln!("\n== {}", step.name);
        let start = Instant::now();
        outcome = (step.work)().with_context(|| format!("check stopped at: {}", step.name));
        times.push(start.elapsed());
        if outcome.is_err() {
            break;
        }
    }
    eprintln!("\n{}", table(steps, &times, outcome.is_err()));
    outcome
}

/// The summary: `times` are those of the steps that ran, of which the last may have failed.
pub fn table(steps: &[Step], times: &[Duration], failed: bool) -> String {
    let width = steps.iter().map(|step| step.name.len()).max().unwrap_or(0);
    let mut table = String::new();
    for (index, step) in steps.iter().enumerate() {
        let result = match times.get(index) {
            None => "        not run".to_owned(),
            Some(time) => {
                let word = if failed && index + 1 == times.len() {
                    "FAILED"
                } else {
                    "ok"
                };
                format!("{:>7.1} s  {word}", time.as_secs_f64())
            }
        };
        // Writing to a String cannot fail.
        let _ = writeln!(table, "{:width$}  {result}", step.name);
    }
    let total = times.iter().sum::<Duration>().as_secs_f64();
    let _ = write!(table, "{:width$}  {total:>7.1} s", "total");
    table
}
