"""Jobs: requests that outlive their connection, the process and the machine's power.

A job is a row before its sender hears of it. A runner feeds queued jobs to the
service, keeps each picture under its digest as soon as it is finished, and
writes the ending once. What ran when a process died is queued again with the
seed it had, so that it comes to the same bytes.

Event ids rise within a job: ``runs * 1_000_000 + n``. Endings, pictures and
starts are kept; steps and their previews running in memory as long as the job runs.
"""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import exc

from mezzotint import errors
from mezzotint.errors import (
    DeadlineExceeded,
    MezzotintError,
    NotReady,
    QueueFull,
    WorkFailed,
)
from mezzotint.observe import log
from mezzotint.request import GenerationRequest
from mezzotint.service.base import GenerationService
from mezzotint.service.config import JobsConfig
from mezzotint.service.descriptions import describe_error, describe_image
from mezzotint.service.jobs.feed import JobEvent, JobFeed, RunningJob
from mezzotint.service.jobs.kept import KeptJobs
from mezzotint.service.jobs.ownership import FolderOwner
from mezzotint.service.jobs.refusals import same_job
from mezzotint.service.jobs.results import NoRoom, ResultFiles
from mezzotint.service.jobs.retry import StorageRetry
from mezzotint.service.jobs.schema import NewerSchema
from mezzotint.service.jobs.store import ENDED, Job, JobImage, JobStore, Status, StoredEvent
from mezzotint.types import (
    Cancelled,
    Event,
    Failed,
    Finished,
    ImageFinished,
    Started,
    Stepped,
)

__all__ = ["Jobs"]

_EPOCH = 1_000_000
_SWEEP_S = 60.0
_AWAY = (exc.OperationalError, exc.InterfaceError, exc.InternalError)
T = TypeVar("T")


class Jobs(KeptJobs):
    """The durable queue in front of a service.

    Args:
        service: Who does the work.
        config: Where jobs are kept and how many run.

    Use it between :meth:`start` and :meth:`stop`.
    """

    def __init__(self, service: GenerationService, config: JobsConfig) -> None:
        self._service = service
        self._config = config
        self._folder = Path(config.folder)
        super().__init__(ResultFiles(self._folder / "results"))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mezzotint-jobs")
        self._running: dict[str, RunningJob] = {}
        self._feed = JobFeed(self._running, self._kept_events, self._has_ended)
        self._owner: FolderOwner | None = None
        self._wake = asyncio.Event()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._seconds = 1.0  # moving average of one job
        self._has_run = False
        self._retry = StorageRetry()

    async def start(self) -> None:
        """Open the store, queue again what was left running, begin to work.

        Raises:
            NotReady: If the folder or the database cannot be used.
            FolderTaken: If another server uses the folder's own database.
            NewerSchema: If a newer version of this program wrote the database.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            url = self._config.url or f"sqlite:///{self._folder / 'jobs.sqlite3'}"
            if self._config.is_sqlite:  # others are shared, by leases
                self._owner = FolderOwner(self._folder)
            owner = secrets.token_hex(8)
            self._store = await self._do(lambda: JobStore(url, owner))
            alone = self._config.is_sqlite
            cancelled = await self._do(lambda: self._store.reclaim(everything=alone))
        except (OSError, exc.SQLAlchemyError, NotReady, NewerSchema) as error:
            self._release()
            if isinstance(error, NewerSchema):
                raise
            raise NotReady(f"the job store cannot be opened: {error}") from None
        for id_ in cancelled:
            await self._end(id_, "cancelled", {}, "cancelled", {"id": id_})
        self._tasks = [asyncio.create_task(self._pump()), asyncio.create_task(self._tend())]

    async def stop(self, drain_s: float = 0.0) -> None:
        """Take nothing new, let running jobs finish for a while, queue the others again."""
        self._stopping = True
        self._retry.end()
        self._wake.set()
        tasks = [job.task for job in self._running.values() if job.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=drain_s)
        for task in [*tasks, *self._tasks]:
            task.cancel()
        for task in [*tasks, *self._tasks]:
            with contextlib.suppress(asyncio.CancelledError, MezzotintError):
                await task
        await self._do(self._store.close)
        self._release()
        self._thread.shutdown(wait=True)

    def _release(self) -> None:
        """Let another server have the folder."""
        if self._owner is not None:
            self._owner.release()

    async def submit(
        self,
        request: GenerationRequest,
        *,
        client: str = "",
        idempotency_key: str | None = None,
        use_cache: bool = True,
        note: Mapping[str, Any] | None = None,
    ) -> Job:
        """Queue a request durably.

        Args:
            request: What to make; an open seed is drawn here, so that a second
                run after a crash makes the same picture.
            client: Who asks.
            idempotency_key: The same key with the same request gives the job
                made before.
            use_cache: Whether a cached result will do.
            note: Plain data that the door keeps with the job.

        Raises:
            IdempotencyConflict: If the key came with another request before.
            QueueFull: If too many jobs wait.
            NotReady: If the store or a picture cannot be written (a full disk), or
                the server is stopping.
        """
        if self._stopping:
            raise NotReady("the server is shutting down")
        if self._retry.trouble:
            raise NotReady(f"no job can be taken now: {self._retry.trouble}")
        body_digest = request.digest
        if idempotency_key is not None:
            known = await self._do(lambda: self._store.by_key(client, idempotency_key))
            if known is not None:
                return same_job(known, body_digest, idempotency_key)
        waiting, own = await self._do(lambda: self._store.waiting(client))
        if full := self._config.full(waiting, own if client else 0):
            eta_s = self._seconds * waiting / self._config.max_running
            raise QueueFull(f"{full} wait already", retry_after_s=max(1.0, eta_s))
        if request.seed is None:
            request = replace(request, seed=secrets.randbits(32))
        id_ = f"job-{secrets.token_hex(12)}"
        values = {
            "id": id_,
            "client": client,
            "priority": request.priority,
            "request": request.canonical(),
            "body_digest": body_digest,
            "idempotency_key": idempotency_key,
            "use_cache": use_cache,
            "created": time.time(),
        }
        event = StoredEvent(id=1, kind="queued", data={"id": id_, "position": waiting})
        job = await self._do(lambda: self._store.add(values, event, note))
        if job is None:  # the same key arrived twice at once
            known = await self._do(lambda: self._store.by_key(client, str(idempotency_key)))
            return same_job(known, body_digest, str(idempotency_key))
        self._wake.set()
        return job

    async def get(self, id_: str, *, client: str | None = None) -> Job:
        """Return a job; ``client`` None may see everybody's.

        Raises:
            UnknownName: If there is none, or it is somebody else's.
        """
        job = await self._do(lambda: self._store.get(id_))
        if client is not None and job.client != client:
            raise errors.UnknownName("job", id_[:80], (), field="id")
        return job

    async def place(self, job: Job) -> tuple[int, float]:
        """Return how many jobs stand before this one, and the seconds that will take."""
        if job.status != "queued":
            return 0, self._seconds if job.status == "running" else 0.0
        position = await self._do(lambda: self._store.position(job))
        return position, self._seconds * (1 + position / self._config.max_running)

    def expect(self, seconds: float) -> None:
        """Take a planner's prediction for the average as long as no job has run."""
        if not self._has_run and seconds > 0:
            self._seconds = seconds

    def progress(self, job: Job) -> tuple[int, int]:
        """Return steps done and steps in all of a running job, (0, 0) if not known."""
        running = self._running.get(job.id)
        return (running.step, running.steps) if running is not None else (0, 0)

    async def counts(self) -> dict[str, int]:
        """Count the jobs by status."""
        return await self._do(self._store.counts)

    async def cancel(self, id_: str) -> Job:
        """Cancel a job: at once while it waits, at the next step while it runs."""
        ended = await self._end(
            id_, "cancelled", {}, "cancelled", {"id": id_}, only_from=("queued",), insist=False
        )
        if not ended:
            await self._do(lambda: self._store.ask_cancel(id_))
            running = self._running.get(id_)
            if running is not None:
                await self._service.cancel(running.request_id)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self.wait(id_), 2.0)
        return await self._do(lambda: self._store.get(id_))

    async def wait(self, id_: str) -> Job:
        """Return the job when it has ended."""
        async for _ in self.events(id_):
            pass
        return await self._do(lambda: self._store.get(id_))

    async def events(self, id_: str, after: int = 0) -> AsyncIterator[JobEvent]:
        """Yield the events of a job with ids above ``after``, up to its ending."""
        async for event in self._feed.events(id_, after):
            yield event

    async def image(self, job: Job, index: int) -> bytes:
        """Return the bytes of a finished picture.

        Raises:
            UnknownName: If the job has no such picture.
            PictureGone: If its file is missing or damaged.
        """
        for image in job.images:
            if image.index == index:
                return await asyncio.to_thread(self.results.read, image.digest)
        raise errors.UnknownName("job", f"{job.id}/images/{index}", (), field="k")

    async def _kept_events(self, id_: str, after: int) -> list[StoredEvent]:
        return await self._do(lambda: self._store.events(id_, after))

    async def _has_ended(self, id_: str) -> bool:
        job = await self._do(lambda: self._store.get(id_))
        return job.status in ENDED

    async def _do(self, work: Callable[[], T]) -> T:
        """Run blocking database work in its own thread.

        Raises:
            NotReady: If the database does not answer, or takes nothing (a full disk).
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except _AWAY as error:
            reason = str(error.orig)
            if not self._config.is_sqlite:
                log.error("jobs.store_away", reason=reason)
                reason = "the database does not answer"  # where it is, is no client's business
            raise NotReady(f"the job store cannot be used: {reason}") from None

    async def _insist(self, work: Callable[[], T]) -> T:
        """Run database work of a job under way until it succeeds.

        Raises:
            NotReady: If the server stops before it does.
        """
        return await self._retry.until_done(lambda: self._do(work), NotReady)

    async def _pump(self) -> None:
        """Start queued jobs while there is room."""
        while not self._stopping:
            self._wake.clear()
            try:
                ready = bool((await self._service.health()).get("ready"))
                while (
                    ready and not self._stopping and len(self._running) < self._config.max_running
                ):
                    job = await self._do(lambda: self._store.claim(self._config.lease_s))
                    if job is None:
                        break
                    running = RunningJob(f"{job.id}.{job.runs}", job.runs * _EPOCH)
                    running.images = {image.index for image in job.images}
                    self._running[job.id] = running
                    running.task = asyncio.create_task(self._run(job, running))
            except NotReady as error:
                log.error("jobs.store_failed", reason=str(error))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), 1.0)

    async def _tend(self) -> None:
        """Renew leases, take over silent servers' jobs, expire old results."""
        swept = 0.0
        while True:
            try:
                for id_ in await self._do(lambda: self._store.renew(self._config.lease_s)):
                    running = self._running.get(id_)
                    if running is not None:
                        await self._service.cancel(running.request_id)
                for id_ in await self._do(lambda: self._store.reclaim(everything=False)):
                    await self._end(id_, "cancelled", {}, "cancelled", {"id": id_})
                if time.monotonic() - swept > _SWEEP_S:
                    swept = time.monotonic()
                    await self.sweep()
            except (NotReady, OSError) as error:
                log.error("jobs.store_failed", reason=str(error))
            await asyncio.sleep(self._config.lease_s / 3)

    async def sweep(self) -> int:
        """Expire old results; return how many files went."""
        config = self._config
        gone = await self._do(
            lambda: self._store.expire(max_age_s=config.max_age_s, max_bytes=config.max_bytes)
        )
        for digest in gone:
            await asyncio.to_thread(self.results.remove, digest)
        return len(gone)

    async def _run(self, job: Job, running: RunningJob) -> None:
        """Run one job to its ending, or put it back."""
        began = time.monotonic()
        try:
            await self._follow(job, running)
            spent = time.monotonic() - began
            self._seconds += (0.2 if self._has_run else 1.0) * (spent - self._seconds)
            self._has_run = True
        except asyncio.CancelledError:
            await self._requeue(job.id)
            raise
        except MezzotintError as error:
            if self._stopping and isinstance(error, NotReady | errors.Cancelled):
                await self._requeue(job.id)
            elif isinstance(error, errors.Overloaded | NotReady):
                await asyncio.sleep(min(getattr(error, "retry_after_s", 1.0), 5.0))
                await self._requeue(job.id)
            else:
                await self._fail(job, error)
        except Exception as error:  # a bug of ours fails this job; the others are run
            log.error("jobs.failed", exception=error, job=job.id)
            await self._fail(job, error)
        finally:
            self._running.pop(job.id, None)
            self._feed.announce(job.id)
            self._wake.set()

    async def _requeue(self, id_: str) -> None:
        """Put a job back; where that cannot be written the next start finds it running."""
        with contextlib.suppress(NotReady):
            await self._insist(lambda: self._store.requeue(id_))

    async def _follow(self, job: Job, running: RunningJob) -> None:
        """Turn the service's events into the job's."""
        request = GenerationRequest.from_dict(json.loads(job.request))
        if request.deadline_s is not None and time.time() > job.created + request.deadline_s:
            raise DeadlineExceeded(
                f"the job waited longer than its deadline_s {request.deadline_s}"
            )
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
            await self._keep(job.id, running, "started", {"id": job.id})
        elif isinstance(event, Stepped):
            running.step, running.steps = event.step, event.steps
            data = {"image": event.image, "step": event.step, "steps": event.steps}
            self._feed.publish(job.id, running, "step", data, event.preview)
        elif isinstance(event, ImageFinished):
            await self._keep_image(job.id, running, event)
        elif isinstance(event, Failed):
            raise event.error
        elif isinstance(event, Cancelled):
            if not self._stopping:
                await self._end(
                    job.id, "cancelled", {}, "cancelled", {"id": job.id}, running=running
                )
            else:
                await self._requeue(job.id)
            return True
        elif isinstance(event, Finished):
            for image in event.result.images:
                await self._keep_image(job.id, running, ImageFinished(id=job.id, image=image))
            outcome = {
                "plan": dict(event.result.plan),
                "cache": event.result.cache,
                "warnings": list(event.result.warnings),
            }
            await self._end(
                job.id, "succeeded", outcome, "finished", {"id": job.id}, running=running
            )
            return True
        return False

    async def _keep_image(self, id_: str, running: RunningJob, event: ImageFinished) -> None:
        """Keep a picture under its digest, once."""
        image = event.image
        if image.index in running.images:
            return
        digest = await self._retry.until_done(
            lambda: asyncio.to_thread(self.results.put, image.data), NoRoom
        )
        about = describe_image(image)
        kept = JobImage(index=image.index, digest=digest, bytes=len(image.data), about=about)
        await self._keep(id_, running, "image", about, kept)
        running.images.add(image.index)

    async def _keep(
        self,
        id_: str,
        running: RunningJob,
        kind: str,
        data: Mapping[str, Any],
        image: JobImage | None = None,
    ) -> None:
        """Keep an event in the store, then tell whoever listens."""
        event = StoredEvent(id=running.next_id, kind=kind, data=data)
        await self._insist(lambda: self._store.add_event(id_, event, image))
        self._feed.publish(id_, running, kind, data)

    async def _fail(self, job: Job, error: BaseException) -> None:
        """End a job with its error."""
        described = describe_error(error)
        running = self._running.get(job.id)
        await self._end(
            job.id, "failed", {"error": described}, "failed", {"error": described}, running=running
        )

    async def _end(
        self,
        id_: str,
        status: Status,
        outcome: Mapping[str, Any],
        kind: str,
        data: Mapping[str, Any],
        *,
        running: RunningJob | None = None,
        only_from: tuple[str, ...] = ("running",),
        insist: bool = True,
    ) -> bool:
        """Write the ending, once; a store that cannot be written is tried again."""
        do = self._insist if insist else self._do
        job = await do(lambda: self._store.get(id_))
        last = running.next_id if running is not None else job.runs * _EPOCH + _EPOCH - 1
        event = StoredEvent(id=last, kind=kind, data=data)
        done = await do(
            lambda: self._store.finish(id_, status, outcome, event, only_from=only_from)
        )
        if done and running is not None:
            self._feed.publish(id_, running, kind, data)
        self._feed.announce(id_)
        return done
