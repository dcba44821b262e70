"""Models load beside the device thread, once, and a cancelled request does not wait for it."""

import threading
import time

import pytest
import torch
from tests import tiny
from tests.unit.engine.fakes import make_plan

from mezzotint.errors import Cancelled, InvalidRequest, WeightsError
from mezzotint.models.formats.components import from_pipeline
from mezzotint.models.networks import NetworkReady, is_preparing, preparing
from mezzotint.models.spec import ModelSpec
from mezzotint.planning.costs import CostTable
from mezzotint.request import GenerationRequest
from mezzotint.service.engine import Engine
from mezzotint.service.provision.loader import Loader


class SlowBuild:
    """Builds a module when told to, counting how often."""

    def __init__(self, module):
        self.module, self.builds, self.may_go = module, 0, threading.Event()
        self.has_begun = threading.Event()

    def __call__(self, dtype):
        self.builds += 1
        self.has_begun.set()
        assert self.may_go.wait(60)
        return self.module


def slow_model(name):
    model = from_pipeline(tiny.build("ddpm"), name=name)
    network = model.networks["denoiser"]
    build = SlowBuild(network.module)
    network.let_go()
    network.build_from(build)
    return model, build


def ask(name, **fields):
    return GenerationRequest(model=name, seed=1, num_inference_steps=2, **fields)


@pytest.fixture
def engine_and_build(tmp_path):
    torch.set_num_threads(1)
    slow, build = slow_model("slow")
    fast = from_pipeline(tiny.build("ddpm"), name="fast")
    with Engine([slow, fast], device="cpu", home=tmp_path, backend="torch") as engine:
        for name in ("fast",):
            engine.submit(ask(name)).result(60)
        yield engine, build
        build.may_go.set()


def test_a_model_that_loads_stops_nobody_and_loads_once(engine_and_build):
    engine, build = engine_and_build
    waiting = [engine.submit(ask("slow", guidance_scale=None)) for _ in range(3)]
    assert build.has_begun.wait(30)
    for seed in range(5):
        request = GenerationRequest(model="fast", seed=seed + 10, num_inference_steps=3)
        assert engine.submit(request).result(30).images
    assert not any(job.is_done for job in waiting)
    build.may_go.set()
    first, *others = [job.result(60).images[0].data for job in waiting]
    assert all(data == first for data in others)
    assert build.builds == 1


def test_a_request_that_waits_for_its_model_is_cancelled_at_once(engine_and_build):
    engine, build = engine_and_build
    job = engine.submit(ask("slow"))
    assert build.has_begun.wait(30)
    began = time.monotonic()
    assert job.cancel()
    with pytest.raises(Cancelled):
        job.result(10)
    assert time.monotonic() - began < 5
    assert not build.may_go.is_set()
    build.may_go.set()
    assert engine.submit(ask("slow")).result(60).images


def test_a_model_that_does_not_load_fails_its_own_requests_alone(tmp_path):
    torch.set_num_threads(1)
    broken, _ = slow_model("broken")

    def refuse(dtype):
        raise WeightsError("weights are torn")

    broken.networks["denoiser"]._build = refuse
    fast = from_pipeline(tiny.build("ddpm"), name="fast")
    with Engine([broken, fast], device="cpu", home=tmp_path, backend="torch") as engine:
        bad, good = engine.submit(ask("broken")), engine.submit(ask("fast"))
        with pytest.raises(WeightsError, match="torn"):
            bad.result(60)
        assert good.result(60).images


def test_a_rehearsal_builds_and_computes_nothing():
    model = from_pipeline(tiny.build("ddpm"), name="m")
    network = model.networks["denoiser"]
    module = network.module
    network.let_go()
    network.build_from(lambda dtype: module)
    called = []
    network.call = lambda *a: called.append(a)
    with preparing():
        assert is_preparing()
        with pytest.raises(NetworkReady):
            network(sample=torch.zeros(2, 3, 32, 32), timestep=torch.zeros(2))
    assert not is_preparing()
    assert network.is_built
    assert called == []


def test_a_prompt_that_cannot_be_read_fails_alone_while_its_model_loads(tmp_path):
    torch.set_num_threads(1)
    model = from_pipeline(tiny.sd1(), name="slow")
    network = model.networks["denoiser"]
    build = SlowBuild(network.module)
    network.let_go()
    network.build_from(build)
    with Engine([model], device="cpu", home=tmp_path, backend="torch") as engine:
        ask_for = {"prompt_dialect": "compel", "width": 64, "height": 64}
        first = engine.submit(ask("slow", prompt="a cat", **ask_for))
        assert build.has_begun.wait(30)
        unreadable = engine.submit(ask("slow", prompt='("a", "b").blend(1, 1)', **ask_for))
        last = engine.submit(ask("slow", prompt="a dog", **ask_for))
        build.may_go.set()
        with pytest.raises(InvalidRequest, match="blend"):
            unreadable.result(60)
        assert first.result(60).images
        assert last.result(60).images


def test_the_seconds_that_are_told_count_those_until_the_model_is_ready(tmp_path):
    torch.set_num_threads(1)
    model, build = slow_model("slow")
    with Engine([model], device="cpu", home=tmp_path, backend="torch") as engine:
        costs, digest = engine.service.costs, model.spec.digest
        costs.record(digest, "load", 1, 100.0)  # what it took the last time
        first = engine.submit(ask("slow"))
        assert 100 < first.eta_s < 110
        assert build.has_begun.wait(30)
        second = engine.submit(ask("slow", guidance_scale=1.0))
        assert 40 < second.eta_s < first.eta_s + 1  # of the load, what is left
        build.may_go.set()
        first.result(60)
        second.result(60)
        fresh = GenerationRequest(model="slow", seed=2, num_inference_steps=2)
        assert engine.submit(fresh).eta_s < 40
        times = [t for t in costs.table() if t["kind"] == "load"]
        assert [(t["shape"], t["seconds"] <= 100) for t in times] == [(digest, True)]


def test_a_model_that_was_never_loaded_is_judged_by_its_bytes():
    plan = make_plan()

    class Models:
        def is_loaded(self, name):
            return True

        def spec(self, name):
            return ModelSpec(name=name, digest="d", family="sd", num_bytes=2_000_000_000)

    costs = CostTable()
    loader = Loader(Models(), None, costs)
    assert loader.remaining_s(plan) == pytest.approx(24.0)  # at 12 s a gigabyte
    costs.record(plan.model_digest, "load", 1, 7.0)
    assert loader.remaining_s(plan) == 7.0
    assert Loader(Models(), None).remaining_s(plan) == 0.0
    loader.close()
