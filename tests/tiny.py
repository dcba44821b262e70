"""Tiny pipelines with random weights, built from the real classes, for every family.

Each builder returns a fresh diffusers pipeline whose weights depend on ``seed`` alone. Nothing is
downloaded; tokenizers are built here. Sizes: 64 px pictures (32 for pixel-space networks), VAE
factor 4 or 8, two channel levels.
"""

import contextlib
import functools
import shutil
import tempfile
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

WORDS = ["a", "red", "green", "apple", "cat", "on", "the", "table", "leaf", "blue", "big", "two"]


@contextlib.contextmanager
def seeded(seed):
    """Make module construction depend on ``seed`` alone, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def stir(module, seed, scale=1.0):
    """Redraw every weight so that no layer starts as zero or identity; eval, no gradients."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.ndim < 2 and not name.endswith("bias"):  # norm scales stay near one
            values = 1 + 0.1 * torch.randn(parameter.shape, generator=generator)
        else:
            fan_in = max(1, parameter[0].numel()) if parameter.ndim > 1 else 25
            values = scale * torch.randn(parameter.shape, generator=generator) / fan_in**0.5
        parameter.data.copy_(values)
    return module.eval().requires_grad_(False)


def byte_letters():
    """The 256 printable stand-ins for bytes of byte-level BPE, in CLIP's order."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return list(bytes_to_unicode().values())


def clip_tokenizer(pad="<|endoftext|>", max_length=77):
    """A CLIP tokenizer: 256 bytes, 256 final bytes, merges for :data:`WORDS`, two specials."""
    letters = byte_letters()
    tokens, merges = letters + [f"{letter}</w>" for letter in letters], []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merge = (parts[-2], parts[-1])
            if merge not in merges:
                merges.append(merge)
                tokens.append("".join(merge))
            parts[-2:] = ["".join(merge)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=max_length)


def t5_tokenizer():
    """A T5 (unigram) tokenizer over letters and :data:`WORDS`."""
    letters = [chr(c) for c in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -2.0), ("\u2581", -3.0)]
    pieces += [(f"\u2581{word}", -1.0 - len(word) / 10) for word in WORDS]
    pieces += [(letter, -5.0) for letter in letters]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)


def bert_tokenizer(max_length=32):
    """A BERT (WordPiece) tokenizer over letters and :data:`WORDS`."""
    letters = [chr(c) for c in range(97, 123)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", "."]
    tokens += [t for t in dict.fromkeys(WORDS + letters)] + [f"##{letter}" for letter in letters]
    vocab = {token: index for index, token in enumerate(tokens)}
    return BertTokenizer(vocab=vocab, model_max_length=max_length)


def clip_text(tokenizer, *, width=32, layers=3, projection=None, seed=1, act="quick_gelu"):
    """A CLIP text encoder, with projection if asked."""
    vocab = tokenizer.get_vocab()
    config = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act=act,
        projection_dim=projection or width,
        bos_token_id=vocab["<|startoftext|>"],
        eos_token_id=vocab["<|endoftext|>"],
        pad_token_id=vocab[tokenizer.pad_token],
    )
    cls = CLIPTextModelWithProjection if projection else CLIPTextModel
    return stir(cls(config), seed)


def bert_text(tokenizer, *, width=32, seed=1):
    """A BERT text encoder that a Stable Diffusion pipeline calls with an attention mask."""
    config = BertConfig(
        vocab_size=len(tokenizer.get_vocab()),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    config.use_attention_mask = True
    return stir(BertModel(config), seed)


def t5_text(tokenizer, *, width=32, seed=1):
    """A T5 encoder."""
    config = T5Config(
        vocab_size=len(tokenizer.get_vocab()),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=True,
    )
    return stir(T5EncoderModel(config), seed)


def vae(channels=4, *, seed=3, levels=3, scaling=0.18215, shift=None, quant=True, **config):
    """An AutoencoderKL; ``levels`` 3 is factor 4, 4 is factor 8."""
    module = AutoencoderKL(
        block_out_channels=(8,) * (levels - 1) + (16,),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=scaling,
        shift_factor=shift,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
        **config,
    )
    return stir(module, seed)


def unet(*, channels=4, context=32, sample_size=16, seed=2, **config):
    """A text-conditioned U-Net with attention on its inner level."""
    defaults = {
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    module = UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=channels,
        out_channels=channels,
        cross_attention_dim=context,
        **{**defaults, **config},
    )
    return stir(module, seed)


SD_BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def sd1(seed=0):
    """Stable Diffusion 1.x: CLIP, epsilon, PNDM configuration as released."""
    tokenizer = clip_tokenizer()
    betas = {k: v for k, v in SD_BETAS.items() if k != "clip_sample"}
    return StableDiffusionPipeline(
        vae=vae(seed=seed + 3),
        text_encoder=clip_text(tokenizer, seed=seed + 1),
        tokenizer=tokenizer,
        unet=unet(seed=seed + 2),
        scheduler=PNDMScheduler(**betas, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd2(seed=100):
    """Stable Diffusion 2.x: v-prediction, linear projection, pad token ``!``."""
    tokenizer = clip_tokenizer(pad="!")
    return StableDiffusionPipeline(
        vae=vae(seed=seed + 3),
        text_encoder=clip_text(tokenizer, seed=seed + 1, act="gelu"),
        tokenizer=tokenizer,
        unet=unet(seed=seed + 2, use_linear_projection=True, attention_head_dim=(4, 8)),
        scheduler=DDIMScheduler(**SD_BETAS, prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def bert_sd(seed=200):
    """The layout of the built-in model: BERT with attention mask, 8 latent channels, v."""
    tokenizer = bert_tokenizer()
    return StableDiffusionPipeline(
        vae=vae(8, seed=seed + 3, scaling=0.7),
        text_encoder=bert_text(tokenizer, seed=seed + 1),
        tokenizer=tokenizer,
        unet=unet(seed=seed + 2, channels=8),
        scheduler=DDIMScheduler(**SD_BETAS, prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(seed=300):
    """SDXL: two encoders, pooled text, time ids, VAE that asks for float32."""
    first, second = clip_tokenizer(), clip_tokenizer(pad="!")
    return StableDiffusionXLPipeline(
        vae=vae(seed=seed + 3, scaling=0.13025, force_upcast=True),
        text_encoder=clip_text(first, seed=seed + 1),
        text_encoder_2=clip_text(second, width=24, projection=24, seed=seed + 4, act="gelu"),
        tokenizer=first,
        tokenizer_2=second,
        unet=unet(
            seed=seed + 2,
            context=56,
            use_linear_projection=True,
            attention_head_dim=(4, 8),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8,
            transformer_layers_per_block=(1, 2),
        ),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def sd3(seed=400):
    """Stable Diffusion 3: MM-DiT, three encoders, flow matching with shift 3."""
    first, second, third = clip_tokenizer(), clip_tokenizer(pad="!"), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        out_channels=16,
        pos_embed_max_size=32,
    )
    return StableDiffusion3Pipeline(
        transformer=stir(transformer, seed + 2),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(16, seed=seed + 3, scaling=1.5305, shift=0.0609, quant=False),
        text_encoder=clip_text(first, width=16, projection=16, seed=seed + 1),
        tokenizer=first,
        text_encoder_2=clip_text(second, width=16, projection=16, seed=seed + 4, act="gelu"),
        tokenizer_2=second,
        text_encoder_3=t5_text(third, seed=seed + 5),
        tokenizer_3=third,
    )


def flux(seed=500, *, guidance_embeds=True):
    """FLUX: packed latents, rotary positions, embedded guidance, dynamic shift."""
    first, second = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0 if guidance_embeds else 1.0, use_dynamic_shifting=guidance_embeds
    )
    return FluxPipeline(
        scheduler=scheduler,
        vae=vae(4, seed=seed + 3, scaling=0.3611, shift=0.1159, quant=False),
        text_encoder=clip_text(first, seed=seed + 1),
        tokenizer=first,
        text_encoder_2=t5_text(second, seed=seed + 5),
        tokenizer_2=second,
        transformer=stir(transformer, seed + 2),
    )


def ddpm(seed=600, *, prediction_type="epsilon"):
    """An unconditional pixel-space U-Net, 32 px."""
    module = UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
    )
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    return DDPMPipeline(unet=stir(module, seed + 2), scheduler=scheduler)


def dit(seed=700, num_classes=10):
    """A class-conditional DiT with learned variance; the null class is 1000, as in diffusers."""
    module = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=16,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    names = {str(k): f"class {k}" for k in range(num_classes)}
    return DiTPipeline(
        transformer=stir(module, seed + 2),
        vae=vae(seed=seed + 3),
        scheduler=DDIMScheduler(clip_sample=False),
        id2label={int(k): v for k, v in names.items()},
    )


BUILDERS = {
    "sd1": sd1,
    "sd2": sd2,
    "bert_sd": bert_sd,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "ddpm": ddpm,
    "dit": dit,
}


def build(name):
    """Build one tiny pipeline by name, with progress bars off."""
    from tests import tiny_flows  # it is made of what stands above

    with seeded(0):
        pipeline = (BUILDERS | tiny_flows.BUILDERS)[name]()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


_KEPT = []  # temporary folders live as long as the process


@functools.cache
def folder(name):
    """Save one tiny pipeline and return its folder; built once in a process, never changed."""
    kept = tempfile.TemporaryDirectory(prefix="tiny-")
    _KEPT.append(kept)
    path = Path(kept.name) / name
    build(name).save_pretrained(path)
    return path


def copy_of(name, target):
    """Copy a tiny pipeline's folder to ``target``, for tests that damage it."""
    return Path(shutil.copytree(folder(name), target))
