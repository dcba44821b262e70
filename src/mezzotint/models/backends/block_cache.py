"""Block cache of a transformer: all blocks but the first are skipped where little has changed.

A whole call also hands out what the first block added to the stream of image tokens, and what
all others added. A short call computes the first block alone, adds what the others added the
last time, and tells by how much the first block's own part has changed since. Where that is
much, the row is computed whole after all: each row by its own numbers, whoever shares the call.

Source: first-block cache (ParaAttention, 2024; also in diffusers), after TeaCache
(Liu et al. 2024, arXiv:2411.19108).

Dimensions: R rows, S image tokens, D hidden width.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.models.backends.step_cache import DEEP
from mezzotint.models.networks import Call

__all__ = ["short_call", "whole_call"]

_BLOCKS, _SINGLES, _LAST = "transformer_blocks", "single_transformer_blocks", "norm_out"


def whole_call(call: Call) -> Call:
    """Return a call that also answers what the blocks added, for :func:`short_call`.

    Args:
        call: Of the network, by named tensors; answers its prediction.

    Returns:
        A call that answers the prediction, and the parts of the first block and of all others
        one after the other. Shape (R, 2 S, D).
    """

    def whole(module: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        seen: list[Tensor] = []

        def first(before: Tensor, after: Tensor) -> Tensor:
            seen.extend((after - before, after))
            return after

        def last(stream: Tensor) -> None:
            seen.append(stream)

        (prediction,) = call(_view(module, first, last=last), inputs)
        own, after, end = seen
        return prediction, torch.cat([own, end - after], dim=1)

    return _named(whole, call, "whole")


def short_call(call: Call) -> Call:
    """Return a call of the first block, with what the others added the last time.

    Args:
        call: Of the network, by named tensors; answers its prediction.

    Returns:
        A call that takes :data:`~mezzotint.models.backends.step_cache.DEEP` from a whole call,
        and answers the prediction and by how much the first block's part has changed, as a
        share of what it was. Shape (R, 1).
    """

    def short(module: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        own, rest = inputs[DEEP].chunk(2, dim=1)
        changes: list[Tensor] = []

        def first(before: Tensor, after: Tensor) -> Tensor:
            moved = (after - before - own).abs().mean(dim=(1, 2))
            changes.append(moved / own.abs().mean(dim=(1, 2)))
            return after + rest

        plain = {name: tensor for name, tensor in inputs.items() if name != DEEP}
        (prediction,) = call(_view(module, first, is_short=True), plain)
        return prediction, changes[0][:, None]

    return _named(short, call, "short")


def _named(made: Call, call: Call, how: str) -> Call:
    """Name a call, for the digests of what is compiled from it."""
    made.__name__ = f"{getattr(call, '__name__', 'call')} {how}"  # pyright: ignore
    return made


def _view(
    module: nn.Module,
    first: Callable[[Tensor, Tensor], Tensor],
    *,
    last: Callable[[Tensor], None] | None = None,
    is_short: bool = False,
) -> Any:
    """Return a view of a transformer, over its own layers, that is looked into.

    Args:
        module: Stays as it is; other threads may call it.
        first: Told the stream before and after the first block, answers what goes on.
        last: Told the stream behind all blocks.
        is_short: Whether the other blocks are left out.
    """
    blocks: Any = module.get_submodule(_BLOCKS)
    opened = _replaced(blocks[0], lambda own, given, named: _first(own, given, named, first))
    layers: dict[str, nn.Module] = {
        _BLOCKS: nn.ModuleList([opened, *([] if is_short else blocks[1:])])
    }
    if is_short and hasattr(module, _SINGLES):
        layers[_SINGLES] = nn.ModuleList()
    if last is not None:

        def see(own: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
            last(named["x"] if "x" in named else given[0])
            return own(*given, **named)

        layers[_LAST] = _replaced(module.get_submodule(_LAST), see)
    view = copy.copy(module)
    view.__dict__["_modules"] = {**module.__dict__["_modules"], **layers}
    return view


def _replaced(
    layer: nn.Module, through: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
) -> nn.Module:
    """Return a view of a layer whose calls go through a function."""
    view = copy.copy(layer)
    view.forward = lambda *given, **named: through(layer, given, named)
    return view


def _first(own: Any, given: tuple[Any, ...], named: dict[str, Any], first: Any) -> Any:
    """Call the first block; its answer is the stream, or text and stream."""
    before = named["hidden_states"] if "hidden_states" in named else given[0]
    answer = own(*given, **named)
    if isinstance(answer, tuple):
        return (*answer[:-1], first(before, answer[-1]))
    return first(before, answer)
