//! llama.cpp's kernels beside ours.

use crate::blocks::Case;
use crate::context::Context;
use crate::worker::{Operands, Worker};
use anyhow::Result;

pub fn run(context: &Context) -> Result<()> {
    /// Half a step and what rounding scales to f16 adds, see [`Case::check`].
    const BOUND: f64 = 1.13;
    let Some(worker) = Worker::start(context, "ggml", None)? else {
        return Ok(());
    };
    println!(
        "== {}'s mul_mat, quantizing activations included on both sides: their time ÷ ours, for each type of buffer \
         that ggml has kernels for",
        worker.name
    );
    println!(
        "products are checked: ours within the bound of int8 activations, theirs within {BOUND} of it"
    );
    Case::heading(context, "ggml's buffer");
    for case in Case::all(context) {
        let case = case?;
        let operands = Operands {
            rows: case.rows,
            cols: case.cols,
            batch: case.batch,
            kind: case.kind.name(),
            repeat: case.repeat,
        };
        let x: Vec<u8> = case.x.iter().flat_map(|x| x.to_le_bytes()).collect();
        let variants = worker.load(operands, &case.once, &x)?;
        let products = variants.iter().map(|variant| {
            let product = worker.product(variant)?.into_iter();
            Ok((variant.as_str(), product.map(f32::from_le_bytes).collect()))
        });
        case.check(context, &products.collect::<Result<Vec<_>>>()?, BOUND)?;
        let theirs = variants.iter();
        let theirs = theirs.map(|variant| worker.side(variant, case.times()));
        let rounds = case.rounds(context, theirs.collect())?;
        case.print(context, &rounds, &variants);
    }
    Ok(())
}
