"""Configuration of the engine: budgets, batch sizes, queue and caches."""

import math
from dataclasses import dataclass
from typing import Annotated

from mezzotint.bounds import Range
from mezzotint.errors import InvalidRequest
from mezzotint.plain import Checked

__all__ = ["EngineConfig"]

_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig(Checked):
    """How the engine shares one device.

    Args:
        max_rows: Rows of one network call, at most.
        buckets: Rows that a network call may have; a smaller batch is padded up
            to the next. Each is used only where a certificate allows it.
        min_rows: Rows of the smallest call in ``exact``: one row may take another
            arithmetic path than two.
        quantum_s: A batch of several images is kept below this predicted time,
            so that a short request never waits for a long call.
        max_running: Images that hold tensors at once, at most.
        max_waiting: Images that wait, at most; more are refused with QueueFull.
        client_share: Share of them that the images of one named client may take; the rest
            stays free for others.
        memory_bytes: Bytes that tensors of requests may take together; 0 is half
            of the machine's (or the device's) memory.
        calibrate_s: Seconds that timing a model may take when it is made ready, apart
            from its first picture; 0 times nothing before it is asked for.
        learn_after_s: Seconds without work after which a service that serves others tries
            call sizes that it does not know yet; 0 never does.
        learn_share: Share of the time that pictures take which may be spent on trying call
            sizes while somebody waits.
        certify: Whether batch sizes are compared bit for bit before use.
        cache_memory_bytes: Finished pictures kept in memory, in bytes; 0 is none.
        cache_disk_bytes: Finished pictures kept on disk, in bytes; 0 is none.
        prompt_cache_bytes: Prompt embeddings kept in memory, in bytes.
        share_results: Whether a client's picture, finished or under way, and its encoded
            prompts answer the equal request of another client; else nobody can tell what
            others have asked for.
        max_pixels: Pixels of one picture, at most.
        max_request_pixels: Pixels of all pictures of one request, at most.
    """

    max_rows: Annotated[int, Range(2, 4096)] = 64
    buckets: tuple[int, ...] = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    min_rows: Annotated[int, Range(1, 2)] = 2
    quantum_s: Annotated[float, Range(1e-3, 3600, "s")] = 2.0
    max_running: Annotated[int, Range(1, 100_000)] = 128
    max_waiting: Annotated[int, Range(1, 10_000_000)] = 4096
    client_share: Annotated[float, Range(0.01, 1)] = 0.75
    memory_bytes: Annotated[int, Range(0, 2**50)] = 0
    calibrate_s: Annotated[float, Range(0, 3600, "s")] = 3.0
    learn_after_s: Annotated[float, Range(0, 86400, "s")] = 1.0
    learn_share: Annotated[float, Range(0, 100)] = 0.1
    certify: bool = True
    cache_memory_bytes: Annotated[int, Range(0, 2**50)] = 256 * _MIB
    cache_disk_bytes: Annotated[int, Range(0, 2**50)] = 1024 * _MIB
    prompt_cache_bytes: Annotated[int, Range(0, 2**50)] = 64 * _MIB
    share_results: bool = False
    max_pixels: Annotated[int, Range(1, 2**40)] = 4096 * 4096
    max_request_pixels: Annotated[int, Range(1, 2**50)] = 4096 * 4096 * 64

    def _validate(self) -> None:
        rising = all(a < b for a, b in zip((0, *self.buckets), self.buckets, strict=False))
        if not self.buckets or not rising:
            raise InvalidRequest(
                f"buckets must rise and be at least 1, got {list(self.buckets)}", field="buckets"
            )

    def bucket(self, rows: int) -> int:
        """Return the smallest allowed call size that holds ``rows`` rows."""
        fitting = [b for b in self.buckets if b >= max(rows, self.min_rows)]
        return fitting[0] if fitting else math.ceil(rows / self.buckets[-1]) * self.buckets[-1]
