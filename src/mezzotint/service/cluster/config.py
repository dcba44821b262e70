"""Configuration of the cluster room: what this server asks of a Ray cluster. Torch-free."""

import re
from dataclasses import dataclass

from mezzotint.errors import InvalidRequest
from mezzotint.plain import Checked, check_range

__all__ = ["ClusterConfig", "check_scale"]

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


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

    deployment: str = "default"
    min_replicas: int = 1
    max_replicas: int = 1
    backlog_s: float = 10.0
    idle_s: float = 300.0
    cpus: int = 1
    gpus: int = 0

    def _validate(self) -> None:
        if not _NAME.fullmatch(self.deployment):
            raise InvalidRequest(
                "worker.cluster.deployment must be 1 to 40 of a-z, 0-9 and -, "
                f"got {self.deployment!r}",
                field="worker.cluster.deployment",
                value=self.deployment,
            )
        check_range("worker.cluster.min_replicas", self.min_replicas, 0, 10_000)
        check_range("worker.cluster.max_replicas", self.max_replicas, 1, 10_000)
        check_range("worker.cluster.backlog_s", self.backlog_s, 0.01, 86400, unit=" s")
        check_range("worker.cluster.idle_s", self.idle_s, 0.1, 30 * 86400, unit=" s")
        check_range("worker.cluster.cpus", self.cpus, 1, 1024)
        check_range("worker.cluster.gpus", self.gpus, 0, 1)
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
