import functools
import hashlib
import re
import tempfile
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from safetensors.torch import load_file, save_file
from tests import tiny
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mezzotint.errors import InvalidRequest, WeightsError
from mezzotint.models.base import Prompt
from mezzotint.models.formats.folders import load_pipeline
from mezzotint.models.formats.single_file import clip_vocabulary, load_single_file
from mezzotint.types import Size

SIZE = Size(64, 64)
RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "time_emb_proj.": "emb_layers.1.",
    "conv_shortcut.": "skip_connection.",
}
OUTER = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}


def ldm_unet_name(name, per_level, attends):
    """The original name of a diffusers U-Net tensor."""
    for new, old in OUTER.items():
        if name.startswith(new):
            return old + name.removeprefix(new)
    block, rest = name.split(".", 1)
    if block == "mid_block":
        kind, k, inner = rest.split(".", 2)
        place = "1" if kind == "attentions" else str(2 * int(k))
        return f"middle_block.{place}.{renamed(inner, kind)}"
    level, kind, k, inner = rest.split(".", 3)
    if block == "down_blocks":
        at = 1 + int(level) * (per_level + 1) + int(k)
        if kind == "downsamplers":
            return f"input_blocks.{(int(level) + 1) * (per_level + 1)}.0.op.{inner[5:]}"
        return f"input_blocks.{at}.{int(kind == 'attentions')}.{renamed(inner, kind)}"
    at = int(level) * (per_level + 1) + int(k)
    if kind == "upsamplers":
        last = int(level) * (per_level + 1) + per_level
        return f"output_blocks.{last}.{2 if attends[int(level)] else 1}.{inner}"
    return f"output_blocks.{at}.{int(kind == 'attentions')}.{renamed(inner, kind)}"


def renamed(inner, kind):
    if kind == "resnets":
        for new, old in RESNET.items():
            if inner.startswith(new):
                return old + inner.removeprefix(new)
    return inner


def ldm_vae(state, levels):
    """The original names and shapes of an autoencoder's tensors."""
    result = {}
    for full, value in state.items():
        name, tensor = full, value
        for side, word in (("encoder", "down"), ("decoder", "up")):
            for k in range(levels):
                at = k if word == "down" else levels - 1 - k
                name = name.replace(
                    f"{side}.{word}_blocks.{k}.resnets.", f"{side}.{word}.{at}.block."
                )
                name = name.replace(
                    f"{side}.{word}_blocks.{k}.{word}samplers.0.",
                    f"{side}.{word}.{at}.{word}sample.",
                )
        name = name.replace("mid_block.resnets.0", "mid.block_1").replace(
            "mid_block.resnets.1", "mid.block_2"
        )
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "mid_block.attentions.0." in name:
            name = name.replace("mid_block.attentions.0.", "mid.attn_1.").replace(
                "group_norm", "norm"
            )
            for new, old in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
                name = name.replace(f".{new}.", f".{old}.")
            if tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
        result[f"first_stage_model.{name}"] = tensor.contiguous()
    return result


def clip_names(state, prefix):
    bare = {k.removeprefix("text_model."): v for k, v in state.items()}
    return {f"{prefix}text_model.{name}": tensor.clone() for name, tensor in bare.items()}


def open_clip_names(state, prefix):
    """The original names of an OpenCLIP encoder, with query, key and value joined."""
    bare = {k.removeprefix("text_model."): v.clone() for k, v in state.items()}
    result = {
        "token_embedding.weight": bare.pop("embeddings.token_embedding.weight"),
        "positional_embedding": bare.pop("embeddings.position_embedding.weight"),
        "ln_final.weight": bare.pop("final_layer_norm.weight"),
        "ln_final.bias": bare.pop("final_layer_norm.bias"),
    }
    if "text_projection.weight" in bare:
        result["text_projection"] = bare.pop("text_projection.weight").T.contiguous()
    names = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "fc1": "c_fc",
        "fc2": "c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    for name, tensor in bare.items():
        if any(f".{letter}_proj." in name for letter in "kv"):
            continue
        old = name.replace("encoder.layers.", "transformer.resblocks.")
        if ".q_proj." in name:
            parts = [bare[name.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"]
            old, tensor = old.replace("self_attn.q_proj.", "attn.in_proj_"), torch.cat(parts)
        for new, original in names.items():
            old = old.replace(new, original)
        result[old] = tensor
    return {f"{prefix}{name}": tensor for name, tensor in result.items()}


def text(cls, layers, act, projection=64):
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=1,
        hidden_act=act,
        projection_dim=projection,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    return tiny.stir(cls(config), layers)


JOINT = {
    "attn.to_out.0.": "x_block.attn.proj.", "attn.to_add_out.": "context_block.attn.proj.",
    "attn2.to_out.0.": "x_block.attn2.proj.",
    "attn.norm_q.": "x_block.attn.ln_q.", "attn.norm_k.": "x_block.attn.ln_k.",
    "attn.norm_added_q.": "context_block.attn.ln_q.",
    "attn.norm_added_k.": "context_block.attn.ln_k.",
    "attn2.norm_q.": "x_block.attn2.ln_q.", "attn2.norm_k.": "x_block.attn2.ln_k.",
    "norm1.linear.": "x_block.adaLN_modulation.1.",
    "norm1_context.linear.": "context_block.adaLN_modulation.1.",
    "ff.net.0.proj.": "x_block.mlp.fc1.", "ff.net.2.": "x_block.mlp.fc2.",
    "ff_context.net.0.proj.": "context_block.mlp.fc1.",
    "ff_context.net.2.": "context_block.mlp.fc2.",
}  # fmt: skip
QKV = {
    "x_block.attn.qkv.": ("attn.to_q.", "attn.to_k.", "attn.to_v."),
    "x_block.attn2.qkv.": ("attn2.to_q.", "attn2.to_k.", "attn2.to_v."),
    "context_block.attn.qkv.": ("attn.add_q_proj.", "attn.add_k_proj.", "attn.add_v_proj."),
}
OUTSIDE = {
    "pos_embed.pos_embed": "pos_embed", "pos_embed.proj.": "x_embedder.proj.",
    "time_text_embed.timestep_embedder.linear_1.": "t_embedder.mlp.0.",
    "time_text_embed.timestep_embedder.linear_2.": "t_embedder.mlp.2.",
    "time_text_embed.text_embedder.linear_1.": "y_embedder.mlp.0.",
    "time_text_embed.text_embedder.linear_2.": "y_embedder.mlp.2.",
    "context_embedder.": "context_embedder.", "proj_out.": "final_layer.linear.",
    "norm_out.linear.": "final_layer.adaLN_modulation.1.",
}  # fmt: skip


def mmdit_names(state, layers):
    """The original names of an MM-DiT's tensors; shift and scale swapped where they are last."""
    result, swapped = {}, ("norm_out.", f"transformer_blocks.{layers - 1}.norm1_context.")
    for name, tensor in state.items():
        value = torch.cat(tensor.chunk(2)[::-1]) if name.startswith(swapped) else tensor
        block = re.match(r"transformer_blocks\.(\d+)\.", name)
        if block is None:
            old = next(o + name.removeprefix(n) for n, o in OUTSIDE.items() if name.startswith(n))
            result[old] = value
            continue
        inner = name.removeprefix(block[0])
        for new, old in JOINT.items():
            if inner.startswith(new):
                result[f"joint_blocks.{block[1]}.{old}{inner.removeprefix(new)}"] = value
        for old, thirds in QKV.items():
            if inner.startswith(thirds[0]):
                end = inner.removeprefix(thirds[0])
                parts = [state[f"{block[0]}{third}{end}"] for third in thirds]
                result[f"joint_blocks.{block[1]}.{old}{end}"] = torch.cat(parts)
    return {f"model.diffusion_model.{k}": v.contiguous() for k, v in result.items()}


@pytest.mark.parametrize("is_35", [False, True], ids=["3", "3.5"])
def test_a_file_of_stable_diffusion_3_equals_its_folder(is_35, tmp_path):
    vocab, merges = clip_vocabulary()
    first, second = (
        CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=77)
        for pad in ("<|endoftext|>", "!")
    )
    more = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)} if is_35 else {}
    with tiny.seeded(0):
        transformer = SD3Transformer2DModel(
            sample_size=128, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=64,
            num_attention_heads=1, caption_projection_dim=64, joint_attention_dim=128,
            pooled_projection_dim=128, out_channels=16, pos_embed_max_size=32, **more,
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=1, latent_channels=16,
            scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False,
            use_post_quant_conv=False, force_upcast=True,
        )  # fmt: skip
        clips = [text(CLIPTextModelWithProjection, 2, act) for act in ("quick_gelu", "gelu")]
    clips[0].text_projection.weight.data.copy_(torch.eye(64))  # what a file without one means
    parts = {
        "transformer": tiny.stir(transformer, 2), "vae": tiny.stir(vae, 3),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "text_encoder": clips[0], "text_encoder_2": clips[1],
        "tokenizer": first, "tokenizer_2": second, "text_encoder_3": None, "tokenizer_3": None,
    }  # fmt: skip
    StableDiffusion3Pipeline(**parts).save_pretrained(tmp_path / "folder")
    state = mmdit_names(transformer.state_dict(), 2) | ldm_vae(vae.state_dict(), 3)
    for clip, name in zip(clips, ("clip_l", "clip_g"), strict=True):
        weights = {k: v for k, v in clip.state_dict().items() if "text_projection" not in k}
        state |= clip_names(weights, f"text_encoders.{name}.transformer.")
    projection = clips[1].text_projection.weight.clone()
    state["text_encoders.clip_g.transformer.text_projection.weight"] = projection
    state["text_encoders.t5xxl.transformer.shared.weight"] = torch.zeros(4, 4)
    file = save(tmp_path / "model.safetensors", state)
    ours, theirs = load_single_file(file), load_pipeline(tmp_path / "folder")
    latents = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    found = []
    for model in (ours, theirs):
        (conditioning,) = model.encode([Prompt(text="a red apple", size=SIZE)])
        denoised = model.denoiser(latents, torch.tensor([0.7]), conditioning)
        found.append((denoised, model.decode(denoised)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert ours.spec.default_scheduler == theirs.spec.default_scheduler == "flow_euler"
    told = StableDiffusion3Pipeline.from_single_file(
        str(file), config=str(tmp_path / "folder"), local_files_only=True,
        torch_dtype=torch.float32, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    assert_same_weights(ours, told)
    assert any("T5" in limit for limit in ours.spec.limits)
    with pytest.raises(InvalidRequest, match="left out"):
        load_single_file(file, prediction_type="epsilon")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("double_blocks.0.img_attn.qkv.weight", "FLUX"),
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "FLUX"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("transformer_blocks.0.img_mod.1.weight", "Qwen-Image"),
        ("model.diffusion_model.txt_in.text_norm.weight", "Qwen-Image 2.1"),
    ],
)
def test_a_transformer_alone_is_told_where_it_belongs(name, family, tmp_path):
    file = save(tmp_path / "alone.safetensors", {name: torch.zeros(2)})
    with pytest.raises(WeightsError, match=f"a transformer of {family} without .* folder trans"):
        load_single_file(file)
    beside = {name: torch.zeros(2), "text_encoders.t5xxl.transformer.shared.weight": torch.zeros(2)}
    whole = save(tmp_path / "whole.safetensors", beside)
    with pytest.raises(WeightsError, match=f"model of {family} without the vocabularies .* folder"):
        load_single_file(whole)


@functools.cache
def pair(layout):
    """A folder and the single file with the same weights."""
    vocab, merges = clip_vocabulary()
    tokenizer = CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        pad_token="!" if layout == "sd2" else "<|endoftext|>",
        model_max_length=77,
    )
    is_xl = layout == "sdxl"
    heads = 8 if layout == "sd1" else (1, 2)
    extra = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 64 + 6 * 256,
        "transformer_layers_per_block": (1, 2),
    }
    with tiny.seeded(0):
        unet = tiny.unet(
            context=128 if is_xl else 64,
            block_out_channels=(64, 128),
            norm_num_groups=32,
            attention_head_dim=heads,
            use_linear_projection=layout != "sd1",
            **(extra if is_xl else {}),
        )  # fmt: skip
        vae = tiny.stir(
            AutoencoderKL(
                block_out_channels=(32, 32, 32),
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                layers_per_block=1,
                scaling_factor=0.13025 if is_xl else 0.18215,
                force_upcast=is_xl,
            ),
            5,
        )
        first = text(CLIPTextModel, 2, "gelu" if layout == "sd2" else "quick_gelu")
        second = text(CLIPTextModelWithProjection, 3, "gelu")
    source = tiny.BUILDERS[layout]()
    parts = {
        **source.components,
        "unet": unet,
        "vae": vae,
        "text_encoder": first,
        "tokenizer": tokenizer,
    }
    if is_xl:
        parts["text_encoder_2"] = second
        parts["tokenizer_2"] = CLIPTokenizer(
            vocab=vocab, merges=merges, pad_token="!", model_max_length=77
        )
    else:
        parts["requires_safety_checker"] = False
    kept = tempfile.TemporaryDirectory(prefix="single-")
    tiny._KEPT.append(kept)
    folder, file = Path(kept.name) / "folder", Path(kept.name) / "model.safetensors"
    type(source)(**parts).save_pretrained(folder)
    attends = [hasattr(block, "attentions") and bool(block.attentions) for block in unet.up_blocks]
    state = {
        f"model.diffusion_model.{ldm_unet_name(name, 1, attends)}": tensor.contiguous()
        for name, tensor in unet.state_dict().items()
    }
    state |= ldm_vae(vae.state_dict(), 3)
    if is_xl:
        state |= clip_names(first.state_dict(), "conditioner.embedders.0.transformer.")
        state |= open_clip_names(second.state_dict(), "conditioner.embedders.1.model.")
    elif layout == "sd2":
        state |= open_clip_names(first.state_dict(), "cond_stage_model.model.")
    else:
        state |= clip_names(first.state_dict(), "cond_stage_model.transformer.")
    save_file(state, file)
    return folder, file


@pytest.mark.parametrize("layout", ["sd1", "sd2", "sdxl"])
def test_single_file_equals_its_folder(layout):
    folder, file = pair(layout)
    ours, theirs = load_single_file(file), load_pipeline(folder)
    prompts = [Prompt(text="a red apple", size=SIZE), Prompt(size=SIZE, negative=True)]
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1)) * 5
    sigma = torch.tensor([5.0, 5.0])
    results = []
    for model in (ours, theirs):
        conditioning = type(model.encode(prompts)[0]).stack(model.encode(prompts))
        denoised = model.denoiser(latents, sigma, conditioning)
        results.append(
            (
                conditioning,
                denoised,
                model.decode(denoised),
                model.encode_image(torch.zeros(1, 3, 64, 64)),
            )
        )
    for name in results[0][0]:
        assert torch.equal(results[0][0][name], results[1][0][name])
    for one, other in zip(results[0][1:], results[1][1:], strict=True):
        assert torch.equal(one, other)
    same = (
        "family",
        "prediction_type",
        "latent_channels",
        "latent_scale",
        "token_limit",
        "default_scheduler",
    )
    assert [getattr(ours.spec, k) for k in same] == [getattr(theirs.spec, k) for k in same]
    for key in ("beta_start", "beta_end", "beta_schedule", "timestep_spacing", "steps_offset"):
        assert ours.spec.scheduler_config[key] == theirs.spec.scheduler_config[key]


SAME_WEIGHTS = {
    "unet": "denoiser", "transformer": "denoiser", "vae": "decoder", "text_encoder": "text_encoder",
}  # fmt: skip
"""What our networks are called, by the parts of a pipeline.

Diffusers tells two CLIPs apart by their widths, which are the same here: the second one is held
at its published width.
"""


def assert_same_weights(model, pipeline):
    for part, role in SAME_WEIGHTS.items():
        if (theirs := getattr(pipeline, part, None)) is None:
            continue
        found = model.networks[role].module.state_dict()
        for name, weight in theirs.state_dict().items():
            assert torch.equal(found[name], weight), (part, name)


@pytest.mark.parametrize("layout", ["sd1", "sd2", "sdxl"])
def test_single_file_holds_the_weights_that_diffusers_reads_of_it(layout):
    folder, file = pair(layout)
    xl = layout == "sdxl"
    cls = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    more = {} if xl else {"safety_checker": None}
    pipeline = cls.from_single_file(
        str(file), config=str(folder), local_files_only=True, torch_dtype=torch.float32, **more
    )
    assert_same_weights(load_single_file(file), pipeline)


def test_prediction_type_follows_request_then_file_then_layout(tmp_path):
    _, file = pair("sd1")
    assert load_single_file(file).spec.prediction_type == "epsilon"
    assert (
        load_single_file(file, prediction_type="v_prediction").spec.prediction_type
        == "v_prediction"
    )
    with pytest.raises(InvalidRequest, match="epsilon or v_prediction"):
        load_single_file(file, prediction_type="x")
    state = load_file(file)
    save_file(state, tmp_path / "said.safetensors", {"modelspec.prediction_type": "v"})
    assert load_single_file(tmp_path / "said.safetensors").spec.prediction_type == "v_prediction"
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file({**state, **marks}, tmp_path / "marked.safetensors")
    spec = load_single_file(tmp_path / "marked.safetensors").spec
    assert spec.prediction_type == "v_prediction"
    assert spec.scheduler_config["rescale_betas_zero_snr"] is True
    assert (
        load_single_file(pair("sd2")[1], prediction_type="epsilon").spec.prediction_type
        == "epsilon"
    )


def test_half_precision_file_is_computed_in_float32_on_a_cpu(tmp_path):
    state = {name: tensor.half() for name, tensor in load_file(pair("sd1")[1]).items()}
    save_file(state, tmp_path / "half.safetensors")
    model = load_single_file(tmp_path / "half.safetensors")
    assert model.networks["denoiser"].module.conv_in.weight.dtype == torch.float32
    images = model.decode(torch.zeros(1, 4, 8, 8))
    assert images.dtype == torch.float32


def test_8_bit_floats_are_multiplied_by_the_scales_beside_them(tmp_path):
    packed, numbers = {}, {}
    for name, tensor in load_file(pair("sd1")[1]).items():
        numbers[name] = packed[name] = tensor
        if name.startswith("model.diffusion_model.") and tensor.ndim > 1:
            scale = tensor.abs().max() / 448
            packed[name] = (tensor / scale).to(torch.float8_e4m3fn)
            packed[name.replace(".weight", ".scale_weight")] = scale
            numbers[name] = packed[name].float() * scale
    packed["model.diffusion_model.scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    found, wanted = (
        load_single_file(save(tmp_path / f"{k}.safetensors", state)).networks["denoiser"].module
        for k, state in enumerate((packed, numbers))
    )
    weights = found.state_dict()
    assert all(torch.equal(weights[name], w) for name, w in wanted.state_dict().items())


def save(path, state):
    save_file(state, path)
    return path


def test_digest_is_the_files_and_a_wrong_one_is_refused():
    file = pair("sd1")[1]
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    assert load_single_file(file, expected=found).spec.digest == found
    with pytest.raises(WeightsError, match=f"expected sha256 {'1' * 64}, found {found}"):
        load_single_file(file, expected="1" * 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"lora.up": torch.ones(1)}, r"no SD 1\.x, 2\.x, XL or 3 checkpoint"),
        (lambda s: {k: v for k, v in s.items() if "first_stage" not in k}, "holds no autoencoder"),
        (lambda s: {k: v for k, v in s.items() if "cond_stage" not in k}, "holds no CLIP"),
        (lambda s: {**s, "conditioner.embedders.0.model.x": torch.ones(1)}, "SDXL refiner"),
        (
            lambda s: {
                **s,
                "model.diffusion_model.input_blocks.0.0.weight": torch.ones(64, 9, 3, 3),
            },
            "takes 9 input channels",
        ),
    ],
)
def test_files_of_other_kinds_are_refused(tmp_path, change, message):
    save_file(change(load_file(pair("sd1")[1])), tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=message):
        load_single_file(tmp_path / "x.safetensors")


def test_missing_weight_is_named_when_the_network_is_built(tmp_path):
    state = load_file(pair("sd1")[1])
    del state["model.diffusion_model.out.2.bias"]
    save_file(state, tmp_path / "x.safetensors")
    model = load_single_file(tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"UNet2DConditionModel lacks conv_out\.bias"):
        _ = model.networks["denoiser"].module


def test_checkpoint_pickles_are_refused(tmp_path):
    (tmp_path / "sd.ckpt").write_bytes(b"\x80\x04.")
    with pytest.raises(WeightsError, match="is a pickle"):
        load_single_file(tmp_path / "sd.ckpt")
