//! What an encoder computes on the way, for comparing it with another implementation layer by layer.

/// A value of the way, in the order in which they first come. N tokens (the class token first), D width, H heads,
/// W = D / H, M hidden width; the names in `docs/integer-encoder.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Tokens entering the first block, i16 `[N, D]`.
    Embedding = 0,
    /// Tokens at the block's residual scale, i16 `[N, D]`.
    Scaled = 1,
    /// After the first norm, i8 `[N, D]`.
    Norm1 = 2,
    /// i8 `[H, N, W]`.
    Keys = 3,
    /// i8 `[H, W, N]`: one row a channel.
    Values = 4,
    /// i8 `[H, N, W]`.
    Queries = 5,
    /// Softmax weights, i16 `[H, N, N]`: one row a query.
    Weights = 6,
    /// Heads joined, before the projection, i8 `[N, D]`.
    Attention = 7,
    /// Tokens after the attention, i16 `[N, D]`.
    Attended = 8,
    /// After the second norm, i8 `[N, D]`.
    Norm2 = 9,
    /// Before the GELU table, i8 `[N, M]`.
    Fc1 = 10,
    /// After it, i8 `[N, M]`.
    Hidden = 11,
    /// Tokens after the block, i16 `[N, D]`.
    Tokens = 12,
}

impl Stage {
    /// All stages, by number.
    pub const ALL: [Self; 13] = [
        Self::Embedding,
        Self::Scaled,
        Self::Norm1,
        Self::Keys,
        Self::Values,
        Self::Queries,
        Self::Weights,
        Self::Attention,
        Self::Attended,
        Self::Norm2,
        Self::Fc1,
        Self::Hidden,
        Self::Tokens,
    ];

    /// The name in `docs/integer-encoder.md` and in golden vectors.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Scaled => "scaled",
            Self::Norm1 => "norm1",
            Self::Keys => "keys",
            Self::Values => "values",
            Self::Queries => "queries",
            Self::Weights => "weights",
            Self::Attention => "attention",
            Self::Attended => "attended",
            Self::Norm2 => "norm2",
            Self::Fc1 => "fc1",
            Self::Hidden => "hidden",
            Self::Tokens => "tokens",
        }
    }
}

/// Some values of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceValues<'v> {
    /// Activations.
    I8(&'v [i8]),
    /// Tokens and softmax weights.
    I16(&'v [i16]),
}

/// Receives what an encoder computes on the way ([`Encoder::encode_traced`](crate::Encoder::encode_traced)).
pub trait Trace {
    /// Whether anything is received.
    const RECORDS: bool = true;

    /// `values` are the stage's elements from `offset` on, in the stage's row-major order, of a block (0 for
    /// [`Stage::Embedding`]). A stage comes in parts, in any order, each element once.
    fn record(&mut self, stage: Stage, block: usize, offset: usize, values: TraceValues<'_>);
}

/// Receives nothing: what [`Encoder::encode`](crate::Encoder::encode) uses; nothing of it remains in machine code.
pub(crate) struct NoTrace;

impl Trace for NoTrace {
    const RECORDS: bool = false;

    #[inline(always)]
    fn record(&mut self, _: Stage, _: usize, _: usize, _: TraceValues<'_>) {}
}
