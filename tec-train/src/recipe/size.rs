//! Named sizes of vision transformers.

use serde::{Deserialize, Serialize};

/// A vision transformer's size by name, as timm and the papers have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Size {
    /// ViT-Ti/16 (Touvron et al., 2021).
    Tiny,
    /// ViT-S/16 (Touvron et al., 2021).
    Small,
    /// ViT-B/16 (Dosovitskiy et al., 2020).
    Base,
    /// ViT-L/16.
    Large,
    /// ViT-H/14.
    Huge,
}

/// What a size stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Width.
    pub dim: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Side of a patch in pixels, where no base's grid decides.
    pub patch_size: usize,
}

impl Size {
    /// Every size by its name in recipes.
    pub const ALL: [(&str, Self); 5] = [
        ("tiny", Self::Tiny),
        ("small", Self::Small),
        ("base", Self::Base),
        ("large", Self::Large),
        ("huge", Self::Huge),
    ];

    /// The size of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(n, _)| *n == name).map(|(_, size)| *size)
    }

    /// Width, depth, heads and patch.
    pub fn geometry(self) -> Geometry {
        let (dim, depth, heads, patch_size) = match self {
            Self::Tiny => (192, 12, 3, 16),
            Self::Small => (384, 12, 6, 16),
            Self::Base => (768, 12, 12, 16),
            Self::Large => (1024, 24, 16, 16),
            Self::Huge => (1280, 32, 16, 14),
        };
        Geometry {
            dim,
            depth,
            heads,
            patch_size,
        }
    }
}
