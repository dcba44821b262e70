import asyncio
import json
from types import SimpleNamespace

import pytest
from diffusers import EulerDiscreteScheduler

from mezzotint.engine.cache import ResultCache
from mezzotint.models.config import ModelsConfig, PlacementConfig
from mezzotint.models.store import shipped
from mezzotint.models.store.known import Facts
from mezzotint.models.store.store import ModelStore
from mezzotint.request import GenerationRequest
from mezzotint.service import quick
from mezzotint.service.composition import ServiceConfig
from mezzotint.service.fake import FakeConfig, FakeService
from mezzotint.service.quick import QuickService
from mezzotint.types import Finished, ImageFinished, ImageOutput, Queued

ASKED = GenerationRequest(prompt="a red apple", seed=3, num_inference_steps=4)


@pytest.fixture(scope="module")
def known_home(tmp_path_factory):
    """A home in which an earlier process has read the built-in model."""
    home = tmp_path_factory.mktemp("known")
    placement = PlacementConfig(device="cpu")
    ModelStore(ModelsConfig(home=str(home), placement=placement)).spec("plate")
    return home


@pytest.fixture
def home(known_home, tmp_path):
    (tmp_path / "cache").mkdir()
    specs = (known_home / "cache" / "specs.json").read_bytes()
    (tmp_path / "cache" / "specs.json").write_bytes(specs)
    return tmp_path


def service(home, *, environment=True, device="cpu", variables=None):
    """Return a quick service over one that counts how often it was built."""
    made = []
    models = ModelsConfig(home=str(home), placement=PlacementConfig(device=device))

    def make():
        fake = FakeService(FakeConfig())
        fake.environment = {"device": "cpu", "threads": 2}
        made.append(fake)
        return fake

    found = QuickService(ServiceConfig(models=models), make, variables or {})
    if environment:
        Facts(home / "cache" / "known.json").put(found._key, {"device": "cpu", "threads": 2})
    return found, made


def events(found, request=ASKED, **options):
    async def collect():
        return [e async for e in found.stream(request, request_id="r", **options)]

    return asyncio.run(collect())


def keep(home, found, request=ASKED):
    planned, _ = found._planned(request)
    cache = ResultCache(memory_bytes=0, disk_bytes=1 << 20, folder=home / "cache" / "results")
    for plan in planned.plans:
        picture = ImageOutput(
            index=0, seed=3, data=b"picture", format="png", width=128, height=128, recipe={"a": 1}
        )
        cache.put(plan, picture)


def test_a_kept_picture_is_answered_without_a_service(home):
    found, made = service(home)
    keep(home, found)
    told = events(found)
    assert [type(event) for event in told] == [Queued, ImageFinished, Finished]
    assert told[-1].result.cache == "hit"
    image = told[-1].result.images[0]
    assert (image.data, image.seed, image.recipe) == (b"picture", 3, {"a": 1})
    assert made == []
    assert [type(e) for e in events(found, quiet=True)] == [Queued, Finished]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 4},
        {"seed": None},
        {"prompt": "a pear"},
        {"reproducibility": "stable"},
        {"upscale": {"factor": 2}},
        {"gates": {"quality": {}}},
        {"prompt": "a red apple <lora:ink:0.8>"},
        {"prompt_dialect": "a1111"},
    ],
)
def test_what_is_not_kept_or_needs_more_than_words_is_the_services(home, change):
    found, made = service(home)
    keep(home, found)
    events(found, GenerationRequest.from_dict({**ASKED.to_dict(), **change}))
    assert len(made) == 1


def test_nothing_is_answered_for_a_client_or_past_the_cache(home):
    found, made = service(home)
    keep(home, found)
    events(found, use_cache=False)
    assert len(made) == 1
    events(found, client="somebody")
    assert len(made) == 1  # the one that is there


def test_an_environment_that_was_never_seen_is_learnt_from_the_service(home, monkeypatch):
    monkeypatch.setattr(quick, "foresee", lambda config, variables: None)
    found, made = service(home, environment=False)
    assert found._planned(ASKED) is None
    events(found)
    assert len(made) == 1
    assert found._planned(ASKED) is not None


def test_another_number_of_threads_is_another_environment(home):
    found, _ = service(home)
    other, _ = service(home, environment=False, variables={"OMP_NUM_THREADS": "1"})
    assert found._key != other._key
    same, _ = service(home, environment=False, variables={"EDITOR": "vi"})
    assert found._key == same._key


def test_what_a_gpu_may_compute_is_never_known(home, monkeypatch):
    assert service(home, environment=False, device="cuda")[0]._key is None
    monkeypatch.setattr(shipped, "_ACCELERATORS", ("/dev/null",))
    assert service(home, environment=False, device="auto")[0]._key is None
    assert service(home, environment=False, device="cpu")[0]._key is not None


def test_what_a_process_saw_of_its_environment_goes_before_what_was_foreseen(home, monkeypatch):
    monkeypatch.setattr(
        quick, "foresee", lambda config, variables: {"device": "cpu", "threads": 64}
    )
    found, _ = service(home, environment=False)
    assert json.loads(found._planned(ASKED)[0].plans[0].environment)["threads"] == 64
    events(found, GenerationRequest.from_dict({**ASKED.to_dict(), "seed": None}))
    assert json.loads(found._planned(ASKED)[0].plans[0].environment)["threads"] == 2


def test_levels_of_our_own_schedulers_are_nobodys_to_learn(home):
    found, made = service(home)
    told = asyncio.run(found.plan(ASKED))
    assert made == []
    diffusers = EulerDiscreteScheduler.from_config(
        ModelStore(ModelsConfig(home=str(home))).known_spec("plate").scheduler_config
    )
    euler = GenerationRequest.from_dict({**ASKED.to_dict(), "scheduler": "euler"})
    diffusers.set_timesteps(4)
    assert asyncio.run(found.plan(euler))["levels"] == pytest.approx(diffusers.sigmas.tolist())
    assert told["levels"][-1] == 0
    with pytest.raises(ValueError, match="scheduler"):
        asyncio.run(found.plan(GenerationRequest(prompt="x", scheduler="flow_euler")))


def test_a_plan_with_a_scheduler_of_diffusers_is_known_once_its_noise_levels_are(home):
    found, made = service(home)
    answer = {"levels": [9.0, 0.0]}
    name = "DEISMultistepScheduler"

    async def plan(request, *, client=""):
        return answer

    found._made = SimpleNamespace(plan=plan)
    first = GenerationRequest(prompt="a red apple", num_inference_steps=4, scheduler=name)
    assert asyncio.run(found.plan(first)) is answer
    again, made = service(home)
    asked = GenerationRequest(prompt="a pear", num_inference_steps=4, scheduler=name)
    told = asyncio.run(again.plan(asked))
    assert made == []
    assert told["levels"] == [9.0, 0.0]
    assert told["plan"]["prompt"] == "a pear"
    assert told["texts"]["prompt"]["tokens"] == 2
    assert json.dumps(told)


def test_a_request_that_cannot_be_honoured_is_refused_at_once(home):
    found, made = service(home)
    with pytest.raises(ValueError, match="width"):
        asyncio.run(found.plan(GenerationRequest(prompt="x", width=129)))
    assert made == []


def test_closing_builds_nothing(home):
    found, made = service(home)
    asyncio.run(found.close())
    assert made == []


def test_what_a_first_request_had_compiled_is_begun_before_the_next_service(home, monkeypatch):
    compiled, begun = [["a.xml", {"NUM_STREAMS": 2}, True]], []
    monkeypatch.setattr(quick.ahead, "compiled", lambda: [tuple(one) for one in compiled])
    monkeypatch.setattr(quick.ahead, "start", lambda folder, known: begun.append((folder, known)))
    found, _ = service(home)
    events(found)  # learns it
    compiled.append(["b.xml", {}, True])
    events(found)  # no first one any more
    assert begun == []
    again, made = service(home)
    monkeypatch.setattr(again, "_make", lambda make=again._make: (begun.append("made"), make())[1])
    events(again)
    assert begun == [(home / "cache" / "openvino", [["a.xml", {"NUM_STREAMS": 2}, True]]), "made"]
    other, _ = service(home)
    events(other, GenerationRequest(prompt="a red apple", seed=3, width=64))
    assert len(begun) == 2
    assert len(made) == 1
