"""Link: one replica as a front sees it, with the ledger of what the front has given it.

The same ledger as for a process on this machine; what carries its messages is Ray. One call
is under way in each direction, with all that has gathered: order is kept, and under load
many messages share one journey.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from mezzotint.errors import MezzotintError
from mezzotint.observe import log
from mezzotint.service.cluster.messages import ReplicaState, encode, read_batch
from mezzotint.service.config import WorkerConfig
from mezzotint.service.workers.entries import Question
from mezzotint.service.workers.ledger import Ledger
from mezzotint.service.workers.liveness import Liveness
from mezzotint.service.workers.messages import ToWorker

__all__ = ["ReplicaLink"]

_PING_S = 1.0
_AHEAD = 8  # batches that a replica may send before they are read


class ReplicaLink:
    """One replica.

    Args:
        state: What the controller says of it.
        actor: Its actor.
        front: This front's name, unlike any other's.
        config: How patiently it is watched, and how often a request may be there when one dies.
        on_loss: Told once that it is gone.
    """

    def __init__(
        self,
        state: ReplicaState,
        actor: Any,
        front: str,
        config: WorkerConfig,
        on_loss: Callable[["ReplicaLink", str], None],
    ) -> None:
        self.state = state
        self.name = state.name
        self.ledger = Ledger(self._post, max_crashes=config.max_crashes)
        self.health: Mapping[str, Any] = {}
        self.is_leaving = False
        self._actor = actor
        self._front = front
        self._on_loss = on_loss
        self._outbox: list[ToWorker] = []
        self._has_mail = asyncio.Event()
        self._liveness = Liveness(config, lambda: None)  # its processor time is not ours to read
        self._tasks = [asyncio.create_task(self._guard(work))
                       for work in (self._listen(), self._send(), self._watch())]  # fmt: skip
        self.ledger.begin()

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests and shows no sign of hanging."""
        return self.ledger.is_up and not self.is_leaving and not self._liveness.is_doubtful

    def close(self) -> None:
        """End the link; what the replica has for this front ends there when we are silent."""
        self.ledger.is_up = False
        for task in self._tasks:
            task.cancel()

    def kill(self) -> None:
        """End the replica, which hangs."""
        from mezzotint.service.cluster.ray_link import ray_module

        with contextlib.suppress(Exception):  # Ray's own: it is gone already
            ray_module().kill(self._actor)

    def _post(self, message: ToWorker) -> None:
        self._outbox.append(message)
        self._has_mail.set()

    async def _guard(self, work: Any) -> None:
        """Run one part of the link; its failure is the loss of the replica."""
        reason = "it says nothing more"
        try:
            await work
        except Exception as error:  # Ray's own are of many kinds
            reason = str(error).partition("\n")[0][:200] or type(error).__name__
        if self.ledger.is_up:
            self.ledger.is_up = False
            self._on_loss(self, reason)

    async def _listen(self) -> None:
        listen = self._actor.listen.options(
            num_returns="streaming", _generator_backpressure_num_objects=_AHEAD
        )
        async for told in listen.remote(self._front):
            batch = read_batch(await told, from_worker=True)
            self._liveness.hear()
            for message in batch:
                self.ledger.take(message)

    async def _send(self) -> None:
        while True:
            await self._has_mail.wait()
            self._has_mail.clear()
            messages, self._outbox = self._outbox, []
            await self._actor.post.remote(self._front, encode(messages))

    async def _watch(self) -> None:
        """Ask for health every second; end a replica that hangs."""
        while True:
            question = Question(self.ledger, "health", {})
            try:
                while not (await asyncio.wait([question.answer], timeout=_PING_S))[0]:
                    self._look()
                self.health = question.answer.result()
                self._liveness.hear(self.health)
            except MezzotintError as error:
                log.warning("link.health", reason=str(error))
            finally:
                question.close()
            self._look()
            await asyncio.sleep(_PING_S)

    def _look(self) -> None:
        self._liveness.look()
        if reason := self._liveness.trouble:
            log.error("link.hung", replica=self.name, reason=reason)
            self.kill()
