import json
import shutil
import threading

import diffusers
import numpy as np
import pytest
import torch
from tests import tiny

from mezzotint.errors import CardError, InvalidRequest, WeightsError
from mezzotint.images.codec import to_pixels
from mezzotint.models.base import Conditioning, Prompt
from mezzotint.models.config import ModelsConfig
from mezzotint.models.families.whole import load_foreign
from mezzotint.models.store.store import ModelStore
from mezzotint.planning.planner import plan
from mezzotint.request import GenerationRequest
from mezzotint.service.engine import Engine
from mezzotint.types import Cancelled, Size, Stepped

SIZE = Size(64, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline that has no native family: Stable Diffusion with perturbed attention."""
    base = tiny.build("sd1")
    pipeline = diffusers.StableDiffusionPAGPipeline(
        **base.components, requires_safety_checker=False
    )
    path = tmp_path_factory.mktemp("foreign") / "pag"
    pipeline.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def oracle(folder):
    pipeline = diffusers.StableDiffusionPAGPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def model(folder, tmp_path):
    return ModelStore(ModelsConfig(home=str(tmp_path))).load(str(folder))


def draw(model, seeds, **prompt):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents = torch.cat([model.draw_latents(SIZE, generator) for generator in generators])
    asked = Prompt(text="a red cat", size=SIZE, **prompt)
    conditioning = Conditioning.stack(model.encode([asked] * len(seeds)))
    return to_pixels(model.decode(latents, conditioning).numpy())


def expected(oracle, seed, **options):
    generator = torch.Generator().manual_seed(seed)
    answer = oracle(
        "a red cat", width=64, height=64, generator=generator, output_type="np", **options
    )
    return np.rint(answer.images[0] * 255).astype(np.uint8)


@pytest.mark.parametrize("seed", [7, 2**64 - 1])
def test_a_foreign_pipeline_draws_what_diffusers_draws(model, oracle, seed):
    picture = draw(
        model, [seed], num_inference_steps=3, distilled_guidance=4.0, negative_text="blue"
    )[0]
    wanted = expected(
        oracle, seed, num_inference_steps=3, guidance_scale=4.0, negative_prompt="blue"
    )
    assert np.abs(picture.astype(int) - wanted).max() <= 1


def test_a_run_pauses_after_each_step_and_may_be_given_up(model, oracle):
    def begin(seed):
        latents = model.draw_latents(SIZE, torch.Generator().manual_seed(seed))
        asked = Prompt(text="a red cat", size=SIZE, num_inference_steps=3)
        return model.begin(latents, model.encode([asked])[0])

    given_up = begin(1)
    given_up.resume()
    given_up.close()
    assert given_up.is_over
    run, pauses = begin(7), 0
    while not run.is_over:
        run.resume()
        pauses += not run.is_over
    assert pauses == 3
    picture = to_pixels(run.finish().numpy())[0]
    wanted = expected(oracle, 7, num_inference_steps=3)
    assert np.abs(picture.astype(int) - wanted).max() <= 1


def test_the_engine_counts_steps_and_cancels_at_the_next_one(model, folder):
    with Engine(models=[model]) as engine:

        def ask(seed, steps):
            return engine.submit(GenerationRequest(
                model=model.spec.name, prompt="a red cat", seed=seed, num_inference_steps=steps
            ))  # fmt: skip

        long, seen = ask(1, 200), []
        for event in long.events():
            seen.append(event)
            if isinstance(event, Stepped) and event.step == 1:
                long.cancel()
        taken = [event.step for event in seen if isinstance(event, Stepped)]
        assert isinstance(seen[-1], Cancelled)
        assert taken[0] == 1 <= len(taken) < 100
        first, second = ask(7, 3), ask(8, 3)
        steps = [e.step for e in first.events() if isinstance(e, Stepped)]
        assert steps == [1, 2, 3]
        both = [job.result(timeout_s=60).images[0].pixels for job in (first, second)]
    assert not np.array_equal(*both)
    alone = [draw(model, [seed], num_inference_steps=3)[0] for seed in (7, 8)]
    assert all(np.array_equal(a, b) for a, b in zip(both, alone, strict=True))


def test_runs_leave_nothing_behind_for_each_other(model):
    first = draw(model, [1], num_inference_steps=3)
    draw(model, [2], num_inference_steps=5, distilled_guidance=1.0)
    assert np.array_equal(draw(model, [1], num_inference_steps=3), first)
    both = draw(model, [2, 1], num_inference_steps=3)
    assert np.array_equal(both[1], first[0])


def test_threads_get_the_pictures_they_would_get_alone(model):
    alone = {seed: draw(model, [seed], num_inference_steps=2) for seed in range(4)}
    found = {}

    def work(seed):
        found[seed] = draw(model, [seed], num_inference_steps=2)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[seed], alone[seed]) for seed in range(4))


def test_the_spec_says_what_it_cannot_do(model):
    spec = model.spec
    assert (spec.family, spec.stepwise, spec.takes_image) == ("foreign", False, False)
    assert spec.default_size == Size(64, 64)
    assert spec.tells_steps
    assert any("joins no batch" in limit for limit in spec.limits)
    assert any("scheduler" in limit for limit in spec.limits)
    with pytest.raises(InvalidRequest, match="cannot start from an image"):
        model.encode_image(torch.zeros(1, 3, 64, 64))


def test_a_plan_keeps_steps_scale_and_negative_prompt(model):
    request = GenerationRequest(
        model="x", prompt="a cat", negative_prompt="blue", num_inference_steps=4,
        guidance_scale=3.0, scheduler="heun", seed=1,
    )  # fmt: skip
    planned = plan(request, model.spec)
    (one,) = planned.plans
    assert (one.num_inference_steps, one.steps, one.rows) == (4, (1, 2, 3, 4), (1, 1, 1, 1))
    assert one.is_alone
    assert one.techniques.distilled_guidance == 3.0
    assert one.negative_prompt == "blue"
    assert any("scheduler has no effect" in warning for warning in planned.warnings)


def test_weights_that_went_missing_or_are_pickles_are_refused_at_load(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = next((broken / "unet").glob("*.safetensors"))
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(WeightsError, match="pickle"):
        load_foreign(broken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "MagicPipeline"}, "this diffusers"),
        ({"_class_name": ["pipeline", "MyPipeline"]}, "code inside a model folder never runs"),
        ({"_class_name": "StableDiffusionUpscalePipeline"}, "needs image"),
        ({"_class_name": "TextToVideoSDPipeline"}, "video is not drawn here"),
        ({"_class_name": "DiffusionPipeline"}, "must name the pipeline that it is"),
        ({"_class_name": "UNet2DConditionModel"}, "which is no DiffusionPipeline"),
        ({"unet": ["my_code", "MyUNet"]}, "class of 'my_code'"),
        ({"unet": ["stable_diffusion", "os"]}, "unet names os, which this diffusers"),
        ({"tokenizer": ["transformers", "pipeline"]}, "tokenizer names pipeline, which this"),
    ],
)
def test_folders_that_need_more_than_a_request_gives_are_refused(folder, tmp_path, change, message):
    other = shutil.copytree(folder, tmp_path / "other")
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps({**index, **change}))
    with pytest.raises(CardError, match=message):
        load_foreign(other)


def test_code_of_its_own_does_not_run_though_a_terminal_says_yes(folder, tmp_path, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    ran, other = tmp_path / "ran", shutil.copytree(folder, tmp_path / "other")
    index = json.loads((other / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "AutoTokenizer"]
    (other / "model_index.json").write_text(json.dumps(index))
    mapped = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    (other / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(mapped))
    (other / "tokenizer" / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: ...\n")
    with pytest.raises(CardError, match=r"wants code of its own \(auto_map\)") as caught:
        load_foreign(other)
    assert "\n" not in str(caught.value)
    assert asked == []
    assert not ran.exists()
