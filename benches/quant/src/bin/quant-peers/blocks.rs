//! The products that ggml and candle are compared on: the same blocks of Q8_0 and Q4_0 on all sides.

use crate::context::{BATCH, Context, REPEAT, SHAPES, times};
use anyhow::Result;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use ferrotune_benches_quant::check::{Expected, first_rows};
use ferrotune_benches_quant::data;
use ferrotune_benches_quant::rounds::{Rounds, Side};
use ferrotune_quant::{
    Activations, Cpu, GgufFormat, Mode, Packed, Q4_0, Q8_0, Scratch, View, from_blocks,
};
use std::iter;

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Q8_0,
    Q4_0,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
        }
    }

    /// candle's name for it.
    pub fn dtype(self) -> GgmlDType {
        match self {
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q4_0 => GgmlDType::Q4_0,
        }
    }
}

/// Weights and activations.
pub struct Case {
    pub kind: Kind,
    pub rows: usize,
    pub cols: usize,
    pub batch: usize,
    /// How often the weights hold `once`.
    pub repeat: usize,
    pub once: Vec<u8>,
    pub x: Vec<f32>,
    packed: Packed<'static>,
}

impl Case {
    /// A vector with weights that no cache holds, and 128 rows with each shape of a prefill.
    pub fn all(context: &Context) -> impl Iterator<Item = Result<Self>> {
        [(Kind::Q8_0, 1), (Kind::Q4_0, 2)]
            .into_iter()
            .flat_map(move |(kind, more)| {
                let large = [context.cli.gemv_cols, more * context.cli.gemv_rows];
                let vector = move || Self::new(context, kind, large, 1, REPEAT);
                let prefill = move |shape| Self::new(context, kind, shape, BATCH, 1);
                iter::once_with(vector).chain(SHAPES.into_iter().map(prefill))
            })
    }

    fn new(
        context: &Context,
        kind: Kind,
        [cols, rows]: [usize; 2],
        batch: usize,
        repeat: usize,
    ) -> Result<Self> {
        let weights = context.on_threads(|| data::uniform(rows / repeat * cols, 1));
        let weights = Tensor::from_vec(weights, (rows / repeat, cols), &Device::Cpu)?;
        let once = QTensor::quantize(&weights, kind.dtype())?;
        let once = once.data()?.into_owned();
        let (shape, blocks) = ([rows, cols], once.repeat(repeat));
        let packed = context.on_threads(|| match kind {
            Kind::Q8_0 => pack::<Q8_0>(shape, &blocks, context.cpu()),
            Kind::Q4_0 => pack::<Q4_0>(shape, &blocks, context.cpu()),
        })?;
        Ok(Self {
            kind,
            rows,
            cols,
            batch,
            repeat,
            once,
            x: data::uniform(batch * cols, 2),
            packed,
        })
    }

    /// What a row of the table begins with.
    pub fn name(&self) -> String {
        format!(
            "{}, M = {}, {}×{}",
            self.kind.name(),
            self.batch,
            self.cols,
            self.rows
        )
    }

    /// How often it is multiplied in a turn.
    pub fn times(&self) -> usize {
        times([self.cols, self.rows], self.batch)
    }

    /// Instructions to compare: for a vector AMX has nothing to offer.
    pub fn cpus<'a>(&self, context: &'a Context) -> &'a [Cpu<'static>] {
        let count = if self.batch == 1 {
            1
        } else {
            context.cpus().len()
        };
        &context.cpus()[..count]
    }

    /// Refuses products that are no such product. Theirs quantize activations as we do but round the
    /// scales to f16, by 2⁻¹¹ of values up to 127 steps: 0.062 steps beside the half that the bound
    /// allows. candle's blocks have 256 activations: `theirs` says what that costs.
    pub fn check(
        &self,
        context: &Context,
        products: &[(&str, Vec<f32>)],
        theirs: f64,
    ) -> Result<()> {
        let mut ours = Ours::new(self, context.cpu())?;
        context.on_threads(|| ours.run())?;
        let distinct = first_rows(&self.packed, self.rows / self.repeat)?;
        for row in [0, self.batch - 1] {
            let x = &self.x[row * self.cols..][..self.cols];
            let expected =
                context.on_threads(|| Expected::new(&distinct, Mode::Int8PerGroup, x))?;
            let of_row = |product: &[f32]| product[row * self.rows..][..self.rows].to_vec();
            expected.check("ours", &of_row(&ours.out), 1.0)?;
            for (name, product) in products {
                expected.check(name, &of_row(product), theirs)?;
            }
        }
        Ok(())
    }

    /// Has their sides and ours take turns; ours follow theirs.
    pub fn rounds(&self, context: &Context, theirs: Vec<Side>) -> Result<Rounds> {
        let ours = self.cpus(context).iter().map(|cpu| Ours::new(self, cpu));
        let mut ours = ours.collect::<Result<Vec<_>>>()?;
        let ours = ours.iter_mut();
        let ours = ours.map(|ours| context.side(self.times(), || ours.run()));
        context.rounds(theirs.into_iter().chain(ours).collect())
    }

    /// Prints a row for each of theirs, which are the first sides.
    pub fn print(&self, context: &Context, rounds: &Rounds, theirs: &[String]) {
        for (side, name) in theirs.iter().enumerate() {
            print!(
                "{:28} {name:14} {:>9.3}",
                self.name(),
                1e3 * rounds.of(side).median
            );
            for (i, cpu) in self.cpus(context).iter().enumerate() {
                let ours = theirs.len() + i;
                print!(
                    "   {:11} {:>9.3} {:>20}",
                    cpu.isa().name(),
                    1e3 * rounds.of(ours).median,
                    format!("{:.2}", rounds.ratio(side, ours))
                );
            }
            println!();
        }
    }

    /// The line above the rows.
    pub fn heading(context: &Context, theirs: &str) {
        print!("{:28} {theirs:14} {:>9}", "weights, M, K×N", "ms");
        for _ in context.cpus() {
            print!("   {:11} {:>9} {:>20}", "ours on", "ms", "theirs / ours");
        }
        println!();
    }
}

fn pack<F: GgufFormat>(shape: [usize; 2], blocks: &[u8], cpu: &Cpu) -> Result<Packed<'static>> {
    Ok(Packed::new(&from_blocks::<F>(shape, blocks)?, cpu)?)
}

/// Our product from f32: as theirs, it begins with quantizing the activations.
struct Ours<'a> {
    case: &'a Case,
    cpu: &'a Cpu<'static>,
    activations: Activations,
    scratch: Scratch,
    out: Vec<f32>,
}

impl<'a> Ours<'a> {
    fn new(case: &'a Case, cpu: &'a Cpu<'static>) -> Result<Self> {
        Ok(Self {
            case,
            cpu,
            activations: Activations::new(&case.packed, Mode::Int8PerGroup)?,
            scratch: Scratch::new(),
            out: vec![0.0; case.batch * case.rows],
        })
    }

    fn run(&mut self) -> Result<()> {
        let Case {
            packed,
            x,
            batch,
            cols,
            ..
        } = self.case;
        let Self {
            cpu,
            activations,
            scratch,
            out,
            ..
        } = self;
        activations.set(View::new(x, *batch, *cols)?, cpu)?;
        Ok(packed.gemm(activations, out, scratch, cpu)?)
    }
}
