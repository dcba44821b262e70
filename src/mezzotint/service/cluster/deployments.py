"""Deployments: what replicas are made of, and which of them may be used. Pure."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mezzotint
from mezzotint.files import user_home
from mezzotint.plain import is_mapping
from mezzotint.service.cluster.messages import DeploymentSpec, ReplicaGreeting
from mezzotint.service.config import WorkerConfig, on_device

__all__ = ["fault_of", "note_of", "spec_of"]


def spec_of(config: WorkerConfig, log_config: Mapping[str, Any] | None = None) -> DeploymentSpec:
    """Return the deployment that a server's settings ask for.

    A home folder that was not chosen is each node's own: users and their folders may be called
    otherwise on every machine. One that was is the same path everywhere.
    """
    cluster = config.cluster
    options = _for_any_node(config.options)
    if cluster.gpus:
        options = on_device(options, "cuda")  # Ray shows a replica its own GPU and no other
    return DeploymentSpec(
        name=cluster.deployment,
        version=mezzotint.__version__,
        factory=config.factory,
        options=options,
        log=dict(log_config or {}),
        least=cluster.min_replicas,
        most=cluster.max_replicas,
        backlog_s=cluster.backlog_s,
        idle_s=cluster.idle_s,
        cpus=cluster.cpus,
        gpus=cluster.gpus,
        start_s=config.start_s,
    )


def _for_any_node(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of a service without what only this machine calls so."""
    models, home = options.get("models"), user_home()
    if os.environ.get("MEZZOTINT_HOME") or not is_mapping(models):
        return dict(options)
    if models.get("home") != str(home.absolute()):
        return dict(options)
    found = {**options, "models": {**models, "home": ""}}
    runs, own = Path(str(options.get("runs") or "")), Path.home()
    if runs.is_relative_to(home) and runs.is_relative_to(own):
        found["runs"] = f"~/{runs.relative_to(own).as_posix()}"
    return found


def fault_of(greeting: ReplicaGreeting, first: ReplicaGreeting | None, version: str) -> str:
    """Return why a replica must not be used, "" if it may.

    Args:
        greeting: What it said of itself.
        first: What the first replica of its deployment said; None for that one.
        version: Of Mezzotint in the cluster.
    """
    if greeting.version != version:
        return (
            f"the node {greeting.host} has Mezzotint {greeting.version}, the cluster {version}: "
            "install the same version on every node"
        )
    known = {(m["name"], m["version"]): m.get("digest") for m in first.models} if first else {}
    for model in greeting.models:
        digest, wanted = model.get("digest"), known.get((model["name"], model["version"]))
        if wanted and digest and digest != wanted:
            return (
                f"the node {greeting.host} has another {model['name']}: sha256 {digest[:12]}, "
                f"the deployment {wanted[:12]}: put the same files on every node"
            )
    return ""


def note_of(greeting: ReplicaGreeting, first: ReplicaGreeting | None) -> str:
    """Return what is odd about a replica that may be used, "" if nothing is."""
    if first is None or greeting.environment == first.environment:
        return ""
    return (
        f"the arithmetic of {greeting.host} is not that of the deployment: it gets no exact "
        "requests, only stable and turbo ones"
    )
