"""Configuration of the service room: durable jobs and worker processes. Torch-free."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from mezzotint.bounds import Pattern, Range
from mezzotint.errors import InvalidRequest
from mezzotint.plain import Checked
from mezzotint.service.cluster.config import ClusterConfig

__all__ = [
    "HandlersConfig",
    "JobsConfig",
    "WorkerConfig",
    "device_in",
    "on_device",
]


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

    where: ClassVar[str] = "jobs"
    folder: str = "."
    url: str = ""
    results_url: str = ""
    max_waiting: Annotated[int, Range(1, 1_000_000)] = 1000
    client_share: Annotated[float, Range(0.01, 1)] = 0.75
    max_running: Annotated[int, Range(1, 1024)] = 8
    max_age_s: Annotated[float, Range(1, 10 * 365 * 86400, "s")] = 7 * 86400.0
    max_bytes: Annotated[int, Range(0, 1 << 60)] = 10 << 30
    preview_every: Annotated[int, Range(0, 1000)] = 4
    lease_s: Annotated[float, Range(1, 3600, "s")] = 30.0
    cluster: Annotated[
        str,
        Pattern(r"^[A-Za-z0-9._-]{0,64}$", "at most 64 letters, digits, '.', '_' and '-'"),
    ] = ""
    environment_wait_s: Annotated[float, Range(0, 10 * 365 * 86400, "s")] = 3600.0

    def _validate(self) -> None:
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

    where: ClassVar[str] = "worker"
    factory: str = "mezzotint.service.local:create_service"
    options: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)
    start_s: Annotated[float, Range(1, 86400, "s")] = 600.0
    silence_s: Annotated[float, Range(1, 86400, "s")] = 300.0
    hang_s: Annotated[float, Range(0.1, 86400, "s")] = 10.0
    hang_factor: Annotated[float, Range(1, 10_000)] = 20.0
    max_crashes: Annotated[int, Range(1, 1000)] = 8
    backoff_s: Annotated[float, Range(0, 30, "s")] = 0.5
    devices: tuple[
        Annotated[str, Pattern(r"^(cpu|mps|cuda(:[0-9]{1,3})?)$", "cpu, mps, cuda or cuda:N")], ...
    ] = ()
    count: Annotated[int, Range(1, 64)] = 1
    ray: Annotated[str, Pattern(r"^(auto|\S+:[0-9]{1,5})?$", "auto or HOST:PORT")] = ""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def _validate(self) -> None:
        if self.ray and (self.devices or self.count > 1):
            raise InvalidRequest(
                "worker.devices and worker.count are of this machine; with worker.ray the cluster "
                "places replicas: see worker.cluster",
                field="worker.ray",
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

    where: ClassVar[str] = "handlers"
    timeout_s: Annotated[float, Range(0.1, 86400, "s")] = 120.0
    start_s: Annotated[float, Range(0.1, 86400, "s")] = 120.0
    idle_s: Annotated[float, Range(0.1, 86400, "s")] = 600.0
    memory_bytes: Annotated[int, Range(64 << 20, 1 << 50)] = 4 << 30
    max_children: Annotated[int, Range(0, 100_000)] = 32
    file_bytes: Annotated[int, Range(0, 1 << 50)] = 4 << 30
    max_response_bytes: Annotated[int, Range(1024, 2 << 30)] = 64 << 20
    max_processes: Annotated[int, Range(1, 256)] = 4
    max_waiting: Annotated[int, Range(1, 100_000)] = 100


def on_device(options: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Return options of the usual factory for a worker on one device.

    Args:
        options: Fields of :class:`~mezzotint.service.composition.ServiceConfig` as plain data.
        device: Value of ``models.placement.device``.
    """
    models: dict[str, Any] = dict(options.get("models") or {})
    placement: dict[str, Any] = {**(models.get("placement") or {}), "device": device}
    return {**options, "models": {**models, "placement": placement}}


def device_in(options: Mapping[str, Any]) -> str:
    """Return the device in options of the usual factory, "" if they name none."""
    models: Mapping[str, Any] = options.get("models") or {}
    placement: Mapping[str, Any] = models.get("placement") or {}
    return str(placement.get("device", ""))
