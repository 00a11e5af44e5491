"""Writes the checkpoints and expected values of this folder: a small model of each family, in exactly its names and files.

    python tests/goldens/bases/make_bases.py tests/goldens/bases

Needs PyTorch 2.11, timm 1.0.31, transformers 5.23, open_clip_torch 3.3 and safetensors 0.8. Every weight is random, those too that
start as zeros or ones, and is rounded to float16 first, so that files may hold it in less than 32 bits. Expected values are computed
in float64 by the libraries themselves; hooks read the last two blocks' outputs and the last block's queries and keys.
"""

import argparse
import collections
import functools
import json
import math
import shutil
import sys
from pathlib import Path

import open_clip.transformer
import torch
import transformers
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from timm.layers import SwiGLUPacked, get_act_layer

DIM, DEPTH, HEADS, HIDDEN, PATCH, IMAGE, TOP_K = 8, 2, 2, 16, 2, 8, 3
transformers.logging.set_verbosity_error()

out = Path(sys.argv[1])
expected, cases = {}, {}
images = torch.randn(2, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(1)).half().double()
expected["images"] = images.float()


def randomize(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        values = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        if "norm" in name and name.endswith("weight") or ".ln_" in name and name.endswith("weight") or "ln_p" in name and name.endswith("weight"):
            values = 1 + 0.2 * values
        elif "gamma" in name or "lambda" in name:
            values = 0.6 + 0.3 * values
        elif p.ndim >= 2 and not any(part in name for part in ("token", "pos")):
            values = values / math.sqrt(p.shape[1:].numel()) * 1.2
        else:
            values = 0.4 * values
        p.data = values.half().double()
    return model.double().eval()


def timm(seed, act="gelu", **kwargs):
    kwargs = {"num_classes": 0, **kwargs}
    model = VisionTransformer(img_size=IMAGE, patch_size=PATCH, embed_dim=DIM, depth=DEPTH, num_heads=HEADS,
                              **{"mlp_ratio": HIDDEN / DIM, "act_layer": get_act_layer(act), **kwargs})
    return randomize(model, seed)


def run(model, blocks, qk, tokens, prefix):
    """Final tokens (class token and patches), mean of the last two blocks' patches, logits and numbers of the top queries."""
    outputs, parts = [], []

    def keep(_, __, output):
        outputs.append(output[0] if isinstance(output, tuple) else output)

    hooks = [block.register_forward_hook(keep) for block in blocks]
    hooks += [layer.register_forward_hook(lambda _, __, o: parts.append(o)) for layer in qk]
    with torch.no_grad():
        final = tokens(model)
    for hook in hooks:
        hook.remove()
    q, k = (parts[0][..., :DIM], parts[0][..., DIM:2 * DIM]) if len(parts) == 1 else parts
    heads = lambda x: x.reshape(2, -1, HEADS, DIM // HEADS).transpose(1, 2)
    logits = (heads(q) @ heads(k).transpose(-1, -2) / math.sqrt(DIM // HEADS))[..., prefix:]
    ranks = logits[:, :, 0].mean(1)
    index = ranks.argsort(dim=1, descending=True, stable=True)[:, :TOP_K]
    gaps = ranks.sort(dim=1, descending=True).values.diff(dim=1)[:, :TOP_K].abs().min()
    assert gaps > 1e-4, f"a near-tie decides: choose another seed ({gaps})"
    rows = torch.stack([torch.stack([logits[b, :, 0]] + [logits[b, :, prefix + i] for i in index[b]]) for b in range(2)])
    return {
        "tokens": torch.cat([final[:, :1], final[:, prefix:]], 1),
        "features": (outputs[-2][:, prefix:] + outputs[-1][:, prefix:]) / 2,
        "logits": rows,
        "index": index,
    }


def run_timm(model):
    return run(model, model.blocks, [model.blocks[-1].attn.qkv], lambda m: m.forward_features(images), model.num_prefix_tokens)


def run_hf(model, layers, attention, prefix=1):
    last = attention(layers[-1])
    # The mask of ViTMAE: noise that keeps the patches in their order.
    kwargs = {"noise": torch.arange(16.0, dtype=torch.float64).repeat(2, 1)} if "MAE" in type(model).__name__ else {}
    return run(model, layers, [last.q_proj, last.k_proj], lambda m: m(images, **kwargs).last_hidden_state, prefix)


def keep(name, values):
    for key, value in values.items():
        expected[f"{name}.{key}"] = (value if key == "index" else value.float()).contiguous()


def case(name, values, **facts):
    twin = next((n for n, c in cases.items() if c["values"] == n and torch.equal(expected[f"{n}.tokens"], values["tokens"].float())), None)
    if twin is None:
        keep(name, values)
    cases[name] = {"values": twin or name, **facts}
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def state(model, dtype=torch.float16):
    return collections.OrderedDict((k, v.to(dtype) if v.is_floating_point() else v) for k, v in model.state_dict().items())


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


def noise(*shape):
    return torch.randn(*shape).half()


def head(prefix, mlp=(0, 2, 4)):
    """The projection head of DINO and iBOT."""
    names = [f"mlp.{n}.{p}" for n in mlp for p in ("weight", "bias")] + ["last_layer.weight_g", "last_layer.weight_v"]
    return {prefix + n: noise(4) for n in names}


torch.manual_seed(0)

# -- timm's own names ---------------------------------------------------------------------------------------------------
model = timm(1, num_classes=3)
save_file(state(model), case("timm_plain", run_timm(model), family="vit") / "plain.safetensors")

model = timm(2, num_classes=3, init_values=1e-5, no_embed_class=True)
save_file(state(model), case("timm_deit3", run_timm(model), family="vit", layer_scale=True) / "deit3.safetensors")

clip = {"pre_norm": True, "norm_layer": functools.partial(torch.nn.LayerNorm, eps=1e-5), "num_classes": 3}
for name, seed, act, architecture in [
    ("timm_clip", 3, "gelu", "vit_base_patch16_clip_224"),
    ("timm_clip_quickgelu", 4, "quick_gelu", "vit_base_patch16_clip_quickgelu_224"),
]:
    model = timm(seed, act, **clip)
    folder = case(name, run_timm(model), family="vit-clip", activation=act, eps=1e-5, mean=[0.48145466, 0.4578275, 0.40821073])
    save_file(state(model), folder / "model.safetensors")
    write_json(folder / "config.json", {"architecture": architecture, "num_classes": 3, "pretrained_cfg": {
        "input_size": [3, 224, 224], "mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}})

model = timm(5, num_classes=3)
folder = case("timm_augreg", run_timm(model), family="vit", mean=[0.5, 0.5, 0.5])
save_file(state(model), folder / "model.safetensors")
write_json(folder / "config.json", {"architecture": "vit_base_patch16_224", "num_features": 8, "pretrained_cfg": {
    "tag": "augreg_in21k", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}})

model = timm(6, init_values=1e-5)
save_file(state(model), case("timm_dinov2", run_timm(model), family="dinov2", layer_scale=True) / "dinov2.safetensors")

registers = timm(9, init_values=1e-5, reg_tokens=4, no_embed_class=True)
folder = case("timm_dinov2_reg4", run_timm(registers), family="dinov2", layer_scale=True, registers=4)
save_file(state(registers), folder / "dinov2.safetensors")

giant = timm(8, init_values=1e-5, mlp_ratio=6, mlp_layer=SwiGLUPacked, act="silu")
folder = case("timm_dinov2_giant", run_timm(giant), family="dinov2", layer_scale=True, activation="swiglu", hidden=24)
save_file(state(giant), folder / "dinov2.safetensors")

# -- published code: PyTorch files --------------------------------------------------------------------------------------
model = timm(10)
encoder = state(model, torch.float32)
values = run_timm(model)
decoder = {"mask_token": noise(1, 1, 4), "decoder_pos_embed": noise(1, 17, 4), "decoder_embed.weight": noise(4, 8), "decoder_embed.bias": noise(4),
           "decoder_blocks.0.norm1.weight": noise(4), "decoder_norm.weight": noise(4), "decoder_norm.bias": noise(4),
           "decoder_pred.weight": noise(12, 4), "decoder_pred.bias": noise(12)}
adam = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))])
adam.param_groups[0]["params"][0].grad = torch.ones(3)
adam.step()
folder = case("mae_full", values, family="mae")
torch.save({"model": collections.OrderedDict({**encoder, **decoder}), "optimizer": adam.state_dict(), "epoch": 799, "scaler": {"scale": 65536.0},
            "args": argparse.Namespace(model="mae_vit_base_patch16", mask_ratio=0.75, device=torch.device("cpu"))},
           folder / "mae_pretrain_vit_base_full.pth")
folder = case("mae_encoder", values, family="vit")
torch.save({"model": state(model)}, folder / "mae_pretrain_vit_base.pth")

model = timm(11, num_classes=3, global_pool="avg")
folder = case("mae_finetuned", run_timm(model), family="vit", final_norm=False)
torch.save({"model": state(model), "epoch": 99}, folder / "mae_finetuned_vit_base.pth")

student, teacher = timm(12), timm(13)
folder = case("ibot_full", run_timm(teacher), family="ibot")
ibot = lambda model, prefix, rest: collections.OrderedDict(
    {f"{prefix}backbone.{k}": v for k, v in {**state(model), "masked_embed": noise(1, 8)}.items()} | head(f"{prefix}head.") | rest)
torch.save({"student": ibot(student, "module.", {}), "teacher": ibot(teacher, "", {}), "optimizer": adam.state_dict(), "epoch": 3,
            "args": argparse.Namespace(arch="vit_small", patch_size=16), "ibot_loss": {"center": noise(1, 4), "center2": noise(1, 1, 4)},
            "fp16_scaler": {"scale": 2.0}}, folder / "checkpoint.pth")
keep("ibot_student", run_timm(student))

folder = case("ibot_teacher", run_timm(teacher), family="vit")
torch.save({"state_dict": state(teacher)}, folder / "checkpoint_teacher.pth")

folder = case("dino_full", run_timm(teacher), family="dino")
dino = lambda model, prefix: collections.OrderedDict({f"{prefix}backbone.{k}": v for k, v in state(model).items()} | head(f"{prefix}head."))
torch.save({"student": dino(student, "module."), "teacher": dino(teacher, "module."), "optimizer": adam.state_dict(), "epoch": 3,
            "args": argparse.Namespace(arch="vit_small"), "dino_loss": {"center": noise(1, 4)}}, folder / "dino_deitsmall16_pretrain_full_checkpoint.pth")
folder = case("dino_backbone", run_timm(teacher), family="vit")
torch.save(state(teacher), folder / "dino_deitsmall16_pretrain.pth")

moco = timm(14)
folder = case("moco_v3", run_timm(moco), family="moco-v3")
branch = lambda name, model: {f"module.{name}.{k}": v for k, v in state(model).items()} | {
    f"module.{name}.head.{n}": noise(4) for n in ("0.weight", "1.weight", "1.bias", "1.running_mean", "6.weight")} | {
    f"module.{name}.head.1.num_batches_tracked": torch.tensor(3)}
torch.save({"epoch": 300, "arch": "vit_small", "optimizer": adam.state_dict(), "scaler": {},
            "state_dict": {**branch("base_encoder", moco), **branch("momentum_encoder", student), "module.predictor.0.weight": noise(4, 4)}},
           folder / "vit-s-300ep.pth.tar")


def original_dinov2(model):
    """timm's names as the published code has them."""
    renamed = collections.OrderedDict()
    for k, v in state(model).items():
        k = k.replace("reg_token", "register_tokens")
        if "Glu" in type(model.blocks[0].mlp).__name__:
            k = k.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
        renamed[k] = v
    return collections.OrderedDict({"mask_token": noise(1, 8), **renamed})


model = timm(15, init_values=1e-5)
folder = case("dinov2_original", run_timm(model), family="dinov2", layer_scale=True)
torch.save(original_dinov2(model), folder / "dinov2_vits14_pretrain.pth")
folder = case("dinov2_training", run_timm(model), family="dinov2", layer_scale=True)
chunked = {k.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1."): v for k, v in original_dinov2(model).items()}
torch.save({"teacher": {**{f"backbone.{k}": v for k, v in chunked.items()}, **head("dino_head."), **head("ibot_head.")}}, folder / "teacher_checkpoint.pth")
folder = case("dinov2_original_giant", run_timm(giant), family="dinov2", layer_scale=True, activation="swiglu", hidden=24)
torch.save(original_dinov2(giant), folder / "dinov2_vitg14_pretrain.pth")

# The published register models have a position for the class token; timm adds it to the token.
with_class = original_dinov2(registers)
position = (0.4 * torch.randn(1, 1, DIM, generator=torch.Generator().manual_seed(5))).half()
plain = timm(9, init_values=1e-5, reg_tokens=4, no_embed_class=True)
plain.cls_token.data += position.double()
with_class["pos_embed"] = torch.cat([position, with_class["pos_embed"]], 1)
folder = case("dinov2_original_reg4", run_timm(plain), family="dinov2", layer_scale=True, registers=4)
torch.save(with_class, folder / "dinov2_vits14_reg4_pretrain.pth")

model = timm(16)
mlp = randomize(torch.nn.ModuleDict({"fc1": torch.nn.Linear(DIM, HIDDEN), "fc2": torch.nn.Linear(HIDDEN, DIM)}), 17)
tec = {**state(model), **{f"cls_token_mlp.{k}": v for k, v in state(mlp).items()}, "decoder_pos_embed": noise(1, 17, 4),
       "encoder_adaptor.adap_before.weight": noise(16), "encoder_adaptor.fuse_fcs.0.weight": noise(8, 16), "encoder_adaptor.adap_mlps.0.fc1.weight": noise(16, 8),
       "forward_fea_decoder.mask_token": noise(1, 1, 4), "forward_fea_decoder.decoder_pred.weight": noise(8, 4),
       "forward_att_decoder.decoder_qk.weight": noise(16, 4), "decoder_blocks.0.norm1.weight": noise(4)}
with torch.no_grad():
    model.cls_token.data = mlp["fc2"](torch.nn.functional.gelu(mlp["fc1"](model.cls_token)))
folder = case("tec_published", run_timm(model), family="tec")
torch.save({"model": tec, "args": argparse.Namespace(teacher="mae")}, folder / "tec_pretrain_vit_base.pth")

# -- transformers ---------------------------------------------------------------------------------------------------------
common = dict(hidden_size=DIM, num_hidden_layers=DEPTH, num_attention_heads=HEADS, image_size=IMAGE, patch_size=PATCH)
wide = dict(common, intermediate_size=HIDDEN)
t = transformers
preprocessor = lambda mean, std: {"do_normalize": True, "image_mean": mean, "image_std": std, "size": {"height": IMAGE, "width": IMAGE}}
imagenet = preprocessor([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
half = preprocessor([0.5] * 3, [0.5] * 3)
openai = preprocessor([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
ls = dict(layer_scale=True)


def hf(name, seed, model, layers, attention, prefix, processor, holder=None, **facts):
    """One folder as `save_pretrained` writes it (names of transformers 4), one file with the names in memory of transformers 5."""
    randomize(model, seed)
    values = run_hf(model, layers(model), attention, prefix)
    whole = holder(model) if holder else model
    folder = case(name, values, **facts)
    saved = {k: v.half() for k, v in whole.state_dict().items()}
    whole.half().save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", processor)
    folder = case(f"{name}_5", values, config=False, **facts)
    save_file(saved, folder / "in_memory.safetensors")
    whole.double()


attention = lambda layer: layer.attention
vit_layers = lambda model: model.layers
hf("hf_vit", 20, t.ViTModel(t.ViTConfig(**wide)), vit_layers, attention, 1, half, family="hf-vit", eps=1e-12, mean=[0.5] * 3)
hf("hf_vit_mae", 21, t.ViTMAEModel(t.ViTMAEConfig(**wide, mask_ratio=0.0)), vit_layers, attention, 1, imagenet, family="hf-vit", eps=1e-12, assumed_mean=[0.5] * 3)


def pretraining(model):
    whole = t.ViTMAEForPreTraining(t.ViTMAEConfig(**wide, decoder_hidden_size=4, decoder_num_attention_heads=1, decoder_num_hidden_layers=1, decoder_intermediate_size=4))
    whole.vit = model
    return whole


hf("hf_vit_mae_pretraining", 22, t.ViTMAEModel(t.ViTMAEConfig(**wide, mask_ratio=0.0)), vit_layers, attention, 1, imagenet, pretraining, family="hf-vit-mae", eps=1e-12)
dinov2_layers = lambda model: model.encoder.layer
hf("hf_dinov2", 23, t.Dinov2Model(t.Dinov2Config(**common, mlp_ratio=2)), dinov2_layers, attention, 1, imagenet, family="hf-dinov2", **ls)
hf("hf_dinov2_giant", 24, t.Dinov2Model(t.Dinov2Config(**common, mlp_ratio=4, use_swiglu_ffn=True)), dinov2_layers, attention, 1, imagenet,
   family="hf-dinov2", activation="swiglu", hidden=24, **ls)
hf("hf_dinov2_reg4", 27, t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**common, mlp_ratio=2)), dinov2_layers, attention, 5, imagenet,
   family="hf-dinov2", registers=4, **ls)


def full_clip(model):
    text = dict(hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4, vocab_size=8, max_position_embeddings=4, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    whole = t.CLIPModel(t.CLIPConfig(vision_config=wide, text_config=text, projection_dim=4))
    whole.vision_model = model
    return whole


def clip_tower(seed):
    class Tower(t.CLIPVisionModel):
        def forward(self, images, **kwargs):
            output = super().forward(images, **kwargs)
            output.last_hidden_state = self.post_layernorm(output.last_hidden_state)
            return output
    Tower.__name__ = "CLIPVisionModel"
    return Tower(t.CLIPVisionConfig(**wide))


self_attention = lambda layer: layer.self_attn
clip_facts = dict(activation="quick_gelu", eps=1e-5, mean=openai["image_mean"], assumed_mean=openai["image_mean"])
hf("hf_clip_vision", 28, clip_tower(26), lambda m: m.encoder.layers, self_attention, 1, openai, family="hf-clip", **clip_facts)
hf("hf_clip", 29, clip_tower(27), lambda m: m.encoder.layers, self_attention, 1, openai, full_clip, family="hf-clip", **clip_facts)

# -- OpenCLIP -------------------------------------------------------------------------------------------------------------
for name, seed, act, scale in [("openclip", 30, torch.nn.GELU, None), ("openclip_quickgelu", 31, open_clip.transformer.QuickGELU, None), ("openclip_layerscale", 32, torch.nn.GELU, 0.1)]:
    model = open_clip.transformer.VisionTransformer(IMAGE, PATCH, DIM, DEPTH, HEADS, HIDDEN / DIM, output_dim=4, act_layer=act, ls_init_value=scale)
    randomize(model, seed)
    seen, blocks = [], []
    last = model.transformer.resblocks[-1]
    hooks = [last.ln_1.register_forward_hook(lambda _, __, o: seen.append(o))]
    hooks += [b.register_forward_hook(lambda _, __, o: blocks.append(o)) for b in model.transformer.resblocks]

    def tokens(m):
        with torch.no_grad():
            m(images)
        return m.ln_post(blocks[-1])

    # Its attention has no module for the projection: an identity hands on what the weights make of the normed tokens.
    probe = torch.nn.Identity()
    def final(m):
        result = tokens(m)
        probe(seen[-1] @ last.attn.in_proj_weight.T + last.attn.in_proj_bias)
        return result
    values = run(model, model.transformer.resblocks, [probe], final, 1)
    for hook in hooks:
        hook.remove()
    quick = act is not torch.nn.GELU
    facts = dict(family="openclip", activation="quick_gelu" if quick else "gelu", eps=1e-5, layer_scale=scale is not None)
    folder = case(name, values, **facts)
    if scale is None and not quick:
        wrapped = {f"module.visual.{k}": v for k, v in state(model).items()}
        torch.save({"epoch": 32, "name": "ViT-B-16", "state_dict": {**wrapped, "module.logit_scale": noise(1)[0], "module.token_embedding.weight": noise(4, 4),
                    "module.transformer.resblocks.0.ln_1.weight": noise(4)}, "optimizer": adam.state_dict()}, folder / "epoch_32.pt")
    else:
        wrapped = {f"visual.{k}": v for k, v in state(model).items()}
        save_file({**wrapped, "logit_scale": noise(1)[0], "token_embedding.weight": noise(4, 4)}, folder / "open_clip_model.safetensors")
        write_json(folder / "open_clip_config.json", {"model_cfg": {"embed_dim": 4, "quick_gelu": quick, "vision_cfg": {
            "image_size": IMAGE, "layers": DEPTH, "width": DIM, "patch_size": PATCH, "head_width": DIM // HEADS}},
            "preprocess_cfg": {"mean": openai["image_mean"], "std": openai["image_std"]}})

# -- PyTorch files as they can be ----------------------------------------------------------------------------------------
model = timm(40)
values = run_timm(model)
full = state(model, torch.float32)
twice = collections.OrderedDict(full)
folder = case("pth_shared", values, family="vit")
torch.save({"model": twice, "model_without_ddp": twice}, folder / "twice.pth")
folder = case("pth_views", values, family="vit")
flat = torch.cat([torch.zeros(5)] + [v.flatten() for v in full.values()])
views, at = collections.OrderedDict(), 5
for k, v in full.items():
    views[k] = flat[at:at + v.numel()].view(v.shape)
    at += v.numel()
key = "blocks.0.mlp.fc1.weight"
views[key] = full[key].t().contiguous().t()
key = "blocks.1.attn.proj.weight"
views[key] = torch.stack([full[key], full[key] + 1], -1)[..., 0]
torch.save({"state_dict": {"module": {"backbone": views}}}, folder / "views.pth")
folder = case("pth_types", values, family="vit")
kinds = [torch.float16, torch.float64, torch.float32]
typed = collections.OrderedDict((k, torch.nn.Parameter(v.to(kinds[n % 3]), requires_grad=n % 2 == 0)) for n, (k, v) in enumerate(full.items()))
typed["num_batches_tracked"], typed["flag"] = torch.tensor(3), torch.tensor(True)
torch.save(typed, folder / "types.pth")

# -- what is refused -------------------------------------------------------------------------------------------------------
folder = out / "refused"
shutil.rmtree(folder, ignore_errors=True)
folder.mkdir()
small = {"weight": noise(2, 2)}
torch.save(small, folder / "legacy.pth", _use_new_zipfile_serialization=False)
torch.save(small, folder / "protocol4.pth", pickle_protocol=4)
torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), folder / "torchscript.pt")
torch.save(torch.nn.Linear(2, 2), folder / "module.pth")

save_file(expected, out / "expected.safetensors", {"cases": json.dumps(cases)})
print(len(cases), "cases")
