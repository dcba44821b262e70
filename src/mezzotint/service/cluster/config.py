"""Configuration of the cluster room: what this server asks of a Ray cluster. Torch-free."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from mezzotint.bounds import Pattern, Range
from mezzotint.errors import InvalidRequest
from mezzotint.plain import Checked

__all__ = ["ClusterConfig", "check_scale"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig(Checked):
    """What this server asks of a cluster: replicas of its engine, each on one device.

    Args:
        deployment: Name of its replicas; servers with the same name and settings share them.
        min_replicas: Replicas kept at least; 0 ends the last one when nobody has asked for
            ``idle_s``.
        max_replicas: Replicas at most.
        backlog_s: Seconds of work before one replica that are worth another.
        idle_s: Seconds that a replica stays after it was last needed.
        cpus: CPU cores of a replica.
        gpus: GPUs of a replica, 0 or 1.
    """

    where: ClassVar[str] = "worker.cluster"
    deployment: Annotated[
        str, Pattern(r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$", "1 to 40 of a-z, 0-9 and -")
    ] = "default"
    min_replicas: Annotated[int, Range(0, 10_000)] = 1
    max_replicas: Annotated[int, Range(1, 10_000)] = 1
    backlog_s: Annotated[float, Range(0.01, 86400, "s")] = 10.0
    idle_s: Annotated[float, Range(0.1, 30 * 86400, "s")] = 300.0
    cpus: Annotated[int, Range(1, 1024)] = 1
    gpus: Annotated[int, Range(0, 1)] = 0

    def _validate(self) -> None:
        check_scale(self.min_replicas, self.max_replicas)


def check_scale(least: int, most: int) -> None:
    """Check that a deployment can have its fewest replicas.

    Raises:
        InvalidRequest: If ``least`` is more than ``most``.
    """
    if least > most:
        raise InvalidRequest(
            f"min_replicas must be at most max_replicas, {most}, got {least}",
            field="worker.cluster.min_replicas",
            value=least,
        )
