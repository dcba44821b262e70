"""TorchServe's metric names, as its dashboards ask for them."""

import platform
import re

import pytest
from tests.serving import open_door


@pytest.fixture(scope="module")
def text():
    with open_door() as door:
        door.http.post("/predictions/plate/1.0", content=b"an apple")
        door.http.get("/nothing")
        yield door.metrics.get("/metrics").text


def values(text, name):
    """Read the samples of exactly this name; the client's own parser would add an ending."""
    found = re.findall(rf"^{name}{{(.*)}} (\S+)$", text, re.MULTILINE)
    return {
        tuple(sorted(re.findall(r'(\w+)="([^"]*)"', labels))): float(value)
        for labels, value in found
    }


HOST = (("Hostname", platform.node()), ("Level", "Host"))


def test_counters_have_no_ending(text):
    assert values(text, "Requests2XX")[HOST] == 1.0
    assert values(text, "Requests4XX")[HOST] == 1.0
    assert values(text, "Requests5XX")[HOST] == 0.0
    labels = (
        ("hostname", platform.node()), ("model_name", "plate"), ("model_version", "1.0"),
    )  # fmt: skip
    assert values(text, "ts_inference_requests_total")[labels] == 1.0
    latency = values(text, "ts_inference_latency_microseconds")[labels]
    waited = values(text, "ts_queue_latency_microseconds")[labels]
    assert 0 <= waited < latency < 60e6


def test_the_last_inference_has_its_times_in_milliseconds(text):
    model = (("Hostname", platform.node()), ("Level", "Model"), ("ModelName", "plate"))
    assert 0 < values(text, "PredictionTime")[model] < 60e3
    assert values(text, "HandlerTime") == values(text, "PredictionTime")
    assert 0 <= values(text, "QueueTime")[HOST] < 60e3
    assert 0 <= values(text, "WorkerThreadTime")[HOST] < 60e3


def test_the_machine_tells_of_itself(text):
    used, free = (values(text, f"Disk{n}")[HOST] for n in ("Usage", "Available"))
    assert 0 < values(text, "DiskUtilization")[HOST] <= 100 * used / (used + free) * 1.3
    used, free = (values(text, f"Memory{n}")[HOST] for n in ("Used", "Available"))
    assert values(text, "MemoryUtilization")[HOST] == pytest.approx(100 * used / (used + free))
    assert 0 <= values(text, "CPUUtilization")[HOST] <= 100


def test_a_name_is_picked_out(text):
    with open_door() as door:
        lines = door.metrics.get("/metrics", params={"name[]": "Requests2XX"}).text.splitlines()
        nothing = door.metrics.get("/metrics", params={"name[]": "nope"})
    assert any(line.startswith("Requests2XX{") for line in lines)
    assert all("Requests2XX" in line for line in lines if line)
    assert (nothing.status_code, nothing.text.strip()) == (200, "")
