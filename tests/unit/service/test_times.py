"""How long requests and loading took is measured, whoever asked and however it ended.

Tests mezzotint.service.endings.
"""

import asyncio
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.roads.test_exactness import gan

from mezzotint.errors import NotReady
from mezzotint.observe import metrics
from mezzotint.request import GenerationRequest
from mezzotint.service.endings import timed
from mezzotint.service.engine import Engine
from mezzotint.types import Cancelled, Failed, Queued


def measured(name, model):
    """Return how many observations of a model there are, and their sum in seconds."""
    families = text_string_to_metric_families(metrics.render().decode())
    found = {s.name: s.value for f in families for s in f.samples if s.labels.get("model") == model}
    return found.get(f"{name}_count", 0), found.get(f"{name}_sum", 0.0)


def test_each_request_is_measured_by_its_model_and_loading_once(tmp_path):
    with Engine([gan("timed")], device="cpu", home=tmp_path, backend="torch") as engine:
        for seed in (1, 2):
            engine.generate(GenerationRequest(model="timed", seed=seed))
        request = GenerationRequest(model="timed", seed=3, num_images=2)
        asyncio.run(engine.service.generate(request, request_id="three"))
    count, seconds = measured("mezzotint_request_seconds", "timed")
    assert count == 3
    assert 0 < seconds < 60
    count, seconds = measured("mezzotint_model_load_seconds", "timed")
    assert count == 1
    assert 0 < seconds < 60


@pytest.mark.parametrize(
    "ending",
    [Cancelled(id="a"), Failed(id="a", error=NotReady("closed"))],
)
def test_a_bad_ending_is_measured_too_and_nothing_else_is(ending, monkeypatch):
    clock = SimpleNamespace(monotonic=lambda: 12.5)
    monkeypatch.setattr("mezzotint.service.endings.time", clock)
    heard = []
    before = measured("mezzotint_request_seconds", "bad")
    sink = timed(heard.append, "bad", 10.0)
    sink(Queued(id="a", position=1, eta_s=1.0))
    sink(ending)
    count, seconds = measured("mezzotint_request_seconds", "bad")
    assert (count - before[0], seconds - before[1]) == (1, 2.5)
    assert heard[-1] is ending
