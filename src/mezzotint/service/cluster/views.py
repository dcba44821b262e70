"""Views: a cluster's state as plain data, for commands, doors and the page."""

from typing import Any

from mezzotint.service.cluster.messages import ClusterState

__all__ = ["describe"]

_OF_REPLICA = ("name", "deployment", "status", "fault", "node", "host", "pid", "device")


def describe(state: ClusterState) -> dict[str, Any]:
    """Return fronts, deployments and replicas."""
    deployments = [
        {
            "name": d.spec.name,
            "models": d.spec.models,
            "wanted": d.wanted,
            "min_replicas": d.spec.least,
            "max_replicas": d.spec.most,
            "requests": d.requests,
            "backlog_s": round(d.backlog_s, 3),
            "fault": d.fault,
        }
        for d in state.deployments
    ]
    replicas = [
        {
            **{name: getattr(r, name) for name in _OF_REPLICA},
            "since_s": round(r.since_s, 1),
            "backlog_s": round(r.others_s, 3),
        }
        for r in state.replicas
    ]
    return {"fronts": state.fronts, "deployments": deployments, "replicas": replicas}
