import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from mezzotint.cli.figures.plot import read_run

RESULTS = Path(__file__).parents[4] / "bench" / "results"


def run_folder(path, steps=5):
    path.mkdir(parents=True)
    events = [{"event": "started", "step": 0}]
    events += [
        {"event": "step", "step": k + 1, "loss": 1 / (k + 1), "steps_per_s": 3.0}
        for k in range(steps)
    ]
    events += [{"event": "held_out", "step": steps, "loss": 0.5}]
    events += [{"event": "step", "step": steps + 1, "loss": math.nan, "steps_per_s": 0.0}]
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (path / "metrics.jsonl").write_text(lines + '{"event": "st')
    return path


def texts(path):
    return " ".join(node.text or "" for node in ElementTree.parse(path).iter() if node.text)


def test_a_run_is_drawn_with_its_held_out_loss(cli, tmp_path):
    run_folder(tmp_path / "runs" / "a")
    done = cli("plot", "runs/a")
    assert (done.code, done.out) == (0, "a.svg\n"), done.err
    told = texts(tmp_path / "a.svg")
    for word in ("loss", "held out", "steps/s", "step"):
        assert word in told


def test_runs_are_drawn_over_one_another_and_the_same_numbers_give_the_same_bytes(cli, tmp_path):
    for name in "ab":
        run_folder(tmp_path / name, steps=300 if name == "a" else 3)
    assert cli("plot", "a", "b", "-o", "one.svg").code == 0
    assert cli("plot", "a", "b", "-o", "two.svg").code == 0
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_run_is_read_up_to_where_it_was_killed(tmp_path):
    assert read_run(run_folder(tmp_path / "a"))[-1]["step"] == 6


@pytest.mark.parametrize("name", ["engine", "stages"])
def test_a_result_of_bench_is_drawn(cli, tmp_path, name):
    done = cli("plot", RESULTS / f"{name}.json", "-o", "b.png", "--json")
    assert json.loads(done.out) == {"path": "b.png", "kind": "bench"}
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_a_trace_is_drawn_with_the_names_of_its_stages(cli, tmp_path):
    events = [
        {"ph": "X", "name": "denoise", "ts": 0, "dur": 2e6, "tid": 0},
        {"ph": "X", "name": "decode", "ts": 2e6, "dur": 1e6, "tid": 1},
        {"ph": "M", "name": "thread_name"},
    ]
    (tmp_path / "p.trace.json").write_text(json.dumps({"traceEvents": events}))
    assert cli("plot", "p.trace.json").out == "p.svg\n"
    told = texts(tmp_path / "p.svg")
    assert "denoise" in told
    assert "thread 2" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "WHAT: cannot read nowhere: there is nothing"),
        (["empty"], "WHAT: empty is no run folder: metrics.jsonl cannot be read"),
        (["odd.json"], "WHAT: odd.json holds nothing that can be drawn"),
        (["a.txt"], "WHAT: a.txt is neither a run folder nor JSON"),
        (["odd.json", "odd.json"], "WHAT: several can be drawn together only where all are run"),
        (["odd.json", "-o", "x.jpg"], "--output: must end in .svg, .png, .pdf, got 'x.jpg'"),
        (["odd.json", "-o", "no/x.svg"], "--output: the folder no does not exist"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(cli, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd.json").write_text('{"a": [1]}')
    (tmp_path / "a.txt").write_text("no")
    done = cli("plot", *arguments)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err
