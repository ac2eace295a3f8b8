//! candle's QMatMul beside ours.

use crate::blocks::Case;
use crate::context::Context;
use anyhow::Result;
use candle_core::quantized::{QMatMul, QStorage, QTensor};
use candle_core::{Device, Module, Tensor};
use ferrotune_benches_quant::rounds::{Side, seconds};

pub fn run(context: &Context) -> Result<()> {
    /// candle quantizes some activations in blocks of 256 and not of 32: on values that are spread
    /// evenly between −1 and 1 a block's step is little larger.
    const BOUND: f64 = 1.5;
    println!(
        "== candle's QMatMul, quantizing activations included on both sides: their time ÷ ours"
    );
    println!(
        "products are checked: ours within the bound of int8 activations, theirs within {BOUND} of it"
    );
    Case::heading(context, "theirs");
    for case in Case::all(context) {
        let case = case?;
        let blocks = case.once.repeat(case.repeat);
        let storage = QStorage::from_data(blocks.into(), &Device::Cpu, case.kind.dtype())?;
        let weights = QMatMul::from_qtensor(QTensor::new(storage, (case.rows, case.cols))?)?;
        let x = Tensor::from_slice(&case.x, (case.batch, case.cols), &Device::Cpu)?;
        let product = weights.forward(&x)?.flatten_all()?.to_vec1()?;
        case.check(context, &[("candle", product)], BOUND)?;
        let theirs: Side = Box::new(|| {
            seconds(case.times(), || {
                weights.forward(&x)?;
                Ok(())
            })
        });
        let rounds = case.rounds(context, vec![theirs])?;
        case.print(context, &rounds, &["QMatMul".to_owned()]);
    }
    Ok(())
}
