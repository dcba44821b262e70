"""Qwen-Image: two streams of packed patches and text, a Qwen2.5-VL that reads the prompt.

Guidance is that of the pipeline: what is guided keeps, token by token, the length that the
prompt alone gives.

Dimensions: R rows, C latent channels, h and w latent rows and columns, S picture tokens
(h/2 * w/2), T text tokens, H heads, d features of a head.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.models.families.common import BLOCK_RESIDUAL, block_residuals
from mezzotint.models.families.flows.language import call_layers, language_model
from mezzotint.models.families.flows.model import TEXT_MASK, TEXT_STATES, FlowFamily
from mezzotint.models.families.flows.rotary import attend, turn, turns_of
from mezzotint.models.families.flux import pack, unpack
from mezzotint.models.parts import Parts

__all__ = ["QWEN_IMAGE", "call_qwen_image", "use_real_turns"]

PATCH = 2
TIME_SCALE = 1000.0  # the network multiplies its timestep by this


def call_qwen_image(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call a QwenImageTransformer2DModel with unpacked latents (R, C, h, w)."""
    sample = inputs["sample"]
    height, width = sample.shape[-2:]
    blocks = len(module.transformer_blocks)
    output = module(
        hidden_states=pack(sample),
        timestep=inputs["timestep"] / TIME_SCALE,
        encoder_hidden_states=inputs[TEXT_STATES],
        encoder_hidden_states_mask=inputs[TEXT_MASK],
        img_shapes=[[(1, int(height) // PATCH, int(width) // PATCH)]],
        controlnet_block_samples=block_residuals(inputs, BLOCK_RESIDUAL, blocks),
        return_dict=False,
    )
    return (unpack(output[0], height, width),)


class _Places(nn.Module):
    """What diffusers' QwenEmbedRope answers, in real numbers, for one picture.

    Rows and columns are counted from the middle of the picture, text from its edge on.
    """

    def __init__(self, theta: float, widths: Sequence[int]) -> None:
        super().__init__()
        self._theta, self._widths = theta, widths

    def forward(
        self,
        video_fhw: Sequence[Sequence[tuple[int, int, int]]],
        device: torch.device | None = None,
        max_txt_seq_len: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Return the turns of picture and text tokens. Shapes (S, d / 2, 2), (T, d / 2, 2)."""
        _, rows, columns = video_fhw[0][0]
        y = torch.arange(rows, device=device) - (rows - rows // 2)
        x = torch.arange(columns, device=device) - (columns - columns // 2)
        grid = torch.stack(
            [y.new_zeros(rows, columns), y[:, None].expand(rows, columns), x.expand(rows, columns)],
            dim=-1,
        )
        text = torch.arange(int(max_txt_seq_len), device=device) + max(rows // 2, columns // 2)
        turns = [
            turns_of(places, theta=self._theta, widths=self._widths)
            for places in (grid.reshape(-1, 3), text[:, None].expand(-1, 3))
        ]
        return turns[0], turns[1]


class _Attention:
    """What diffusers' QwenDoubleStreamAttnProcessor2_0 does: text and picture in one sequence."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        *,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert image_rotary_emb is not None  # noqa: S101 - _Places answers it
        picture = _heads(attn, hidden_states, "to_q", "to_k", "to_v")
        text = _heads(attn, encoder_hidden_states, "add_q_proj", "add_k_proj", "add_v_proj")
        norms = ((attn.norm_q, attn.norm_k), (attn.norm_added_q, attn.norm_added_k))
        for heads, (norm_q, norm_k), turns in zip(
            (picture, text), norms, image_rotary_emb, strict=True
        ):
            heads[0] = turn(heads[0] if norm_q is None else norm_q(heads[0]), turns)
            heads[1] = turn(heads[1] if norm_k is None else norm_k(heads[1]), turns)
        query, key, value = (torch.cat(pair, dim=1) for pair in zip(text, picture, strict=True))
        tokens = hidden_states[..., 0]
        shown = torch.cat([encoder_hidden_states_mask, torch.ones_like(tokens).bool()], dim=1)
        joint = attend(query, key, value, shown)
        length = encoder_hidden_states.shape[1]
        answer = attn.to_out[0](joint[:, length:].contiguous())
        return answer, attn.to_add_out(joint[:, :length].contiguous())


def _heads(attn: Any, states: Tensor, *names: str) -> list[Tensor]:
    width = attn.inner_dim // attn.heads
    return [getattr(attn, name)(states).unflatten(-1, (-1, width)) for name in names]


def use_real_turns(module: Any) -> None:
    """Let the module count and take positions as real numbers."""
    embedder = module.pos_embed
    module.pos_embed = _Places(float(embedder.theta), tuple(embedder.axes_dim))
    for block in module.transformer_blocks:
        block.attn.set_processor(_Attention())


def _defaults(parts: Parts) -> dict[str, Any]:
    """Return steps and guidance of the model card."""
    return {"default_steps": 50, "default_guidance_scale": 4.0}


QWEN_IMAGE = FlowFamily(
    family="qwen-image",
    call=call_qwen_image,
    prepare=use_real_turns,
    text=language_model("qwen-image", call_layers(-1)),
    defaults=_defaults,
    side_px=1328,
    takes_controls=True,
    guidance_norm_block=(0, PATCH, PATCH),
)
