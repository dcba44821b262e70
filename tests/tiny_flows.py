"""Tiny pipelines of transformers with one text encoder, most of them a language model."""

import warnings
from unittest import mock

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
    QwenImageEditPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tests import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.video_processing_utils import VideoProcessorMixin

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
"""What the chat template of Qwen3 says for one turn of a user."""


def merges(space="\u0120"):
    """Merges of the words that tests use, at the start of a text and behind a space."""
    found = []
    for word in tiny.WORDS:
        for start in ("", space):
            grown = start or word[0]
            for letter in word if start else word[1:]:
                found.append((grown, letter))
                grown += letter
    return list(dict.fromkeys(found))


def qwen_tokenizer(*marks):
    """A byte-level tokenizer of Qwen's kind: 256 bytes, merges for words, marks of turns."""
    tokens = [*tiny.byte_letters(), *map("".join, merges())]
    marks = ["<|im_start|>", "<|im_end|>", *marks]
    tokens += ["<|endoftext|>", *marks]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges(), additional_special_tokens=marks)
    tokenizer.chat_template = CHAT
    return tokenizer


def language(tokenizer, *, width=32, layers=3):
    """The configuration of a tiny language model."""
    return {
        "vocab_size": len(tokenizer.get_vocab()),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
    }


def z_image(seed=800, *, shift=6.0):
    """Z-Image: a Qwen3, one stream, refiners of picture and text."""
    tokenizer = qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=16,
        dim=48,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[8, 8, 8],
        axes_lens=[1024, 64, 64],
    )
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=tiny.vae(16, seed=seed + 3, scaling=0.3611, shift=0.1159, quant=False),
        text_encoder=tiny.stir(Qwen3Model(Qwen3Config(**language(tokenizer))), seed + 1),
        tokenizer=tokenizer,
        transformer=tiny.stir(transformer, seed + 2),
    )


def qwen_image(seed=900):
    """Qwen-Image: a Qwen2.5-VL, two streams, an autoencoder of videos, shift to a terminal."""
    tokenizer = qwen_tokenizer()
    text = language(tokenizer)
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
            "out_hidden_size": 32,
        },
        image_token_id=0, video_token_id=1, vision_start_token_id=2, vision_end_token_id=3,
    )  # fmt: skip
    transformer = QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=16,
        dim_mult=[1, 1, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192,
        shift_terminal=0.02,
    )  # fmt: skip
    return QwenImagePipeline(
        scheduler=scheduler,
        vae=tiny.stir(vae, seed + 3),
        text_encoder=tiny.stir(Qwen2_5_VLForConditionalGeneration(config), seed + 1),
        tokenizer=tokenizer,
        transformer=tiny.stir(transformer, seed + 2),
    )


class NoVideos(VideoProcessorMixin):
    """Stands in for the video processors of Qwen, whose class needs torchvision; nothing here is a video."""

    def __init__(self):
        """Read nothing."""

    def to_dict(self):
        """Say nothing."""
        return {}


def qwen_image_edit(cls=QwenImageEditPipeline, seed=980):
    """Qwen-Image-Edit: Qwen-Image whose Qwen2.5-VL sees the pictures to edit."""
    plain = qwen_image(seed)
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = qwen_tokenizer(*marks)
    names = ("vision_start", "vision_end", "image", "video")
    ids = zip(names, tokenizer.convert_tokens_to_ids(marks), strict=True)
    config = Qwen2_5_VLConfig(
        text_config=language(tokenizer)
        | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        vision_config=plain.text_encoder.config.vision_config.to_dict(),
        **{f"{name}_token_id": id_ for name, id_ in ids},
    )
    with mock.patch.object(Qwen2_5_VLProcessor, "check_argument_for_proper_class"):
        processor = Qwen2_5_VLProcessor(
            image_processor=Qwen2VLImageProcessorPil(),
            tokenizer=tokenizer,
            video_processor=NoVideos(),
            chat_template=CHAT,
        )
    text_encoder = tiny.stir(Qwen2_5_VLForConditionalGeneration(config), seed + 1)
    return cls(
        scheduler=plain.scheduler, vae=plain.vae, text_encoder=text_encoder,
        tokenizer=tokenizer, processor=processor, transformer=plain.transformer,
    )  # fmt: skip


SEEN = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{{ c['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
)
"""What the chat template of Qwen3-VL says for messages of text."""


def qwen_image_21(seed=950, *, sample_sigmas=None, causal=True):
    """Qwen-Image 2.1: a Qwen3-VL that sees pictures, one stream, colours with opacity."""
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = qwen_tokenizer(*marks)
    start, end, image, video = tokenizer.convert_tokens_to_ids(marks)
    text = language(tokenizer)
    text["rope_parameters"] = {
        "rope_type": "default", "rope_theta": 5000000.0, "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    }  # fmt: skip
    config = Qwen3VLConfig(
        text_config=text,
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
            "out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
        },
        image_token_id=image, video_token_id=video, vision_start_token_id=start,
        vision_end_token_id=end,
    )  # fmt: skip
    colours = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 16}
    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 1024, "longest_edge": 1 << 24}, **colours
    )
    with mock.patch.object(Qwen3VLProcessor, "check_argument_for_proper_class"):
        processor = Qwen3VLProcessor(
            image_processor=images,
            tokenizer=tokenizer,
            video_processor=NoVideos(),
            chat_template=SEEN,
        )
    transformer = QwenImage21Transformer2DModel(
        in_channels=8, out_channels=8, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, context_in_dim=32, axes_dims_rope=(4, 6, 6),
        causal_condition=causal,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    vae = AutoencoderKLQwenImage21(
        base_dim=4, decoder_base_dim=4, z_dim=8, dim_mult=[1, 1, 1, 2, 2], num_res_blocks=1,
        latents_mean=(0.3 * torch.randn(8, generator=generator)).tolist(),
        latents_std=(0.5 + torch.rand(8, generator=generator)).tolist(),
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192,
        shift_terminal=0.02,
    )  # fmt: skip
    return QwenImage21Pipeline(
        scheduler=scheduler,
        vae=tiny.stir(vae, seed + 3),
        text_encoder=tiny.stir(Qwen3VLForConditionalGeneration(config), seed + 1),
        processor=processor,
        transformer=tiny.stir(transformer, seed + 2),
        sample_sigmas=sample_sigmas,
    )


def flux2_klein(seed=1000, *, is_distilled=False):
    """FLUX.2 Klein: three layers of a Qwen3, two streams and one, patches with statistics."""
    tokenizer = qwen_tokenizer()
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    generator = torch.Generator().manual_seed(seed)
    vae.bn.running_mean.copy_(0.3 * torch.randn(16, generator=generator))
    vae.bn.running_var.copy_(0.5 + torch.rand(16, generator=generator))
    text = Qwen3Config(**language(tokenizer, width=16, layers=28))
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=tiny.stir(vae, seed + 3),
        text_encoder=tiny.stir(Qwen3ForCausalLM(text), seed + 1),
        tokenizer=tokenizer,
        transformer=tiny.stir(transformer, seed + 2),
        is_distilled=is_distilled,
    )


TEKKEN = (
    "{{ bos_token }}{% for m in messages %}{% set text = m['content'][0]['text'] %}"
    "{% if m['role'] == 'system' %}[SYSTEM_PROMPT]{{ text }}[/SYSTEM_PROMPT]"
    "{% else %}[INST]{{ text }}[/INST]{% endif %}{% endfor %}"
)
"""What the chat template of Mistral Small 3 says for a system message and one turn of a user."""


def mistral_tokenizer():
    """A byte-level tokenizer of Mistral's kind, which fills up in front."""
    marks = ["<pad>", "<s>", "</s>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"]
    tokens = [*marks, *tiny.byte_letters(), *map("".join, merges())]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges()))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        padding_side="left", chat_template=TEKKEN, additional_special_tokens=marks[3:],
    )  # fmt: skip


def flux2_dev(seed=1100):
    """FLUX.2 [dev]: three layers of a Mistral 3, guidance as an input of the network."""
    tokenizer = mistral_tokenizer()
    klein = flux2_klein(seed)
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=48, timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4), guidance_embeds=True,
    )  # fmt: skip
    config = Mistral3Config(
        text_config={"model_type": "mistral", **language(tokenizer, width=16, layers=31)},
        vision_config={
            "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8, "image_size": 28,
            "patch_size": 14,
        },
        image_token_index=3,
    )  # fmt: skip
    return Flux2Pipeline(
        scheduler=klein.scheduler,
        vae=klein.vae,
        text_encoder=tiny.stir(Mistral3ForConditionalGeneration(config), seed + 1),
        tokenizer=tokenizer,
        transformer=tiny.stir(transformer, seed + 2),
    )


def chroma(seed=1200):
    """Chroma: a T5, two streams and one, a network that makes their modulations."""
    tokenizer = tiny.t5_tokenizer()
    with warnings.catch_warnings():  # of a class that diffusers itself uses
        warnings.simplefilter("ignore", FutureWarning)
        transformer = ChromaTransformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(4, 4, 8),
            approximator_num_channels=8, approximator_hidden_dim=16, approximator_layers=1,
        )  # fmt: skip
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=tiny.vae(4, seed=seed + 3, scaling=0.3611, shift=0.1159, quant=False),
        text_encoder=tiny.t5_text(tokenizer, seed=seed + 1),
        tokenizer=tokenizer,
        transformer=tiny.stir(transformer, seed + 2),
    )


def gemma_tokenizer():
    """A tokenizer of Gemma's kind: letters, bytes for others, a mark that begins a text."""
    joined = merges("\u2581")
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", "\n"]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += [chr(code) for code in range(33, 127)] + list(map("".join, joined))
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return GemmaTokenizer(vocab=vocab, merges=joined, add_bos_token=True)


def gemma(tokenizer, seed):
    """A tiny Gemma 2 without a head."""
    config = Gemma2Config(**language(tokenizer), query_pre_attn_scalar=8)
    return tiny.stir(Gemma2Model(config), seed)


def lumina2(seed=1300):
    """Lumina 2: a Gemma 2, one stream in which several queries share keys, shift 6."""
    tokenizer = gemma_tokenizer()
    transformer = Lumina2Transformer2DModel(
        sample_size=16, in_channels=4, hidden_size=32, num_layers=2, num_refiner_layers=1,
        num_attention_heads=4, num_kv_heads=2, multiple_of=16, axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 64, 64), cap_feat_dim=32,
    )  # fmt: skip
    return Lumina2Pipeline(
        transformer=tiny.stir(transformer, seed + 2),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=tiny.vae(4, levels=4, seed=seed + 3, scaling=0.3611, shift=0.1159, quant=False),
        text_encoder=gemma(tokenizer, seed + 1),
        tokenizer=tokenizer,
    )


def sana(seed=1400):
    """Sana: a Gemma 2, linear attention, a deep compression autoencoder, DPM++ over a flow."""
    tokenizer = gemma_tokenizer()
    transformer = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16,
        caption_channels=32, sample_size=16,
    )  # fmt: skip
    levels = ("ResBlock", "ResBlock", "EfficientViTBlock")
    vae = AutoencoderDC(
        latent_channels=4, attention_head_dim=4, encoder_block_types=levels,
        decoder_block_types=levels, encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16), encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1), encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)), upsample_block_type="interpolate",
        downsample_block_type="conv", scaling_factor=0.41407,
    )  # fmt: skip
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=gemma(tokenizer, seed + 1),
        vae=tiny.stir(vae, seed + 3),
        transformer=tiny.stir(transformer, seed + 2),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


def pixart_sigma(seed=1500, *, kind=PixArtSigmaPipeline, sample_size=32, is_told_size=False):
    """PixArt-Sigma: a masked T5, cross attention, a learned variance, DPM++."""
    tokenizer = tiny.t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=8,
        num_layers=2, cross_attention_dim=24, sample_size=sample_size, caption_channels=32,
        use_additional_conditions=is_told_size,
    )  # fmt: skip
    return kind(
        tokenizer=tokenizer,
        text_encoder=tiny.t5_text(tokenizer, seed=seed + 1),
        vae=tiny.vae(seed=seed + 3, scaling=0.13025),
        transformer=tiny.stir(transformer, seed + 2),
        scheduler=DPMSolverMultistepScheduler(),
    )


def pixart_alpha(seed=1600):
    """PixArt-Alpha of 1024 px: as Sigma, 120 tokens, told the size of the picture."""
    return pixart_sigma(seed, kind=PixArtAlphaPipeline, sample_size=128, is_told_size=True)


BUILDERS = {
    "chroma": chroma,
    "flux2_dev": flux2_dev,
    "flux2_klein": flux2_klein,
    "lumina2": lumina2,
    "pixart_alpha": pixart_alpha,
    "pixart_sigma": pixart_sigma,
    "qwen_image": qwen_image,
    "qwen_image_21": qwen_image_21,
    "sana": sana,
    "z_image": z_image,
}

UNBINNED = {"use_resolution_binning": False}
"""What makes a pipeline draw the size that it is asked for."""
