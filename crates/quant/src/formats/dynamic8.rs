//! 8-bit dynamic maps, blockwise, as bitsandbytes stores optimizer state and the absmax of its 4-bit
//! blocks (Dettmers 2015, 8-bit approximations for parallelism; Dettmers et al. 2022, 8-bit optimizers).

use crate::error::{Error, Result};
use crate::format::{CodeLayout, Extent, Format, Grouping, Levels, encode_each};
use crate::matrix::ScaleType;

/// For values of either sign: seven decades, each twice as finely divided as the one below.
pub static SIGNED_MAP: [f32; 256] = map(true);
/// For values that are not negative, such as second moments.
pub static UNSIGNED_MAP: [f32; 256] = map(false);

static SIGNED_CODES: [u8; 65536] = codes(&map(true));
static UNSIGNED_CODES: [u8; 65536] = codes(&map(false));

/// Which of the two maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DynamicMap {
    /// [`SIGNED_MAP`]
    Signed,
    /// [`UNSIGNED_MAP`]
    Unsigned,
}

impl DynamicMap {
    /// The values of the codes, in ascending order.
    pub fn values(self) -> &'static [f32; 256] {
        match self {
            Self::Signed => &SIGNED_MAP,
            Self::Unsigned => &UNSIGNED_MAP,
        }
    }
}

/// A dynamic map over flat blocks: `value = map[code] · absmax`.
///
/// Codes are those of bitsandbytes on a CPU, which finds them in a table of 65,536 steps between −1 and
/// 1: a value may get a neighbour of the nearest code. A block of zeros gets code 0, whose value is then
/// 0 too. Worst error: half the widest gap and a step of the table, 0.00705 of absmax for the signed map
/// (128 values from 0.1 to 1, half of 0.9/64), 0.00353 for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dynamic8 {
    map: DynamicMap,
    block: usize,
}

impl Dynamic8 {
    /// Blocks of `block` elements, across the ends of rows; bitsandbytes has 256.
    ///
    /// # Errors
    /// A block of nothing.
    pub fn new(map: DynamicMap, block: usize) -> Result<Self> {
        if block == 0 {
            return Err(Error::Block {
                format: Self::NAME,
                block,
                cols: 0,
                reason: "holds nothing",
            });
        }
        Ok(Self { map, block })
    }

    /// The map.
    pub fn map(&self) -> DynamicMap {
        self.map
    }
}

/// The reciprocal of a block's absmax, and the map.
#[derive(Debug, Clone, Copy)]
pub struct Dynamic8Encoder(f32, DynamicMap);

impl Format for Dynamic8 {
    const NAME: &'static str = "dynamic8";
    const CODES: CodeLayout = CodeLayout::Bytes;
    const SCALES: ScaleType = ScaleType::F32;
    type Scale = f32;
    type Tensor = ();
    type Encoder = Dynamic8Encoder;

    fn grouping(&self) -> Grouping {
        Grouping::Flat(self.block)
    }

    fn tensor(&self, _amax: f32) {}

    #[inline(always)]
    fn fit(&self, (): &(), extent: Extent) -> (f32, Dynamic8Encoder) {
        (extent.amax, Dynamic8Encoder(1.0 / extent.amax, self.map))
    }

    #[inline(always)]
    fn encode(&Dynamic8Encoder(inverse, map): &Dynamic8Encoder, values: &[f32; 16]) -> [u8; 16] {
        let codes = match map {
            DynamicMap::Signed => &SIGNED_CODES,
            DynamicMap::Unsigned => &UNSIGNED_CODES,
        };
        encode_each(values, |value| {
            // NaN, of 0 · ∞ in a block of zeros, becomes step 0.
            let part = (value * inverse).clamp(-1.0, 1.0);
            codes[((part + 1.0) * 0.5 * 65535.0 + 0.5) as u16 as usize]
        })
    }

    #[inline(always)]
    fn decode(&self, (): &(), absmax: f32, code: u8) -> f32 {
        self.map.values()[usize::from(code)] * absmax
    }

    fn levels(&self) -> Levels {
        Levels::Bytes(self.map.values())
    }

    #[inline(always)]
    fn affine(&self, absmax: f32) -> (f32, f32) {
        (absmax, 0.0)
    }

    fn worst_error(&self) -> f32 {
        match self.map {
            DynamicMap::Signed => 0.9 / 128.0 + 1.0 / 65535.0,
            DynamicMap::Unsigned => 0.9 / 256.0 + 1.0 / 65535.0,
        }
    }
}

/// A map: 0, 1, and for each decade from 10⁻⁶ to 1 the middles of equal parts of its upper nine tenths.
/// Rounded where torch's float32 arithmetic rounds.
const fn map(signed: bool) -> [f32; 256] {
    const DECADES: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    let mut map = [0.0; 256];
    // Of the zero and the one that every map has.
    map[1] = 1.0;
    let mut filled = 2;
    let mut decade = 0;
    while decade < 7 {
        let parts = if signed { 1 << decade } else { 2 << decade };
        let mut i = 0;
        while i < parts {
            let middle = (edge(i, parts) + edge(i + 1, parts)) / 2.0;
            let value = DECADES[decade] * middle;
            map[filled] = value;
            filled += 1;
            if signed {
                map[filled] = -value;
                filled += 1;
            }
            i += 1;
        }
        decade += 1;
    }
    assert!(filled == 256);
    sorted(map)
}

/// The `i`-th of the edges of so many equal parts of 0.1 to 1: from the nearer end, as torch has it.
const fn edge(i: usize, parts: usize) -> f32 {
    let step = (1.0 - 0.1_f32) / parts as f32;
    if i < parts.div_ceil(2) {
        (0.1_f32 as f64 + step as f64 * i as f64) as f32
    } else {
        (1.0 - step as f64 * (parts - i) as f64) as f32
    }
}

const fn sorted(mut values: [f32; 256]) -> [f32; 256] {
    let mut i = 1;
    while i < values.len() {
        let mut at = i;
        while at > 0 && values[at] < values[at - 1] {
            (values[at], values[at - 1]) = (values[at - 1], values[at]);
            at -= 1;
        }
        i += 1;
    }
    values
}

/// The code of each of 65,536 steps between −1 and 1: how many middles between neighbours lie below it.
const fn codes(map: &[f32; 256]) -> [u8; 65536] {
    let mut codes = [0; 65536];
    let mut code = 0;
    let mut step = 0;
    while step < 65536 {
        let place = -1.0 + 2.0 * step as f32 / 65535.0;
        while code < 255 && (map[code] + map[code + 1]) * 0.5 < place {
            code += 1;
        }
        codes[step] = code as u8;
        step += 1;
    }
    codes
}
