"""Qwen-Image 2.1 under our solver against diffusers' own pipeline, from the same noise."""

import functools

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImage21Pipeline
from diffusers.pipelines.qwenimage21.pipeline_qwenimage21 import calculate_shift
from PIL import Image
from tests import tiny
from tests.parity.test_flow_families import TEXTS, on_white, picture, uploaded

import mezzotint
from mezzotint.models.base import Prompt
from mezzotint.models.families.flows import seeing
from mezzotint.models.formats.components import from_pipeline
from mezzotint.models.formats.folders import load_pipeline

# diffusers converts torch tensors with numpy, which numpy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

NAME = "qwen_image_21"
SIDE = {"width": 64, "height": 96}
STEPS = 3
READ_SIDE_PX = 96  # in place of 1024, which is 4096 tokens for each picture
GUIDED = {"true_cfg_scale": 3.5, "negative_prompt": "big"}


@functools.cache
def pipeline():
    return tiny.build(NAME)


@pytest.fixture(scope="module", autouse=True)
def small_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeing, "READ_SIDE_PX", READ_SIDE_PX)
        yield


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    models = [load_pipeline(tiny.folder(NAME), name=NAME)]
    home = tmp_path_factory.mktemp("home")
    with mezzotint.Engine(models, device="cpu", home=home, backend="torch") as started:
        yield started


def theirs(text, seed, pictures=(), source=None, **asked):
    call = {"image": list(pictures), "output_resolution": READ_SIDE_PX} if pictures else {}
    drawn = (source or pipeline())(
        text,
        **SIDE,
        **call,
        **{"num_inference_steps": STEPS, **asked},
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).images[0]
    assert drawn.shape[-1] == 4
    return np.round(on_white(drawn) * 255)


def ours(engine, text, seed, pictures=(), **asked):
    fields = {"num_inference_steps": STEPS, "guidance_scale": 1.0, **SIDE, **asked}
    if pictures:
        fields["image_references"] = tuple(map(uploaded, pictures))
    request = mezzotint.GenerationRequest(model=NAME, prompt=text, seed=seed, **fields)
    return engine.generate(request).images[0].pixels.astype(float)


def some(count):
    """Pictures of sizes and proportions of their own."""
    return [picture(96, 72), picture(50, 90).rotate(180), picture(64, 64)][:count]


@pytest.mark.parametrize("caches", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_a_picture_is_that_of_the_pipeline_whether_it_caches_what_it_reads_or_not(
    engine, text, caches
):
    found = ours(engine, text, 3)
    assert np.abs(found - theirs(text, 3, use_kv_cache=caches)).max() <= 1
    assert np.ptp(found) > 60


@pytest.mark.parametrize("guided", [{}, GUIDED, {**GUIDED, "negative_prompt": ""}])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_pictures_to_edit_are_seen_by_the_text_and_by_the_picture(engine, count, guided):
    pictures = some(count)
    asked = dict(guided)
    scale = {"guidance_scale": asked.pop("true_cfg_scale")} if guided else {}
    found = ours(engine, TEXTS[0], 9, pictures, **scale, **asked)
    for caches in (True, False):
        wanted = theirs(TEXTS[0], 9, pictures, use_kv_cache=caches, **guided)
        assert np.abs(found - wanted).max() <= 1
    assert np.abs(found - ours(engine, TEXTS[0], 9, **scale, **asked)).max() > 10
    assert np.abs(found - ours(engine, TEXTS[1], 9, pictures, **scale, **asked)).max() > 4


def test_the_text_with_pictures_has_the_states_that_the_pipeline_reads():
    own, read = load_pipeline(tiny.folder(NAME), name=NAME), pipeline()
    pixels = [np.asarray(p.convert("RGB")) for p in some(2)]
    prompt = Prompt(text=TEXTS[0], references=("a", "b"))
    found = own.encode_seeing(prompt, pixels)
    fitted = [seeing.fit_picture(p, 32) for p in pixels]
    wanted, _, is_picture = read.encode_prompt(TEXTS[0], image=fitted)
    states = wanted[0][~is_picture[0]]
    count = int(found["text_mask"].sum())
    assert count == len(states)
    torch.testing.assert_close(
        found["encoder_hidden_states"][0, :count], states, rtol=1e-4, atol=1e-4
    )
    begins = is_picture[0] & ~torch.cat([torch.zeros(1).bool(), is_picture[0][:-1]])
    before = [int((~is_picture[0][:k]).sum()) for k in begins.nonzero().flatten()]
    assert found["picture_places"].tolist() == [before]


def test_a_picture_is_prepared_as_the_processor_prepares_it():
    fitted = seeing.fit_picture(np.asarray(picture(90, 70)), 32)
    wanted = pipeline().processor.image_processor(images=[fitted], return_tensors="pt")
    encoder = load_pipeline(tiny.folder(NAME), name=NAME)._text
    patches, grid = encoder._patches(fitted)
    torch.testing.assert_close(patches, wanted["pixel_values"], rtol=0, atol=1e-6)
    assert [list(grid)] == wanted["image_grid_thw"].tolist()


def test_a_transformer_whose_text_knows_the_time_draws_the_picture_of_its_pipeline(tmp_path):
    from tests import tiny_flows

    with tiny.seeded(0):
        source = tiny_flows.qwen_image_21(causal=False)
    source.set_progress_bar_config(disable=True)
    model = from_pipeline(source, name=NAME)
    with mezzotint.Engine([model], device="cpu", home=tmp_path, backend="torch") as started:
        found = ours(started, TEXTS[0], 5, some(1))
    assert np.abs(found - theirs(TEXTS[0], 5, some(1), source=source)).max() <= 1
    assert np.abs(found - theirs(TEXTS[0], 5, some(1))).max() > 10


def test_the_noise_levels_of_its_authors_are_those_of_a_request_that_names_no_steps(tmp_path):
    levels = [1.0, 0.7, 0.4, 0.05]
    source = QwenImage21Pipeline(**pipeline().components, sample_sigmas=levels)
    source.set_progress_bar_config(disable=True)
    source.save_pretrained(tmp_path / NAME)
    model = load_pipeline(tmp_path / NAME, name=NAME)
    assert model.spec.default_steps == 4
    home = tmp_path / "home"
    with mezzotint.Engine([model], device="cpu", home=home, backend="torch") as started:
        found = ours(started, TEXTS[0], 5, num_inference_steps=None)
        other = ours(started, TEXTS[0], 5, num_inference_steps=5)
    assert np.abs(found - theirs(TEXTS[0], 5, source=source)).max() <= 1
    plain = theirs(TEXTS[0], 5, num_inference_steps=5)  # the pipeline keeps to its own levels
    assert np.abs(other - plain).max() <= 1
    assert np.abs(found - other).max() > 1


def test_levels_that_rise_are_refused_before_weights_are_read(tmp_path):
    folder = tiny.copy_of(NAME, tmp_path / NAME)
    file = folder / "model_index.json"
    text = file.read_text().replace('"sample_sigmas": null', '"sample_sigmas": [0.5, 0.9]')
    file.write_text(text)
    with pytest.raises(mezzotint.CardError, match=r"sample_sigmas must be .* fall from at most 1"):
        load_pipeline(folder)


def started(source, start, strength_steps):
    """Return latents of a picture, noise, and noise levels and times of the last steps."""
    vae, config = source.vae, source.vae.config
    pixels = torch.from_numpy(np.array(start.convert("RGBA"))).float().movedim(-1, 0) / 127.5 - 1
    generator = torch.Generator().manual_seed(9)
    clean = vae.encode(pixels[None, :, None]).latent_dist.sample(generator)
    mean, std = (
        torch.tensor(config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std")
    )
    clean = ((clean - mean) / std).flatten(2)
    noise = torch.randn(clean.shape, generator=generator)
    levels = np.linspace(1, 1 / STEPS, STEPS)[-strength_steps:]
    keys = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    mu = calculate_shift(clean.shape[-1], *(source.scheduler.config[key] for key in keys))
    source.scheduler.set_timesteps(sigmas=levels, mu=mu)
    times = source.scheduler.sigmas.clone()
    return clean.transpose(1, 2), noise.transpose(1, 2), levels, times


@pytest.mark.parametrize("repaints", [False, True])
def test_a_pipeline_that_begins_from_noised_latents_draws_what_a_start_picture_does(
    repaints, tmp_path
):
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        pipeline().scheduler.config, shift_terminal=None
    )
    source = QwenImage21Pipeline(**{**pipeline().components, "scheduler": scheduler})
    source.set_progress_bar_config(disable=True)
    start, shown = picture(**SIDE), np.zeros((96, 64), np.uint8)
    shown[16:64, 32:] = 255
    clean, noise, levels, times = started(source, start, 2)
    cells = torch.from_numpy(shown[::16, ::16] > 0).flatten()[None, :, None]

    def noised(step):
        return times[step] * noise + (1 - times[step]) * clean

    def repaint(_, step, time, state):
        return {"latents": torch.where(cells, state["latents"], noised(step + 1))}

    wanted = theirs(
        TEXTS[0], 9, source=source, latents=noised(0), sigmas=levels,
        **({"callback_on_step_end": repaint} if repaints else {}),
    )  # fmt: skip
    fields = {"mask": uploaded(Image.fromarray(shown))} if repaints else {}
    model = from_pipeline(source, name=NAME)
    with mezzotint.Engine([model], device="cpu", home=tmp_path, backend="torch") as started_engine:
        found = ours(
            started_engine, TEXTS[0], 9, image=uploaded(start), strength=2 / STEPS, **fields
        )
    assert np.abs(found - wanted).max() <= 1


@pytest.mark.slow
def test_the_backend_of_a_cpu_draws_from_pictures_to_edit_and_for_several_rows(tmp_path):
    model = load_pipeline(tiny.folder(NAME), name=NAME)
    with mezzotint.Engine([model], device="cpu", home=tmp_path) as started_engine:
        for pictures in ([], some(2)):
            asked = {"guidance_scale": 3.5, "negative_prompt": "big"}
            found = ours(started_engine, TEXTS[0], 9, pictures, **asked)
            assert np.abs(found - theirs(TEXTS[0], 9, pictures, **GUIDED)).max() <= 1
