"""Tables of a cluster for a terminal: nodes, deployments, replicas."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

__all__ = ["tables"]

_COLOURS = {"ready": "green", "starting": "yellow", "leaving": "yellow", "gone": "red"}


def tables(status: Mapping[str, Any]) -> list[Table]:
    """Return what ``mezzotint cluster status`` shows.

    Args:
        status: As :func:`mezzotint.service.cluster.calls.status` returns it.
    """
    return [_nodes(status), _deployments(status["deployments"]), _replicas(status["replicas"])]


def _nodes(status: Mapping[str, Any]) -> Table:
    table = _table(f"Nodes of {status['head']}", "host", "node", "state", "CPU", "GPU", "replicas")
    for node in status["nodes"]:
        count = sum(r["node"] == node["node"] for r in status["replicas"])
        state = "ready" if node["live"] else "gone"
        table.add_row(
            node["host"] + (" (head)" if node["is_head"] else ""), node["node"][:12],
            _state(state), f"{node['cpus']:g}", f"{node['gpus']:g}", str(count),
        )  # fmt: skip
    return table


def _deployments(deployments: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("Deployments", "name", "models", "wanted", "of", "requests", "backlog", "fault")
    for one in deployments:
        table.add_row(
            one["name"], ", ".join(one["models"]) or "all others", str(one["wanted"]),
            f"{one['min_replicas']} to {one['max_replicas']}", str(one["requests"]),
            f"{one['backlog_s']:.1f} s", one["fault"],
        )  # fmt: skip
    return table


def _replicas(replicas: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(
        "Replicas", "replica", "host", "pid", "device", "state", "for", "backlog", "fault"
    )
    for one in replicas:
        table.add_row(
            one["name"].removeprefix("mezzotint-replica-"), one["host"] or "-",
            str(one["pid"] or "-"), one["device"] or "-", _state(one["status"]),
            f"{one['since_s']:.0f} s", f"{one['backlog_s']:.1f} s", one["fault"],
        )  # fmt: skip
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _state(state: str) -> str:
    return f"[{_COLOURS.get(state, 'white')}]{state}[/]"
