import asyncio
import io
import json
import re
import threading
import time
from dataclasses import replace
from importlib import metadata

import numpy as np
import pytest
import torch
from PIL import Image
from tests import tiny
from tests.roads.test_exactness import gan

from mezzotint import errors
from mezzotint.engine.config import EngineConfig
from mezzotint.gates.policy import GatePolicy, GateRule
from mezzotint.images.codec import decode_image
from mezzotint.images.config import ImageConfig
from mezzotint.images.metadata import read_recipe
from mezzotint.images.signing import check_signature, make_key_pair, read_trusted_keys
from mezzotint.models.base import Prompt
from mezzotint.models.config import ModelsConfig, PlacementConfig
from mezzotint.models.formats.components import from_pipeline
from mezzotint.models.networks import TorchNetwork
from mezzotint.request import (
    Control,
    Gates,
    GateSettings,
    GenerationRequest,
    GuidanceSchedule,
    Output,
    Upscale,
    Walk,
)
from mezzotint.service.composition import ServiceConfig
from mezzotint.service.engine import Engine, RequestHandle
from mezzotint.service.local import LocalService
from mezzotint.types import (
    Finished,
    ImageFinished,
    ImageInput,
    Queued,
    Size,
    Started,
    Stepped,
)


@pytest.fixture(scope="module")
def models():
    torch.set_num_threads(1)
    return [from_pipeline(tiny.build("sd1"), name="sd"), gan()]


class Counting:
    """A network that counts its calls and can be told to fail or to wait."""

    def __init__(self, network):
        self.network, self.rows, self.calls = network, 0, 0
        self.device, self.dtype = network.device, network.dtype
        self.gate = threading.Event()
        self.gate.set()
        self.poison = None

    def __call__(self, **inputs):
        self.gate.wait(20)
        self.calls += 1
        outputs = self.network(**inputs)
        if self.poison is not None:
            outputs = self.poison(inputs, outputs)
        return outputs

    @property
    def num_bytes(self):
        return self.network.num_bytes


@pytest.fixture
def counting(models):
    model = models[0]
    network = model.networks["denoiser"]
    counter = model.networks["denoiser"] = Counting(network)
    yield counter
    model.networks["denoiser"] = network


def config(tmp_path, **engine):
    models = ModelsConfig(
        home=str(tmp_path), backend="torch", placement=PlacementConfig(device="cpu")
    )
    return ServiceConfig(models=models, engine=EngineConfig(**engine))


@pytest.fixture
def service(models, tmp_path):
    started = LocalService(config(tmp_path), models=models)
    yield started
    started.shut()


def ask(**fields):
    defaults = {
        "model": "sd", "prompt": "a red apple", "seed": 7, "num_inference_steps": 3,
        "scheduler": "euler",
    }  # fmt: skip
    return GenerationRequest(**{**defaults, **fields})


def png(side=64, level=90):
    stream = io.BytesIO()
    picture = np.full((side, side, 3), level, np.uint8)
    picture[: side // 2] = 200
    Image.fromarray(picture).save(stream, "PNG")
    return ImageInput(stream.getvalue())


def submit(service, request, **options):
    job = RequestHandle(service, options.pop("id", f"job{time.monotonic_ns()}"))
    service.submit(request, job.hear, request_id=job.id, **options)
    return job


def generate(service, request, **options):
    return asyncio.run(service.generate(request, request_id=f"g{time.monotonic_ns()}", **options))


def test_events_come_in_order_and_end_once(service):
    async def collect():
        return [e async for e in service.stream(ask(), request_id="a", preview_every=1)]

    events = asyncio.run(collect())
    kinds = [type(e) for e in events]
    assert kinds == [Queued, Started, Stepped, Stepped, Stepped, ImageFinished, Finished]
    assert [e.step for e in events if isinstance(e, Stepped)] == [1, 2, 3]
    assert events[2].preview.startswith(b"\xff\xd8")
    assert events[-1].result.images[0].timings.model_calls == 6


def test_the_recipe_inside_the_picture_makes_it_again(service):
    first = generate(service, ask(num_images=2, guidance_scale=4, negative_prompt="blue"))
    recipe = read_recipe(first.images[1].data)
    assert recipe["request"]["seed"] == 8
    assert recipe["environment"]["backend"] == "torch"
    again = generate(service, GenerationRequest.from_dict(recipe["request"]), use_cache=False)
    assert again.images[0].data == first.images[1].data


def test_a_signature_that_no_key_can_make_is_refused_before_anything_is_drawn(service):
    with pytest.raises(errors.InvalidRequest, match="keys sign"):
        generate(service, ask(output=Output(sign=True)))
    assert "sign" not in ask().canonical()


def test_a_signed_picture_has_the_same_pixels_and_is_cached_apart(models, tmp_path):
    make_key_pair(tmp_path / "sign.pem", "studio")
    limits = ImageConfig(signing_key=str(tmp_path / "sign.pem"))
    started = LocalService(replace(config(tmp_path), images=limits), models=models)
    try:
        plain = generate(started, ask()).images[0]
        first, again = (generate(started, ask(output=Output(sign=True))) for _ in range(2))
    finally:
        started.shut()
    signed = first.images[0]
    trusted = read_trusted_keys(tmp_path / "sign.pem.pub")
    assert check_signature(plain.data, trusted).status == "unsigned"
    assert check_signature(signed.data, trusted)[:2] == ("known", "studio")
    assert (again.cache, again.images[0].data) == ("hit", signed.data)
    assert np.array_equal(decode_image(signed.data), decode_image(plain.data))
    assert read_recipe(signed.data)["request"]["output"] == {"sign": True}


def test_equal_requests_in_other_words_have_equal_bytes(service):
    one = generate(service, ask(guidance_scale=1, negative_prompt="unused"), use_cache=False)
    two = generate(service, ask(guidance_scale=1, width=64), use_cache=False)
    assert one.images[0].data == two.images[0].data
    assert one.warnings == (
        "negative_prompt has no effect while guidance is off (guidance_scale 1)",
    )


def test_the_second_time_is_a_hit_and_no_cache_makes_it_again(service, counting):
    request = ask(seed=101)
    first = generate(service, request)
    calls = counting.calls
    second = generate(service, request)
    assert (first.cache, second.cache, counting.calls) == ("miss", "hit", calls)
    assert second.images[0].data == first.images[0].data
    assert generate(service, request, use_cache=False).cache == "miss"
    assert counting.calls > calls


def test_twenty_identical_requests_of_a_client_at_once_cost_one_computation(service, counting):
    generate(service, ask(seed=1))
    counting.calls = 0
    counting.gate.clear()
    jobs = [submit(service, ask(seed=202), client="one") for _ in range(20)]
    counting.gate.set()
    pictures = {job.result(60).images[0].data for job in jobs}
    assert len(pictures) == 1
    assert counting.calls == 3


def test_when_the_leader_of_a_flight_is_cancelled_a_follower_takes_over(service, counting):
    counting.gate.clear()
    leader = submit(service, ask(seed=303))
    follower = submit(service, ask(seed=303))
    leader.cancel()
    counting.gate.set()
    assert follower.result(60).images[0].seed == 303
    with pytest.raises(errors.Cancelled):
        leader.result(60)


def test_cancel_ends_a_request_at_the_next_step_and_frees_it(service, counting):
    job = submit(service, ask(num_inference_steps=500, seed=9))
    for event in job.events():
        if isinstance(event, Stepped):
            break
    calls = counting.calls
    assert job.cancel()
    with pytest.raises(errors.Cancelled):
        job.result(30)
    assert counting.calls <= calls + 3
    deadline = time.monotonic() + 10
    while service._dispatcher.num_held and time.monotonic() < deadline:
        time.sleep(0.01)
    assert service._dispatcher.num_held == 0
    assert not job.cancel()


def held_bytes(service):
    """Return the bytes that running images hold by kind, as its metrics say."""
    text = asyncio.run(service.health())["metrics_text"]
    found = re.findall(r'mezzotint_memory_bytes\{kind="(\w+)",model=""\} (\S+)', text)
    return {kind: float(value) for kind, value in found}


def test_metrics_say_what_running_images_hold_and_what_they_may_hold(service, counting):
    generate(service, ask(seed=10))
    idle = held_bytes(service)
    assert idle == {"latents": 0, "conditioning": 0}
    counting.gate.clear()
    job = submit(service, ask(num_inference_steps=2, seed=11))
    deadline = time.monotonic() + 10
    while held_bytes(service) == idle and time.monotonic() < deadline:
        time.sleep(0.01)
    spec = service.provider.spec("sd")
    side = spec.default_size.width // spec.latent_scale
    assert held_bytes(service)["latents"] == 4 * side * side * 4  # channels, float32
    assert held_bytes(service)["conditioning"] > 0
    counting.gate.set()
    job.result(30)
    deadline = time.monotonic() + 10
    while held_bytes(service) != idle and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held_bytes(service) == idle
    text = asyncio.run(service.health())["metrics_text"]
    budget = float(re.search(r'budget_bytes\{kind="pictures"\} (\S+)', text)[1])
    assert budget == service.budget_bytes


def test_leaving_a_stream_early_cancels_the_request(service):
    async def leave():
        async for event in service.stream(ask(num_inference_steps=500), request_id="x"):
            if isinstance(event, Stepped):
                break
        await asyncio.sleep(0)

    asyncio.run(leave())
    deadline = time.monotonic() + 20
    while service._dispatcher.num_held and time.monotonic() < deadline:
        time.sleep(0.01)
    assert service._dispatcher.num_held == 0


def test_a_deadline_that_passes_ends_the_request(models, tmp_path, counting):
    service = LocalService(config(tmp_path), models=models)
    counting.poison = lambda inputs, outputs: time.sleep(0.05) or outputs
    job = submit(service, ask(num_inference_steps=200, deadline_s=0.5))
    with pytest.raises(errors.DeadlineExceeded):
        job.result(30)
    service.shut()


def test_a_network_that_answers_nan_fails_that_image_alone(service, counting):
    good = generate(service, ask(seed=11), use_cache=False).images[0].data
    bad_text = generate(service, ask(seed=12, prompt="two blue cats"), use_cache=False)
    assert bad_text.images

    def poison(inputs, outputs):
        first = outputs[0].clone()
        marked = inputs["encoder_hidden_states"][:, 2, 0]
        for row, value in enumerate(marked.tolist()):
            if abs(value - mark) < 1e-6:
                first[row] = torch.nan
        return (first,)

    model = service.provider._extra["sd"]
    (encoded,) = model.encode([Prompt(text="two blue cats", size=Size(64, 64))])
    mark = float(encoded["encoder_hidden_states"][0, 2, 0])
    counting.poison = poison
    failing = submit(service, ask(seed=12, prompt="two blue cats"), use_cache=False)
    passing = submit(service, ask(seed=11), use_cache=False)
    assert passing.result(60).images[0].data == good
    with pytest.raises(errors.WorkFailed, match="not finite at step 1"):
        failing.result(60)


def test_running_out_of_memory_fails_that_request_alone(service, counting):
    def poison(inputs, outputs):
        if inputs["sample"].shape[-1] > 16:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return outputs

    counting.poison = poison
    large = submit(service, ask(width=96, height=96))
    small = submit(service, ask(seed=77))
    assert small.result(60).images
    with pytest.raises(errors.OutOfMemory):
        large.result(60)


def test_a_listener_that_raises_costs_its_own_request_only(service):
    def bad_sink(event):
        if isinstance(event, Stepped):
            raise RuntimeError("listener")

    service.submit(ask(seed=21), bad_sink, request_id="bad")
    assert submit(service, ask(seed=22)).result(60).images


def test_a_full_queue_refuses_with_a_time(models, tmp_path, counting):
    service = LocalService(config(tmp_path, max_waiting=2), models=models)
    counting.gate.clear()
    jobs = [submit(service, ask(seed=k)) for k in (1, 2)]
    with pytest.raises(errors.QueueFull) as caught:
        submit(service, ask(seed=3))
    assert caught.value.retry_after_s > 0
    counting.gate.set()
    assert all(job.result(60).images for job in jobs)
    service.shut()


@pytest.mark.parametrize(
    ("limits", "again", "after_a_restart"),
    [
        ({"cache_memory_bytes": 0, "cache_disk_bytes": 0}, "miss", "miss"),
        ({"cache_memory_bytes": 0}, "hit", "hit"),
        ({"cache_disk_bytes": 0}, "hit", "miss"),
    ],
)
def test_finished_pictures_are_kept_in_memory_and_on_disk_if_they_may_be(
    models, tmp_path, monkeypatch, limits, again, after_a_restart
):
    monkeypatch.setattr("mezzotint.engine.cache._WORTH_A_FILE_S", 0.0)
    found = []
    for _ in range(2):
        service = LocalService(config(tmp_path, **limits), models=models)
        request = GenerationRequest(model="gan", seed=5)
        found.append([generate(service, request).cache for _ in range(2)])
        service.shut()
    assert found == [["miss", again], [after_a_restart, again]]


def test_pixels_are_bounded_where_a_request_is_accepted(models, tmp_path):
    limits = {"max_pixels": 4096, "max_request_pixels": 8192}
    service = LocalService(config(tmp_path, **limits), models=models)
    with pytest.raises(errors.InvalidRequest, match="at most 4096 pixels, got 8192"):
        submit(service, ask(width=128, height=64))
    with pytest.raises(errors.InvalidRequest, match="at 8192 pixels or fewer, got 3 pictures"):
        submit(service, ask(width=64, height=64, num_images=3))
    service.shut()


def test_a_picture_that_never_fits_is_refused(models, tmp_path):
    service = LocalService(config(tmp_path, memory_bytes=1 << 20), models=models)
    with pytest.raises(errors.OutOfMemory, match="ask for a smaller one"):
        submit(service, ask(width=1024, height=1024))
    service.shut()


def test_closing_finishes_what_runs_and_refuses_what_comes(models, tmp_path):
    service = LocalService(config(tmp_path), models=models)
    running = submit(service, ask(num_inference_steps=20))
    for event in running.events():
        if isinstance(event, Stepped):
            break
    service.shut()
    assert running.result(1).images
    with pytest.raises(errors.NotReady):
        submit(service, ask())


def test_what_does_not_go_together_is_refused_before_any_work(service):
    for fields, field in (
        ({"num_inference_steps": 1000, "scheduler": "lcm"}, "num_inference_steps"),
        ({"width": 66}, "width"),
        ({"scheduler": "flow_euler"}, "scheduler"),
        ({"controls": (Control(model="canny", image=png()),)}, "controls.model"),
        ({"upscale": Upscale(model="esrgan")}, "upscale.model"),
        ({"model": "nobody"}, "model"),
        ({"prompt": ""}, "prompt"),
    ):
        with pytest.raises(errors.InvalidRequest) as caught:
            submit(service, ask(**fields))
        assert caught.value.field == field, fields


def test_a_gan_goes_the_same_road(service):
    result = generate(service, GenerationRequest(model="gan", seed=3, num_images=5))
    assert [i.seed for i in result.images] == [3, 4, 5, 6, 7]
    single = generate(service, GenerationRequest(model="gan", seed=5), use_cache=False)
    assert single.images[0].data == result.images[2].data
    assert single.images[0].timings.model_calls == 1


def test_a_start_image_of_its_own_size_gives_that_size(service):
    result = generate(service, ask(image=png(96), strength=0.7, num_inference_steps=4))
    assert (result.images[0].width, result.images[0].height) == (96, 96)
    assert result.plan["steps"] == [1, 2]


def test_repainting_leaves_the_rest_close_to_the_picture(service):
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "PNG")
    kept = ask(image=png(), mask=ImageInput(stream.getvalue()), strength=1, seed=1)
    other = ask(image=png(), mask=ImageInput(stream.getvalue()), strength=1, seed=2)
    drawn = [submit(service, r).result(60).images[0].pixels.astype(int) for r in (kept, other)]
    left = abs(drawn[0][:, :16] - drawn[1][:, :16]).mean()
    right = abs(drawn[0][:, 40:] - drawn[1][:, 40:]).mean()
    assert left < right / 2


def test_the_ends_of_a_walk_are_the_plain_pictures(service):
    walk = ask(walk=Walk(to="two blue cats", frames=3, mode="both", to_seed=50))
    frames = generate(service, walk).images
    start = submit(service, ask()).result(60).images[0]
    end = submit(service, ask(prompt="two blue cats", seed=50)).result(60).images[0]
    pixels = [image.pixels for image in frames]
    assert np.array_equal(pixels[0], start.pixels)
    assert np.array_equal(pixels[2], end.pixels)
    assert not np.array_equal(pixels[1], pixels[0])


def test_upscaling_is_part_of_the_plan(service):
    result = generate(service, ask(upscale=Upscale(factor=2)))
    assert (result.images[0].width, result.images[0].height) == (128, 128)
    assert result.plan["size"] == [64, 64]


@pytest.mark.parametrize(("name", "magic"), [("jpeg", b"\xff\xd8"), ("webp", b"RIFF")])
def test_other_formats_are_written(service, name, magic):
    image = generate(service, ask(output=Output(format=name))).images[0]
    assert image.data.startswith(magic)
    assert image.format == name


class FakeJudge:
    """Passes the third attempt."""

    def __init__(self):
        self.seen = 0

    def policy(self, gates):
        rule = GateRule(gate="fake", threshold=0.5, blocks=gates.keep == "best")
        return GatePolicy(rules=(rule,), max_attempts=gates.max_attempts)

    def judge(self, pixels, policy):
        self.seen += 1
        assert pixels.dtype == np.uint8
        score = 0.1 if self.seen == 3 else 0.9
        return tuple(rule.judge(score) for rule in policy.rules)


def test_a_refused_picture_is_tried_again_with_a_derived_reported_seed(models, tmp_path):
    judge = FakeJudge()
    service = LocalService(config(tmp_path), models=models, judge=judge)
    gates = Gates(gates=(("fake", GateSettings()),), max_attempts=4)
    image = generate(service, ask(gates=gates)).images[0]
    assert [a.accepted for a in image.attempts] == [False, False, True]
    assert len({a.seed for a in image.attempts}) == 3
    assert image.attempts[0].seed == 7
    assert image.seed == image.attempts[2].seed
    plain = generate(service, ask(seed=image.seed))
    assert plain.images[0].data == image.data
    service.shut()


class Recorder(FakeJudge):
    """Keeps what it is shown and passes all."""

    def judge(self, pixels, policy):
        self.shown = [*getattr(self, "shown", []), pixels.copy()]
        return tuple(rule.judge(0.1) for rule in policy.rules)


def test_every_picture_of_a_request_is_judged_as_it_was_drawn(models, tmp_path):
    judge = Recorder()
    service = LocalService(config(tmp_path), models=models, judge=judge)
    gates = Gates(gates=(("fake", GateSettings()),), max_attempts=2)
    images = generate(service, ask(gates=gates, num_images=3)).images
    drawn = sorted(np.array(Image.open(io.BytesIO(i.data))).tobytes() for i in images)
    assert sorted(pixels.tobytes() for pixels in judge.shown) == drawn
    assert [len(image.attempts) for image in images] == [1, 1, 1]
    service.shut()


def test_a_blocking_gate_ends_the_image_at_once(models, tmp_path):
    service = LocalService(config(tmp_path), models=models, judge=FakeJudge())
    gates = Gates(gates=(("fake", GateSettings()),), max_attempts=4, keep="best")
    with pytest.raises(errors.GateRejected, match="gate fake blocked"):
        generate(service, ask(gates=gates))
    service.shut()


def test_the_plan_shows_the_curve_of_its_guidance(service):
    schedule = GuidanceSchedule(schedule="linear", start=9, end=1)
    described = asyncio.run(service.plan(ask(guidance_scale=schedule, num_inference_steps=5)))
    curve = described["plan"]["guidance_scale"]
    assert (curve[0], curve[-1], len(curve)) == (9, 1, 5)
    assert curve == sorted(curve, reverse=True)
    assert described["plan"]["rows"] == [2, 2, 2, 2, 1]
    assert described["cost"]["model_calls"] == 9


def test_plans_name_every_library_that_decides_their_bytes(service):
    place = json.loads(asyncio.run(service.plan(ask()))["plan"]["environment"])
    for name in ("torch", "diffusers", "transformers", "tokenizers", "numpy", "pillow"):
        assert place[name] == metadata.version(name), name
    assert {"device", "dtype", "backend", "threads", "cpu", "mezzotint"} <= set(place)


def test_the_plan_tells_a_prompt_that_will_be_cut_with_its_tokens(service):
    assert asyncio.run(service.plan(ask(model="plate", prompt="apple " * 30)))["warnings"] == []
    (note,) = asyncio.run(service.plan(ask(model="plate", prompt="apple " * 31)))["warnings"]
    cut = "prompt cut at 32 tokens; not read: 'apple'"
    assert note == f"prompt has 31 tokens for tokenizer: {cut}"
    made = generate(service, ask(model="plate", prompt="apple " * 31, num_inference_steps=1))
    assert cut in made.images[0].warnings


def test_capabilities_say_what_each_model_may_be_asked_for(service):
    by_model = asyncio.run(service.capabilities())["by_model"]
    plate = next(v for k, v in by_model.items() if k.partition("@")[0] == "plate")
    gan = next(v for k, v in by_model.items() if k.partition("@")[0] == "plate-gan")
    assert {"euler", "PNDMScheduler"} <= set(plate["schedulers"])
    assert "flow_euler" not in plate["schedulers"]
    assert {"loras", "regions", "mask", "image"} <= set(plate["techniques"])
    assert {"prompt", "scheduler", "strength"} <= set(plate["fields"])
    assert gan["schedulers"] == []
    assert {"prompt", "scheduler", "regions", "strength"}.isdisjoint(gan["fields"])
    assert {"seed", "walk", "upscale"} <= set(gan["fields"])
    assert gan["limits"]["fixed_size"] is True


def test_the_plan_predicts_calls_exactly(service):
    request = ask(scheduler="heun", num_inference_steps=6, guidance_scale=3)
    described = asyncio.run(service.plan(request))
    result = generate(service, request)
    assert described["cost"]["model_calls"] == 22 == result.images[0].timings.model_calls
    assert described["plan"]["guidance_scale"] == 3
    assert described["digest"]


def test_models_that_are_to_be_ready_are_warm_before_ready(tmp_path):
    tiny.build("sd1").save_pretrained(tmp_path / "folder")
    settings = config(tmp_path / "home")
    service = LocalService(replace(settings, ready=(f"mine={tmp_path / 'folder'}",)))
    assert not asyncio.run(service.health())["ready"]
    deadline = time.monotonic() + 60
    while not asyncio.run(service.health())["ready"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert asyncio.run(service.health())["ready"]
    plan = asyncio.run(service.plan(ask(model="mine")))
    assert plan["cost"]["measured"]
    listed = {m["name"]: m for m in asyncio.run(service.models())}
    assert listed["mine"]["ready"]
    service.shut()


def test_options_of_the_engine_exchange_what_they_name_and_keep_the_rest(tmp_path):
    given = ServiceConfig(
        models=ModelsConfig(backend="torch", max_bytes=1 << 30, allow_paths=False),
        engine=EngineConfig(max_rows=8, quantum_s=1.0),
    )
    images = ImageConfig(max_pixels=4096)
    options = {"vae_slicing": True, "engine": {"max_rows": 4}, "images": images}
    with Engine(config=given, home=tmp_path, device="cpu", **options) as engine:
        config = engine.service.config
    assert config.models == replace(
        given.models,
        home=str(tmp_path),
        placement=PlacementConfig(device="cpu", vae_slicing=True),
    )
    assert config.engine == EngineConfig(max_rows=4, quantum_s=1.0)
    assert config.images is images


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vae_slice": True}, "did you mean 'vae_slicing'"),
        ({"engine": {"max_row": 3}}, "did you mean 'max_rows'"),
        ({"dtype": "float64"}, "dtype must be one of"),
        ({"max_bytes": -1}, "models.max_bytes must be"),
    ],
)
def test_a_wrong_option_of_the_engine_is_named(tmp_path, options, message):
    with pytest.raises(errors.InvalidRequest, match=message):
        Engine(home=tmp_path, device="cpu", **options)


def test_an_unknown_model_to_be_ready_is_an_error_at_once(tmp_path):
    with pytest.raises(errors.UnknownName):
        Engine(["nobody"], device="cpu", home=tmp_path, backend="torch")


def test_capabilities_show_certificates_and_costs(service):
    jobs = [submit(service, ask(seed=k, num_inference_steps=6)) for k in range(900, 904)]
    for job in jobs:
        job.result(60)
    shown = asyncio.run(service.capabilities())
    assert "euler" in shown["schedulers"]
    assert shown["costs"]
    assert shown["environment"]["device"] == "cpu"
    assert asyncio.run(service.health())["ready"]


def test_the_engine_face_serves_threads_and_asyncio(models, tmp_path):
    with Engine(models, device="cpu", home=tmp_path, backend="torch") as engine:
        results = []
        threads = [
            threading.Thread(target=lambda k=k: results.append(engine.generate(ask(seed=k))))
            for k in range(3)
        ]
        for thread in threads:
            thread.start()

        async def stream():
            return [type(e) async for e in engine.stream(ask(seed=9))][-1]

        assert asyncio.run(stream()) is Finished
        for thread in threads:
            thread.join()
        assert sorted(r.images[0].seed for r in results) == [0, 1, 2]
        assert results[0].images[0].pixels.shape == (64, 64, 3)
        assert engine.generate(ask(seed=0)).images[0].pixels.shape == (64, 64, 3)
    assert isinstance(models[0].networks["denoiser"], TorchNetwork)
