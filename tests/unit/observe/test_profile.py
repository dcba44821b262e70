import json
import mmap
import subprocess
import sys

import pytest

from mezzotint.observe.profile import Profile
from mezzotint.observe.spans import SpanRecord, span


def test_the_table_adds_up_by_name_with_the_dearest_first():
    profile = Profile()
    profile.add(SpanRecord("encode", 10.0, 1.0, 1, {}))
    profile.add(SpanRecord("denoise", 11.0, 2.0, 1, {}))
    profile.add(SpanRecord("denoise", 13.0, 1.0, 1, {}))
    rows = profile.table()
    assert [(r.name, r.calls, r.total_s, r.mean_s, r.longest_s) for r in rows] == [
        ("denoise", 2, 3.0, 1.5, 2.0),
        ("encode", 1, 1.0, 1.0, 1.0),
    ]
    assert [r.share for r in rows] == [0.75, 0.25]


def test_an_empty_profile_has_an_empty_table():
    assert Profile().table() == []


def test_the_trace_has_chromes_format_in_microseconds_from_the_first_span(tmp_path):
    profile = Profile()
    profile.add(SpanRecord("encode", 10.0, 1.0, 77, {"images": 2}))
    profile.add(SpanRecord("decode", 11.5, 0.25, 78, {}))
    trace = json.loads(profile.write_trace(tmp_path / "t.json").read_text())
    first, second = trace["traceEvents"]
    assert (first["ph"], first["ts"], first["dur"], first["args"]) == ("X", 0, 1e6, {"images": 2})
    assert (second["ts"], second["dur"]) == (1.5e6, 0.25e6)
    assert first["tid"] != second["tid"]


def test_each_stage_tells_the_most_memory_that_was_seen_in_it(monkeypatch):
    monkeypatch.setattr("mezzotint.observe.profile._LOOK_S", 60.0)  # a watcher that is late
    profile = Profile()
    with profile.running():
        with span("small"):
            pass
        with span("large"):
            block = mmap.mmap(-1, 96 << 20)  # new pages: the heap may have kept some
            block.write(b"x" * len(block))
        block.close()
    peaks = {row.name: row.peak_bytes for row in profile.table()}
    if not peaks["small"]:
        pytest.skip("this system does not tell a process its memory")
    assert 80 << 20 < peaks["large"] - peaks["small"] < 160 << 20


def test_a_profile_hears_only_what_runs_inside():
    profile = Profile()
    with span("before"):
        pass
    with profile.running(), span("inside"):
        pass
    assert [r.name for r in profile.table()] == ["inside"]


@pytest.mark.slow
def test_torchs_operators_stand_in_the_same_trace():
    import torch

    profile = Profile(operators=True)
    with profile.running(), span("denoise"):
        torch.ones(8, 8) @ torch.ones(8, 8)
    names = {event.get("name") for event in profile.trace()["traceEvents"]}
    assert {"denoise", "aten::mm"} <= names


def test_profile_loads_no_torch_until_operators_are_asked_for():
    code = "import sys, mezzotint.observe.profile; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
