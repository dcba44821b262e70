"""Configuration of the service room: durable jobs and worker processes. Torch-free."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mezzotint.bounds import Pattern
from mezzotint.errors import InvalidRequest
from mezzotint.plain import Checked, check_range
from mezzotint.service.cluster.config import ClusterConfig

__all__ = [
    "HandlersConfig",
    "JobsConfig",
    "WorkerConfig",
    "device_in",
    "on_device",
]

_CLUSTER = Pattern(r"^[A-Za-z0-9._-]{0,64}$", "at most 64 letters, digits, '.', '_' and '-'")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsConfig(Checked):
    """Where jobs and their pictures are kept, and for how long.

    Args:
        folder: Folder of the SQLite file and of the pictures.
        url: SQLAlchemy URL of another database, e.g.
            ``postgresql+psycopg://...``; "" is SQLite in ``folder``.
        results_url: Where finished pictures are: a folder, or ``s3://bucket/prefix`` (needs
            the extra ``mezzotint[s3]``; credentials and endpoint are read from ``AWS_*``
            variables); "" is ``results`` in ``folder``.
        max_waiting: Jobs that may wait; more are refused with ``QueueFull``.
        client_share: Share of them that one client may hold; the rest stays free for others.
        max_running: Jobs given to the engine at once.
        max_age_s: Seconds after which a finished job's pictures are removed.
        max_bytes: Bytes of pictures kept; the oldest finished jobs go first.
        preview_every: A preview picture with every k-th step; 0 for none.
        lease_s: Seconds after which another server may take over a job whose
            server fell silent.
        cluster: Name of the servers that share the database; a database that another name
            was given to is refused. "" takes the database's.
        environment_wait_s: Seconds that an ``exact`` job waits for a server with the
            environment that it began in, where its own is gone; then it fails. 0 fails it at
            once. A ``stable`` or ``turbo`` job goes on anywhere, with a warning.
    """

    folder: str = "."
    url: str = ""
    results_url: str = ""
    max_waiting: int = 1000
    client_share: float = 0.75
    max_running: int = 8
    max_age_s: float = 7 * 86400.0
    max_bytes: int = 10 << 30
    preview_every: int = 4
    lease_s: float = 30.0
    cluster: str = ""
    environment_wait_s: float = 3600.0

    def _validate(self) -> None:
        check_range("jobs.max_waiting", self.max_waiting, 1, 1_000_000)
        check_range("jobs.client_share", self.client_share, 0.01, 1)
        check_range("jobs.max_running", self.max_running, 1, 1024)
        check_range("jobs.max_age_s", self.max_age_s, 1, 10 * 365 * 86400, unit=" s")
        check_range("jobs.max_bytes", self.max_bytes, 0, 1 << 60)
        check_range("jobs.preview_every", self.preview_every, 0, 1000)
        check_range("jobs.lease_s", self.lease_s, 1, 3600, unit=" s")
        wait_s = self.environment_wait_s
        check_range("jobs.environment_wait_s", wait_s, 0, 10 * 365 * 86400, unit=" s")
        _CLUSTER.check("jobs.cluster", self.cluster)
        if not re.match(r"(sqlite|postgresql(\+psycopg)?):", self.url or "sqlite:"):
            raise InvalidRequest(
                "jobs.url must begin with postgresql+psycopg:// or sqlite://, got "
                f"{self.url.partition(':')[0][:40]!r}",
                field="jobs.url",
            )

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is a file, which one server has for itself."""
        return not self.url or self.url.startswith("sqlite")

    def full(self, waiting: int, own: int) -> str:
        """Say what keeps another job out; "" if it may come in.

        Args:
            waiting: Jobs that wait.
            own: Jobs of the same client among them; 0 where nobody has a name.
        """
        if own >= math.ceil(self.max_waiting * self.client_share):
            return f"{own} jobs of this key"
        return f"{waiting} jobs" if waiting >= self.max_waiting else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig(Checked):
    """How the engine's own process is started and watched.

    Args:
        factory: ``module:function`` that takes the options and returns the
            service (or an awaitable of it); called in the worker process.
        options: Plain JSON data for the factory; the usual factory takes fields of
            :class:`~mezzotint.service.composition.ServiceConfig`.
        start_s: Seconds the process may take until it is ready.
        silence_s: Seconds without an answer to a ping after which the process
            counts as hung and is killed, also while it works; the least that the first
            call of a shape may take, which may compile.
        hang_s: Seconds without an answer and without any work after which the process
            counts as hung and is killed; the least that a call may take.
        hang_factor: How many times its expected seconds a call may take, beyond
            ``hang_s``, until the process counts as hung. Loading, compiling and
            calibration are no such calls.
        max_crashes: Times a request may be running when the process dies; then
            it fails, so that one poisonous request cannot keep the worker down.
        backoff_s: Pause before the second restart in a row; doubles up to 30 s.
        devices: A worker of its own for each of these devices, e.g. ``cuda:0`` and
            ``cuda:1``; empty is one on ``models.placement.device``.
        count: Workers on each device; on a CPU they share the cores evenly.
        ray: A Ray cluster that does the work in place of processes here: ``HOST:PORT`` of its
            head, or ``auto`` for the one that this machine is part of; "" is none.
        cluster: What this server asks of that cluster.
    """

    factory: str = "mezzotint.service.local:create_service"
    options: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)
    start_s: float = 600.0
    silence_s: float = 300.0
    hang_s: float = 10.0
    hang_factor: float = 20.0
    max_crashes: int = 8
    backoff_s: float = 0.5
    devices: tuple[str, ...] = ()
    count: int = 1
    ray: str = ""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        """Check ranges; the options are the factory's own business."""
        check_range("worker.start_s", self.start_s, 1, 86400, unit=" s")
        check_range("worker.silence_s", self.silence_s, 1, 86400, unit=" s")
        check_range("worker.hang_s", self.hang_s, 0.1, 86400, unit=" s")
        check_range("worker.hang_factor", self.hang_factor, 1, 10_000)
        check_range("worker.max_crashes", self.max_crashes, 1, 1000)
        check_range("worker.backoff_s", self.backoff_s, 0, 30, unit=" s")
        check_range("worker.count", self.count, 1, 64)
        if self.ray and not re.fullmatch(r"auto|\S+:\d{1,5}", self.ray):
            raise InvalidRequest(
                f"worker.ray must be auto or HOST:PORT, got {self.ray!r}",
                field="worker.ray",
                value=self.ray,
                allowed="auto, HOST:PORT",
            )
        if self.ray and (self.devices or self.count > 1):
            raise InvalidRequest(
                "worker.devices and worker.count are of this machine; with worker.ray the cluster "
                "places replicas: see worker.cluster",
                field="worker.ray",
            )
        for device in self.devices:
            if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", device):
                raise InvalidRequest(
                    f"worker.devices must hold cpu, mps, cuda or cuda:N, got {device!r}",
                    field="worker.devices",
                    value=device,
                    allowed="cpu, mps, cuda, cuda:N",
                )
        if len(set(self.devices)) < len(self.devices):
            raise InvalidRequest(
                "worker.devices names a device twice; worker.count gives each several workers",
                field="worker.devices",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlersConfig(Checked):
    """What the Python code of TorchServe archives may take, where it may run at all.

    Args:
        timeout_s: Seconds for one batch; then the process is killed.
        start_s: Seconds to load the code and its weights.
        idle_s: Seconds without a request after which the process is ended.
        memory_bytes: Memory of one process and all that it started together.
        max_children: Processes that one may have started and that live.
        file_bytes: Bytes of one file that it writes.
        max_response_bytes: Bytes of the answers to one batch.
        max_processes: Handlers in memory at once; the one idle longest goes first.
        max_waiting: Requests that may wait for one handler.
    """

    timeout_s: float = 120.0
    start_s: float = 120.0
    idle_s: float = 600.0
    memory_bytes: int = 4 << 30
    max_children: int = 32
    file_bytes: int = 4 << 30
    max_response_bytes: int = 64 << 20
    max_processes: int = 4
    max_waiting: int = 100

    def _validate(self) -> None:
        for name in ("timeout_s", "start_s", "idle_s"):
            check_range(f"handlers.{name}", getattr(self, name), 0.1, 86400, unit=" s")
        check_range("handlers.memory_bytes", self.memory_bytes, 64 << 20, 1 << 50)
        check_range("handlers.max_children", self.max_children, 0, 100_000)
        check_range("handlers.file_bytes", self.file_bytes, 0, 1 << 50)
        check_range("handlers.max_response_bytes", self.max_response_bytes, 1024, 2 << 30)
        check_range("handlers.max_processes", self.max_processes, 1, 256)
        check_range("handlers.max_waiting", self.max_waiting, 1, 100_000)


def on_device(options: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Return options of the usual factory for a worker on one device.

    Args:
        options: Fields of :class:`~mezzotint.service.composition.ServiceConfig` as plain data.
        device: Value of ``models.placement.device``.
    """
    models = dict(options.get("models") or {})
    placement = {**(models.get("placement") or {}), "device": device}
    return {**options, "models": {**models, "placement": placement}}


def device_in(options: Mapping[str, Any]) -> str:
    """Return the device in options of the usual factory, "" if they name none."""
    models = options.get("models") or {}
    return str((models.get("placement") or {}).get("device", ""))
