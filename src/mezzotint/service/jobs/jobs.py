"""Jobs: requests that outlive their connection, the process and the machine's power.

A job is a row before its sender hears of it. A runner feeds queued jobs to the
service, keeps each picture under its digest as soon as it is finished, and
writes the ending once. What ran when a process died is queued again with the
seed it had, so that it comes to the same bytes.

Event ids rise within a job: ``runs * EPOCH + n``. Endings, pictures and starts are
kept; of steps and their previews all are in the memory of the server that runs the job,
and the latest is in the database for the others.
"""

import asyncio
import base64
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import exc

import mezzotint
from mezzotint import errors
from mezzotint.errors import MezzotintError, NotReady, QueueFull
from mezzotint.request import GenerationRequest
from mezzotint.service.base import GenerationService
from mezzotint.service.buckets import open_objects
from mezzotint.service.config import JobsConfig
from mezzotint.service.jobs.access import StoreAccess, reason_of
from mezzotint.service.jobs.cluster import OtherCluster
from mezzotint.service.jobs.feed import JobEvent, JobFeed, RunningJob
from mezzotint.service.jobs.kept import KeptJobs
from mezzotint.service.jobs.ownership import FolderOwner
from mezzotint.service.jobs.refusals import same_job
from mezzotint.service.jobs.results import ResultFiles
from mezzotint.service.jobs.rows import ENDED, Job, StoredEvent
from mezzotint.service.jobs.runner import JobCheck, JobRunner
from mezzotint.service.jobs.store import JobStore

__all__ = ["Jobs"]

_CANCEL_S = 2.0  # for which a cancellation waits to see the job end


class Jobs(KeptJobs):
    """The durable queue in front of a service.

    Args:
        service: Who does the work.
        config: Where jobs are kept and how many run.
        check: Asked before a job begins; see :class:`JobRunner`.

    Use it between :meth:`start` and :meth:`stop`.
    """

    def __init__(
        self, service: GenerationService, config: JobsConfig, *, check: JobCheck | None = None
    ) -> None:
        self._service = service
        self._config = config
        self._folder = Path(config.folder)
        access = StoreAccess()
        place = config.results_url or str(self._folder / "results")
        super().__init__(access, ResultFiles(open_objects(place, "jobs.results_url")))
        self._running: dict[str, RunningJob] = {}
        self._feed = JobFeed(self._running, self._kept_events, self._has_ended, self._step)
        self._runner = JobRunner(
            service, config, access, results=self.results, feed=self._feed,
            running=self._running, check=check,
        )  # fmt: skip
        self._owner: FolderOwner | None = None

    async def start(self) -> None:
        """Open the store, queue again what was left running, begin to work.

        Raises:
            NotReady: If the folder or the database cannot be used.
            FolderTaken: If another server uses the folder's own database.
            NewerSchema: If a newer version of this program wrote the database.
            OtherCluster: If the database is another cluster's.
        """
        config = self._config
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            url = config.url or f"sqlite:///{self._folder / 'jobs.sqlite3'}"
            if config.is_sqlite:  # others are shared, by leases
                self._owner = FolderOwner(self._folder)
            about = {"cluster": config.cluster, "version": mezzotint.__version__}
            owner = secrets.token_hex(8)
            await self._access.open(lambda: JobStore(url, owner, **about))
            await self._access.do(self._claim_results)
            await self._access.do(lambda: self._store.reclaim(everything=config.is_sqlite))
        except (OSError, exc.SQLAlchemyError, ImportError, MezzotintError) as error:
            self._release()
            await self._access.close()
            if isinstance(error, errors.InvalidRequest):
                raise
            reason = reason_of(error) if isinstance(error, exc.SQLAlchemyError) else str(error)
            raise NotReady(f"the job store cannot be opened: {reason}") from None
        await self._runner.start()

    async def stop(self, drain_s: float = 0.0) -> None:
        """Take nothing new, let running jobs finish for a while, queue the others again."""
        await self._runner.stop(drain_s)
        await self._access.close()
        self._release()

    def _claim_results(self) -> None:
        """See that pictures can be kept, where the other servers of the cluster keep theirs.

        Raises:
            NotReady: If they cannot.
            OtherCluster: If the place is another cluster's, or the others have another.
        """
        config, own = self._config, self._store.cluster.id
        where = f"jobs.results_url {config.results_url!r}"
        if not config.results_url:
            where = f"the folder of pictures below jobs.folder {config.folder!r}"
        try:
            mark = self.results.mark()
            if mark == own:
                return
            if mark is None and not self._store.others(2 * config.lease_s):
                self.results.set_mark(own)
                return
        except OSError as error:
            raise NotReady(f"no picture can be kept in {where}: {error.strerror}") from None
        if mark is not None and not config.results_url:  # a database was begun anew beside them
            self.results.set_mark(own)
            return
        whose = "is not where the other servers keep theirs"
        if mark is not None:
            whose = "is another cluster's (remove its object 'cluster' if that one is gone)"
        raise OtherCluster(
            f"{where} {whose}: servers that share a job database share one place for pictures, "
            "such as jobs.results_url = 's3://bucket/prefix', and no two clusters share one",
            field="jobs.results_url",
        )

    def signing_key(self) -> bytes:
        """Return 32 bytes that sign messages to outside, the same on all servers of a cluster."""
        own = self._folder / "webhooks.key"  # of a server before there were clusters
        if self._config.is_sqlite and own.is_file():
            return own.read_bytes()
        return base64.b64decode(self._store.cluster.secret)

    async def servers(self) -> list[dict[str, Any]]:
        """Describe the servers that share this queue and live.

        Raises:
            NotReady: If the database does not answer.
        """
        alive_s = 2 * self._config.lease_s
        return await self._access.do(lambda: self._store.servers(alive_s))

    @property
    def counts_for_all(self) -> bool:
        """Whether there are other servers that what a client may ask is shared with."""
        return self._runner.is_shared

    async def spend(self, client: str, per_minute: int) -> float:
        """Take a request from what a client may ask of all servers; seconds to wait, else 0.

        Raises:
            NotReady: If the database does not answer.
        """
        return await self._access.do(lambda: self._store.spend(client, per_minute))

    async def hold(self, client: str, most: int, own: Callable[[], int]) -> bool:
        """Count a generation of a client; False if all servers together hold too many.

        Args:
            client: Whose.
            most: How many it may hold.
            own: Tells how many it holds here, the new one included.

        Raises:
            NotReady: If the database does not answer.
        """
        alive_s = 2 * self._config.lease_s
        return await self._access.do(lambda: self._store.hold(client, most, own, alive_s))

    async def tell_held(self, client: str, own: Callable[[], int]) -> None:
        """Say how many generations a client holds here, again until it is written."""
        with contextlib.suppress(NotReady):  # the server stops, and with it what it holds
            await self._access.insist(lambda: self._store.tell_held(client, own))

    def _release(self) -> None:
        """Let another server have the folder."""
        if self._owner is not None:
            self._owner.release()

    @property
    def _store(self) -> JobStore:
        return self._access.store

    async def submit(
        self,
        request: GenerationRequest,
        *,
        client: str = "",
        idempotency_key: str | None = None,
        use_cache: bool = True,
        note: Mapping[str, Any] | None = None,
        webhook: str | None = None,
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
            webhook: Address that :meth:`due_webhook` gives when the job has ended.

        Raises:
            IdempotencyConflict: If the key came with another request before.
            QueueFull: If too many jobs wait.
            NotReady: If the store or a picture cannot be written (a full disk), or
                the server is stopping.
        """
        if self._runner.is_stopping:
            raise NotReady("the server is shutting down")
        if trouble := self._access.retry.trouble or self._runner.refusal:
            raise NotReady(f"no job can be taken now: {trouble}")
        body_digest = request.digest
        if idempotency_key is not None:
            known = await self._access.do(lambda: self._store.by_key(client, idempotency_key))
            if known is not None:
                return same_job(known, body_digest, idempotency_key)
        waiting, own = await self._access.do(lambda: self._store.waiting(client))
        if full := self._config.full(waiting, own if client else 0):
            eta_s = self._runner.seconds * waiting / self._config.max_running
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
            "exact": request.reproducibility == "exact",
        }
        event = StoredEvent(id=1, kind="queued", data={"id": id_, "position": waiting})
        job = await self._access.do(lambda: self._store.add(values, event, note, webhook))
        if job is None:  # the same key arrived twice at once
            known = await self._access.do(lambda: self._store.by_key(client, str(idempotency_key)))
            return same_job(known, body_digest, str(idempotency_key))
        self._runner.wake()
        return job

    async def get(self, id_: str, *, client: str | None = None) -> Job:
        """Return a job; ``client`` None may see everybody's.

        Raises:
            UnknownName: If there is none, or it is somebody else's.
        """
        job = await self._access.do(lambda: self._store.get(id_))
        if client is not None and job.client != client:
            raise errors.UnknownName("job", id_[:80], (), field="id")
        return job

    async def place(self, job: Job) -> tuple[int, float]:
        """Return how many jobs stand before this one, and the seconds that will take."""
        if job.status != "queued":
            return 0, self._runner.seconds if job.status == "running" else 0.0
        position = await self._access.do(lambda: self._store.position(job))
        return position, self._runner.seconds * (1 + position / self._config.max_running)

    def expect(self, seconds: float) -> None:
        """Take a planner's prediction for the average as long as no job has run."""
        if not self._runner.has_run and seconds > 0:
            self._runner.seconds = seconds

    def progress(self, job: Job) -> tuple[int, int]:
        """Return steps done and steps in all of a running job, (0, 0) if not known."""
        running = self._running.get(job.id)
        return (running.step, running.steps) if running is not None else job.progress

    async def counts(self) -> dict[str, int]:
        """Count the jobs by status."""
        return await self._access.do(self._store.counts)

    async def cancel(self, id_: str) -> Job:
        """Cancel a job: at once while it waits, at the next step while it runs.

        A job that another server runs is cancelled there; it is told at once.
        """
        if not await self._runner.end(id_, "cancelled", {}, "cancelled", {"id": id_}):
            await self._access.do(lambda: self._store.ask_cancel(id_))
            running = self._running.get(id_)
            if running is not None:
                await self._service.cancel(running.request_id)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.wait(id_), _CANCEL_S)
        return await self._access.do(lambda: self._store.get(id_))

    async def wait(self, id_: str) -> Job:
        """Return the job when it has ended."""
        async for _ in self.events(id_):
            pass
        return await self._access.do(lambda: self._store.get(id_))

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
        return await self._access.do(lambda: self._store.events(id_, after))

    async def _has_ended(self, id_: str) -> bool:
        job = await self._access.do(lambda: self._store.get(id_))
        return job.status in ENDED

    async def _step(self, id_: str) -> JobEvent | None:
        """Return the latest step of a job that runs on another server."""
        if not self._runner.is_shared:
            return None
        found = await self._access.do(lambda: self._store.progress(id_))
        if found is None:
            return None
        data = {"image": found.image, "step": found.step, "steps": found.steps}
        return JobEvent(id=found.event, kind="step", data=data, preview=found.preview)

    async def sweep(self) -> int:
        """Expire old results; return how many files went."""
        return await self._runner.sweep()
