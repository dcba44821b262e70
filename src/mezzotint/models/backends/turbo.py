"""Turbo: a copy of a model that trades bits for speed, weights shared where they can be.

On OpenVINO its denoiser and decoder compute in bfloat16 where the processor multiplies that
fast, else in int8, if pictures drawn that way stay close enough to float32; U-Nets and
transformers over latents can reuse what they found before. On CUDA float32 networks compute in
bfloat16. Text encoders are never touched: they run once per prompt, and their answers are
shared with the other tiers.

Dimensions: R rows, C latent channels, h and w latent rows and columns.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mezzotint.models.backends.block_cache import short_call, whole_call
from mezzotint.models.backends.eight_bits import eight_bit_network
from mezzotint.models.backends.mapped import return_memory
from mezzotint.models.backends.openvino_backend import OpenVINONetwork
from mezzotint.models.backends.processor import BFLOAT16, INT8, INT8_NARROW
from mezzotint.models.backends.quantized import Int8Network, Ranges, WatchedNetwork, remember
from mezzotint.models.backends.step_cache import (
    StepCacheNetwork,
    call_outer,
    call_whole,
)
from mezzotint.models.base import Conditioning, Model, Network, Prompt
from mezzotint.models.networks import TorchNetwork, copy_layers
from mezzotint.observe import log
from mezzotint.sampling.latents import make_generator
from mezzotint.sampling.solvers import REGISTERS, advance, plan_table
from mezzotint.vocabulary import EIGHT_BITS, FULL_PRECISION, LEAST_DB

__all__ = ["turbo_view"]

_FORMAT = 4
_ENOUGH_DB = 38.0  # room for what other shortcuts add
_EDGES = (0.0, 0.12, 0.25)  # share of the layers at either end that stay in float32
_PROMPTS = ("a photo of a cat", "two red houses under a blue sky")
_STEPS = 8


def turbo_view(
    model: Model,
    *,
    cache: Path | None,
    step_cache: bool,
    precision: str = INT8,
    quantize: str = "none",
) -> Model:
    """Return the fast copy of a model with steps.

    Args:
        model: The model on its backend; stays as it is.
        cache: Folder of ranges, or None to find them again in every process.
        step_cache: Whether its denoiser can be called in two parts.
        precision: What OpenVINO computes in, of :mod:`mezzotint.models.backends.processor`.
        quantize: What linear layers of a denoiser in torch compute in, see
            :mod:`mezzotint.models.backends.eight_bits`.
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
        found = _ranges(drawing, cache, precision)
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
        note = f"{FULL_PRECISION}: int8 came only within {found['decibels']:.1f} dB"
        view.use_network("decoder", _Noted(view.networks["decoder"], note))
    return view


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
            words, rounded = _encode(model), copy.deepcopy(model)
            exact = _draw(copy.deepcopy(model), words)
            rounded.use_network("denoiser", eight)
            return {"decibels": _decibels(_draw(rounded, words), exact)}

        decibels = float(_remembered(model, cache, [kind, metadata.version("torchao")], measure))
        log.info("model.eight_bits", model=model.spec.name, kind=kind, decibels=decibels)
        if decibels >= LEAST_DB["turbo"]:
            if not was_built:
                network.let_go()
            view.use_network("denoiser", eight)
            return ()
        return (f"{FULL_PRECISION}: {EIGHT_BITS[kind]} came only within {decibels:.1f} dB",)
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


class _Noted:
    """A network with something to say about itself."""

    def __init__(self, network: Network, note: str) -> None:
        self.network = network
        self.notes = (note,)

    @property
    def num_bytes(self) -> int:
        """Bytes of weights."""
        return int(getattr(self.network, "num_bytes", 0))

    def __deepcopy__(self, memo: object) -> "_Noted":
        return self

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        return self.network(**inputs)


class _Prediction:
    """A network of several answers of which the first is the prediction."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def __deepcopy__(self, memo: object) -> "_Prediction":
        return self

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        return self.network(**inputs)[:1]


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


def _ranges(model: Model, cache: Path | None, precision: str) -> dict[str, Any]:
    """Find ranges and measure int8 pictures against float32; remembered by digest.

    Args:
        model: Its networks in float32; the denoiser may answer more than its prediction.
        cache: See :func:`turbo_view`.
        precision: Of int8.
    """

    def make() -> dict[str, Any]:
        words = _encode(model)
        return_memory()
        exact, ranges = _watch(model, words)
        return_memory()
        best: dict[str, Any] = {"decibels": 0.0}
        for edge in _EDGES:
            found = {**ranges, "denoiser": _without_edges(ranges.get("denoiser", {}), edge)}
            rounded = copy.deepcopy(model)
            for role in ranges:
                rounded.use_network(role, _lowered(model.networks[role], found[role], precision))
            decibels = _decibels(_draw(rounded, words), exact)
            del rounded
            return_memory()
            log.info("model.int8", model=model.spec.name, edge=edge, decibels=decibels)
            if decibels > best["decibels"]:
                best = {**found, "decibels": decibels}
            if decibels >= _ENOUGH_DB:
                break
        return best

    versions = [metadata.version(name) for name in ("openvino", "torch")]
    words = json.dumps([_FORMAT, model.spec.digest, precision, *versions])
    name = hashlib.sha256(words.encode()).hexdigest()[:40]
    if cache is None or not model.spec.digest:
        return make()
    return remember(cache / f"{name}.int8.json", make)


def _watch(model: Model, words: Sequence[Conditioning]) -> tuple[Tensor, dict[str, Ranges]]:
    """Draw in float32, and note what flows into the layers of OpenVINO's networks.

    The networks are compiled for this alone and let go.

    Returns:
        The pictures, and the ranges of each role that OpenVINO took over.
    """
    watched, ranges = copy.deepcopy(model), dict[str, Ranges]()
    for role in ("denoiser", "decoder"):
        network = model.networks.get(role)
        if isinstance(network, OpenVINONetwork):
            watched.use_network(role, WatchedNetwork(network.source, **network.options))

    def note(role: str) -> None:
        network = watched.networks.get(role)
        network = network.network if isinstance(network, _Prediction) else network
        if isinstance(network, WatchedNetwork) and not network.notes:
            ranges[role] = network.ranges

    pictures = _draw(watched, words, after=note)
    return pictures, ranges


@torch.no_grad()
def _encode(model: Model) -> list[Conditioning]:
    """Encode a few prompts, each beside none, with text encoders that are let go after."""
    spec, encoding = model.spec, copy.deepcopy(model)
    for role, network in model.networks.items():
        if isinstance(network, OpenVINONetwork) and not network.is_compiled:
            encoding.use_network(role, OpenVINONetwork(network.source, **network.options))
    words: list[Conditioning] = []
    for seed, text in enumerate(_PROMPTS):
        label = seed % spec.num_classes if spec.num_classes else None
        base = Prompt(text=text if spec.takes_prompt else "", size=spec.default_size)
        prompts = [
            Prompt(text=base.text, size=base.size, class_label=label),
            Prompt(size=base.size, negative=True),
        ]
        words.append(Conditioning.stack(encoding.encode(encoding.align(prompts))))
    return words


def _draw(
    model: Model, words: Sequence[Conditioning], after: Callable[[str], object] = len
) -> Tensor:
    """Draw a few pictures at the model's own size, guided, with a model that is let go after.

    All are denoised before one is decoded, and the denoiser is let go between: its weights
    beside what flows through a decoder would be the peak of a first start.

    Args:
        model: One of whom nobody else needs the networks.
        words: A prompt and none for each picture.
        after: Told the role of a network that has done its part; by itself nothing happens.

    Returns:
        Shape (B, 3, H, W).
    """
    model.use_network("denoiser", _Prediction(model.networks["denoiser"]))
    latents = [_denoise(model, both, seed) for seed, both in enumerate(words)]
    after("denoiser")
    del model.networks["denoiser"]
    return_memory()
    with torch.no_grad():
        pictures = [model.decode(x, both.row(0)) for x, both in zip(latents, words, strict=True)]
    after("decoder")
    return torch.cat(pictures)


@torch.no_grad()
def _denoise(model: Model, both: Conditioning, seed: int) -> Tensor:
    """Draw the latents of a picture. Shape (1, C, h, w)."""
    spec = model.spec
    is_flow = spec.prediction_type == "flow"
    table = plan_table("flow_euler" if is_flow else "euler", spec.scheduler_config, _STEPS)
    assert model.denoiser is not None  # noqa: S101 - only models with steps have views
    noise = model.draw_latents(spec.default_size, make_generator(seed))
    registers = noise.new_zeros((1, REGISTERS, *noise.shape[1:]))
    registers[:, 0] = noise * table.init_noise_sigma
    for e in table.evaluations:
        sigma = torch.full((2,), e.sigma, dtype=torch.float64)
        answers = model.denoiser(
            torch.cat([registers[:, 0]] * 2), sigma, both, timestep=torch.full((2,), e.timestep)
        )
        scale = spec.default_guidance_scale if spec.takes_guidance else 1.0
        guided = answers[1:] + scale * (answers[:1] - answers[1:])
        registers = advance(registers, guided, e.tensor()[None], raw=guided, noise=None)
    return registers[:, 0]


def _without_edges(ranges: Ranges, share: float) -> dict[str, tuple[float, float]]:
    """Leave the first and last layers out: what they round is felt most."""
    count = round(share * len(ranges))
    kept = list(ranges.items())[count : len(ranges) - count]
    return dict(kept)


def _decibels(pictures: Tensor, exact: Tensor) -> float:
    """Return the worst picture's ratio of peak to noise, in decibels."""
    noise = (pictures - exact).double().square().flatten(1).mean(dim=1)
    worst = float(noise.max())
    return 10 * float(torch.tensor(4.0 / max(worst, 1e-12)).log10())
