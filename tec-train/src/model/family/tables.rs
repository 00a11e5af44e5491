//! The families. Each entry says how its files are recognized, what its names mean, what comes with it that no base needs, and the
//! facts that its weights do not show.

use super::super::variant::Activation;
use super::names::{Naming, Pattern};
use super::{CLIP, Family, HALF, IMAGENET};

/// All families, special ones first.
pub(super) const ALL: [Family; 15] = [
    Family {
        key: "tec",
        title: "TEC pretraining checkpoint",
        recognize: |view| view.has("patch_embed.proj.weight") && view.begins("encoder_adaptor."),
        colors: IMAGENET,
        unsure: "",
        ..VIT
    },
    Family {
        key: "mae",
        title: "MAE pretraining checkpoint",
        recognize: |view| view.has("patch_embed.proj.weight") && view.has("decoder_embed.weight"),
        unsure: "",
        ..VIT
    },
    Family {
        key: "moco-v3",
        title: "MoCo v3 pretraining checkpoint",
        recognize: |view| {
            let branch = view.prefix.trim_end_matches('.').rsplit('.').next();
            view.has("patch_embed.proj.weight") && matches!(branch, Some("base_encoder" | "momentum_encoder"))
        },
        // Its ViT-S has 12 heads; DINO's and timm's have 6.
        heads: &[(384, 12)],
        unsure: "",
        ..VIT
    },
    Family {
        key: "ibot",
        title: "iBOT pretraining checkpoint",
        recognize: |view| {
            view.has("patch_embed.proj.weight")
                && (view.has("masked_embed") || view.beside("head.last_layer2.") || view.beside("head.mlp2."))
        },
        unsure: "",
        ..VIT
    },
    Family {
        key: "dino",
        title: "DINO pretraining checkpoint",
        recognize: |view| view.has("patch_embed.proj.weight") && view.beside("head.last_layer."),
        unsure: "",
        ..VIT
    },
    Family {
        key: "dinov2",
        title: "DINOv2",
        recognize: |view| {
            let positions = view
                .shape("pos_embed")
                .and_then(|shape| shape.get(1).copied())
                .unwrap_or(0);
            let class_position = positions > 1 && (positions - 1).isqrt().pow(2) == positions - 1;
            view.has("patch_embed.proj.weight")
                && view.contains(".ls1.gamma")
                && (class_position || view.has("reg_token") || view.has("register_tokens"))
        },
        unsure: "",
        ..VIT
    },
    Family {
        key: "vit-clip",
        title: "CLIP image tower (timm's names)",
        recognize: |view| view.has("patch_embed.proj.weight") && view.has("norm_pre.weight"),
        naming: &TIMM_CLIP,
        eps: 1e-5,
        colors: CLIP,
        unsure: "GELU is assumed and CLIP's normalization; models named `quickgelu` need `base.activation = \"quick_gelu\"`",
        ..VIT
    },
    VIT,
    Family {
        key: "hf-vit-mae",
        title: "MAE (Hugging Face ViTMAEForPreTraining)",
        recognize: |view| hugging_face_vit(view) && view.beside("decoder.decoder_embed.") && named_4(view),
        naming: &HF_VIT_4,
        colors: IMAGENET,
        unsure: "",
        ..HF_VIT
    },
    Family {
        key: "hf-vit-mae",
        title: "MAE (Hugging Face ViTMAEForPreTraining)",
        recognize: |view| hugging_face_vit(view) && view.beside("decoder.decoder_embed."),
        colors: IMAGENET,
        unsure: "",
        ..HF_VIT
    },
    Family {
        recognize: |view| hugging_face_vit(view) && named_4(view),
        naming: &HF_VIT_4,
        ..HF_VIT
    },
    HF_VIT,
    Family {
        key: "hf-dinov2",
        title: "DINOv2 (Hugging Face Dinov2Model)",
        recognize: |view| view.has(HF_PATCHES) && view.has("encoder.layer.0.norm1.weight"),
        naming: &HF_DINOV2,
        eps: 1e-6,
        colors: IMAGENET,
        unsure: "",
        ..HF_VIT
    },
    Family {
        key: "hf-clip",
        title: "CLIP image tower (Hugging Face CLIPVisionModel)",
        recognize: |view| view.has("embeddings.patch_embedding.weight") && view.has("embeddings.class_embedding"),
        naming: &HF_CLIP,
        eps: 1e-5,
        activation: Activation::QuickGelu,
        colors: CLIP,
        unsure: "QuickGELU and OpenAI's normalization are assumed; LAION's models have `base.activation = \"gelu\"`",
        heads: &[],
    },
    Family {
        key: "openclip",
        title: "CLIP image tower (OpenCLIP, OpenAI)",
        recognize: |view| view.has("conv1.weight") && view.has("class_embedding"),
        naming: &OPENCLIP,
        eps: 1e-5,
        activation: Activation::Gelu,
        colors: CLIP,
        unsure: "GELU and OpenAI's normalization are assumed; OpenAI's, DFN's and MetaCLIP's models have \
                 `base.activation = \"quick_gelu\"`",
        heads: &[],
    },
];

const HF_PATCHES: &str = "embeddings.patch_embeddings.projection.weight";

fn hugging_face_vit(view: &super::View) -> bool {
    view.has(HF_PATCHES) && view.contains(".layernorm_before.")
}

/// Names as files have them; transformers 5 has shorter ones in memory.
fn named_4(view: &super::View) -> bool {
    view.begins("encoder.layer.")
}

/// timm's names, which the published code of MAE, DINO, iBOT, MoCo v3, DeiT and TEC has too.
const VIT: Family = Family {
    key: "vit",
    title: "ViT with timm's names (MAE, DINO, iBOT, DeiT, timm)",
    recognize: |view| view.has("patch_embed.proj.weight"),
    naming: &TIMM,
    eps: 1e-6,
    activation: Activation::Gelu,
    colors: IMAGENET,
    unsure: "ImageNet's normalization is assumed; timm's `augreg` models have 0.5 for mean and deviation",
    heads: &[],
};

const HF_VIT: Family = Family {
    key: "hf-vit",
    title: "ViT (Hugging Face ViTModel, ViTMAEModel)",
    recognize: hugging_face_vit,
    naming: &HF_VIT_5,
    eps: 1e-12,
    activation: Activation::Gelu,
    colors: HALF,
    unsure: "0.5 is assumed for mean and deviation of the input; ViTMAE's and DINO's are ImageNet's",
    heads: &[],
};

/// What timm and the published code put beside an encoder.
const TIMM_IGNORED: &[&str] = &[
    // Classifiers and projection heads
    "head.",
    "fc_norm.",
    "pre_logits.",
    "fc.",
    // Decoders and mask tokens of pretraining
    "mask_token",
    "masked_embed",
    "decoder_",
    "encoder_adaptor.",
    "forward_fea_decoder.",
    "forward_att_decoder.",
];

const TIMM_RENAMES: &[Pattern] = &[
    Pattern("cls_token", "cls_token"),
    Pattern("pos_embed", "pos_embed"),
    Pattern("reg_token", "reg_token"),
    Pattern("patch_embed.proj.", "patch_embed.proj."),
    Pattern("norm_pre.", "norm_pre."),
    Pattern("norm.", "norm."),
    Pattern("cls_token_mlp.", "cls_token_mlp."),
    Pattern("blocks.{}.norm1.", "blocks.{}.norm1."),
    Pattern("blocks.{}.attn.qkv.", "blocks.{}.attn.qkv."),
    Pattern("blocks.{}.attn.proj.", "blocks.{}.attn.proj."),
    Pattern("blocks.{}.ls1.gamma", "blocks.{}.ls1.gamma"),
    Pattern("blocks.{}.norm2.", "blocks.{}.norm2."),
    Pattern("blocks.{}.mlp.fc1.", "blocks.{}.mlp.fc1."),
    Pattern("blocks.{}.mlp.fc2.", "blocks.{}.mlp.fc2."),
    Pattern("blocks.{}.ls2.gamma", "blocks.{}.ls2.gamma"),
    // DeiT III and iBOT before timm took them over
    Pattern("blocks.{}.gamma_1", "blocks.{}.ls1.gamma"),
    Pattern("blocks.{}.gamma_2", "blocks.{}.ls2.gamma"),
    // DINOv2's own code
    Pattern("register_tokens", "reg_token"),
    Pattern("blocks.{}.mlp.w12.", "blocks.{}.mlp.fc1."),
    Pattern("blocks.{}.mlp.w3.", "blocks.{}.mlp.fc2."),
];

const TIMM: Naming = Naming {
    renames: TIMM_RENAMES,
    ignored: TIMM_IGNORED,
    patch_bias_optional: false,
};

const TIMM_CLIP: Naming = Naming {
    patch_bias_optional: true,
    ..TIMM
};

const HF_IGNORED: &[&str] = &["embeddings.mask_token", "pooler.", "classifier.", "decoder."];

/// Files of transformers 4 and 5.
const HF_VIT_4: Naming = Naming {
    renames: &[
        Pattern("embeddings.cls_token", "cls_token"),
        Pattern("embeddings.position_embeddings", "pos_embed"),
        Pattern("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
        Pattern("encoder.layer.{}.layernorm_before.", "blocks.{}.norm1."),
        Pattern("encoder.layer.{}.attention.attention.query.", "blocks.{}.attn.q."),
        Pattern("encoder.layer.{}.attention.attention.key.", "blocks.{}.attn.k."),
        Pattern("encoder.layer.{}.attention.attention.value.", "blocks.{}.attn.v."),
        Pattern("encoder.layer.{}.attention.output.dense.", "blocks.{}.attn.proj."),
        Pattern("encoder.layer.{}.layernorm_after.", "blocks.{}.norm2."),
        Pattern("encoder.layer.{}.intermediate.dense.", "blocks.{}.mlp.fc1."),
        Pattern("encoder.layer.{}.output.dense.", "blocks.{}.mlp.fc2."),
        Pattern("layernorm.", "norm."),
    ],
    ignored: HF_IGNORED,
    patch_bias_optional: false,
};

/// The state dict of transformers 5.
const HF_VIT_5: Naming = Naming {
    renames: &[
        Pattern("embeddings.cls_token", "cls_token"),
        Pattern("embeddings.position_embeddings", "pos_embed"),
        Pattern("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
        Pattern("layers.{}.layernorm_before.", "blocks.{}.norm1."),
        Pattern("layers.{}.attention.q_proj.", "blocks.{}.attn.q."),
        Pattern("layers.{}.attention.k_proj.", "blocks.{}.attn.k."),
        Pattern("layers.{}.attention.v_proj.", "blocks.{}.attn.v."),
        Pattern("layers.{}.attention.o_proj.", "blocks.{}.attn.proj."),
        Pattern("layers.{}.layernorm_after.", "blocks.{}.norm2."),
        Pattern("layers.{}.mlp.fc1.", "blocks.{}.mlp.fc1."),
        Pattern("layers.{}.mlp.fc2.", "blocks.{}.mlp.fc2."),
        Pattern("layernorm.", "norm."),
    ],
    ignored: HF_IGNORED,
    patch_bias_optional: false,
};

/// Files of transformers 4 and 5, and the state dict of transformers 5.
const HF_DINOV2: Naming = Naming {
    renames: &[
        Pattern("embeddings.cls_token", "cls_token"),
        Pattern("embeddings.position_embeddings", "pos_embed"),
        Pattern("embeddings.register_tokens", "reg_token"),
        Pattern("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
        Pattern("encoder.layer.{}.norm1.", "blocks.{}.norm1."),
        Pattern("encoder.layer.{}.attention.attention.query.", "blocks.{}.attn.q."),
        Pattern("encoder.layer.{}.attention.attention.key.", "blocks.{}.attn.k."),
        Pattern("encoder.layer.{}.attention.attention.value.", "blocks.{}.attn.v."),
        Pattern("encoder.layer.{}.attention.output.dense.", "blocks.{}.attn.proj."),
        Pattern("encoder.layer.{}.attention.q_proj.", "blocks.{}.attn.q."),
        Pattern("encoder.layer.{}.attention.k_proj.", "blocks.{}.attn.k."),
        Pattern("encoder.layer.{}.attention.v_proj.", "blocks.{}.attn.v."),
        Pattern("encoder.layer.{}.attention.o_proj.", "blocks.{}.attn.proj."),
        Pattern("encoder.layer.{}.layer_scale1.lambda1", "blocks.{}.ls1.gamma"),
        Pattern("encoder.layer.{}.norm2.", "blocks.{}.norm2."),
        Pattern("encoder.layer.{}.mlp.fc1.", "blocks.{}.mlp.fc1."),
        Pattern("encoder.layer.{}.mlp.fc2.", "blocks.{}.mlp.fc2."),
        Pattern("encoder.layer.{}.mlp.weights_in.", "blocks.{}.mlp.fc1."),
        Pattern("encoder.layer.{}.mlp.weights_out.", "blocks.{}.mlp.fc2."),
        Pattern("encoder.layer.{}.mlp.gate_proj.", "blocks.{}.mlp.gate."),
        Pattern("encoder.layer.{}.mlp.up_proj.", "blocks.{}.mlp.up."),
        Pattern("encoder.layer.{}.mlp.down_proj.", "blocks.{}.mlp.fc2."),
        Pattern("encoder.layer.{}.layer_scale2.lambda1", "blocks.{}.ls2.gamma"),
        Pattern("layernorm.", "norm."),
    ],
    ignored: HF_IGNORED,
    patch_bias_optional: false,
};

const HF_CLIP: Naming = Naming {
    renames: &[
        Pattern("embeddings.class_embedding", "cls_token"),
        Pattern("embeddings.position_embedding.weight", "pos_embed"),
        Pattern("embeddings.patch_embedding.", "patch_embed.proj."),
        // So it is spelled.
        Pattern("pre_layrnorm.", "norm_pre."),
        Pattern("encoder.layers.{}.layer_norm1.", "blocks.{}.norm1."),
        Pattern("encoder.layers.{}.self_attn.q_proj.", "blocks.{}.attn.q."),
        Pattern("encoder.layers.{}.self_attn.k_proj.", "blocks.{}.attn.k."),
        Pattern("encoder.layers.{}.self_attn.v_proj.", "blocks.{}.attn.v."),
        Pattern("encoder.layers.{}.self_attn.out_proj.", "blocks.{}.attn.proj."),
        Pattern("encoder.layers.{}.layer_norm2.", "blocks.{}.norm2."),
        Pattern("encoder.layers.{}.mlp.fc1.", "blocks.{}.mlp.fc1."),
        Pattern("encoder.layers.{}.mlp.fc2.", "blocks.{}.mlp.fc2."),
        Pattern("post_layernorm.", "norm."),
    ],
    ignored: &["embeddings.position_ids", "visual_projection.", "logit_scale"],
    patch_bias_optional: true,
};

const OPENCLIP: Naming = Naming {
    renames: &[
        Pattern("class_embedding", "cls_token"),
        Pattern("positional_embedding", "pos_embed"),
        Pattern("conv1.", "patch_embed.proj."),
        Pattern("ln_pre.", "norm_pre."),
        Pattern("transformer.resblocks.{}.ln_1.", "blocks.{}.norm1."),
        Pattern(
            "transformer.resblocks.{}.attn.in_proj_weight",
            "blocks.{}.attn.qkv.weight",
        ),
        Pattern("transformer.resblocks.{}.attn.in_proj_bias", "blocks.{}.attn.qkv.bias"),
        Pattern("transformer.resblocks.{}.attn.out_proj.", "blocks.{}.attn.proj."),
        Pattern("transformer.resblocks.{}.ls_1.gamma", "blocks.{}.ls1.gamma"),
        Pattern("transformer.resblocks.{}.ln_2.", "blocks.{}.norm2."),
        Pattern("transformer.resblocks.{}.mlp.c_fc.", "blocks.{}.mlp.fc1."),
        Pattern("transformer.resblocks.{}.mlp.c_proj.", "blocks.{}.mlp.fc2."),
        Pattern("transformer.resblocks.{}.ls_2.gamma", "blocks.{}.ls2.gamma"),
        Pattern("ln_post.", "norm."),
    ],
    ignored: &["proj"],
    patch_bias_optional: true,
};
