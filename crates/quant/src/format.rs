//! What a format is: groups of elements, a scale for each, a code for each element.

use crate::cpu::Cpu;
use crate::element::{Element, INFINITE, magnitude_bits};
use crate::error::{Error, Result, length};
use crate::matrix::ScaleType;
use crate::parallel::{First, Parts, for_each};
use crate::simd::{self, Simd, Work};
use crate::view::{View, elements};
use alloc::{borrow::Cow, vec, vec::Vec};
use core::fmt::Debug;
use core::ops::Range;
use core::sync::atomic::{AtomicU32, Ordering};

/// Which elements share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grouping {
    /// All of the matrix.
    Tensor,
    /// Those of a row.
    Row,
    /// So many that follow each other in a row; the last group of a row may be shorter.
    Block(usize),
    /// So many that follow each other in the matrix read row by row, across the ends of rows; the last
    /// group may be shorter.
    Flat(usize),
}

impl Grouping {
    /// Elements of a group, where that is not the matrix's affair.
    pub fn size(self) -> Option<usize> {
        match self {
            Self::Tensor | Self::Row => None,
            Self::Block(n) | Self::Flat(n) => Some(n),
        }
    }

    /// How many groups a matrix has.
    pub fn count(self, rows: usize, cols: usize) -> usize {
        match self {
            Self::Tensor => 1,
            Self::Row => rows,
            Self::Block(n) => rows * cols.div_ceil(n),
            Self::Flat(n) => (rows * cols).div_ceil(n),
        }
    }

    /// The elements of group `g`, counted row by row.
    pub fn range(self, g: usize, rows: usize, cols: usize) -> Range<usize> {
        match self {
            Self::Tensor => 0..rows * cols,
            Self::Row => g * cols..(g + 1) * cols,
            Self::Block(n) => {
                let per_row = cols.div_ceil(n);
                let (row, block) = (g / per_row, g % per_row);
                row * cols + block * n..row * cols + cols.min((block + 1) * n)
            }
            Self::Flat(n) => g * n..(rows * cols).min((g + 1) * n),
        }
    }

    /// The group of an element.
    pub fn of(self, index: usize, cols: usize) -> usize {
        match self {
            Self::Tensor => 0,
            Self::Row => index / cols,
            Self::Block(n) => index / cols * cols.div_ceil(n) + index % cols / n,
            Self::Flat(n) => index / n,
        }
    }
}

/// Where the code of an element stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeLayout {
    /// Element `i` is byte `i`.
    Bytes,
    /// Element `2i` is the low half of byte `i`, `2i + 1` the high half.
    LowNibbleFirst,
    /// Element `2i` is the high half of byte `i`, `2i + 1` the low half.
    HighNibbleFirst,
}

impl CodeLayout {
    /// Bytes that `elements` codes take.
    pub fn bytes(self, elements: usize) -> usize {
        match self {
            Self::Bytes => elements,
            Self::LowNibbleFirst | Self::HighNibbleFirst => elements.div_ceil(2),
        }
    }

    /// The code of element `i`.
    #[inline(always)]
    pub fn code(self, codes: &[u8], i: usize) -> u8 {
        match self {
            Self::Bytes => codes[i],
            Self::LowNibbleFirst => codes[i / 2] >> (4 * (i % 2)) & 15,
            Self::HighNibbleFirst => codes[i / 2] >> (4 * (1 - i % 2)) & 15,
        }
    }
}

/// What a quantizer knows of a group, or of the tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Extent {
    /// The largest magnitude.
    pub amax: f32,
    /// The smallest value, at most 0.
    pub min: f32,
    /// The largest value, at least 0.
    pub max: f32,
    /// The value of the largest magnitude, the first if there are several.
    pub peak: f32,
    /// Whether the group is shorter than the format's others: the last of a matrix, or of a row.
    pub partial: bool,
}

impl Extent {
    /// Of nothing but zeros.
    pub const NOTHING: Self = Self {
        amax: 0.0,
        min: 0.0,
        max: 0.0,
        peak: 0.0,
        partial: false,
    };

    /// Of values between `min` and `max`; they are looked at again only if both have one magnitude.
    #[inline(always)]
    fn new<I: Iterator<Item = f32>>(min: f32, max: f32, values: impl FnOnce() -> I) -> Self {
        let peak = if -min > max {
            min
        } else if max > -min {
            max
        } else {
            let first = values().find(|value| value.abs() == max);
            first.unwrap_or(max)
        };
        Self {
            amax: peak.abs(),
            min,
            max,
            peak,
            partial: false,
        }
    }
}

/// What codes stand for, as far as products need to know: `value = level(code) · scale + shift`.
#[derive(Debug, Clone, PartialEq)]
pub enum Levels {
    /// The code, a byte in two's complement.
    Int8,
    /// A table of 16 values. `steps[c] · unit` is nearest to `values[c]`; where they are all equal an
    /// int8 product rounds no weight.
    Table {
        /// The values.
        values: [f32; 16],
        /// The values in int8.
        steps: [i8; 16],
        /// What a step is worth.
        unit: f32,
    },
    /// A table of 256 values: no int8 products.
    Bytes(&'static [f32; 256]),
}

/// A format in which groups of elements share a scale and each element has a code of 4 or 8 bits.
///
/// The methods on one group are the specification; [`Quantized`] runs them over matrices on all
/// threads, compiled for each instruction set.
pub trait Format: Clone + Debug + PartialEq + Send + Sync + 'static {
    /// Its name in tables, messages and command lines.
    const NAME: &'static str;
    /// Where codes stand.
    const CODES: CodeLayout;
    /// In what type scales are exact, when a matrix is packed for products.
    const SCALES: ScaleType;
    /// Whether groups have a shift beside their scale.
    const SHIFTED: bool = false;
    /// Whether [`Format::tensor`] depends on the tensor's largest magnitude.
    const TENSOR_EXTENT: bool = false;
    /// Whether [`Format::fit`] looks at more of the extent than its magnitude.
    const SIGNED: bool = false;
    /// What is stored for each group.
    type Scale: Copy + Debug + PartialEq + Send + Sync + 'static;
    /// What is stored for the tensor as a whole.
    type Tensor: Copy + Debug + PartialEq + Send + Sync;
    /// What encoding a group needs, computed once a group.
    type Encoder: Copy + Send + Sync;

    /// Which elements share a scale.
    fn grouping(&self) -> Grouping;

    /// Refuses matrices that the format cannot hold.
    ///
    /// # Errors
    /// The shape, and why.
    fn check(&self, rows: usize, cols: usize) -> Result<()> {
        let nibbles = Self::CODES != CodeLayout::Bytes;
        let across = matches!(self.grouping(), Grouping::Flat(_));
        if nibbles && !across && cols % 2 == 1 && rows > 1 {
            return Err(Error::Block {
                format: Self::NAME,
                block: 2,
                cols,
                reason: "elements share a byte, so rows must be even",
            });
        }
        Ok(())
    }

    /// What to store for the tensor.
    fn tensor(&self, amax: f32) -> Self::Tensor;
    /// The scale of a group, and how to encode with it.
    fn fit(&self, tensor: &Self::Tensor, extent: Extent) -> (Self::Scale, Self::Encoder);
    /// The codes of 16 finite values.
    fn encode(encoder: &Self::Encoder, values: &[f32; 16]) -> [u8; 16];
    /// The value of a code.
    fn decode(&self, tensor: &Self::Tensor, scale: Self::Scale, code: u8) -> f32;

    /// What codes stand for in products.
    fn levels(&self) -> Levels;
    /// `(scale, shift)` of a group in products: a value is `level(code) · scale + shift`, but for the
    /// factor [`Format::factor`] of the tensor.
    fn affine(&self, scale: Self::Scale) -> (f32, f32);
    /// What all values are multiplied with.
    fn factor(&self, _tensor: &Self::Tensor) -> f32 {
        1.0
    }
    /// Whether a stored scale is one that a quantizer can have written.
    fn valid(&self, scale: Self::Scale) -> bool {
        let (scale, shift) = self.affine(scale);
        scale.is_finite() && shift.is_finite()
    }
    /// Bits of a scale, and of its zero point, in the formats' own files.
    fn scale_bits(&self) -> usize {
        8 * size_of::<Self::Scale>()
    }
    /// The largest error of an element over the largest magnitude of its group, for groups whose scale
    /// is a normal number; see the format's documentation for the derivation.
    fn worst_error(&self) -> f32;
}

/// What to do about NaN and infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NonFinite {
    /// Refuse, naming the first.
    #[default]
    Refuse,
    /// Take NaN as 0, and infinities as the largest finite magnitude of the group.
    Replace,
}

/// A quantized matrix `[rows, cols]`: borrowed, from a file that is mapped, or owned.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized<'a, F: Format> {
    format: F,
    rows: usize,
    cols: usize,
    tensor: F::Tensor,
    codes: Cow<'a, [u8]>,
    scales: Cow<'a, [F::Scale]>,
}

impl<F: Format> Quantized<'static, F> {
    /// Quantizes a matrix into new memory. [`quantize_into`] takes the caller's.
    ///
    /// # Errors
    /// A shape that the format cannot hold; a value that is not finite.
    pub fn new<T: Element>(format: F, matrix: View<T>, cpu: &Cpu) -> Result<Self> {
        Self::with(format, matrix, NonFinite::Refuse, cpu)
    }

    /// The same with a choice about values that are not finite.
    ///
    /// # Errors
    /// A shape that the format cannot hold; a value that is not finite, if those are refused.
    pub fn with<T: Element>(
        format: F,
        matrix: View<T>,
        non_finite: NonFinite,
        cpu: &Cpu,
    ) -> Result<Self> {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let [codes, scales] = sizes(&format, rows, cols)?;
        let mut codes = vec![0; codes];
        let tensor = format.tensor(0.0);
        let mut scales = vec![format.fit(&tensor, Extent::NOTHING).0; scales];
        let tensor = quantize_into(&format, matrix, &mut codes, &mut scales, non_finite, cpu)?;
        Ok(Self {
            format,
            rows,
            cols,
            tensor,
            codes: codes.into(),
            scales: scales.into(),
        })
    }
}

impl<'a, F: Format> Quantized<'a, F> {
    /// A matrix from its stored parts.
    ///
    /// # Errors
    /// A shape that the format cannot hold, parts of another length, a scale that is not finite.
    pub fn from_parts(
        format: F,
        [rows, cols]: [usize; 2],
        tensor: F::Tensor,
        codes: impl Into<Cow<'a, [u8]>>,
        scales: impl Into<Cow<'a, [F::Scale]>>,
    ) -> Result<Self> {
        let (codes, scales) = (codes.into(), scales.into());
        let expected = sizes(&format, rows, cols)?;
        length("codes", expected[0], codes.len())?;
        length("scales", expected[1], scales.len())?;
        if !format.factor(&tensor).is_finite() {
            return Err(Error::Stored {
                what: "scale of the tensor",
                index: 0,
                value: f64::from(format.factor(&tensor)),
                reason: "it is not finite",
            });
        }
        if let Some(index) = scales.iter().position(|scale| !format.valid(*scale)) {
            return Err(Error::Stored {
                what: "scale",
                index,
                value: f64::from(format.affine(scales[index]).0),
                reason: "it or its zero point is not finite",
            });
        }
        Ok(Self {
            format,
            rows,
            cols,
            tensor,
            codes,
            scales,
        })
    }

    /// The format.
    pub fn format(&self) -> &F {
        &self.format
    }

    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// What is stored for the tensor as a whole.
    pub fn tensor(&self) -> F::Tensor {
        self.tensor
    }

    /// The codes, as [`Format::CODES`] lays them out.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The scales, group by group.
    pub fn scales(&self) -> &[F::Scale] {
        &self.scales
    }

    /// The code of an element.
    pub fn code(&self, row: usize, col: usize) -> u8 {
        F::CODES.code(&self.codes, row * self.cols + col)
    }

    /// Bits for each weight, scales included.
    pub fn bits_per_weight(&self) -> f64 {
        let bits = 8 * self.codes.len() + self.scales.len() * self.format.scale_bits();
        bits as f64 / (self.rows * self.cols).max(1) as f64
    }

    /// The same in memory of its own.
    pub fn into_owned(self) -> Quantized<'static, F> {
        Quantized {
            format: self.format,
            rows: self.rows,
            cols: self.cols,
            tensor: self.tensor,
            codes: self.codes.into_owned().into(),
            scales: self.scales.into_owned().into(),
        }
    }

    /// Writes all values, row by row, rounded once to the type of `out`.
    ///
    /// # Errors
    /// `out` of another length.
    pub fn dequantize_into<T: Element>(&self, out: &mut [T], cpu: &Cpu) -> Result<()> {
        length("output", self.rows * self.cols, out.len())?;
        let parts = Parts::new(out);
        for_each(
            cpu.parallel(),
            self.rows,
            rows_a_piece(self.cols),
            |_, rows| {
                let range = rows.start * self.cols..rows.end * self.cols;
                // SAFETY: rows are handed out once, so ranges do not overlap.
                let out = unsafe { parts.part(range.clone()) };
                simd::run(
                    cpu.isa(),
                    Decode {
                        matrix: self,
                        first: range.start,
                        out,
                    },
                );
            },
        );
        Ok(())
    }

    /// All values in new memory.
    pub fn dequantize(&self, cpu: &Cpu) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        // The length is right by construction.
        let _ = self.dequantize_into(&mut out, cpu);
        out
    }
}

/// `[bytes of codes, scales]` of a matrix in a format.
///
/// # Errors
/// A shape that the format cannot hold.
pub fn sizes<F: Format>(format: &F, rows: usize, cols: usize) -> Result<[usize; 2]> {
    let elements = elements(rows, cols)?;
    format.check(rows, cols)?;
    Ok([
        F::CODES.bytes(elements),
        format.grouping().count(rows, cols),
    ])
}

/// Elements that make a piece of work for a thread, about.
const PIECE: usize = 131_072;

/// Rows that make a piece: an even number.
fn rows_a_piece(cols: usize) -> usize {
    (PIECE / cols.max(1)).next_multiple_of(2).max(2)
}

/// Quantizes a matrix into the caller's memory and returns what is to be stored for the tensor.
/// Nothing is allocated.
///
/// # Errors
/// A shape that the format cannot hold, slices of another length than [`sizes`] says, a value that is
/// not finite if those are refused; `codes` and `scales` are then unspecified.
pub fn quantize_into<F: Format, T: Element>(
    format: &F,
    matrix: View<T>,
    codes: &mut [u8],
    scales: &mut [F::Scale],
    non_finite: NonFinite,
    cpu: &Cpu,
) -> Result<F::Tensor> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let expected = sizes(format, rows, cols)?;
    length("codes", expected[0], codes.len())?;
    length("scales", expected[1], scales.len())?;
    if rows == 0 || cols == 0 {
        let tensor = format.tensor(0.0);
        scales.fill(format.fit(&tensor, Extent::NOTHING).0);
        return Ok(tensor);
    }
    let grouping = format.grouping();
    // Groups that run across rows need rows without gaps between them.
    let matrix = match (grouping, matrix.contiguous()) {
        (Grouping::Flat(_), Some(all)) => View::new(all, 1, all.len())?,
        (Grouping::Flat(_), None) => {
            return Err(Error::Unsupported {
                operation: "quantize",
                reason: alloc::format!(
                    "{} groups elements across rows, which a view with gaps between rows does not have",
                    F::NAME
                ),
            });
        }
        _ => matrix,
    };
    let job = Job {
        format,
        matrix,
        cols,
        non_finite,
        cpu,
    };
    let whole = if F::TENSOR_EXTENT || grouping == Grouping::Tensor {
        job.extent()?
    } else {
        Extent::NOTHING
    };
    let tensor = format.tensor(whole.amax);
    if grouping == Grouping::Tensor {
        let (scale, encoder) = format.fit(&tensor, whole);
        scales[0] = scale;
        job.encode_with(encoder, whole.amax, codes);
        return Ok(tensor);
    }
    let units = job.units(grouping);
    let bad = First::new();
    let (codes, scales) = (Parts::new(codes), Parts::new(scales));
    for_each(cpu.parallel(), units.count, units.piece, |_, range| {
        let range = range.start * units.groups..(range.end * units.groups).min(expected[1]);
        let elements = units.elements(range.clone(), job.matrix.rows(), job.matrix.cols());
        let bytes = match F::CODES {
            CodeLayout::Bytes => elements.clone(),
            _ => elements.start / 2..elements.end.div_ceil(2),
        };
        // SAFETY: units are handed out once, they begin on whole bytes (`units`), and bytes and scales
        // of different units are different.
        let (codes, scales) = unsafe { (codes.part(bytes), scales.part(range.clone())) };
        let encode = Encode {
            job: &job,
            tensor: &tensor,
            grouping: units.grouping,
            first: elements.start,
            codes,
            scales,
        };
        if let Err(place) = simd::run(cpu.isa(), encode) {
            bad.at(place);
        }
    });
    bad.check(|place| job.non_finite(place))?;
    Ok(tensor)
}

/// How the groups of a matrix are dealt out: so many groups a unit, so that a unit begins on a byte.
struct Units {
    grouping: Grouping,
    groups: usize,
    count: usize,
    piece: usize,
}

impl Units {
    fn elements(&self, groups: Range<usize>, rows: usize, cols: usize) -> Range<usize> {
        let begin = self.grouping.range(groups.start, rows, cols).start;
        begin..self.grouping.range(groups.end - 1, rows, cols).end
    }
}

struct Job<'a, F, T> {
    format: &'a F,
    matrix: View<'a, T>,
    /// Those of the caller's matrix; groups that run across rows make `matrix` one long row.
    cols: usize,
    non_finite: NonFinite,
    cpu: &'a Cpu<'a>,
}

impl<F: Format, T: Element> Job<'_, F, T> {
    fn non_finite(&self, index: usize) -> Error {
        let across = self.matrix.cols();
        Error::NonFinite {
            index,
            row: index / self.cols,
            col: index % self.cols,
            value: self.matrix.row(index / across)[index % across].to_f32(),
        }
    }

    fn units(&self, grouping: Grouping) -> Units {
        let (rows, cols) = (self.matrix.rows(), self.matrix.cols());
        let (grouping, size) = match grouping {
            Grouping::Tensor => (grouping, rows * cols),
            Grouping::Row => (grouping, cols),
            Grouping::Block(n) => (grouping, n.min(cols)),
            // One long row by now.
            Grouping::Flat(n) => (Grouping::Block(n), n),
        };
        let all = grouping.count(rows, cols);
        // Two groups of odd length end on a byte; odd rows of nibbles are refused by `check`.
        let groups = if size % 2 == 1 { 2 } else { 1 };
        Units {
            grouping,
            groups,
            count: all.div_ceil(groups),
            piece: (PIECE / (size * groups).max(1)).max(1),
        }
    }

    /// The extent of the whole matrix.
    fn extent(&self) -> Result<Extent> {
        let (rows, cols) = (self.matrix.rows(), self.matrix.cols());
        // Magnitudes order as their bits do, so integers can collect them.
        let (negative, positive) = (AtomicU32::new(0), AtomicU32::new(0));
        let bad = First::new();
        for_each(self.cpu.parallel(), rows, rows_a_piece(cols), |_, range| {
            for row in range {
                let values = self.matrix.row(row);
                match simd::run(self.cpu.isa(), Measure { values }) {
                    Ok(extent) => {
                        negative.fetch_max(magnitude_bits(extent.min), Ordering::Relaxed);
                        positive.fetch_max(magnitude_bits(extent.max), Ordering::Relaxed);
                    }
                    Err(_) if self.non_finite == NonFinite::Replace => {
                        let extent = finite_extent(values);
                        negative.fetch_max(magnitude_bits(extent.min), Ordering::Relaxed);
                        positive.fetch_max(magnitude_bits(extent.max), Ordering::Relaxed);
                    }
                    Err(place) => bad.at(row * cols + place),
                }
            }
        });
        bad.check(|place| self.non_finite(place))?;
        let (min, max) = (
            -f32::from_bits(negative.into_inner()),
            f32::from_bits(positive.into_inner()),
        );
        // Row by row: nothing is looked at unless the extremes are of one magnitude.
        let values = || (0..rows).flat_map(|row| self.matrix.row(row).iter().map(|x| x.to_f32()));
        Ok(Extent::new(min, max, values))
    }

    /// Encodes all of the matrix with one scale.
    fn encode_with(&self, encoder: F::Encoder, largest: f32, codes: &mut [u8]) {
        let (rows, cols) = (self.matrix.rows(), self.matrix.cols());
        let parts = Parts::new(codes);
        for_each(self.cpu.parallel(), rows, rows_a_piece(cols), |_, range| {
            let elements = range.start * cols..range.end * cols;
            let bytes = match F::CODES {
                CodeLayout::Bytes => elements.clone(),
                _ => elements.start / 2..elements.end.div_ceil(2),
            };
            // SAFETY: rows are handed out once; an even number of rows, or of columns, ends on a byte.
            let codes = unsafe { parts.part(bytes) };
            let encode = EncodeRows {
                job: self,
                encoder,
                largest,
                rows: range,
                codes,
            };
            simd::run(self.cpu.isa(), encode);
        });
    }
}

/// Elements that are measured before memory is asked for more.
const MEASURED: usize = 1024;

/// The smallest and largest value, found by an instruction set.
struct Measure<'a, T> {
    values: &'a [T],
}

impl<T: Element> Work for Measure<'_, T> {
    type Output = Result<Extent, usize>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Self::Output {
        let ahead = simd::bytes_ahead();
        if ahead == 0 {
            return extent::<T, true>(self.values);
        }
        let mut whole = Extent::NOTHING;
        for (i, piece) in self.values.chunks(MEASURED).enumerate() {
            for line in (0..size_of_val(piece)).step_by(64) {
                simd.prefetch(piece.as_ptr().cast::<u8>().wrapping_add(ahead + line));
            }
            let extent = extent::<T, true>(piece).map_err(|place| i * MEASURED + place)?;
            whole.min = whole.min.min(extent.min);
            whole.max = whole.max.max(extent.max);
        }
        Ok(whole)
    }
}

/// The extent of a slice, or the place of its first value that is not finite.
#[cfg_attr(
    not(feature = "std"),
    allow(dead_code, reason = "only calibration asks")
)]
#[inline(always)]
pub(crate) fn measure<T: Element>(values: &[T]) -> Result<Extent, usize> {
    extent::<T, true>(values)
}

/// The largest magnitude of a slice, or the place of its first value that is not finite.
#[inline(always)]
pub(crate) fn amax<T: Element>(values: &[T]) -> Result<f32, usize> {
    extent::<T, false>(values).map(|extent| extent.amax)
}

/// [`measure`]; without `SIGNED` only the magnitude is looked for. Reductions of integers, which the
/// compiler vectorizes as they stand: those of floats it would have to keep in order.
#[inline(always)]
fn extent<T: Element, const SIGNED: bool>(values: &[T]) -> Result<Extent, usize> {
    let mut bits = 0_u32;
    let (mut min, mut max) = (0_i32, 0_i32);
    for value in values {
        let value = value.to_f32();
        if SIGNED {
            let key = ordered(value.to_bits().cast_signed());
            min = min.min(key);
            max = max.max(key);
        } else {
            bits = bits.max(magnitude_bits(value));
        }
    }
    if SIGNED {
        let (min, max) = (ordered(min), ordered(max));
        bits = magnitude_bits(f32::from_bits(min.cast_unsigned())).max(max.cast_unsigned());
    }
    if bits >= INFINITE {
        let place = values.iter().position(|value| !value.to_f32().is_finite());
        return Err(place.unwrap_or(0));
    }
    if SIGNED {
        let float = |key: i32| f32::from_bits(ordered(key).cast_unsigned());
        return Ok(Extent::new(float(min), float(max), || {
            values.iter().map(|value| value.to_f32())
        }));
    }
    let amax = f32::from_bits(bits);
    Ok(Extent {
        amax,
        min: -amax,
        max: amax,
        peak: amax,
        partial: false,
    })
}

/// Bits of a float as an integer that orders as the floats do, and back.
#[inline(always)]
fn ordered(bits: i32) -> i32 {
    bits ^ ((bits >> 31) & 0x7fff_ffff)
}

/// The extent of the finite values.
fn finite_extent<T: Element>(values: &[T]) -> Extent {
    let finite = || {
        let values = values.iter().map(|value| value.to_f32());
        values.filter(|value| value.is_finite())
    };
    let min = finite().fold(0.0, f32::min);
    let max = finite().fold(0.0, f32::max);
    Extent::new(min, max, finite)
}

/// Some groups of a matrix.
struct Encode<'a, F: Format, T> {
    job: &'a Job<'a, F, T>,
    tensor: &'a F::Tensor,
    grouping: Grouping,
    /// The element that `codes` begins with.
    first: usize,
    codes: &'a mut [u8],
    scales: &'a mut [F::Scale],
}

impl<F: Format, T: Element> Work for Encode<'_, F, T> {
    type Output = Result<(), usize>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Self::Output {
        let Job { format, matrix, .. } = self.job;
        let cols = matrix.cols();
        let size = self.grouping.size().unwrap_or(cols);
        let ahead = ahead(size * size_of::<T>());
        let (mut row, mut col) = (self.first / cols, self.first % cols);
        let mut place = 0;
        for scale in self.scales {
            let values = &matrix.row(row)[col..cols.min(col + size)];
            let measured = if F::SIGNED {
                extent::<T, true>(values)
            } else {
                extent::<T, false>(values)
            };
            let (mut extent, clean) = match measured {
                Ok(extent) => (extent, true),
                Err(bad) if self.job.non_finite == NonFinite::Refuse => {
                    return Err(self.first + place + bad);
                }
                Err(_) => (finite_extent(values), false),
            };
            extent.partial = values.len() < size;
            let (fitted, encoder) = format.fit(self.tensor, extent);
            *scale = fitted;
            let codes = Codes {
                bytes: self.codes,
                first: place,
            };
            place += values.len();
            col += values.len();
            if col == cols {
                (row, col) = (row + 1, 0);
            }
            if clean {
                encode_run::<S, F, T>(simd, &encoder, values, codes, ahead, |value| value);
            } else {
                encode_run::<S, F, T>(simd, &encoder, values, codes, ahead, |value| {
                    replaced(value, extent.amax)
                });
            }
        }
        Ok(())
    }
}

/// Whole rows with one scale.
struct EncodeRows<'a, F: Format, T> {
    job: &'a Job<'a, F, T>,
    encoder: F::Encoder,
    largest: f32,
    rows: Range<usize>,
    codes: &'a mut [u8],
}

impl<F: Format, T: Element> Work for EncodeRows<'_, F, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let cols = self.job.matrix.cols();
        let ahead = simd::bytes_ahead();
        for (i, row) in self.rows.enumerate() {
            let codes = Codes {
                bytes: self.codes,
                first: i * cols,
            };
            let values = self.job.matrix.row(row);
            let largest = self.largest;
            if self.job.non_finite == NonFinite::Refuse {
                encode_run::<S, F, T>(simd, &self.encoder, values, codes, ahead, |value| value);
            } else {
                encode_run::<S, F, T>(simd, &self.encoder, values, codes, ahead, |value| {
                    replaced(value, largest)
                });
            }
        }
    }
}

fn replaced(value: f32, largest: f32) -> f32 {
    if value.is_nan() {
        0.0
    } else {
        value.clamp(-largest, largest)
    }
}

/// Where the codes of a run of elements go.
struct Codes<'a> {
    bytes: &'a mut [u8],
    /// The first element, counted from the beginning of `bytes`.
    first: usize,
}

/// How far ahead of the values that are encoded memory is asked for more: a group is read twice, and
/// should be there before it is measured.
fn ahead(group_bytes: usize) -> usize {
    let near = simd::bytes_ahead();
    if near > 0 && (near..=524_288).contains(&group_bytes) {
        group_bytes
    } else {
        near
    }
}

/// Encodes a run of elements, asking memory for what lies `ahead` bytes further, if it is not 0.
#[inline(always)]
fn encode_run<S: Simd, F: Format, T: Element>(
    simd: S,
    encoder: &F::Encoder,
    values: &[T],
    codes: Codes,
    ahead: usize,
    clean: impl Fn(f32) -> f32,
) {
    let (chunks, rest) = values.as_chunks::<16>();
    let whole = chunks.len() * 16;
    let Codes { bytes, first } = codes;
    let encode = |chunk: &[T; 16]| {
        if ahead > 0 {
            simd.prefetch(chunk.as_ptr().cast::<u8>().wrapping_add(ahead));
        }
        let mut values = [0.0; 16];
        for (value, element) in values.iter_mut().zip(chunk) {
            *value = clean(element.to_f32());
        }
        F::encode(encoder, &values)
    };
    if F::CODES == CodeLayout::Bytes {
        for (chunk, out) in chunks.iter().zip(bytes[first..].as_chunks_mut::<16>().0) {
            *out = encode(chunk);
        }
    } else if first % 2 == 0 {
        for (chunk, out) in chunks.iter().zip(bytes[first / 2..].as_chunks_mut::<8>().0) {
            put_nibbles::<F>(&encode(chunk), out);
        }
    } else {
        for (chunk, at) in chunks.iter().zip((first..).step_by(16)) {
            put::<F>(bytes, at, &encode(chunk));
        }
    }
    if !rest.is_empty() {
        let mut padded = [0.0; 16];
        for (padded, value) in padded.iter_mut().zip(rest) {
            *padded = clean(value.to_f32());
        }
        let end = first + values.len();
        // The last half byte of a matrix is a zero's code.
        let odd = F::CODES != CodeLayout::Bytes && end % 2 == 1 && end.div_ceil(2) == bytes.len();
        let count = rest.len() + usize::from(odd);
        put::<F>(bytes, first + whole, &F::encode(encoder, &padded)[..count]);
    }
}

/// The codes of 16 values: a loop and not `map`, which the compiler may leave as a call.
#[inline(always)]
pub(crate) fn encode_each(values: &[f32; 16], encode: impl Fn(f32) -> u8) -> [u8; 16] {
    let mut codes = [0; 16];
    for (code, value) in codes.iter_mut().zip(values) {
        *code = encode(*value);
    }
    codes
}

/// Two codes a byte, written in 16 bits at a time, which the compiler vectorizes.
#[inline(always)]
fn put_nibbles<F: Format>(codes: &[u8; 16], out: &mut [u8; 8]) {
    for i in 0..8 {
        let pair = u16::from_le_bytes([codes[2 * i], codes[2 * i + 1]]);
        out[i] = match F::CODES {
            CodeLayout::HighNibbleFirst => pair << 4 | pair >> 8,
            _ => pair | pair >> 4,
        } as u8;
    }
}

/// Writes codes one by one, from element `at`; a byte's other half stays, unless it is its second.
#[inline(always)]
fn put<F: Format>(bytes: &mut [u8], at: usize, codes: &[u8]) {
    for (i, code) in (at..).zip(codes) {
        match F::CODES {
            CodeLayout::Bytes => bytes[i] = *code,
            layout => {
                let high = (layout == CodeLayout::HighNibbleFirst) == (i % 2 == 0);
                let byte = &mut bytes[i / 2];
                let kept = if i % 2 == 0 { 0 } else { *byte };
                *byte = kept | if high { code << 4 } else { *code };
            }
        }
    }
}

/// Some elements' values.
struct Decode<'a, 'b, F: Format, T> {
    matrix: &'a Quantized<'b, F>,
    first: usize,
    out: &'a mut [T],
}

impl<F: Format, T: Element> Work for Decode<'_, '_, F, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Quantized {
            format,
            rows,
            cols,
            tensor,
            codes,
            scales,
        } = self.matrix;
        let grouping = format.grouping();
        let mut at = self.first;
        let mut out = self.out;
        while !out.is_empty() {
            let group = grouping.of(at, *cols);
            let end = grouping.range(group, *rows, *cols).end.min(at + out.len());
            let (now, later) = out.split_at_mut(end - at);
            for (i, out) in (at..).zip(now) {
                let code = F::CODES.code(codes, i);
                *out = T::from_f32(format.decode(tensor, scales[group], code));
            }
            (at, out) = (end, later);
        }
    }
}
