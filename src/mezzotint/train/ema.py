"""Running means of weights, one for each decay.

``mean <- decay * mean + (1 - decay) * weight`` after every optimiser step;
with warm-up the decay is at most ``(1 + t) / (10 + t)`` at step t, so that
random first weights are forgotten quickly. Counters and other non-float
buffers are copied.
"""

import contextlib
from collections.abc import Generator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Ema", "effective_decay"]


def effective_decay(decay: float, step: int, *, warmup: bool) -> float:
    """Return the decay used at optimiser step ``step``, counted from 1."""
    return min(decay, (1 + step) / (10 + step)) if warmup else decay


class Ema:
    """The running means of one module.

    Args:
        module: The module whose weights are averaged; its present weights are the start.
        decays: One mean for each.
        warmup: Whether decays rise at first.
    """

    def __init__(self, module: nn.Module, decays: tuple[float, ...], *, warmup: bool) -> None:
        self.decays, self.warmup, self.step = decays, warmup, 0
        self.means: list[dict[str, Tensor]] = [
            {name: value.detach().clone() for name, value in module.state_dict().items()}
            for _ in decays
        ]

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take the weights after one optimiser step into every mean."""
        self.step += 1
        state = module.state_dict()
        floats = [name for name, value in state.items() if value.is_floating_point()]
        others = [name for name in state if name not in set(floats)]
        fresh = [state[name].detach() for name in floats]
        for decay, mean in zip(self.decays, self.means, strict=True):
            weight = 1 - effective_decay(decay, self.step, warmup=self.warmup)
            for name, value in zip(floats, fresh, strict=True):
                mean[name].lerp_(value, weight)
            for name in others:
                mean[name].copy_(state[name])

    @contextlib.contextmanager
    def applied(self, module: nn.Module, index: int = 0) -> Generator[None]:
        """Put the ``index``-th mean into ``module`` for a while; without decays change nothing."""
        if not self.decays:
            yield
            return
        kept = {name: value.detach().clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self.means[index])
        try:
            yield
        finally:
            module.load_state_dict(kept)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"step": self.step, "means": [dict(mean) for mean in self.means]}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.step = int(state["step"])
        means: list[dict[str, Tensor]] = state["means"]
        for mean, saved in zip(self.means, means, strict=True):
            for name, value in mean.items():
                value.copy_(saved[name])
