"""Qwen-Image 2.1: one stream of text, pictures to edit and the picture, read by a Qwen3-VL.

Text sees what stands before it, a picture itself and what stands before it; the picture that
is drawn stands last. Text and pictures to edit are modulated as what is clean, whatever the
noise level. Each row counts its places by its own text, so that what fills a text up moves
nothing.

Its autoencoder has colours and opacity: pictures come in opaque, and what comes out is laid
on white (see ``autoencoder.py``).

Dimensions: R rows, C latent channels, h and w latent rows and columns, T text tokens, K
pictures to edit, S tokens of all, H heads, d features of a head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from mezzotint.models.families.flows.language import call_layers
from mezzotint.models.families.flows.model import (
    PICTURE_PLACES,
    REFERENCE,
    TEXT_MASK,
    TEXT_STATES,
    FlowFamily,
)
from mezzotint.models.families.flows.rotary import attend, turn, turns_of
from mezzotint.models.families.flows.seeing import fit_picture, seeing_model
from mezzotint.models.parts import Parts

__all__ = ["QWEN_IMAGE_2", "call_qwen_image_2", "use_rows_of_their_own"]

TIME_SCALE = 1000.0  # the network multiplies its timestep by this
STEPS = 40


@dataclass(frozen=True, slots=True)
class _Sight:
    """Which tokens see which: text first, then pictures to edit, the picture last.

    Args:
        counts: Tokens of the text, of each picture to edit, and of the picture.
        text: What text sees of text and pictures to edit. Shape (R, 1, T, S'), bool.
        before: What each picture to edit sees of the text. Each of shape (R, T), bool.
        shown: Which tokens the picture sees. Shape (R, S), bool.
    """

    counts: tuple[int, ...]
    text: Tensor
    before: tuple[Tensor, ...]
    shown: Tensor

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Let every token look at what it may. (R, S, H, d) -> (R, S, H d)."""
        parts = torch.split(query, list(self.counts), dim=1)
        end = self.text.shape[-1]
        heads = (x.transpose(1, 2) for x in (parts[0], key[:, :end], value[:, :end]))
        told = scaled_dot_product_attention(*heads, attn_mask=self.text)
        found, end = [told.transpose(1, 2).flatten(2)], self.counts[0]
        for part, before in zip(parts[1:-1], self.before, strict=True):
            end += part.shape[1]
            pictures = torch.ones_like(key[:, before.shape[1] : end, 0, 0]).bool()
            shown = torch.cat([before, pictures], dim=1)
            found.append(attend(part, key[:, :end], value[:, :end], shown))
        found.append(attend(parts[-1], key, value, self.shown))
        return torch.cat(found, dim=1)


class _Attention:
    """What diffusers' QwenImage21AttnProcessor does, for rows with texts of different length."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        *,
        attention_mask: _Sight,
        rotary_emb: Tensor,
        **_: Any,
    ) -> Tensor:
        width = attn.inner_dim // attn.heads
        query, key, value = (
            layer(hidden_states).unflatten(-1, (-1, width))
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        query = turn(attn.norm_q(query).to(value.dtype), rotary_emb)
        key = turn(attn.norm_k(key).to(value.dtype), rotary_emb)
        return attn.to_out[0](attention_mask.attend(query, key, value))


def use_rows_of_their_own(module: Any) -> None:
    """Let the module's layers look as :class:`_Sight` says."""
    for block in module.transformer_blocks:
        block.attn.set_processor(_Attention())


def call_qwen_image_2(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call a QwenImage21Transformer2DModel with latents (R, C, h, w) and those of references."""
    sample, mask = inputs["sample"], inputs[TEXT_MASK]
    references = [inputs[name] for name in sorted(inputs) if name.startswith(REFERENCE)]
    pictures = [*references, sample]
    states = torch.cat(
        [
            module.txt_in(inputs[TEXT_STATES]),
            *(module.img_in(picture.flatten(2).transpose(1, 2)) for picture in pictures),
        ],
        dim=1,
    )
    read = inputs.get(PICTURE_PLACES, mask[:, :0].long())  # text tokens before each of them
    places = _places(mask, read, pictures)
    embedder = module.pos_embed
    turns = turns_of(places, theta=float(embedder.theta), widths=tuple(embedder.axes_dim))
    count = sample.shape[-2] * sample.shape[-1]
    time = (inputs["timestep"] / TIME_SCALE).to(states.dtype)
    is_drawn = None
    if module.config.causal_condition:
        time = torch.cat([time, time.new_zeros(1)])
        is_drawn = torch.arange(states.shape[1], device=mask.device) >= states.shape[1] - count
    embedded = module.time_text_embed(time, states)
    modulation = module.modulation(embedded)
    sight = _sight(mask, read, pictures)
    for block in module.transformer_blocks:
        states = block(
            hidden_states=states,
            modulation=modulation,
            rotary_emb=turns,
            attention_mask=sight,
            target_token_mask=is_drawn,
        )
    last = None if is_drawn is None else is_drawn[-count:]
    answer = module.proj_out(module.norm_out(states[:, -count:], embedded, last))
    return (answer.transpose(1, 2).reshape(sample.shape),)


def _places(mask: Tensor, read: Tensor, pictures: Sequence[Tensor]) -> Tensor:
    """Return time, row and column of each token: one time for a picture, which takes its side.

    Args:
        mask: Which tokens are text. Shape (R, T).
        read: Text tokens before each picture to edit. Shape (R, K).
        pictures: Latents of those and of the picture, K + 1.

    Returns:
        Shape (R, S, 3).
    """
    index = torch.arange(mask.shape[1], device=mask.device) + torch.zeros_like(mask.long())
    text, passed, found = index, 0, list[Tensor]()
    for k, picture in enumerate(pictures):
        is_drawn = k == len(pictures) - 1
        begins = mask.long().sum(dim=1, keepdim=True) if is_drawn else read[:, k : k + 1]
        found.append(_grid(begins + passed, picture))
        if not is_drawn:
            side = max(picture.shape[-2:])
            text = text + (index >= begins) * side
            passed += side
    return torch.cat([text[..., None].expand(-1, -1, 3), *found], dim=1)


def _grid(time: Tensor, picture: Tensor) -> Tensor:
    """Return the places of a picture's tokens, counted from its middle. (R, 1) -> (R, h w, 3)."""
    height, width = picture.shape[-2:]
    y = torch.arange(height, device=time.device) - (height - height // 2)
    x = torch.arange(width, device=time.device) - (width - width // 2)
    grid = [torch.zeros_like(y)[:, None] + x * 0, y[:, None] + x * 0, y[:, None] * 0 + x]
    level, rows, columns = (axis.reshape(1, -1) for axis in grid)
    none = torch.zeros_like(time)  # of as many rows as there are when it is run
    return torch.stack([time + level, none + rows, none + columns], dim=-1)


def _sight(mask: Tensor, read: Tensor, pictures: Sequence[Tensor]) -> _Sight:
    """Return which tokens see which; what fills a text up is seen by nothing before it."""
    length = mask.shape[1]
    counts = [picture.shape[-2] * picture.shape[-1] for picture in pictures]
    index = torch.arange(length, device=mask.device)
    causal = (index[:, None] >= index) & torch.ones_like(mask)[..., None]
    behind = [
        (index >= read[:, k : k + 1])[..., None] & torch.ones(count, device=mask.device).bool()
        for k, count in enumerate(counts[:-1])
    ]
    pictured = [torch.ones_like(picture[:, 0].flatten(1)).bool() for picture in pictures]
    return _Sight(
        counts=(length, *counts),
        text=torch.cat([causal, *behind], dim=-1)[:, None],
        before=tuple(index < read[:, k : k + 1] for k in range(len(counts) - 1)),
        shown=torch.cat([mask, *pictured], dim=1),
    )


def _bare(module: Any) -> None:
    """Leave out the norm behind the last layer: the network was trained on what stands before."""
    module.model.language_model.norm = nn.Identity()


def _fit(pixels: Any, multiple: int) -> Tensor:
    """Return a picture to edit as the autoencoder reads it. Shape (1, 3, H, W), in [-1, 1]."""
    array = np.array(fit_picture(pixels, multiple))
    return torch.as_tensor(array).float().movedim(-1, 0)[None] / 255 * 2 - 1


def _defaults(parts: Parts) -> dict[str, Any]:
    """Return steps and guidance of its pipeline: it was made to be drawn without guidance."""
    return {"default_steps": STEPS, "default_guidance_scale": 1.0}


QWEN_IMAGE_2 = FlowFamily(
    family="qwen-image-2",
    call=call_qwen_image_2,
    prepare=use_rows_of_their_own,
    text=seeing_model("qwen-image-2", call_layers(-1), prepare=_bare),
    defaults=_defaults,
    patch=1,
    multiple=2,
    max_references=16,
    fit=_fit,
)
