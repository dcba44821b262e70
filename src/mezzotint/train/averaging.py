"""Averaging: gradients of several processes become one while the backward pass goes on.

The weights of a group are cut into buckets from the last to the first, since that is the
order in which their gradients come. A bucket whose gradients are all there is sent at once,
as one message, and travels while the rest of the backward pass is computed. Buckets go in
one order in every process, whichever is full first.

A weight that no process had a gradient for has none afterwards, so that an optimiser leaves it
alone as it does in one process.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

__all__ = ["GradientAverager"]

_BUCKET_BYTES = 25 << 20


class _Work(Protocol):
    """A message under way."""

    def wait(self) -> object:
        """Return once it is here."""
        ...


class _AllReduce(Protocol):
    """``torch.distributed.all_reduce``, which says nothing of its types."""

    def __call__(self, tensor: Tensor, *, async_op: bool) -> _Work | None: ...


@dataclass(slots=True, eq=False)
class _Bucket:
    """Weights whose gradients travel together.

    Args:
        parameters: The weights, of one type and device.
        waiting: How many of them have no gradient yet.
        message: What travels: the gradients one after the other, then one 0 or 1 for each
            weight that says whether it had a gradient.
        work: The message under way.
    """

    parameters: list[nn.Parameter] = field(default_factory=list[nn.Parameter])
    waiting: int = 0
    message: Tensor | None = None
    work: _Work | None = None


class GradientAverager:
    """Averages the gradients of some weights over the processes of a run.

    Use it around the backward pass: :meth:`begin` before the last one of a step,
    :meth:`finish` after it.

    Args:
        parameters: Weights that learn, the same in every process.
        processes: How many processes there are, at least 2; ``torch.distributed`` is up.
        bucket_bytes: Bytes of gradients that travel together.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        processes: int,
        bucket_bytes: int = _BUCKET_BYTES,
    ) -> None:
        self._processes = processes
        self._buckets = _cut(parameters, bucket_bytes)
        self._bucket_of = {p: bucket for bucket in self._buckets for p in bucket.parameters}
        self._next = 0  # number of the bucket that is sent next
        self._is_open = False
        for parameter in parameters:
            hooked: Any = parameter  # the method says nothing of its types
            hooked.register_post_accumulate_grad_hook(self._take)

    def begin(self) -> None:
        """Say that the next backward pass is the last one of this step."""
        for bucket in self._buckets:
            bucket.waiting = len(bucket.parameters)
        self._next, self._is_open = 0, True

    def finish(self) -> None:
        """Send what is left, wait for all, and put the averages where the gradients were."""
        self._is_open = False
        for bucket in self._buckets[self._next :]:
            self._send(bucket)
        for bucket in self._buckets:
            self._receive(bucket)

    def _take(self, parameter: nn.Parameter) -> None:
        """Note that a weight has its gradient; send every bucket whose turn it is."""
        if not self._is_open:
            return
        self._bucket_of[parameter].waiting -= 1
        while self._next < len(self._buckets) and not self._buckets[self._next].waiting:
            self._send(self._buckets[self._next])
            self._next += 1

    @torch.no_grad()
    def _send(self, bucket: _Bucket) -> None:
        parts: list[Tensor] = []
        there: list[float] = []
        for parameter in bucket.parameters:
            gradient = parameter.grad
            there.append(float(gradient is not None))
            parts.append((torch.zeros_like(parameter) if gradient is None else gradient).flatten())
        parts.append(parts[0].new_tensor(there))
        bucket.message = torch.cat(parts)
        send = cast("_AllReduce", torch.distributed.all_reduce)
        bucket.work = send(bucket.message, async_op=True)

    @torch.no_grad()
    def _receive(self, bucket: _Bucket) -> None:
        work, message = bucket.work, bucket.message
        assert work is not None  # noqa: S101 - every bucket was sent
        assert message is not None  # noqa: S101
        work.wait()
        count = len(bucket.parameters)
        gradients, there = message[:-count] / self._processes, message[-count:].bool().cpu()
        sizes = [parameter.numel() for parameter in bucket.parameters]
        parts = zip(bucket.parameters, torch.split(gradients, sizes), there, strict=True)
        for parameter, part, was_there in parts:
            if was_there:
                parameter.grad = part.view_as(parameter).clone()
        bucket.work = bucket.message = None


def _cut(parameters: Iterable[nn.Parameter], most_bytes: int) -> list[_Bucket]:
    """Cut weights into buckets, the last weight first."""
    buckets: list[_Bucket] = []
    used = 0
    kind: tuple[torch.dtype, torch.device] | None = None
    for parameter in reversed(list(parameters)):
        num_bytes = parameter.numel() * parameter.element_size()
        if kind != (parameter.dtype, parameter.device) or used + num_bytes > most_bytes:
            buckets.append(_Bucket())
            used, kind = 0, (parameter.dtype, parameter.device)
        buckets[-1].parameters.append(parameter)
        used += num_bytes
    return buckets
