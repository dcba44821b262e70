"""Ray link: the cluster's head, its actors and its nodes; who speaks to Ray speaks here.

Usage reports to Ray's makers are off. What Ray raises becomes one sentence of ours, and a
head that does not answer is found out by us, in seconds: Ray itself tries for minutes.
"""

import asyncio
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

from mezzotint.errors import NotReady

__all__ = [
    "CONTROLLER",
    "NAMESPACE",
    "connect",
    "find_head",
    "get_actor",
    "is_answering",
    "list_nodes",
    "names_of_replicas",
    "ray_module",
    "replica_name",
    "token_variables",
    "where_this_is",
]

NAMESPACE = "mezzotint"
CONTROLLER = "mezzotint-controller"
_REPLICA = "mezzotint-replica-"
_PROBE_S = 3.0
_HEAD_ANSWERS_S = 60.0
INSTALL = "Ray is not installed: pip install 'mezzotint[cluster]'"


def ray_module() -> Any:
    """Import Ray, with its reports off, and shown the cluster's token where there is one.

    Raises:
        NotReady: If it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if _has_token():  # Ray looks for one only once it has found its head
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise NotReady(INSTALL) from None
    logging.getLogger("ray").setLevel(logging.ERROR)  # it is not the main thread's to warn of
    return ray


def _has_token() -> bool:
    """Whether this machine has a token, where Ray and ``mezzotint cluster up`` look for it."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or Path(named).expanduser().is_file()


def token_variables(token: Path) -> dict[str, str]:
    """Return the variables that make Ray ask for, and show, a token."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}


def find_head(address: str) -> str:
    """Return ``host:port`` of a head that answers.

    Args:
        address: ``host:port``, or ``auto`` for the cluster that this machine is part of.

    Raises:
        NotReady: If there is none, or it does not answer within seconds.
    """
    ray_module()
    if address == "auto":
        from ray._private import services

        try:
            address = services.canonicalize_bootstrap_address_or_die("auto")
        except ConnectionError:
            raise NotReady(
                "this machine is part of no Ray cluster; start one with `mezzotint cluster up`, "
                "or join one with `mezzotint cluster up --join HOST:PORT`"
            ) from None
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdigit()):
        raise NotReady(f"worker.ray must be auto or HOST:PORT, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PROBE_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise NotReady(
            f"no Ray head answers at {address} ({reason}); start it with `mezzotint cluster up`, "
            "or name another with worker.ray"
        ) from None
    return address


async def is_answering(address: str) -> bool:
    """Tell whether something listens at ``host:port``."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(_PROBE_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            writer.close()
    except OSError:
        return False
    return True


def connect(address: str) -> str:
    """Connect this process to a cluster; return the head's ``host:port``.

    Raises:
        NotReady: If no head answers, this machine is no node of the cluster, versions
            differ, the token is wrong, or the head asks for none where this process has one.
    """
    ray = ray_module()
    head = find_head(address)
    if ray.is_initialized():
        return head
    try:
        ray.init(
            address=head,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except Exception as error:  # Ray's own are of many kinds
        told = " ".join(str(error).split())
        if "version" in told.lower() and "mismatch" in told.lower():
            raise NotReady(
                f"the Ray at {head} is of another version than the one here "
                f"(Ray {ray.__version__}, Python {sys.version.split()[0]}): {told[:200]}"
            ) from None
        if "auth" in told.lower() or "token" in told.lower():
            raise NotReady(
                f"the Ray at {head} refused the token; RAY_AUTH_MODE=token needs the same "
                f"token on all machines: {told[:200]}"
            ) from None
        raise NotReady(
            f"this machine cannot work with the Ray at {head}: {told[:300]}; every front is a "
            f"node of its cluster: `mezzotint cluster up --join {head}`"
        ) from None
    _refuse_unlike_tokens(head)
    return head


def _refuse_unlike_tokens(head: str) -> None:
    """Refuse a head that knows no token where this process asks its callers for one.

    Ray connects the two; what the replicas then say is turned away at this end, unheard, and
    requests would wait for ever. The other way round Ray itself refuses.
    """
    ray = ray_module()
    if not _asks_for_a_token():
        return
    try:
        asks = ray.remote(_asks_for_a_token)
        on_head = asks.options(num_cpus=0, resources={"node:__internal_head__": 0.001})
        is_alike = ray.get(on_head.remote(), timeout=_HEAD_ANSWERS_S)
        told = "was started without a token, and this machine has one"
    except Exception as error:  # Ray's own are of many kinds
        is_alike, told = False, f"gives no answer: {' '.join(str(error).split())[:200]}"
    if not is_alike:
        ray.shutdown()
        raise NotReady(
            f"the Ray at {head} {told}: start it again with `mezzotint cluster up`, which makes "
            "and asks for a token, or set RAY_AUTH_MODE=disabled here"
        )


def _asks_for_a_token() -> bool:
    """Tell whether this process turns away who shows no token."""
    from ray._private.authentication import authentication_utils

    return bool(authentication_utils.is_token_auth_enabled())


def get_actor(name: str) -> Any:
    """Return an actor of ours by its name, None if there is none."""
    try:
        return ray_module().get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


def replica_name(deployment: str, token: str) -> str:
    """Return the name of a replica's actor."""
    return f"{_REPLICA}{deployment}-{token}"


def names_of_replicas() -> list[str]:
    """Return the names of the replicas that live."""
    ray = ray_module()
    named = ray.util.list_named_actors(all_namespaces=True)
    return [
        one["name"]
        for one in named
        if one["namespace"] == NAMESPACE and one["name"].startswith(_REPLICA)
    ]


def list_nodes() -> list[dict[str, Any]]:
    """Return the machines of the cluster: id, address, whether they live, what they have."""
    nodes: list[dict[str, Any]] = []
    for node in ray_module().nodes():
        resources = node.get("Resources", {})
        nodes.append(
            {
                "node": node["NodeID"],
                "host": node["NodeManagerAddress"],
                "live": bool(node["Alive"]),
                "cpus": float(resources.get("CPU", 0)),
                "gpus": float(resources.get("GPU", 0)),
                "is_head": "node:__internal_head__" in resources,
            }
        )
    return nodes


def where_this_is() -> tuple[str, str]:
    """Return id and address of the node on which this actor runs."""
    ray = ray_module()
    return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()
