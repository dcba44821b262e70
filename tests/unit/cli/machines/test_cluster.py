"""The verb ``cluster`` without a cluster: what it says, and its tables."""

import io
import socket

import pytest
from rich.console import Console, Group

from mezzotint.cli import main
from mezzotint.cli.machines.cluster_tables import tables


@pytest.fixture
def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.parametrize("verb", ["status", "deploy", "down"])
def test_a_head_that_does_not_answer_is_one_sentence_and_1(verb, free_port, capsys, tmp_path):
    address = f"127.0.0.1:{free_port}"
    code = main._run(["--home", str(tmp_path), "cluster", verb, "--address", address])
    said = capsys.readouterr().err
    assert code == 1
    assert said.startswith(f"mezzotint: no Ray head answers at {address} (")
    assert said.count("\n") == 1


def test_who_joins_needs_the_heads_token(free_port, capsys, tmp_path):
    with socket.socket() as head:
        head.bind(("127.0.0.1", free_port))
        head.listen()
        given = ["--join", f"127.0.0.1:{free_port}", "--token", str(tmp_path / "none")]
        code = main._run(["cluster", "up", *given])
    assert code == 2
    assert "copy the head's file there" in capsys.readouterr().err


def test_ending_one_deployment_and_all_of_ray_exclude_each_other(capsys):
    assert main._run(["cluster", "down", "large", "--ray"]) == 2
    assert "--ray" in capsys.readouterr().err


def test_the_tables_name_every_node_deployment_and_replica():
    status = {
        "head": "10.0.0.1:6379",
        "nodes": [
            {"node": "a" * 40, "host": "10.0.0.1", "live": True, "cpus": 4.0, "gpus": 1.0,
             "is_head": True},
            {"node": "b" * 40, "host": "10.0.0.2", "live": False, "cpus": 0.0, "gpus": 0.0,
             "is_head": False},
        ],
        "deployments": [
            {"name": "default", "models": [], "wanted": 2, "min_replicas": 1, "max_replicas": 4,
             "requests": 7, "backlog_s": 12.34, "fault": ""},
        ],
        "replicas": [
            {"name": "mezzotint-replica-default-1f", "host": "10.0.0.1", "pid": 77,
             "device": "cuda", "status": "ready", "since_s": 61.0, "backlog_s": 3.21, "fault": "",
             "node": "a" * 40},
        ],
    }  # fmt: skip
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(Group(*tables(status)))
    text = console.export_text()
    for word in ("10.0.0.1 (head)", "gone", "all others", "1 to 4", "12.3 s", "default-1f", "61 s"):
        assert word in text
