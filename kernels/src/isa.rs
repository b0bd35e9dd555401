//! Which instruction sets this CPU has.
//!
//! Every kernel takes an [`Isa`] value; there is no global setting. The variants that need special instructions hold a
//! token, which only a successful check at run time creates. Safe code can therefore not reach instructions that the CPU
//! lacks.
//!
//! The features that `new` of a token checks are the features of the functions that take the token (`entry_points!` in
//! `x86/` and `aarch64/`).

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Avx2(());

/// Proof that the CPU has AVX-512 F, BW, DQ and VL (and AVX2, FMA and F16C).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Avx512 {
    vnni: bool,
    bf16: bool,
}

/// Proof that the CPU has NEON (Advanced SIMD).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Neon {
    dotprod: bool,
}

impl Avx2 {
    /// The token, if this CPU has AVX2, FMA and F16C.
    pub fn new() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            return Some(Avx2(()));
        }
        None
    }
}

impl Avx512 {
    /// The token, if this CPU has AVX-512 F, BW, DQ and VL. Records whether the CPU also has VNNI and BF16.
    pub fn new() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if Avx2::new().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            return Some(Avx512 {
                vnni: is_x86_feature_detected!("avx512vnni"),
                bf16: is_x86_feature_detected!("avx512bf16")
                    // SAFETY: just checked.
                    && unsafe { adds_odd_first() },
            });
        }
        None
    }

    /// Whether the 8-bit dot-product instructions (VNNI) are available.
    pub fn has_vnni(self) -> bool {
        self.vnni
    }

    /// Whether the bfloat16 dot product (BF16) is available.
    pub fn has_bf16(self) -> bool {
        self.bf16
    }

    /// This token without the bfloat16 dot product, for tests and comparisons.
    pub fn without_bf16(self) -> Self {
        Avx512 {
            bf16: false,
            ..self
        }
    }

    /// This token without any dot-product instructions, for tests and comparisons.
    pub fn without_vnni(self) -> Self {
        Avx512 {
            vnni: false,
            bf16: false,
        }
    }
}

/// Whether the instruction does what [`crate::rounded`] says: the odd element first, rounding after
/// each. Any other order gives one more in the last place here.
///
/// # Safety
/// The CPU has AVX-512 F and BF16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn adds_odd_first() -> bool {
    use core::arch::x86_64::*;
    const ONE: i32 = 0x3f80_3f80;
    const HALF_STEP_AND_STEP: i32 = 0x3380_3400; // 2^-24 odd, 2^-23 even
    let pair = |x| core::hint::black_box(_mm512_set1_epi32(x));
    // SAFETY: both types are 64 bytes of any content.
    let pair = |x| unsafe { core::mem::transmute::<__m512i, __m512bh>(pair(x)) };
    let sum = _mm512_dpbf16_ps(_mm512_set1_ps(1.0), pair(HALF_STEP_AND_STEP), pair(ONE));
    _mm512_cvtss_f32(sum) == 1.0 + f32::EPSILON
}

impl Neon {
    /// The token, if this CPU has NEON. Records whether the CPU also has the 8-bit dot product.
    pub fn new() -> Option<Self> {
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            return Some(Neon {
                dotprod: std::arch::is_aarch64_feature_detected!("dotprod"),
            });
        }
        None
    }

    /// Whether the 8-bit dot-product instructions are available.
    pub fn has_dotprod(self) -> bool {
        self.dotprod
    }

    /// This token without the 8-bit dot-product instructions, for tests and comparisons.
    pub fn without_dotprod(self) -> Self {
        Neon { dotprod: false }
    }
}

/// The instruction set a kernel runs on.
///
/// All variants except [`Isa::Portable`] give the same bits. `Portable` has no fused multiply-add, so its results may
/// differ by rounding; it keeps the same invariances.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isa {
    /// Plain loops: the definition that every other path must match. Slow.
    Scalar,
    /// Vectors whose width is fixed at compile time; runs on every CPU.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2(Avx2),
    /// x86-64 with AVX-512.
    Avx512(Avx512),
    /// AArch64.
    Neon(Neon),
}

impl Isa {
    /// The fastest path this CPU has.
    pub fn detect() -> Isa {
        if let Some(token) = Avx512::new() {
            Isa::Avx512(token)
        } else if let Some(token) = Avx2::new() {
            Isa::Avx2(token)
        } else if let Some(token) = Neon::new() {
            Isa::Neon(token)
        } else {
            Isa::Portable
        }
    }

    /// Every path this CPU has, fastest first. A path with optional extensions (VNNI and BF16, dot product) is listed with
    /// and without them.
    pub fn available() -> Vec<Isa> {
        let mut list = Vec::new();
        if let Some(token) = Avx512::new() {
            list.extend([token, token.without_bf16(), token.without_vnni()].map(Isa::Avx512));
            list.dedup();
        }
        if let Some(token) = Avx2::new() {
            list.push(Isa::Avx2(token));
        }
        if let Some(token) = Neon::new() {
            if token.has_dotprod() {
                list.push(Isa::Neon(token));
            }
            list.push(Isa::Neon(token.without_dotprod()));
        }
        list.extend([Isa::Portable, Isa::Scalar]);
        list
    }

    /// The name that [`Isa::by_name`] accepts.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Portable => "portable",
            Isa::Avx2(_) => "avx2",
            Isa::Avx512(Avx512 { bf16: true, .. }) => "avx512bf16",
            Isa::Avx512(Avx512 { vnni: true, .. }) => "avx512vnni",
            Isa::Avx512(Avx512 { .. }) => "avx512",
            Isa::Neon(Neon { dotprod: false }) => "neon",
            Isa::Neon(Neon { dotprod: true }) => "neondot",
        }
    }

    /// The path with this name. `None` if the name is unknown or this CPU lacks the path.
    pub fn by_name(name: &str) -> Option<Isa> {
        Isa::available().into_iter().find(|isa| isa.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_isa() {
        for isa in Isa::available() {
            assert_eq!(Isa::by_name(isa.name()), Some(isa));
        }
        assert_eq!(Isa::by_name("mmx"), None);
    }

    #[test]
    fn the_best_is_listed_first() {
        assert_eq!(Isa::available()[0], Isa::detect());
    }
}
