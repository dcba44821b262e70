"""Acceptance: whether a request may come in, when it is due, and how long it will take."""

from collections.abc import Callable, Mapping

from mezzotint.engine.admission import Turns, admit
from mezzotint.engine.backlog import Backlog
from mezzotint.engine.config import EngineConfig
from mezzotint.errors import InvalidRequest
from mezzotint.observe import metrics
from mezzotint.planning.costs import CostTable, Prediction, cost_key, finish_key
from mezzotint.planning.plan import Plan
from mezzotint.service.dispatch.coalescing import Coalescing, may_share
from mezzotint.service.dispatch.eta import EtaCorrection
from mezzotint.service.requests import RequestState, RequestSubmission
from mezzotint.types import StageTimings

__all__ = ["Acceptance"]


class Acceptance:
    """Judges requests by what is held and what is known of costs.

    Args:
        config: Limits.
        costs: Measured seconds.
        coalescing: Which pictures are kept or being made.
        budget_bytes: Bytes that tensors of requests may take together.
        clock: Seconds, the engine's own.
        requests: The open requests by id, kept by the caller.
        held: The images that the engine has before it, kept by the caller.
        load_s: Predicts the seconds until a plan's model is ready; None where all are.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        costs: CostTable,
        coalescing: Coalescing,
        budget_bytes: int,
        clock: Callable[[], float],
        requests: Mapping[str, RequestState],
        held: Backlog,
        load_s: Callable[[Plan], float] | None = None,
    ) -> None:
        self._config = config
        self._costs = costs
        self._coalescing = coalescing
        self._budget_bytes = budget_bytes
        self._clock = clock
        self._requests = requests
        self._held = held
        self._load_s = load_s
        self._etas = EtaCorrection(clock)
        self._turns = Turns()

    def admit(self, state: RequestState) -> float:
        """Return the predicted seconds of a request that may come in.

        Args:
            state: The request; when it is due and expected is written there.

        Raises:
            MezzotintError: If it may not, or not now.
        """
        submission = state.submission
        if submission.id in self._requests:
            raise InvalidRequest(f"request id {submission.id!r} is in use", field="id")
        work = [
            self.predict(plan, submission, index)
            for index, plan in enumerate(submission.planned.plans)
            if not (
                may_share(plan, submission) and self._coalescing.is_known(plan, submission.client)
            )
        ]
        now = self._clock()
        first = submission.planned.plans[0]
        kind = (submission.client, cost_key(first), first.rows, len(work))
        state.due_s = self._turns.due_s(kind, now, sum(cost.seconds for cost in work))
        wait_s = self._wait_s(submission, now)
        if not work:
            state.expected_s = now + wait_s
            return wait_s
        load = self._held.before(submission.client, state.rank)
        pace = self._etas.factor(load.images)
        eta_s = admit(
            load,
            work,
            config=self._config,
            budget_bytes=self._budget_bytes,
            deadline_s=submission.request.deadline_s,
            pace=pace,
        )
        if self._load_s is not None and not submission.is_ready:
            # Its model loads while others are drawn.
            loads_s = max(map(self._load_s, submission.planned.plans))
            eta_s += max(loads_s - load.seconds * pace, 0.0)
        self._etas.begin(submission.id, eta_s / pace, load.images)
        eta_s = max(eta_s, wait_s)
        state.expected_s = now + eta_s
        return eta_s

    def _wait_s(self, submission: RequestSubmission, now: float) -> float:
        """Return for how long a request will wait for pictures that others have begun."""
        longest = 0.0
        for plan in submission.planned.plans:
            leader = None
            if may_share(plan, submission):
                leader = self._coalescing.leader(plan, submission.client)
            if leader is not None and leader.request in self._requests:
                longest = max(longest, self._requests[leader.request].expected_s - now)
        return longest

    def predict(self, plan: Plan, submission: RequestSubmission, index: int) -> Prediction:
        """Return what one pass of an image takes alone."""
        footprint = submission.footprints[index]
        return self._costs.predict(plan, footprint, min_rows=self._config.min_rows)

    def end(self, request_id: str, *, is_measure: bool) -> None:
        """Learn from a request that has ended how good its prediction was.

        Args:
            request_id: Its id.
            is_measure: Whether its seconds tell anything: it was done, all of it anew.
        """
        if is_measure:
            self._etas.learn(request_id)
        self._etas.forget(request_id)

    def learn(self, plan: Plan, timings: StageTimings) -> None:
        """Publish the numbers of a finished picture, and learn what enlarging it costs."""
        finished = finish_key(plan)
        if finished is not None:
            self._costs.record(finished, "finish", 1, timings.write_s)
        metrics.count("mezzotint_images_total", model=plan.model)
        for stage in ("queue", "encode", "denoise", "decode", "gate", "write"):
            metrics.measure("mezzotint_stage_seconds", getattr(timings, f"{stage}_s"), stage=stage)
