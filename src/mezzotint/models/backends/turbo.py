"""Turbo: a copy of a model that trades bits for speed, weights shared where they can be.

On OpenVINO its denoiser and decoder compute in bfloat16 where the processor multiplies that
fast, else in int8, if pictures drawn that way stay close enough to float32; U-Nets and
transformers over latents can reuse what they found before. On CUDA float32 networks compute in
bfloat16. Text encoders are never touched: they run once per prompt, and their answers are
shared with the other tiers.

Dimensions: R rows, C latent channels, h and w latent rows and columns.
"""

import contextlib
import copy
import hashlib
import json
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from mezzotint.models.backends.block_cache import short_call, whole_call
from mezzotint.models.backends.eight_bits import eight_bit_network
from mezzotint.models.backends.int8_trial import (
    decibels,
    draw,
    encode,
    finish,
    is_large,
    try_int8,
)
from mezzotint.models.backends.openvino_backend import OpenVINONetwork
from mezzotint.models.backends.processor import BFLOAT16, INT8, INT8_NARROW
from mezzotint.models.backends.quantized import Int8Network, Ranges, keep, recall, remember
from mezzotint.models.backends.step_cache import (
    StepCacheNetwork,
    call_outer,
    call_whole,
)
from mezzotint.models.base import Model, Network
from mezzotint.models.networks import TorchNetwork, copy_layers
from mezzotint.observe import log
from mezzotint.observe.interruption import Study
from mezzotint.vocabulary import EIGHT_BITS, FULL_PRECISION, LEAST_DB

__all__ = ["turbo_view"]

_FORMAT = 5


def turbo_view(
    model: Model,
    *,
    cache: Path | None,
    step_cache: bool,
    precision: str = INT8,
    quantize: str = "none",
    learns: bool = False,
) -> Model:
    """Return the fast copy of a model with steps.

    Whether a large network may compute in int8 takes minutes to find out, and nobody waits for
    that at the first picture: until it is known the copy computes in float32, and its notes say
    so. Where nobody learns, the start after the first finds it out before it draws.

    Args:
        model: The model on its backend; stays as it is.
        cache: Folder of ranges, or None to find them again in every process.
        step_cache: Whether its denoiser can be called in two parts.
        precision: What OpenVINO computes in, of :mod:`mezzotint.models.backends.processor`.
        quantize: What linear layers of a denoiser in torch compute in, see
            :mod:`mezzotint.models.backends.eight_bits`.
        learns: Whether somebody calls :attr:`Model.study` of the copy while nobody waits; what
            comes of it is used by the copy that is made after that.
    """
    view = copy.deepcopy(model)  # networks share themselves
    if quantize != "none":
        view.notes += _use_eight_bits(model, view, quantize, cache, can_draw=bool(precision))
    network = view.networks.get("denoiser")
    in_two = _in_two(network) if step_cache and network is not None else ()
    found: dict[str, Any] = {}
    if precision != BFLOAT16 and isinstance(network, OpenVINONetwork):
        drawing = copy.deepcopy(model)
        if in_two:  # one export serves to find the ranges and to draw
            drawing.use_network("denoiser", in_two[0])
        found = _find(view, drawing, _place(model, cache, precision), precision, learns=learns)
    good = found.get("decibels", 0.0) >= LEAST_DB["turbo"]
    for role in ("denoiser", "decoder"):
        network = view.networks.get(role)
        ranges: Ranges = found.get(role, {}) if good else {}
        if role == "denoiser" and in_two:
            parts = [_lowered(n, ranges, precision) for n in in_two]
            view.use_network(role, StepCacheNetwork(*parts))
            if network is not model.networks[role] and isinstance(parts[0], TorchNetwork):
                parts[0].num_bytes = getattr(network, "num_bytes", 0)  # its module is of no other
        elif network is not None:
            view.use_network(role, _lowered(network, ranges, precision))
    model.fast_networks = dict(view.networks)
    if found and not good:
        view.notes += (f"{FULL_PRECISION}: int8 came only within {found['decibels']:.1f} dB",)
    return view


def _place(model: Model, cache: Path | None, precision: str) -> Path | None:
    """Return the file of a model's ranges; None where there is no place for one."""
    if cache is None or not model.spec.digest:
        return None
    versions = [metadata.version(name) for name in ("openvino", "torch")]
    words = json.dumps([_FORMAT, model.spec.digest, precision, *versions])
    return cache / f"{hashlib.sha256(words.encode()).hexdigest()[:40]}.int8.json"


def _find(
    view: Model, drawing: Model, path: Path | None, precision: str, *, learns: bool
) -> dict[str, Any]:
    """Return what is known of int8, found out now where that is quick or was put off before.

    Args:
        view: The copy; told what it does without, and how to learn it.
        drawing: One of whom nobody else needs the networks, to draw with.
        path: See :func:`_place`.
        precision: Of int8.
        learns: See :func:`turbo_view`.

    Returns:
        Ranges by role and decibels; nothing where they are not known yet.
    """
    found = recall(path) if path is not None else None
    if found is not None:
        return found
    work = try_int8(drawing, precision)
    if path is None or not is_large(drawing):
        return keep(path, finish(work, f"int8 of {drawing.spec.name}"))
    asked = path.with_suffix(".asked")
    if learns:
        view.notes += (f"{FULL_PRECISION}: whether int8 will do is learnt while nobody waits",)
        view.study = Study(work, partial(keep, path)).study
        return {}
    if asked.is_file():
        found = keep(path, finish(work, f"int8 of {drawing.spec.name}"))
        asked.unlink(missing_ok=True)
        return found
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        asked.touch()
    view.notes += (f"{FULL_PRECISION}: whether int8 will do is found out at the next start",)
    return {}


def _use_eight_bits(
    model: Model, view: Model, kind: str, cache: Path | None, *, can_draw: bool
) -> tuple[str, ...]:
    """Let a fast copy's linear layers compute in eight bits if its pictures stay close enough.

    Returns:
        Why they do not, if so.
    """
    network = model.networks.get("denoiser")
    if isinstance(network, OpenVINONetwork):
        reason = "OpenVINO computes in int8 of its own; to have it, set models.backend to torch"
    elif not isinstance(network, TorchNetwork) or network.packed or not can_draw:
        reason = "its denoiser stays as it is"
    else:
        eight = eight_bit_network(network, kind)
        was_built = network.is_built

        def measure() -> dict[str, Any]:
            words, rounded = encode(model), copy.deepcopy(model)
            what = f"{EIGHT_BITS[kind]} of {model.spec.name}"
            exact = finish(draw(copy.deepcopy(model), words), what)
            rounded.use_network("denoiser", eight)
            near = finish(draw(rounded, words, done=0.5), what)
            return {"decibels": decibels(near, exact)}

        found = float(_remembered(model, cache, [kind, metadata.version("torchao")], measure))
        log.info("model.eight_bits", model=model.spec.name, kind=kind, decibels=found)
        if found >= LEAST_DB["turbo"]:
            if not was_built:
                network.let_go()
            view.use_network("denoiser", eight)
            return ()
        return (f"{FULL_PRECISION}: {EIGHT_BITS[kind]} came only within {found:.1f} dB",)
    return (f"quantize {kind} has no effect on {model.spec.name}: {reason}",)


def _remembered(
    model: Model, cache: Path | None, words: list[str], measure: Callable[[], dict[str, Any]]
) -> float:
    """Return decibels that were measured, now or in an earlier process."""
    if cache is None or not model.spec.digest:
        return float(measure()["decibels"])
    text = json.dumps([_FORMAT, model.spec.digest, *words, metadata.version("torch")])
    name = hashlib.sha256(text.encode()).hexdigest()[:40]
    return float(remember(cache / f"{name}.eight_bits.json", measure)["decibels"])


def _in_two(network: Network) -> tuple[Network, Network]:
    """Return a denoiser that hands out what it found, and one that takes it back."""
    source = network.source if isinstance(network, OpenVINONetwork) else network
    assert isinstance(source, TorchNetwork)  # noqa: S101 - step caches are for torch modules
    if "block_out_channels" in source.config:  # of every U-Net
        whole = _recall(network, source, call_whole, num_bytes=source.num_bytes)
        return whole, _recall(network, source, call_outer)
    whole, short = whole_call(source.call), short_call(source.call)
    return (
        _recall(network, source, whole, num_bytes=source.num_bytes),
        _recall(network, source, short, fixes_sizes=True),
    )


def _recall(
    network: Network,
    source: TorchNetwork,
    call: Any,
    *,
    fixes_sizes: bool = False,
    num_bytes: int = 0,
) -> Network:
    """Return a network with the same module and another way to call it.

    Args:
        network: On its backend.
        source: The torch network behind it.
        call: The other way.
        fixes_sizes: Whether what is traced holds for one size.
        num_bytes: Bytes in float32 of the weights that it is likely to use where OpenVINO
            packs them anew; 0 where they are few.
    """
    again = source.like(
        lambda dtype: (
            source.module if dtype == source.dtype else copy_layers(source.module).to(dtype)
        ),
        call=call,
        digest=source.digest and f"{source.digest} {call.__name__}",
    )
    again.fixes_sizes = again.fixes_sizes or fixes_sizes
    if not isinstance(network, OpenVINONetwork):
        return again
    again.lender, again.num_bytes = source, num_bytes  # torch's copy is for tracing alone
    return OpenVINONetwork(again, **network.options)


def _lowered(network: Network, ranges: Ranges, precision: str) -> Network:
    """Return a network in lower precision, or as it is."""
    if isinstance(network, OpenVINONetwork):
        if precision == BFLOAT16:
            options: dict[str, Any] = {**network.options, "precision": "bf16"}
            return OpenVINONetwork(network.source, **options)
        if not ranges:
            return network
        is_narrow = precision == INT8_NARROW
        return Int8Network(network.source, ranges=ranges, is_narrow=is_narrow, **network.options)
    if not isinstance(network, TorchNetwork) or network.device.type != "cuda":
        return network
    if network.dtype != torch.float32 or network.packed:
        return network
    return network.like(
        lambda dtype: copy_layers(network.module).to(dtype),
        dtype=torch.bfloat16,
        num_bytes=network.num_bytes // 2,
        digest=network.digest,
    )
