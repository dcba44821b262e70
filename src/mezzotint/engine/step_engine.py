"""Step engine: chooses what runs next, lets the executor work, books what came of it.

No tensors here: all of it is tested with a fake executor and a fake clock. One
thread calls every method, so there are no locks. The one-ending rule: every
image that was submitted gets exactly one of ImageDone, ImageFailed and
ImageCancelled, whatever the executor, the clock or the listeners do.
"""

import contextlib
import heapq
import math
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from mezzotint.engine.accounts import Accounts
from mezzotint.engine.batcher import World, next_batch, next_joiners
from mezzotint.engine.config import EngineConfig
from mezzotint.engine.progress import CallProgress
from mezzotint.engine.state import (
    Claim,
    EngineEvent,
    ImageCancelled,
    ImageDone,
    ImageFailed,
    ImageId,
    ImageStarted,
    ImageState,
    ImageStepped,
    StepBatch,
)
from mezzotint.engine.waiting import Waiting
from mezzotint.errors import DeadlineExceeded, NotReady, OutOfMemory
from mezzotint.planning.costs import CostTable, cost_key, encode_key
from mezzotint.planning.memory import Footprint
from mezzotint.planning.plan import Plan

__all__ = ["Decoded", "Encoded", "Executor", "StepEngine", "Submission", "Worked"]

_DEADLINES = 256  # of images that have ended, beside which those held are looked through


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """What encoding told: the key for sharing calls, and what was changed."""

    key: Hashable
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A finished image and what was changed on the way.

    Args:
        picture: float32 array of shape (3, H, W), in [-1, 1] or a little beyond; for a
            plan that ends in latents those, of shape (C, h, w).
        warnings: One sentence for each change.
    """

    picture: Any
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Worked:
    """What one piece of device work gave.

    Args:
        faults: Images that failed in it, alone, and why; the others went on.
        decoded: Pictures, after ``decode``.
        seconds: Device seconds of the call itself, or None if it is no measure
            (a certificate was made, something was compiled).
    """

    faults: Mapping[ImageId, Exception] = field(default_factory=dict[ImageId, Exception])
    decoded: Mapping[ImageId, Decoded] = field(default_factory=dict[ImageId, Decoded])
    seconds: float | None = None


class Executor(Protocol):
    """Who owns the tensors. Any method may raise; then it has changed nothing."""

    def encode(
        self, image: ImageId, plan: Plan, assets: Mapping[str, Any], *, client: str = ""
    ) -> Encoded:
        """Make the image's tensors; ``assets`` holds its arrays, see :class:`Submission`."""
        ...

    def step(self, batch: StepBatch) -> Worked:
        """Take one network evaluation for every image of the batch."""
        ...

    def decode(self, batch: StepBatch) -> Worked:
        """Turn finished latents into pictures."""
        ...

    def preview(self, image: ImageId) -> Any:
        """Return a rough picture, or None if there is none yet.

        A float32 array of shape (3, h, w), in [-1, 1] or a little beyond.
        """
        ...

    def release(self, image: ImageId) -> None:
        """Free the image's tensors; unknown images are no error."""
        ...

    def buckets(self, kind: str, key: Hashable) -> tuple[int, ...]:
        """Return the call sizes that may be used, rising, at least one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One image handed to the engine.

    Args:
        id: Which image, unlike any other held.
        plan: What to make.
        claim: What it may claim beside others.
        footprint: Bytes it is expected to take.
        assets: The pictures that the plan names, decoded, under the names that the plan
            gives them: start image and mask by digest, control and image prompts under
            their size; numpy arrays whose shapes stand where they are made.
    """

    id: ImageId
    plan: Plan
    claim: Claim
    footprint: Footprint
    assets: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)


class StepEngine:
    """Decides what an executor does next.

    Args:
        config: Limits.
        executor: Who owns the tensors and works on them.
        emit: Told every event, in order, in the engine's thread.
        costs: Measured seconds; learnt from and read.
        budget_bytes: Bytes that tensors of requests may take together.
        models_bytes: Bytes that weights of models in use may take together, 0 for no bound.
        clock: Seconds, rising.
        progress: Where the call under way is marked, for others to see.
    """

    def __init__(
        self,
        config: EngineConfig,
        executor: Executor,
        emit: Callable[[EngineEvent], None],
        *,
        costs: CostTable,
        budget_bytes: int,
        models_bytes: int = 0,
        clock: Callable[[], float] = time.monotonic,
        progress: CallProgress | None = None,
    ) -> None:
        self._config = config
        self._executor = executor
        self._emit = emit
        self._costs = costs
        self._budget_bytes = budget_bytes
        self._models_bytes = models_bytes
        self._clock = clock
        self._progress = progress or CallProgress(clock)
        self._states: dict[ImageId, ImageState] = {}
        self._running: dict[ImageId, ImageState] = {}
        self._waiting = Waiting()
        self._present: Counter[str] = Counter()
        self._by_request: dict[str, dict[ImageId, None]] = {}
        self._deadlines: list[tuple[float, ImageId]] = []
        self._footprints: dict[ImageId, Footprint] = {}
        self._assets: dict[ImageId, Mapping[str, Any]] = {}
        self._accounts = Accounts()
        self._ceilings: dict[tuple[str, Hashable], int] = {}
        self._draining = False

    @property
    def states(self) -> Mapping[ImageId, ImageState]:
        """Every image held, in order of arrival."""
        return self._states

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held."""
        return not self._states

    def submit(self, submission: Submission) -> None:
        """Take an image in; from here on it gets exactly one ending."""
        image = submission.id
        assert image not in self._states  # noqa: S101 - ids are made unique by the service
        state = ImageState(id=image, plan=submission.plan, claim=submission.claim)
        self._states[image] = state
        self._waiting.add(state)
        self._present[state.claim.client] += 1
        self._by_request.setdefault(image.request, {})[image] = None
        self._footprints[image] = submission.footprint
        if submission.assets:
            self._assets[image] = submission.assets
        if math.isfinite(state.claim.deadline_s):
            self._note_deadline(state)
        if self._draining:
            self._fail(image, NotReady("the engine is draining and takes no more pictures"))

    def cancel(self, request: str) -> int:
        """Cancel every image of a request that is held; return how many there were."""
        images = list(self._by_request.get(request, ()))
        for image in images:
            self._end(image, ImageCancelled(id=image))
        return len(images)

    def cancel_image(self, image: ImageId) -> None:
        """Cancel one image if it is held."""
        self._end(image, ImageCancelled(id=image))

    def drain(self) -> None:
        """Refuse what waits and what comes; what runs is finished by further ticks."""
        self._draining = True
        for image in list(self._waiting):
            self._fail(image, NotReady("the engine is draining; ask again elsewhere"))

    def abort(self, error: Exception) -> None:
        """End everything that is held with one error."""
        for image in list(self._states):
            self._fail(image, error)

    def tick(self) -> bool:
        """Do one piece of device work; False if there was none to do."""
        self._expire()
        self._join()
        batch = next_batch(self._world())
        if batch is None:
            return False
        self._work(batch)
        return True

    def _world(self) -> World:
        """Draw the picture that the batcher decides from."""
        buckets: dict[tuple[str, Hashable], tuple[int, ...]] = {}
        for state in self._running.values():
            kind_key = (state.kind, state.key)
            if kind_key not in buckets:
                allowed = self._executor.buckets(*kind_key)
                ceiling = max(self._ceilings.get(kind_key, allowed[-1]), allowed[0])
                buckets[kind_key] = tuple(b for b in allowed if b <= ceiling)
        return World(
            running=tuple(self._running.values()),
            waiting=self._waiting,
            footprints=self._footprints,
            credits=self._accounts.credits,
            away=self._accounts.away,
            costs=self._costs,
            config=self._config,
            budget_bytes=self._budget_bytes,
            models_bytes=self._models_bytes,
            buckets=buckets,
        )

    def _expire(self) -> None:
        """Fail images whose deadline has passed."""
        if not self._deadlines:
            return
        now = self._clock()
        while self._deadlines and self._deadlines[0][0] <= now:
            at, image = heapq.heappop(self._deadlines)
            if self._is_due(image, at):
                self._fail(image, DeadlineExceeded("deadline_s passed before it was done"))

    def _note_deadline(self, state: ImageState) -> None:
        """Remember until when an image has to be done, and forget those that have ended."""
        if len(self._deadlines) > 2 * len(self._states) + _DEADLINES:
            self._deadlines = [(at, id_) for at, id_ in self._deadlines if self._is_due(id_, at)]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (state.claim.deadline_s, state.id))

    def _is_due(self, image: ImageId, at: float) -> bool:
        """Whether an image is held that has to be done at this time; ids may come again."""
        state = self._states.get(image)
        return state is not None and state.claim.deadline_s == at

    def _join(self) -> None:
        """Give tensors to waiting images as far as the budget goes."""
        if not len(self._waiting):
            return
        paid: dict[ImageId, float] = {}
        for image in next_joiners(self._world()):
            if image in self._states:  # a listener may have ended it
                paid[image] = self._encode(image)
        if paid:
            self._pay(paid)

    def _encode(self, image: ImageId) -> float:
        """Encode one image, or fail it; return the seconds that it took."""
        state = self._states[image]
        cost = self._costs.predict(state.plan, self._footprints[image])
        self._accounts.welcome(
            state.claim.client, image.request, cost.seconds, self._config.quantum_s
        )
        began = self._clock()
        try:
            self._emit(ImageStarted(id=image))
            assets = self._assets.pop(image, {})
            encoded = self._executor.encode(image, state.plan, assets, client=state.claim.client)
        except Exception as error:  # this image fails, alone
            self._fail(image, error)
            self._free(image)  # also if a listener has ended it
            return 0.0
        seconds = self._clock() - began
        self._costs.record(encode_key(state.plan), "encode", 1, seconds)
        if image not in self._states:  # a listener ended it
            self._free(image)
            return seconds
        state = replace(
            state,
            status="running",
            key=encoded.key,
            warnings=state.warnings + encoded.warnings,
        )
        waited = max(began - state.claim.arrived_s, 0.0)
        self._waiting.drop(image)
        self._keep(state.spend(queue_s=waited, encode_s=seconds))
        return seconds

    def _work(self, batch: StepBatch) -> None:
        """Let the executor work; where a shared call fails, let each image try alone."""
        began = self._clock()
        try:
            do = self._executor.decode if batch.kind == "decode" else self._executor.step
            shape = (batch.key, batch.bucket, len(batch.ids) if batch.kind == "decode" else 0)
            with self._progress.during(batch.kind, shape, self._expect(batch)):
                worked = do(batch)
        except Exception as error:  # blame is found below
            self._blame(batch, error)
            return
        self._book(batch, worked, self._clock() - began)

    def _expect(self, batch: StepBatch) -> float | None:
        """Return the seconds that a call should take, None if no such call was timed."""
        key = cost_key(self._states[batch.ids[0]].plan)
        if batch.bucket not in self._costs.measured_rows(key, batch.kind):
            return None
        return self._costs.seconds(key, batch.kind, batch.bucket)

    def _blame(self, batch: StepBatch, error: Exception) -> None:
        """Fail the only image of a call, or repeat a shared call image by image."""
        if len(batch.ids) == 1:
            self._fail(batch.ids[0], error)
            return
        if isinstance(error, OutOfMemory | MemoryError):
            self._ceilings[batch.kind, batch.key] = batch.bucket // 2
        allowed = self._executor.buckets(batch.kind, batch.key)
        for image in batch.ids:
            if image not in self._states:
                continue
            rows = self._states[image].rows
            bucket = next((b for b in allowed if b >= rows), batch.bucket)
            self._work(replace(batch, ids=(image,), bucket=bucket))

    def _book(self, batch: StepBatch, worked: Worked, elapsed_s: float) -> None:
        """Move every image of a call on by one evaluation, or to its end."""
        states = [self._states[image] for image in batch.ids]
        total_rows = sum(state.rows for state in states)
        paid = {s.id: elapsed_s * s.rows / total_rows for s in states}
        if worked.seconds is not None:  # what a call costs is all of it, not the device alone
            key = cost_key(states[0].plan)
            self._costs.record(key, batch.kind, batch.bucket, elapsed_s)
        self._pay(paid)
        for state in states:
            if state.id not in self._states:  # a listener ended it
                continue
            if state.id in worked.faults:
                self._fail(state.id, worked.faults[state.id])
            elif batch.kind == "decode":
                self._finish(state, worked.decoded[state.id], elapsed_s / len(states))
            else:
                self._advance(state, elapsed_s / len(states))

    def _advance(self, state: ImageState, share_s: float) -> None:
        """Book one evaluation of one image and tell of a finished step."""
        calls = state.rows + state.plan.control_rows(state.evaluation)
        after = state.spend(denoise_s=share_s, model_calls=calls)
        after = replace(after, evaluation=state.evaluation + 1)
        self._keep(after)
        if after.step == state.step:
            return
        every, steps = state.claim.preview_every, state.plan.num_steps
        try:
            wants = (every and after.step % every == 0) or after.step in state.claim.preview_at
            wants = wants and after.step < steps
            preview = self._executor.preview(state.id) if wants else None
            self._emit(ImageStepped(id=state.id, step=after.step, steps=steps, preview=preview))
        except Exception as error:  # this image fails, alone
            self._fail(state.id, error)

    def _finish(self, state: ImageState, decoded: Decoded, share_s: float) -> None:
        """End an image well."""
        calls = 0 if state.plan.rows else 1
        state = state.spend(decode_s=share_s, model_calls=calls)
        self._end(
            state.id,
            ImageDone(
                id=state.id,
                picture=decoded.picture,
                timings=state.timings,
                warnings=state.warnings + decoded.warnings,
            ),
        )

    def _pay(self, paid: Mapping[ImageId, float]) -> None:
        """Book seconds among clients."""
        by_client: dict[str, float] = {}
        for image, seconds in paid.items():
            if image not in self._states:  # a listener ended it
                continue
            client = self._states[image].claim.client
            by_client[client] = by_client.get(client, 0.0) + seconds
        self._accounts.settle(self._present.keys(), by_client, self._clock())

    def _keep(self, state: ImageState) -> None:
        """Hold an image that has tensors, as it is now."""
        self._states[state.id] = self._running[state.id] = state

    def _fail(self, image: ImageId, error: Exception) -> None:
        """End an image with an error; one that has ended already keeps its ending."""
        self._end(image, ImageFailed(id=image, error=error))

    def _end(self, image: ImageId, event: ImageDone | ImageFailed | ImageCancelled) -> None:
        """Forget an image, free its tensors, tell its ending."""
        state = self._states.pop(image, None)
        if state is None:
            return
        self._running.pop(image, None)
        self._waiting.drop(image)
        client, images = state.claim.client, self._by_request[image.request]
        self._present[client] -= 1
        if not self._present[client]:
            del self._present[client]
        del images[image]
        if not images:
            del self._by_request[image.request]
        self._footprints.pop(image)
        self._assets.pop(image, None)
        self._free(image)
        self._emit(event)

    def _free(self, image: ImageId) -> None:
        """Free an image's tensors if it has any; a failure of that costs nobody anything."""
        with contextlib.suppress(Exception):
            self._executor.release(image)
