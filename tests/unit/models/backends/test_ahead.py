"""Networks that are compiled while torch is imported: taken only where file and settings fit."""

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mezzotint.models.backends import ahead
from mezzotint.models.backends.quiet import import_openvino

SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}


class Asked:
    """In the place of OpenVINO: remembers what it is asked to compile."""

    def __init__(self) -> None:
        self.paths: list[Any] = []

    def read_model(self, path: Any) -> Any:
        return SimpleNamespace(name=path.name, get_ordered_ops=list)

    def compile_model(self, model: Any, device: str, settings: dict[str, Any]) -> str:
        self.paths.append((model, device, settings))
        return "compiled now"


@pytest.fixture(autouse=True)
def of_its_own(monkeypatch):
    monkeypatch.setattr(ahead, "_COMPILED", [])
    monkeypatch.setattr(ahead, "_WAITING", {})


@pytest.fixture
def doubling(tmp_path):
    """Return the file of a network that answers twice its input."""
    openvino = pytest.importorskip("openvino")
    ops = import_openvino().opset13
    given = ops.parameter([-1, 3], np.float32)
    model = openvino.Model([ops.multiply(given, np.full((1, 3), 2.0, np.float32))], [given])
    path = tmp_path / "doubling.xml"
    openvino.save_model(model, path, compress_to_fp16=False)
    return path


def test_what_was_compiled_is_compiled_ahead_and_answers(doubling):
    ahead.compile_network(Asked(), doubling, SETTINGS)
    known = ahead.compiled()
    assert known == [("doubling.xml", SETTINGS, False)]
    ahead.start(doubling.parent, known)
    asked = Asked()
    network, held = ahead.compile_network(asked, doubling, SETTINGS)
    assert held.tolist() == [[2.0, 2.0, 2.0]]
    assert asked.paths == []
    assert next(iter(network([np.float32([[1.0, 2.0, -3.0]])]).values())).tolist() == [
        [2.0, 4.0, -6.0]
    ]
    assert ahead.compile_network(asked, doubling, SETTINGS) == ("compiled now", None)  # taken once


def test_other_settings_another_file_and_what_was_dropped_are_compiled_now(doubling):
    ahead.start(doubling.parent, [("doubling.xml", SETTINGS, False)])
    asked = Asked()
    other = {**SETTINGS, "NUM_STREAMS": 2}
    assert ahead.compile_network(asked, doubling, other) == ("compiled now", None)
    assert ahead.compile_network(asked, doubling.with_name("b.xml"), SETTINGS) == (
        "compiled now",
        None,
    )
    ahead.drop()
    assert ahead.compile_network(asked, doubling, SETTINGS) == ("compiled now", None)
    assert [path.name for path, _, _ in asked.paths] == ["doubling.xml", "b.xml", "doubling.xml"]
    assert asked.paths[0][1:] == ("CPU", other)


def test_a_file_that_cannot_be_read_is_left_to_who_asks_for_it(doubling):
    doubling.write_text("no network")
    ahead.start(doubling.parent, [("doubling.xml", SETTINGS, False)])
    assert ahead.compile_network(Asked(), doubling, SETTINGS) == ("compiled now", None)


def test_missing_and_large_networks_are_not_begun(doubling, monkeypatch):
    before = threading.active_count()
    ahead.start(doubling.parent, [("doubling.xml", SETTINGS, False), ("gone.xml", SETTINGS, False)])
    monkeypatch.setattr(ahead, "_MAX_BYTES", doubling.with_suffix(".bin").stat().st_size - 1)
    ahead.start(doubling.parent, [("doubling.xml", SETTINGS, False)])
    ahead.start(doubling.parent, [])
    assert threading.active_count() == before
    assert ahead._WAITING == {}
