"""What a service learns while nobody waits: before, meanwhile and after, the same bytes.

Tests mezzotint.engine.learning in mezzotint.service.local.
"""

import threading
import time

import pytest
import torch
from tests import tiny

from mezzotint.engine.config import EngineConfig
from mezzotint.models.config import ModelsConfig, PlacementConfig
from mezzotint.models.formats.components import from_pipeline
from mezzotint.observe.interruption import check
from mezzotint.request import GenerationRequest
from mezzotint.service.composition import ServiceConfig
from mezzotint.service.engine import RequestHandle
from mezzotint.service.local import LocalService


class Watched:
    """A network that tells of its calls, and may take its time when a call may be left."""

    def __init__(self, network):
        self.network, self.device, self.dtype = network, network.device, network.dtype
        self.num_bytes, self.rows = network.num_bytes, []
        self.pause = threading.Event()
        self.pauses = 0

    def __call__(self, **inputs):
        rows = len(next(iter(inputs.values())))
        self.rows.append(rows)
        while rows > 2 and self.pause.is_set():  # a long call, as a large model's
            self.pauses += 1
            check()
            time.sleep(0.005)
        return self.network(**inputs)


@pytest.fixture
def model():
    torch.set_num_threads(1)
    model = from_pipeline(tiny.build("sd1"), name="sd")
    model.use_network("denoiser", Watched(model.networks["denoiser"]))
    return model


def serve(model, home, *, learns=True, **engine):
    models = ModelsConfig(home=str(home), backend="torch", placement=PlacementConfig(device="cpu"))
    config = ServiceConfig(models=models, engine=EngineConfig(learn_after_s=0.05, **engine))
    return LocalService(config, models=[model], learns=learns)


def draw(service, *seeds):
    handles = []
    for seed in seeds:
        request = GenerationRequest(model="sd", prompt="a pear", seed=seed, num_inference_steps=3)
        handles.append(RequestHandle(service, f"r{seed} {time.monotonic()}"))
        service.submit(request, handles[-1].hear, request_id=handles[-1].id, use_cache=False)
    return [handle.result(60).images[0].data for handle in handles]


def learnt(service):
    table = service._certificates.table()
    return table[0]["buckets"] if table else {}


def until(condition, patience_s=20.0):
    end = time.monotonic() + patience_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_sizes_are_learnt_while_nobody_waits(model, tmp_path):
    network = model.networks["denoiser"]
    service = serve(model, tmp_path, learn_share=0)
    try:
        before = draw(service, *range(4))
        assert set(network.rows) == {2}  # nothing but what is always right
        until(lambda: len(learnt(service)) == 4)
        network.rows.clear()
        assert draw(service, *range(4)) == before
        assert max(network.rows) > 2 or not any(learnt(service)[s] for s in ("4", "6", "8"))
    finally:
        service.shut()
    again = serve(model, tmp_path, learn_share=0)
    try:
        assert draw(again, *range(4)) == before
        network.rows.clear()
        time.sleep(0.3)
        assert network.rows == []  # what was learnt is kept
    finally:
        again.shut()


def test_a_request_has_a_lesson_left_at_once_and_a_service_ends_in_the_middle_of_one(
    model, tmp_path
):
    network = model.networks["denoiser"]
    service = serve(model, tmp_path)
    try:
        first = draw(service, 1)
        network.pause.set()
        until(lambda: network.pauses)  # in the middle of a call that takes for ever
        assert draw(service, 1) == first
        network.pauses = 0
        until(lambda: network.pauses)  # the lesson was begun again
    finally:
        began = time.monotonic()
        service.shut()
    assert time.monotonic() - began < 10


def test_a_service_in_a_program_of_somebody_learns_nothing_meanwhile(model, tmp_path):
    network = model.networks["denoiser"]
    service = serve(model, tmp_path, learns=False)
    try:
        draw(service, 1)
        network.rows.clear()
        time.sleep(0.3)
        assert network.rows == []
    finally:
        service.shut()
