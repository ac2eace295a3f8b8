//! What the programs' command lines have in common.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use ferrotune::libtorch::tch::Kind;
use serde::Deserialize;

/// Parses the command line and does the work. Whatever goes wrong is written to stderr as `error: ...` with its causes,
/// and the program's exit code is 1.
pub fn run<Args: Parser>(work: impl FnOnce(Args) -> Result<()>) -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and the version are no failures, and clap knows where to print which.
            let failed = error.use_stderr();
            return match error.print() {
                Ok(()) if !failed => ExitCode::SUCCESS,
                _ => ExitCode::FAILURE,
            };
        }
    };
    match work(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("{}", report(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes, a line each. A cause that the line above has told already is left out.
pub fn report(error: &anyhow::Error) -> String {
    let mut said = error.to_string();
    let mut report = format!("error: {said}\n");
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !said.contains(&cause) {
            report.push_str(&format!("  because: {cause}\n"));
            said = cause;
        }
    }
    report
}

/// What to compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits.
    Fp32,
    /// bfloat16: 16 bits with the range of 32.
    Bf16,
}

impl From<Dtype> for Kind {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Fp32 => Kind::Float,
            Dtype::Bf16 => Kind::BFloat16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::report;
    use anyhow::{Context, anyhow};

    #[test]
    fn causes_follow_unless_they_were_told() {
        let error = anyhow!("disk full");
        let error = Err::<(), _>(error.context("cannot write a.txt: disk full"));
        let error = error.context("cannot merge").unwrap_err();
        assert_eq!(
            report(&error),
            "error: cannot merge\n  because: cannot write a.txt: disk full\n"
        );
    }
}
