"""Messages: all that fronts, controller and replicas of a cluster say to each other.

Ray carries bytes; what they hold is read into the types named here and never unpickled.
What fronts and replicas say about work are the messages of
:mod:`mezzotint.service.workers.messages`, many at a time.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from mezzotint.service.cluster.autoscaler import Scale
from mezzotint.service.workers.messages import FromWorker, ToWorker
from mezzotint.service.workers.transport import encode, unpack

__all__ = [
    "ClusterState",
    "DeploymentSpec",
    "DeploymentState",
    "FrontReport",
    "Outcome",
    "ReplicaGreeting",
    "ReplicaState",
    "TrainJob",
    "TrainSaid",
    "encode",
    "read_batch",
    "unpack",
]


class DeploymentSpec(Struct, frozen=True, kw_only=True):
    """What replicas of one name are made of.

    Args:
        name: Unlike any other's.
        version: Of Mezzotint, that wrote it.
        factory: ``module:function`` that makes the service.
        options: What it is called with.
        log: A :class:`~mezzotint.observe.config.LogConfig` as plain data.
        models: Models that only its replicas serve; () for all that no other names.
        least: Replicas at least.
        most: Replicas at most.
        backlog_s: Seconds of work that are worth another.
        idle_s: Seconds that a replica stays after it was last needed.
        cpus: CPU cores of a replica.
        gpus: GPUs of a replica.
        start_s: Seconds that a replica may take to get ready, once it has its place.
    """

    name: str
    version: str
    factory: str
    options: dict[str, Any]
    log: dict[str, Any] = {}
    models: list[str] = []
    least: int = 1
    most: int = 1
    backlog_s: float = 10.0
    idle_s: float = 300.0
    cpus: int = 1
    gpus: int = 0
    start_s: float = 600.0

    @property
    def scale(self) -> Scale:
        """Its bounds, as the autoscaler takes them."""
        return Scale(least=self.least, most=self.most, backlog_s=self.backlog_s, idle_s=self.idle_s)


class ReplicaGreeting(Struct, frozen=True, kw_only=True):
    """What a replica is once it is warm; or why there is none.

    Args:
        error: What the factory raised, as plain data; {} if it stands.
        version: Of Mezzotint there.
        node: Id of its node.
        host: Its node's address.
        pid: Of its process.
        device: Where it computes.
        environment: What its arithmetic depends on.
        models: Models as the service lists them.
        capabilities: Names as the service lists them.
    """

    error: dict[str, Any] = {}
    version: str = ""
    node: str = ""
    host: str = ""
    pid: int = 0
    device: str = ""
    environment: str = ""
    models: list[dict[str, Any]] = []
    capabilities: dict[str, Any] = {}


class FrontReport(Struct, frozen=True, kw_only=True):
    """What a front has under way, by deployment: seconds of work, and requests.

    Args:
        version: Of Mezzotint there.
        backlogs: Name -> (seconds, requests).
        loads: Replica -> seconds that the front has given it.
        seen: Number of the state that it knows.
    """

    version: str
    backlogs: dict[str, tuple[float, int]] = {}
    loads: dict[str, float] = {}
    seen: int = 0


class ReplicaState(Struct, frozen=True, kw_only=True):
    """One replica as the controller sees it.

    Args:
        status: ``starting``, ``ready``, ``leaving`` or ``refused`` (it stands and is not
            used, and ``fault`` says why).
        others_s: Seconds of work that all fronts have given it.
    """

    name: str
    deployment: str
    status: str
    fault: str = ""
    node: str = ""
    host: str = ""
    pid: int = 0
    device: str = ""
    environment: str = ""
    since_s: float = 0.0
    others_s: float = 0.0
    warm: list[str] = []


class DeploymentState(Struct, frozen=True, kw_only=True):
    """One deployment as the controller sees it.

    Args:
        spec: What its replicas are made of.
        wanted: Replicas that there should be.
        backlog_s: Seconds of work, on one replica.
        requests: Requests under way.
        fault: Why its latest replica did not start, "" if it did.
        error: The same as plain data.
        models: Models as its first replica listed them.
        capabilities: Names as its first replica listed them.
    """

    spec: DeploymentSpec
    wanted: int = 0
    backlog_s: float = 0.0
    requests: int = 0
    fault: str = ""
    error: dict[str, Any] = {}
    models: list[dict[str, Any]] = []
    capabilities: dict[str, Any] = {}


class ClusterState(Struct, frozen=True, kw_only=True):
    """All that the controller knows; ``number`` rises with every change that matters."""

    number: int
    version: str
    deployments: list[DeploymentState] = []
    replicas: list[ReplicaState] = []
    fronts: int = 0


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of a call: a value as plain data, or an error."""

    value: Any = None
    error: dict[str, Any] = {}


class TrainJob(Struct, frozen=True, kw_only=True):
    """One process of a training run.

    Args:
        rank: Its number, from 0.
        processes: How many there are.
        host: Where the first one is.
        port: On which it waits for the others.
        cpus: Cores of each.
        gpus: GPUs of each.
        folder: In which it runs.
        config: The run, as TOML.
        fresh: Whether a checkpoint that is there is refused.
    """

    rank: int
    processes: int
    host: str
    port: int
    cpus: int
    gpus: int
    folder: str
    config: str
    fresh: bool = False


class TrainSaid(Struct, frozen=True, kw_only=True):
    """What a process of a training run says: a line, or at its end its exit code and last word."""

    line: str = ""
    code: int | None = None


_from_worker = msgspec.msgpack.Decoder(list[FromWorker])
_to_worker = msgspec.msgpack.Decoder(list[ToWorker])


def read_batch(data: bytes, *, from_worker: bool) -> Sequence[Any]:
    """Read many messages.

    Raises:
        ValueError: If they are something else, or broken.
    """
    return (_from_worker if from_worker else _to_worker).decode(data)
