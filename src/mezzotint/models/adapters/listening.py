"""Listening: how the layers of a denoiser hear pictures beside the text, while one call runs.

Each layer that listens keeps its queries and asks them again of the pictures' keys and
values; ``scale`` times what these answer is added where the family was trained to add it. All of
that is hooks, row by row: base weights are not changed, and a row's answer does not depend on
its neighbours.

Dimensions: R rows, T tokens, D width of the text, L positions, H heads, d features of a head.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Heard", "JointVoice", "Linear", "Listener", "Pair", "Voice", "listeners"]


class Voice(Protocol):
    """What an IP-Adapter says to one layer."""

    @property
    def inner(self) -> int:
        """Width of the queries that it answers."""
        ...

    @property
    def num_bytes(self) -> int:
        """Bytes of its weights."""
        ...

    def answer(self, asked: tuple[Tensor, ...], states: tuple[Tensor, ...]) -> Tensor:
        """Return what a row's pictures answer.

        Args:
            asked: The layer's own of the row: queries, and whatever else its kind keeps.
            states: The row's tokens (1, T, D), and whatever else belongs to them.

        Returns:
            Shape (1, L, H d).
        """
        ...


class Linear(NamedTuple):
    """A linear map: weight (inner, D) and bias (inner,), or None."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, states: Tensor) -> Tensor:
        """Apply it, in the type of the states."""
        bias = None if self.bias is None else self.bias.to(states)
        return functional.linear(states, self.weight.to(states), bias)


class Pair(NamedTuple):
    """Keys and values of its own: the voice to a cross attention, or a double block of FLUX."""

    key: Linear
    value: Linear

    @property
    def inner(self) -> int:
        """Width of the queries that it answers."""
        return int(self.key.weight.shape[0])

    @property
    def num_bytes(self) -> int:
        """Bytes of its weights."""
        found = (one for linear in self for one in linear)
        return sum(4 * tensor.numel() for tensor in found if tensor is not None)

    def answer(self, asked: tuple[Tensor, ...], states: tuple[Tensor, ...]) -> Tensor:
        """Answer queries (1, H, L, d); see :class:`Voice`."""
        (query,), (tokens,) = asked, states
        heads, seen = query.shape[1], tokens.to(device=query.device, dtype=query.dtype)
        found = functional.scaled_dot_product_attention(
            query, _split(self.key(seen), heads), _split(self.value(seen), heads)
        )
        return found.transpose(1, 2).flatten(2)


class JointVoice:
    """The voice to a joint attention of Stable Diffusion 3: pictures beside the picture's own.

    Args:
        module: diffusers' SD3IPAdapterJointAttnProcessor2_0, whose layers it is.
    """

    def __init__(self, module: Any) -> None:
        self._module = module

    @property
    def inner(self) -> int:
        """Width of the queries that it answers."""
        return int(self._module.to_k_ip.out_features)

    @property
    def num_bytes(self) -> int:
        """Bytes of its weights."""
        return sum(4 * one.numel() for one in self._module.parameters())

    def answer(self, asked: tuple[Tensor, ...], states: tuple[Tensor, ...]) -> Tensor:
        """Answer queries, keys and values (1, L, H d) of a picture; see :class:`Voice`.

        Source: Stable Diffusion 3.5's IP-Adapter as diffusers has it.
        """
        query, key, value = asked
        module = self._module.to(device=query.device)
        tokens, moment = (one.to(query.device) for one in states)
        width = module.norm_q.weight.shape[0]
        heads = query.shape[-1] // width
        heard = module.norm_ip(tokens, temb=moment)
        own, keys, values = (_split(one.float(), heads) for one in (query, key, value))
        keys = [module.norm_k(keys), module.norm_ip_k(_split(module.to_k_ip(heard), heads))]
        values = [values, _split(module.to_v_ip(heard), heads)]
        found = functional.scaled_dot_product_attention(
            module.norm_q(own), torch.cat(keys, dim=2), torch.cat(values, dim=2)
        )
        return found.transpose(1, 2).flatten(2)


class Heard(NamedTuple):
    """What one layer hears in a call.

    Args:
        voices: Of each adapter.
        scales: For each row one scale per adapter.
        states: Of each adapter, for each row; see :class:`Voice`. None where a scale is 0.
    """

    voices: Sequence[Voice]
    scales: Sequence[Sequence[float]]
    states: Sequence[Sequence[tuple[Tensor, ...] | None]]

    def answer(self, row: int, asked: tuple[Tensor, ...]) -> Tensor | None:
        """Return what the pictures answer to a row, scaled; None for nothing. Shape (1, L, W)."""
        total: Tensor | None = None
        for voice, scale, states in zip(self.voices, self.scales[row], self.states, strict=True):
            own = states[row]
            if scale and own is not None:
                found = scale * voice.answer(asked, own)
                total = found if total is None else total + found
        return total


class Listener(Protocol):
    """A layer that can listen."""

    @property
    def inner(self) -> int:
        """Width of its queries."""
        ...

    def listen(self, heard: Heard, stack: ExitStack) -> None:
        """Let it listen until the stack is left."""
        ...


def listeners(module: Any) -> list[Listener]:
    """Return the layers of a denoiser that listen, in the order that IP-Adapters number them."""
    if hasattr(module, "single_transformer_blocks"):
        return [_DoubleBlock(block) for block in module.transformer_blocks]
    names = [name.removesuffix(".processor") for name in module.attn_processors]
    if hasattr(module, "context_embedder"):
        return [_JointAttention(module.get_submodule(name)) for name in names]
    layers = [module.get_submodule(name) for name in names if not name.endswith("attn1")]
    return [_CrossAttention(layer) for layer in layers]


class _CrossAttention:
    """A cross attention of a U-Net: pictures are added before its output layer."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    @property
    def inner(self) -> int:
        return int(self._layer.to_q.out_features)

    def listen(self, heard: Heard, stack: ExitStack) -> None:
        queries: list[Tensor] = []
        owner = threading.get_ident()  # another thread may be in the same layers, without pictures

        def remember(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if threading.get_ident() == owner:
                queries[:] = [output]

        def add(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if threading.get_ident() != owner:
                return inputs
            query = _split(queries[0], self._layer.heads)
            return (_added(inputs[0], (query,), heard), *inputs[1:])

        stack.callback(self._layer.to_q.register_forward_hook(remember).remove)
        stack.callback(self._layer.to_out[0].register_forward_pre_hook(add).remove)


class _DoubleBlock:
    """A double block of FLUX: pictures are added behind it, to queries without positions."""

    def __init__(self, block: Any) -> None:
        self._block = block

    @property
    def inner(self) -> int:
        return int(self._block.attn.to_q.out_features)

    def listen(self, heard: Heard, stack: ExitStack) -> None:
        queries: list[Tensor] = []
        owner = threading.get_ident()

        def remember(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if threading.get_ident() == owner:
                queries[:] = [output]

        def add(
            _module: nn.Module, _inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]
        ) -> tuple[Tensor, Tensor]:
            if threading.get_ident() != owner:
                return output
            text, picture = output
            return text, _added(picture, (queries[0].transpose(1, 2),), heard)

        stack.callback(self._block.attn.norm_q.register_forward_hook(remember).remove)
        stack.callback(self._block.register_forward_hook(add).remove)


class _JointAttention:
    """A joint attention of Stable Diffusion 3: pictures are added before its output layer."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    @property
    def inner(self) -> int:
        return int(self._layer.to_q.out_features)

    def listen(self, heard: Heard, stack: ExitStack) -> None:
        kept: dict[str, Tensor] = {}
        owner = threading.get_ident()

        def remember(name: str) -> Callable[..., None]:
            def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
                if threading.get_ident() == owner:
                    kept[name] = output

            return keep

        def add(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if threading.get_ident() != owner:
                return inputs
            return (_added(inputs[0], (kept["q"], kept["k"], kept["v"]), heard), *inputs[1:])

        for name in ("q", "k", "v"):
            layer = getattr(self._layer, f"to_{name}")
            stack.callback(layer.register_forward_hook(remember(name)).remove)
        stack.callback(self._layer.to_out[0].register_forward_pre_hook(add).remove)


def _added(hidden: Tensor, asked: tuple[Tensor, ...], heard: Heard) -> Tensor:
    """Add to each row what its pictures answer to what it asked. (R, L, W) -> (R, L, W)."""
    rows: list[Tensor] = []
    for row in range(len(hidden)):
        own = hidden[row : row + 1]
        answer = heard.answer(row, tuple(one[row : row + 1] for one in asked))
        rows.append(own if answer is None else own + answer.to(own.dtype))
    return torch.cat(rows)


def _split(states: Tensor, heads: int) -> Tensor:
    """Split the width over heads: (R, L, W) to (R, H, L, W / H)."""
    return torch.unflatten(states, 2, (heads, -1)).transpose(1, 2)
