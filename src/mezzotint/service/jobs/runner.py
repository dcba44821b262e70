"""Runner: takes jobs from the queue, runs them on the service, and writes what became of them.

Whatever is written of a run shows its lease. Where the lease is lost, because the database
was away for longer than it lasts or this process stood still, the run is stopped and nothing
of it counts: another server has the job.
"""

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from mezzotint import errors
from mezzotint.errors import DeadlineExceeded, MezzotintError, NotReady, WorkFailed
from mezzotint.observe import log
from mezzotint.request import GenerationRequest
from mezzotint.service.base import GenerationService
from mezzotint.service.config import JobsConfig
from mezzotint.service.descriptions import describe_error, describe_image
from mezzotint.service.jobs.access import StoreAccess
from mezzotint.service.jobs.feed import JobFeed, RunningJob
from mezzotint.service.jobs.leases import LeaseLost
from mezzotint.service.jobs.notices import Notices
from mezzotint.service.jobs.results import NoRoom, ResultFiles
from mezzotint.service.jobs.rows import EPOCH, Job, JobImage, Progress, Status, StoredEvent
from mezzotint.service.jobs.schema import NewerSchema
from mezzotint.types import Cancelled, Event, Failed, Finished, ImageFinished, Started, Stepped

__all__ = ["JobCheck", "JobRunner"]

JobCheck = Callable[[GenerationRequest, Job], None]
"""Raises a ``MezzotintError`` where the request of a job may not be made, or not any more."""

_SWEEP_S = 60.0
_LOOK_S = 1.0  # between looks for what no notice told of
_TELL_S = 0.2  # between tellings of steps to other servers
_PREVIEW_BYTES = 256 << 10  # the largest preview that goes through the database


class JobRunner:
    """Runs queued jobs between :meth:`start` and :meth:`stop`.

    Args:
        service: Who does the work.
        config: How many run at once, and for how long a lease lasts.
        access: The store.
        results: Where pictures are kept.
        feed: Told of every event.
        running: The jobs that run here, by id; kept here, read by others.
        check: Asked before a job begins, which may have waited for long; what it raises
            fails the job.
    """

    def __init__(
        self,
        service: GenerationService,
        config: JobsConfig,
        access: StoreAccess,
        *,
        results: ResultFiles,
        feed: JobFeed,
        running: dict[str, RunningJob],
        check: JobCheck | None = None,
    ) -> None:
        self._service = service
        self._check = check
        self._config = config
        self._access = access
        self._results = results
        self._feed = feed
        self._running = running
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._environment: str | None = None
        self._notices: Notices | None = None
        self._away_until = 0.0
        self.refusal = ""  # why this server takes no job any more
        self.is_stopping = False
        self.seconds = 1.0  # moving average of one job
        self.has_run = False

    @property
    def is_shared(self) -> bool:
        """Whether other servers may be on the same database."""
        return not self._config.is_sqlite

    async def start(self) -> None:
        """Begin to work."""
        loops = [self._pump(), self._tend()]
        if self.is_shared:
            store = self._access.store
            self._notices = Notices(store.connection_arguments, store.channel, self._hear)
            loops += [self._notices.listen(), self._tell_steps()]
        self._tasks = [asyncio.create_task(loop) for loop in loops]

    async def stop(self, drain_s: float) -> None:
        """Let running jobs finish for a while, queue the others again."""
        self.is_stopping = True
        self._access.retry.end()
        self.wake()
        tasks = [job.task for job in self._running.values() if job.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=drain_s)
        for task in [*tasks, *self._tasks]:
            task.cancel()
        for task in [*tasks, *self._tasks]:
            with contextlib.suppress(asyncio.CancelledError, MezzotintError):
                await task
        with contextlib.suppress(MezzotintError):
            await self._access.do(self._access.store.leave)

    def wake(self) -> None:
        """Look for work now."""
        self._wake.set()

    def _hear(self, kind: str, id_: str) -> None:
        """Take what another server told of."""
        if kind in ("wake", ""):
            self.wake()
        if kind == "":
            self._feed.announce_all()
        if kind == "event":
            self._feed.announce(id_)
        if kind == "cancel" and id_ in self._running:
            self._cancel_soon(id_)

    def _cancel_soon(self, id_: str) -> None:
        task = asyncio.ensure_future(self._service.cancel(self._running[id_].request_id))
        self._tasks = [t for t in self._tasks if not t.done()]
        self._tasks.append(asyncio.ensure_future(_quietly(task)))

    async def _pump(self) -> None:
        """Start queued jobs while there is room."""
        while not self.is_stopping:
            self._wake.clear()
            try:
                ready = bool((await self._service.health()).get("ready"))
                if ready and self._environment is None:
                    self._environment = await _environment_of(self._service)
                while ready and not self._is_full():
                    job = await self._access.do(
                        lambda: self._access.store.claim(
                            self._config.lease_s, self._environment or ""
                        )
                    )
                    if job is None:
                        break
                    self._begin(job)
                await self._look_for_cancels()
            except MezzotintError as error:
                log.error("jobs.store_failed", reason=str(error))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _LOOK_S)

    def _is_full(self) -> bool:
        is_closed = self.is_stopping or bool(self.refusal)
        return is_closed or len(self._running) >= self._config.max_running

    def _begin(self, job: Job) -> None:
        before = self._running.get(job.id)
        if before is not None:  # this server lost the job, and is the one that took it over
            self._let_go(before)
        running = RunningJob(job.lease, f"{job.id}.{job.runs}", job.runs * EPOCH)
        running.images = {image.index for image in job.images}
        self._running[job.id] = running
        running.task = asyncio.create_task(self._run(job, running))

    async def _look_for_cancels(self) -> None:
        """Find what is to be cancelled where no notice comes."""
        if not self.is_shared or not self._running:
            return
        if self._notices is not None and self._notices.is_listening:
            return
        held = [running.lease for running in self._running.values()]
        for id_ in await self._access.do(lambda: self._access.store.to_cancel(held)):
            if id_ in self._running:
                self._cancel_soon(id_)

    async def _tend(self) -> None:
        """Renew leases, take over silent servers' jobs, expire old results."""
        swept = 0.0
        while True:
            try:
                await self._renew()
                if time.monotonic() >= self._away_until:
                    await self._take_over()
                if time.monotonic() - swept > _SWEEP_S:
                    swept = time.monotonic()
                    await self.sweep()
            except NewerSchema as error:
                self.refusal = str(error)
                log.error("jobs.newer_schema", reason=str(error))
            except (NotReady, OSError) as error:
                log.error("jobs.store_failed", reason=str(error))
                # The others could not renew their leases either: they get the time to.
                self._away_until = time.monotonic() + self._config.lease_s
            pause_s = self._config.lease_s / 3
            await asyncio.sleep(min(pause_s, _LOOK_S) if self._away() else pause_s)

    def _away(self) -> bool:
        return time.monotonic() < self._away_until

    async def _renew(self) -> None:
        """Renew the leases of what runs here; let go of what another server has."""
        leases = [running.lease for running in self._running.values()]
        held, cancelled = await self._access.do(
            lambda: self._access.store.renew(leases, self._config.lease_s, self._environment)
        )
        for lease in leases:
            running = self._running.get(lease.job)
            if running is None or running.lease != lease:
                continue
            if lease not in held:
                self._let_go(running)
            elif lease.job in cancelled:
                self._cancel_soon(lease.job)

    def _let_go(self, running: RunningJob) -> None:
        """Stop a run that counts for nothing any more."""
        log.warning("jobs.lease_lost", job=running.lease.job, run=running.lease.run)
        running.is_lost = True
        if running.task is not None:
            running.task.cancel()

    async def _take_over(self) -> None:
        """Put back what silent servers ran; fail what no server may go on with."""
        store, config = self._access.store, self._config
        gone = await self._access.do(lambda: store.reclaim(everything=False))
        for id_ in (*gone.queued, *gone.cancelled):
            self._feed.announce(id_)
        if gone.queued:
            self.wake()
        alive_s, wait_s = 2 * config.lease_s, config.environment_wait_s
        for id_ in await self._access.do(lambda: store.stranded(alive_s=alive_s, wait_s=wait_s)):
            error = WorkFailed(
                "the job began on a server whose environment no server has any more, and its "
                f"pictures would not be the same bytes; it waited {wait_s:g} s for one. Send it "
                "again, or ask for reproducibility 'stable'"
            )
            described = {"error": describe_error(error)}
            await self.end(id_, "failed", described, "failed", described)

    async def sweep(self) -> int:
        """Expire old results; return how many files went."""
        config = self._config
        gone = await self._access.do(
            lambda: self._access.store.expire(
                max_age_s=config.max_age_s, max_bytes=config.max_bytes
            )
        )
        for digest in gone:
            await asyncio.to_thread(self._results.remove, digest)
        return len(gone)

    async def _tell_steps(self) -> None:
        """Tell other servers of the latest step of each job, a few times a second."""
        while True:
            await asyncio.sleep(_TELL_S)
            steps: list[Progress] = []
            for running in self._running.values():
                event = running.latest
                if event is None or event.id <= running.told:
                    continue
                running.told = event.id
                preview = event.preview
                if preview is not None and len(preview) > _PREVIEW_BYTES:
                    preview = None
                steps.append(
                    Progress(
                        job=running.lease.job,
                        run=running.lease.run,
                        event=event.id,
                        preview=preview,
                        **event.data,
                    )
                )
            if steps:
                with contextlib.suppress(NotReady):  # the next ones tell more
                    await self._access.do(lambda told=steps: self._access.store.report(told))

    async def _run(self, job: Job, running: RunningJob) -> None:
        """Run one job to its ending, or put it back."""
        began = time.monotonic()
        try:
            await self._follow(job, running)
            spent = time.monotonic() - began
            self.seconds += (0.2 if self.has_run else 1.0) * (spent - self.seconds)
            self.has_run = True
        except asyncio.CancelledError:
            if running.is_lost:
                return
            await self._put_back(running)
            raise
        except LeaseLost as error:
            log.warning("jobs.lease_lost", job=job.id, reason=str(error))
        except MezzotintError as error:
            if self.is_stopping and isinstance(error, NotReady | errors.Cancelled):
                await self._put_back(running)
            elif isinstance(error, errors.Overloaded | NotReady):
                await asyncio.sleep(min(getattr(error, "retry_after_s", 1.0), 5.0))
                await self._put_back(running)
            else:
                await self._fail(running, error)
        except Exception as error:  # a bug of ours fails this job; the others are run
            log.error("jobs.failed", exception=error, job=job.id)
            await self._fail(running, error)
        finally:
            if self._running.get(job.id) is running:
                del self._running[job.id]
            self._feed.announce(job.id)
            self.wake()

    async def _put_back(self, running: RunningJob) -> None:
        """Put a job back; where that cannot be written its lease runs out."""
        with contextlib.suppress(NotReady, LeaseLost):
            await self._access.insist(lambda: self._access.store.put_back(running.lease))

    async def _follow(self, job: Job, running: RunningJob) -> None:
        """Turn the service's events into the job's."""
        if job.cancel:
            await self._end(running, "cancelled", {}, "cancelled", {"id": job.id})
            return
        request = GenerationRequest.from_dict(json.loads(job.request))
        if self._check is not None:
            self._check(request, job)
        deadline_s, started = request.deadline_s, job.started or job.created
        if deadline_s is not None and started > job.created + deadline_s:
            raise DeadlineExceeded(f"the job waited longer than its deadline_s {deadline_s}")
        events = self._service.stream(
            request,
            request_id=running.request_id,
            client=job.client,
            use_cache=job.use_cache,
            preview_every=self._config.preview_every,
        )
        async for event in events:
            if await self._take(job, running, event):
                return
        raise WorkFailed("the request ended without an ending")

    async def _take(self, job: Job, running: RunningJob, event: Event) -> bool:
        """Book one event; True if it was the ending."""
        if isinstance(event, Started):
            await self._keep(running, "started", {"id": job.id})
        elif isinstance(event, Stepped):
            running.step, running.steps = event.step, event.steps
            data = {"image": event.image, "step": event.step, "steps": event.steps}
            self._feed.publish(job.id, running, "step", data, event.preview)
        elif isinstance(event, ImageFinished):
            await self._keep_image(running, event)
        elif isinstance(event, Failed):
            raise event.error
        elif isinstance(event, Cancelled):
            if not self.is_stopping:
                await self._end(running, "cancelled", {}, "cancelled", {"id": job.id})
            else:
                await self._put_back(running)
            return True
        elif isinstance(event, Finished):
            for image in event.result.images:
                await self._keep_image(running, ImageFinished(id=job.id, image=image))
            outcome = {
                "plan": dict(event.result.plan),
                "cache": event.result.cache,
                "warnings": [*event.result.warnings, *self._moved(job)],
            }
            await self._end(running, "succeeded", outcome, "finished", {"id": job.id})
            return True
        return False

    def _moved(self, job: Job) -> list[str]:
        """Say that a job went on in another environment than it began in."""
        if job.environment in (None, self._environment or ""):
            return []
        return [
            "the job began on a server with another environment and was finished here: its "
            f"pictures are {json.loads(job.request).get('reproducibility', '')!s}, not exact"
        ]

    async def _keep_image(self, running: RunningJob, event: ImageFinished) -> None:
        """Keep a picture under its digest, once."""
        image = event.image
        if image.index in running.images:
            return
        digest = await self._access.retry.until_done(
            lambda: asyncio.to_thread(self._results.put, image.data), NoRoom
        )
        about = describe_image(image)
        kept = JobImage(index=image.index, digest=digest, bytes=len(image.data), about=about)
        await self._keep(running, "image", about, kept)
        running.images.add(image.index)

    async def _keep(
        self,
        running: RunningJob,
        kind: str,
        data: Mapping[str, Any],
        image: JobImage | None = None,
    ) -> None:
        """Keep an event in the store, then tell whoever listens."""
        event = StoredEvent(id=running.next_id, kind=kind, data=data)
        await self._access.insist(
            lambda: self._access.store.keep_event(
                running.lease, event, image, lease_s=self._config.lease_s
            )
        )
        self._feed.publish(running.lease.job, running, kind, data)

    async def _fail(self, running: RunningJob, error: BaseException) -> None:
        """End a job with its error."""
        described = {"error": describe_error(error)}
        with contextlib.suppress(LeaseLost):
            await self._end(running, "failed", described, "failed", described)

    async def _end(
        self,
        running: RunningJob,
        status: Status,
        outcome: Mapping[str, Any],
        kind: str,
        data: Mapping[str, Any],
    ) -> None:
        """Write the ending of a run, once; a store that cannot be written is tried again.

        Raises:
            LeaseLost: If another server has the job.
        """
        id_ = running.lease.job
        event = StoredEvent(id=running.next_id, kind=kind, data=data)
        await self._access.insist(
            lambda: self._access.store.finish(id_, status, outcome, event, lease=running.lease)
        )
        self._feed.publish(id_, running, kind, data)

    async def end(
        self,
        id_: str,
        status: Status,
        outcome: Mapping[str, Any],
        kind: str,
        data: Mapping[str, Any],
    ) -> bool:
        """Write the ending of a job that waits; False if it does not."""
        job = await self._access.do(lambda: self._access.store.get(id_))
        event = StoredEvent(id=job.runs * EPOCH + EPOCH - 1, kind=kind, data=data)
        done = await self._access.do(lambda: self._access.store.finish(id_, status, outcome, event))
        self._feed.announce(id_)
        return done


async def _quietly(task: "asyncio.Future[bool]") -> None:
    """Wait for a cancellation; that nothing is left to cancel is no error."""
    with contextlib.suppress(MezzotintError):
        await task


async def _environment_of(service: GenerationService) -> str:
    """Return a digest of what a service's arithmetic depends on."""
    about: object = (await service.capabilities()).get("environment") or {}
    text = json.dumps(about, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
