"""Every verb answers a program as well: ``--json``, with the rest on standard error.

Tests mezzotint.cli.main, mezzotint.cli.bench and mezzotint.cli.machines.cluster.
"""

import json
import subprocess

import pytest
import typer.main

from mezzotint.cli import bench, main
from mezzotint.service.cluster import calls

OTHERWISE = {
    "mcp": "speaks JSON on standard output by its own protocol",
    "completion": "prints a script for a shell",
}
"""Verbs without the flag, each with its reason."""


def verbs(command, *names: str) -> dict[str, set[str]]:
    """Return the flags of every verb below a command, by the words that call it."""
    if not hasattr(command, "commands"):
        flags = {flag for parameter in command.params for flag in parameter.opts}
        return {" ".join(names): flags}
    found: dict[str, set[str]] = {}
    for name, below in command.commands.items():
        found |= verbs(below, *names, name)
    return found


def test_every_verb_has_json_or_a_reason():
    found = verbs(typer.main.get_command(main.app))
    assert len(found) > len(OTHERWISE)
    assert {name for name, flags in found.items() if "--json" not in flags} == set(OTHERWISE)


def test_bench_lists_names_with_what_each_is_for(cli):
    listed = json.loads(cli("bench", "--json").out)
    assert listed["engine"]
    assert all(isinstance(text, str) for text in listed.values())


@pytest.fixture
def small_bench(tmp_path, monkeypatch):
    """Put a folder with one benchmark, and the result of another, in place of the checkout's."""
    folder = tmp_path / "bench"
    (folder / "results").mkdir(parents=True)
    (folder / "results" / "earlier.json").write_text('{"old": 1}')
    (folder / "small.py").write_text(
        '"""One figure."""\nfrom pathlib import Path\nprint("round 1 of 1")\n'
        "results = Path(__file__).parent / 'results'\n"
        "(results / 'small.json').write_text('{\"ratio\": 1.5}')\n"
    )
    monkeypatch.setattr(bench, "_folder", lambda: folder)
    monkeypatch.setattr("sys.argv", ["mezzotint"])
    monkeypatch.setattr("sys.path", [])
    return folder


def test_bench_prints_the_results_that_it_wrote_and_nothing_else(cli, small_bench):
    done = cli("bench", "small", "--json")
    assert done.code == 0
    assert json.loads(done.out) == {"small": {"ratio": 1.5}}
    assert done.err == "round 1 of 1\n"


def test_bench_without_it_prints_as_the_benchmark_does(cli, small_bench):
    assert cli("bench", "small").out == "round 1 of 1\n"


def test_a_deployment_made_and_ended(cli, monkeypatch):
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(calls, "deploy", lambda *given: asked.append(given))
    monkeypatch.setattr(calls, "remove", lambda *given: asked.append(given))
    made = cli("cluster", "deploy", "large", "--models", "a,b", "--json")
    assert json.loads(made.out) == {"deployed": "large", "models": ["a", "b"]}
    ended = cli("cluster", "down", "large", "--json")
    assert json.loads(ended.out) == {"ended": "large", "ray_stopped": False}
    assert asked[1] == ("auto", "large")


def test_serve_says_what_is_ready_line_by_line(cli, monkeypatch):
    def run(*given, announce, **rest):
        announce("generation  http://127.0.0.1:8080  (web page at /)")
        announce("models      plate ready; plate-gan when first asked for")
        return 0

    monkeypatch.setattr("mezzotint.serve.run.run", run)
    lines = [json.loads(line) for line in cli("serve", "--json").out.splitlines()]
    assert lines == [
        {"generation": "http://127.0.0.1:8080"},
        {"models": "plate ready; plate-gan when first asked for"},
    ]


def test_ray_started_here_tells_head_and_token(cli, monkeypatch, tmp_path):
    monkeypatch.setattr("mezzotint.service.cluster.ray_link.ray_module", lambda: None)
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr("mezzotint.cli.machines.cluster._ray", lambda command, token: done)
    token = tmp_path / "token"
    started = cli("cluster", "up", "--host", "10.0.0.1", "--token", token, "--json")
    assert json.loads(started.out) == {
        "head": "10.0.0.1:6379",
        "token": str(token),
        "joined": False,
    }
    assert len(token.read_text()) == 64
