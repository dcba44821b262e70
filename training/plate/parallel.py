"""Share training among single-threaded processes that average their gradients.

On two cores, two processes of one thread were no slower than one process of two,
and kept their speed beside other programs, where the other way fell to a tenth
(66 to 6 samples a second, measured with the text-to-picture U-Net): a network of
many small layers waits for the slower thread after each of them, a process waits
once a step.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn


def run_workers(work: Callable[..., None], workers: int, *arguments: object) -> None:
    """Run ``work(rank, workers, *arguments)`` in processes that can average gradients."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_enter, args=(workers, f"{folder}/meeting", work, arguments), nprocs=workers)


def _enter(
    rank: int, workers: int, meeting: str, work: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    """Join the group, work, leave the group."""
    torch.set_num_threads(1)
    os.setsid()  # Linux shares processors among sessions first: one each, not one for all
    distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=workers)
    work(rank, workers, *arguments)
    distributed.destroy_process_group()


def average_gradients(parameters: list[torch.nn.Parameter], buffer: Tensor) -> None:
    """Replace each process's gradients by their mean over processes.

    Args:
        parameters: The parameters, in the same order everywhere.
        buffer: Room for all gradients. Shape (number of parameters,).
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    torch.cat([g.flatten() for g in gradients], out=buffer)
    distributed.all_reduce(buffer)
    buffer /= distributed.get_world_size()
    parts = buffer.split([g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])


class Clock:
    """Time spent, the same in all processes, so that they leave a loop together."""

    def __init__(self, spent_s: float = 0.0) -> None:
        """Start.

        Args:
            spent_s: Seconds spent in earlier runs.
        """
        self._begin = time.monotonic() - spent_s
        self._shared = torch.zeros(1)

    def read(self) -> float:
        """Return the seconds spent, as the first process counts them."""
        self._shared[0] = time.monotonic() - self._begin
        distributed.broadcast(self._shared, 0)
        return self._shared.item()


def save_checkpoint(path: Path, state: dict[str, object]) -> None:
    """Write a checkpoint so that a kill leaves the last good one."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)
