//! Names of a family, and the common ones: timm's, with what only some models have named apart.
//!
//! The common names are timm's. Besides them there are `blocks.N.attn.q`, `.k` and `.v` for projections stored apart,
//! `blocks.N.mlp.gate` and `.up` likewise, `blocks.N.ls1.gamma`, `reg_token` and `norm_pre`.

/// What the names of a family mean.
#[derive(Debug)]
pub(crate) struct Naming {
    /// The family's names and the common ones they stand for. The first that fits decides.
    pub(crate) renames: &'static [Pattern],
    /// How names begin that come with a model but are none of its encoder.
    pub(crate) ignored: &'static [&'static str],
    /// Whether the patch projection may lack its bias.
    pub(crate) patch_bias_optional: bool,
}

/// A family's name and the common one; `{}` in both is a number, a dot at the end of both means that anything may follow.
#[derive(Debug)]
pub(crate) struct Pattern(pub(crate) &'static str, pub(crate) &'static str);

impl Naming {
    /// The common name of `name`.
    pub(crate) fn common(&self, name: &str) -> Option<String> {
        let name = unchunked(name);
        self.renames
            .iter()
            .find_map(|Pattern(own, common)| rename(&name, own, common))
    }

    /// What the family calls `common`, for messages.
    pub(crate) fn own(&self, common: &str) -> Option<String> {
        self.renames
            .iter()
            .find_map(|Pattern(own, as_common)| rename(common, as_common, own))
    }

    /// Whether `name` is known to be none of the encoder.
    pub(crate) fn ignores(&self, name: &str) -> bool {
        self.ignored
            .iter()
            .any(|start| match start.ends_with('.') || start.ends_with('_') {
                true => name.starts_with(start),
                false => name == *start,
            })
    }
}

/// DINOv2 trains blocks in chunks, `blocks.CHUNK.BLOCK.`; the block's own number counts on through all of them.
fn unchunked(name: &str) -> std::borrow::Cow<'_, str> {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let mut parts = name.splitn(4, '.');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("blocks"), Some(chunk), Some(block), Some(rest)) if is_number(chunk) && is_number(block) => {
            format!("blocks.{block}.{rest}").into()
        }
        _ => name.into(),
    }
}

/// `name` with what `from` matches written as `to`.
fn rename(name: &str, from: &str, to: &str) -> Option<String> {
    let (number, rest) = match from.split_once("{}") {
        None => (None, name.strip_prefix(from)?),
        Some((before, after)) => {
            let tail = name.strip_prefix(before)?;
            let digits = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
            let (number, tail) = tail.split_at_checked(digits)?;
            (
                Some(number).filter(|number| !number.is_empty()).map(Some)?,
                tail.strip_prefix(after)?,
            )
        }
    };
    if !from.ends_with('.') && !rest.is_empty() || from.ends_with('.') && rest.is_empty() {
        return None;
    }
    let to = number.map_or_else(|| to.to_string(), |number| to.replacen("{}", number, 1));
    Some(to + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMING: Naming = Naming {
        renames: &[
            Pattern("encoder.layer.{}.output.dense.", "blocks.{}.mlp.fc2."),
            Pattern("cls", "cls_token"),
        ],
        ignored: &["head.", "decoder_", "mask_token"],
        patch_bias_optional: false,
    };

    #[test]
    fn numbers_and_ends_are_kept() {
        assert_eq!(
            NAMING.common("encoder.layer.11.output.dense.bias").as_deref(),
            Some("blocks.11.mlp.fc2.bias")
        );
        assert_eq!(
            NAMING.own("blocks.11.mlp.fc2.bias").as_deref(),
            Some("encoder.layer.11.output.dense.bias")
        );
        assert_eq!(NAMING.common("cls").as_deref(), Some("cls_token"));
        for other in [
            "encoder.layer.x.output.dense.bias",
            "encoder.layer..output.dense.bias",
            "cls_token",
            "encoder.layer.1.output.dense.",
        ] {
            assert_eq!(NAMING.common(other), None, "{other}");
        }
    }

    #[test]
    fn chunks_of_blocks_are_no_part_of_the_name() {
        assert_eq!(unchunked("blocks.1.13.norm1.bias"), "blocks.13.norm1.bias");
        for same in ["blocks.13.norm1.bias", "blocks.1.x.norm1", "layers.1.2.norm"] {
            assert_eq!(unchunked(same), same);
        }
    }

    #[test]
    fn only_known_parts_are_ignored() {
        for name in ["head.weight", "decoder_embed.bias", "mask_token"] {
            assert!(NAMING.ignores(name), "{name}");
        }
        for name in ["header.weight", "mask_tokens", "decoder.weight"] {
            assert!(!NAMING.ignores(name), "{name}");
        }
    }
}
