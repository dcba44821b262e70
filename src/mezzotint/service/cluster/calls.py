"""Calls: what a command asks of a cluster's controller, and waits for.

For programs that come and go; a front that stays is :mod:`mezzotint.service.cluster.service`.
"""

from typing import Any

import mezzotint
from mezzotint.errors import NotReady
from mezzotint.service.cluster import ray_link
from mezzotint.service.cluster.actors import controller
from mezzotint.service.cluster.messages import (
    ClusterState,
    DeploymentSpec,
    Outcome,
    encode,
    unpack,
)
from mezzotint.service.cluster.views import describe
from mezzotint.service.descriptions import read_error

__all__ = ["deploy", "remove", "status"]

_ANSWER_S = 20.0


def status(address: str) -> dict[str, Any]:
    """Return head, nodes, deployments and replicas as plain data.

    Raises:
        NotReady: If no head answers, or this machine is no node of its cluster.
    """
    head = ray_link.connect(address)
    actor = ray_link.get_actor(ray_link.CONTROLLER)
    state = ClusterState(number=0, version=mezzotint.__version__)
    if actor is not None:
        state = unpack(_wait(actor.state.remote()), ClusterState)
    return {"head": head, "nodes": ray_link.list_nodes(), **describe(state)}


def deploy(address: str, spec: DeploymentSpec) -> None:
    """Make or replace a deployment; return when its first replica is warm.

    Raises:
        MezzotintError: If it is refused, or no replica can be started, and why.
    """
    ray_link.connect(address)
    actor = controller()
    _read(_wait(actor.deploy.remote(encode(spec), True)))
    _read(_wait(actor.wait_settled.remote(spec.name), spec.start_s))


def remove(address: str, name: str) -> None:
    """End a deployment, "" for all; what is being drawn is finished first.

    Raises:
        UnknownName: If there is no such deployment.
    """
    ray_link.connect(address)
    actor = ray_link.get_actor(ray_link.CONTROLLER)
    if actor is not None:
        _read(_wait(actor.remove.remote(name)))


def _wait(answer: Any, most_s: float = _ANSWER_S) -> bytes:
    try:
        return ray_link.ray_module().get(answer, timeout=most_s)
    except Exception as error:  # Ray's own are of many kinds
        told = str(error).partition("\n")[0][:200] or type(error).__name__
        raise NotReady(f"the cluster's controller gave no answer: {told}") from None


def _read(answer: bytes) -> None:
    outcome: Outcome = unpack(answer, Outcome)
    if outcome.error:
        raise read_error(outcome.error)
