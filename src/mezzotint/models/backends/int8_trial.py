"""Int8 tried: whether pictures in int8 come near enough to float32, found out by drawing a few.

What flows into each layer is noted while pictures are drawn in float32, and the same pictures
are drawn in int8. All of it is done in pieces of seconds, so that it can go on where it was
left, and as little of it as shows that int8 will not do.

Dimensions: R rows, C latent channels, h and w latent rows and columns.
"""

import copy
import math
import re
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from mezzotint.models.backends.mapped import return_memory
from mezzotint.models.backends.openvino_backend import OpenVINONetwork
from mezzotint.models.backends.processor import INT8_NARROW
from mezzotint.models.backends.quantized import Int8Network, Ranges, WatchedNetwork
from mezzotint.models.base import Conditioning, Model, Network, Prompt
from mezzotint.observe import log
from mezzotint.observe.stages import stage
from mezzotint.sampling.latents import make_generator
from mezzotint.sampling.solvers import REGISTERS, advance, plan_table

__all__ = ["Work", "decibels", "draw", "encode", "finish", "is_large", "try_int8"]

_ENOUGH_DB = 33.0  # shortcuts that add as much again leave 30
_EDGES = (0.0, 0.12, 0.25)  # share of the layers at either end that stay in float32
_STREAM = re.compile(r"\b(conv_in|conv_out|conv_shortcut|attentions\.\d+\.proj_(in|out))\b")
"""Layers of a U-Net or an autoencoder that all of its stream flows through, by their names. What
they round is never diluted by what goes past them: two thirds of an answer's noise for a
sixteenth of its products, which are of one pixel and gain the least."""
_PROMPTS = ("a photo of a cat", "two red houses under a blue sky")
_STEPS = 8
_AT_ONCE_BYTES = 256 << 20  # of a denoiser in float32 that is drawn with within seconds
_HOPELESS_ANSWER_DB = 12.0  # of one answer; those of networks that come within 30 dB: 23 to 30
_HOPELESS_DB = 20.0  # of a picture: leaving layers out has given 3 dB at the most

T = TypeVar("T")
Work = Generator[float, None, dict[str, Any]]
"""Yields which share of it is done after each piece; returns what is to be kept."""


class _Prediction:
    """A network of several answers of which the first is the prediction.

    Attributes:
        latest: What it predicted last. Shape (R, C, h, w).
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.latest = torch.empty(0)

    def __deepcopy__(self, memo: object) -> "_Prediction":
        return self

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        self.latest = self.network(**inputs)[0]
        return (self.latest,)


def is_large(model: Model) -> bool:
    """Tell whether this takes longer than somebody should wait for a picture."""
    return int(getattr(model.networks["denoiser"], "num_bytes", 0)) > _AT_ONCE_BYTES


def finish(work: Generator[float, None, T], what: str) -> T:
    """Do all the work at once, and tell how long it will take.

    Args:
        work: Yields which share of it is done.
        what: Is learnt, for people.
    """
    began, left = time.monotonic(), ""
    while True:
        with torch.no_grad(), stage("learning", f"{what}{left}"):
            try:
                share = next(work)
            except StopIteration as end:
                return cast("T", end.value)
        seconds = (time.monotonic() - began) * (1 - share) / share if share else 0.0
        left = f", about {seconds:.0f} s left" if seconds >= 1 else ""


@torch.no_grad()
def try_int8(model: Model, precision: str) -> Work:
    """Find ranges and measure int8 pictures against float32.

    A large network is given up after one answer, and any after one picture, that is so far off
    that leaving layers out could not bring it near.

    Args:
        model: Its networks in float32; the denoiser may answer more than its prediction.
        precision: Of int8.

    Yields:
        Which share of the work is done, if all goes well.

    Returns:
        Decibels, and the ranges of each role that are to be used.
    """
    words = encode(model)
    return_memory()
    yield 0.0
    if is_large(model):
        answer_db = yield from _try_one(model, words[0], precision)
        log.info("model.int8_answer", model=model.spec.name, decibels=answer_db)
        if answer_db < _HOPELESS_ANSWER_DB:
            return {"decibels": answer_db}
    exact, ranges = yield from _watch(model, words)
    return_memory()
    best: dict[str, Any] = {"decibels": 0.0}
    for edge in _EDGES:
        found = {role: _beside_stream(known) for role, known in ranges.items()}
        found["denoiser"] = _without_edges(found.get("denoiser", {}), edge)
        rounded = copy.deepcopy(model)
        for role in ranges:
            network = model.networks[role]
            assert isinstance(network, OpenVINONetwork)  # noqa: S101 - it was watched
            options = {"ranges": found[role], "is_narrow": precision == INT8_NARROW}
            rounded.use_network(role, Int8Network(network.source, **options, **network.options))
        found_db = decibels((yield from draw(rounded, words, done=0.5)), exact)
        del rounded
        return_memory()
        log.info("model.int8", model=model.spec.name, edge=edge, decibels=found_db)
        if found_db > best["decibels"]:
            best = {**found, "decibels": found_db}
        if found_db >= _ENOUGH_DB or found_db < _HOPELESS_DB:
            break
    return best


def _try_one(model: Model, both: Conditioning, precision: str) -> Generator[float, None, float]:
    """Compare the first answer of a picture in int8 with the one in float32.

    Returns:
        The ratio of what is answered to what int8 changes in it, in decibels.
    """
    source = model.networks["denoiser"]
    assert isinstance(source, OpenVINONetwork)  # noqa: S101 - nothing else is made int8 here
    one, watched = copy.deepcopy(model), WatchedNetwork(source.source, **source.options)
    exact = _answer(one, watched, both)
    ranges = _beside_stream(watched.ranges)
    del watched
    return_memory()
    yield 0.0
    is_narrow = precision == INT8_NARROW
    rounded = Int8Network(
        source.source, ranges=ranges, is_narrow=is_narrow, is_kept=False, **source.options
    )
    near = _answer(one, rounded, both)
    noise = float((near - exact).double().square().mean())
    return 10 * math.log10(float(exact.double().square().mean()) / max(noise, 1e-12))


def _answer(model: Model, network: Network, both: Conditioning) -> Tensor:
    """Return what a network answers at the first step of a picture; it is let go after."""
    model.use_network("denoiser", _Prediction(network))
    next(_denoise(model, both, 0))
    answered = model.networks.pop("denoiser")
    return_memory()
    return cast("_Prediction", answered).latest


def _watch(
    model: Model, words: Sequence[Conditioning]
) -> Generator[float, None, tuple[Tensor, dict[str, Ranges]]]:
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

    pictures = yield from draw(watched, words, after=note)
    return pictures, ranges


@torch.no_grad()
def encode(model: Model) -> list[Conditioning]:
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


def draw(
    model: Model,
    words: Sequence[Conditioning],
    *,
    after: Callable[[str], object] = len,
    done: float = 0.0,
) -> Generator[float, None, Tensor]:
    """Draw a few pictures at the model's own size, guided, with a model that is let go after.

    All are denoised before one is decoded, and the denoiser is let go between: its weights
    beside what flows through a decoder would be the peak of a first start.

    Args:
        model: One of whom nobody else needs the networks.
        words: A prompt and none for each picture.
        after: Told the role of a network that has done its part; by itself nothing happens.
        done: Which share of all work is done before this half of it.

    Yields:
        Which share of all work is done, after each call.

    Returns:
        Shape (B, 3, H, W).
    """
    model.use_network("denoiser", _Prediction(model.networks["denoiser"]))
    latents: list[Tensor] = []
    for seed, both in enumerate(words):
        steps = _denoise(model, both, seed)
        latents.append(next(steps))
        for step in range(1, _STEPS):
            yield min(done + (seed + step / _STEPS) / len(words) / 2, 1.0)
            latents[-1] = next(steps)
    after("denoiser")
    del model.networks["denoiser"]
    return_memory()
    pictures: list[Tensor] = []
    for x, both in zip(latents, words, strict=True):
        pictures.append(model.decode(x, both.row(0)))
        yield min(done + 0.5, 1.0)
    after("decoder")
    return torch.cat(pictures)


def _denoise(model: Model, both: Conditioning, seed: int) -> Generator[Tensor, None, None]:
    """Yield the latents of a picture after each step. Shape (1, C, h, w)."""
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
        yield registers[:, 0]


def _beside_stream(ranges: Ranges) -> Ranges:
    """Leave the layers out that the whole stream flows through."""
    return {layer: edges for layer, edges in ranges.items() if not _STREAM.search(layer)}


def _without_edges(ranges: Ranges, share: float) -> dict[str, tuple[float, float]]:
    """Leave the first and last layers out: what they round is felt most."""
    count = round(share * len(ranges))
    kept = list(ranges.items())[count : len(ranges) - count]
    return dict(kept)


def decibels(pictures: Tensor, exact: Tensor) -> float:
    """Return the worst picture's ratio of peak to noise, in decibels."""
    noise = (pictures - exact).double().square().flatten(1).mean(dim=1)
    worst = float(noise.max())
    return 10 * float(torch.tensor(4.0 / max(worst, 1e-12)).log10())
