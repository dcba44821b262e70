"""Step cache of a U-Net: deep features of one evaluation serve the next one too.

Deep layers of a U-Net change little from one noise level to the next. A full call
also hands out what enters the outermost upward block; an outer call takes it back
and computes only the outermost downward and upward blocks. Which evaluations do
which is decided in the plan, for each image by itself. Transformers have a cache of
their own, :mod:`mezzotint.models.backends.block_cache`, behind the same network.

Source: Ma et al. 2023 (arXiv:2312.00858), DeepCache.

Dimensions: R rows, C channels, h and w rows and columns of the outermost level.
"""

import threading
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mezzotint.models.base import Network

__all__ = ["DEEP", "MOST_CHANGE", "StepCacheNetwork", "call_outer", "call_whole"]

DEEP = "deep_features"
"""Name of the conditioning tensor that turns a call into an outer call."""

MOST_CHANGE = 0.08
"""Change of what an outer call looks at, as a share of itself, from which on a row is computed
whole: among the values that first-block cache is used with, 0.05 (diffusers) to 0.12."""


def call_whole(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call a UNet2DConditionModel; answer prediction and deep features (R, C, h, w)."""
    seen: list[Tensor] = []

    def see(_block: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(named["hidden_states"] if "hidden_states" in named else arguments[0])

    handle = module.up_blocks[-1].register_forward_pre_hook(see, with_kwargs=True)
    try:
        (prediction,) = module(
            inputs["sample"],
            inputs["timestep"],
            encoder_hidden_states=inputs["encoder_hidden_states"],
            timestep_cond=inputs.get("timestep_cond"),
            added_cond_kwargs=_added(inputs),
            return_dict=False,
        )
    finally:
        handle.remove()
    return prediction, seen[0]


def call_outer(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call the outermost blocks of a UNet2DConditionModel with deep features of before."""
    sample, words = inputs["sample"], inputs["encoder_hidden_states"]
    time = module.get_time_embed(sample=sample, timestep=inputs["timestep"])
    embedding = module.time_embedding(time, inputs.get("timestep_cond"))
    added = _added(inputs)
    more = module.get_aug_embed(
        emb=embedding, encoder_hidden_states=words, added_cond_kwargs=added or {}
    )
    embedding = embedding if more is None else embedding + more
    words = module.process_encoder_hidden_states(
        encoder_hidden_states=words, added_cond_kwargs=added or {}
    )
    stream = module.conv_in(sample)
    down, up = module.down_blocks[0], module.up_blocks[-1]
    _, residuals = down(hidden_states=stream, temb=embedding, **_words(down, words))
    kept = (stream, *(residuals[:-1] if down.downsamplers is not None else residuals))
    stream = up(
        hidden_states=inputs[DEEP],
        temb=embedding,
        res_hidden_states_tuple=kept[-len(up.resnets) :],
        **_words(up, words),
    )
    if module.conv_norm_out is not None:
        stream = module.conv_act(module.conv_norm_out(stream))
    return (module.conv_out(stream),)


def _added(inputs: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    return {k: inputs[k] for k in ("text_embeds", "time_ids") if k in inputs} or None


def _words(block: Any, words: Tensor) -> dict[str, Tensor]:
    """Return the words for a block that attends to them."""
    attends = getattr(block, "has_cross_attention", False)
    return {"encoder_hidden_states": words} if attends else {}


class StepCacheNetwork:
    """A network that answers whole calls and outer calls.

    Args:
        whole: Answers prediction and deep features.
        outer: Takes the deep features as :data:`DEEP`. Where it answers a second tensor (R, 1),
            the change of each row, rows above :data:`MOST_CHANGE` are computed whole after all.
    """

    def __init__(self, whole: Network, outer: Network) -> None:
        self.whole = whole
        self.outer = outer
        self._last = threading.local()

    @property
    def num_bytes(self) -> int:
        """Bytes of weights of both."""
        return sum(int(getattr(n, "num_bytes", 0)) for n in (self.whole, self.outer))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a backend could not take over."""
        both = (getattr(n, "notes", ()) for n in (self.whole, self.outer))
        return tuple(dict.fromkeys(note for notes in both for note in notes))

    def rest(self) -> None:
        """Give back what calls of both left in memory, where a backend can."""
        for network in (self.whole, self.outer):
            rest = getattr(network, "rest", None)
            if rest is not None:
                rest()

    def __deepcopy__(self, memo: object) -> "StepCacheNetwork":
        """Return itself: a copy of a model shares its weights."""
        return self

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the whole network, or the outer part where deep features are given."""
        if DEEP in inputs:
            prediction, *changes = self.outer(**inputs)
            return (self._mended(prediction, changes[0], inputs) if changes else prediction,)
        prediction, deep = self.whole(**inputs)
        self._last.deep = deep
        return (prediction,)

    def _mended(self, prediction: Tensor, change: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Compute rows whole that have changed too much; their features are new as well."""
        rows = (~(change[:, 0] <= MOST_CHANGE)).nonzero()[:, 0]  # what is no number is much
        if not len(rows):
            return prediction
        again = {name: tensor[rows] for name, tensor in inputs.items() if name != DEEP}
        fresh, deep = self.whole(**again)
        self._last.deep = inputs[DEEP].index_copy(0, rows, deep.to(inputs[DEEP].dtype))
        return prediction.index_copy(0, rows, fresh)

    def take_deep(self) -> Tensor | None:
        """Return the features that this thread's last call made, once. Shape (R, ...)."""
        deep = getattr(self._last, "deep", None)
        self._last.deep = None
        return deep
