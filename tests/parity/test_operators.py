"""Walks, regions and ensembles against plain loops over diffusers' own schedulers and networks.

Euler is used on purpose: it scales what the network sees and starts at 14.6 times unit noise, so
a loop that forgets either draws something else. Masks stand on the borders of latent cells, so
the shares of each cell are known by hand.
"""

import io

import numpy as np
import pytest
import scipy.spatial
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from PIL import Image
from tests import tiny

from mezzotint.errors import InvalidRequest
from mezzotint.models.formats.components import from_pipeline
from mezzotint.request import EnsembleMember, GenerationRequest, Region, Walk
from mezzotint.service.engine import Engine
from mezzotint.types import ImageInput

STEPS, SCALE, SEED = 4, 5.0, 7
PROMPT, NEGATIVE, CATS = "a red apple", "green", "two big blue cats on the table"


def other():
    """A model that shares nothing with ``sd1`` but the shape of its latents.

    It predicts velocity, on other betas, steered by text of another width.
    """
    tokenizer = tiny.clip_tokenizer()
    return StableDiffusionPipeline(
        vae=tiny.vae(seed=903),
        text_encoder=tiny.clip_text(tokenizer, width=24, seed=901),
        tokenizer=tokenizer,
        unet=tiny.unet(seed=902, context=24),
        scheduler=DDIMScheduler(
            beta_schedule="linear",
            prediction_type="v_prediction",
            steps_offset=1,
            clip_sample=False,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module")
def pipelines():
    made = {"sd1": tiny.build("sd1"), "sdxl": tiny.build("sdxl"), "other": other()}
    for pipeline in made.values():
        pipeline.set_progress_bar_config(disable=True)
    for name in ("sd1", "sdxl"):
        config = made[name].scheduler.config
        made[name].scheduler = EulerDiscreteScheduler.from_config(
            config, prediction_type="epsilon", timestep_spacing="leading"
        )
    return made


@pytest.fixture(scope="module")
def engine(pipelines, tmp_path_factory):
    torch.set_num_threads(1)
    models = [from_pipeline(pipeline, name=kind) for kind, pipeline in pipelines.items()]
    home = tmp_path_factory.mktemp("home")
    with Engine(models, device="cpu", home=home, backend="torch") as started:
        yield started


def ours(engine, **fields):
    defaults = {
        "model": "sd1", "prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": SEED,
        "scheduler": "euler", "num_inference_steps": STEPS, "guidance_scale": SCALE,
    }  # fmt: skip
    images = engine.generate(GenerationRequest(**{**defaults, **fields})).images
    return [image.pixels.astype(float) for image in images]


def noise(pipeline, seed=SEED):
    shape = (1, pipeline.unet.config.in_channels, 16, 16)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def text(pipeline, prompt):
    return pipeline.encode_prompt(prompt, "cpu", 1, False)[0]


def levels(pipeline, latents):
    """Decode as a pipeline does, to levels of 0 to 255."""
    with torch.no_grad():
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return ((decoded / 2 + 0.5).clamp(0, 1) * 255).round()[0].permute(1, 2, 0).numpy()


def loop(pipeline, denoised):
    """Euler as diffusers takes it, over an estimate of the clean latents."""
    scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    latents = noise(pipeline) * scheduler.init_noise_sigma
    for k, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[k]
        scheduler.scale_model_input(latents, t)  # only so that step does not complain
        with torch.no_grad():
            epsilon = (latents - denoised(k, latents, sigma, t)) / sigma
        latents = scheduler.step(epsilon, t, latents).prev_sample
    return levels(pipeline, latents)


def estimate(pipeline, states, latents, sigma, t):
    """What a U-Net believes the clean latents are, whatever it predicts."""
    seen = latents / (sigma**2 + 1) ** 0.5
    answer = pipeline.unet(seen, t, encoder_hidden_states=states).sample
    if pipeline.scheduler.config.prediction_type == "v_prediction":
        return seen / (sigma**2 + 1) ** 0.5 - answer * sigma / (sigma**2 + 1) ** 0.5
    return latents - sigma * answer


def guided(pipeline, latents, sigma, t, prompt=PROMPT):
    """An estimate with classifier-free guidance."""
    positive, negative = (
        estimate(pipeline, text(pipeline, p), latents, sigma, t) for p in (prompt, NEGATIVE)
    )
    return negative + SCALE * (positive - negative)


def difference(found, expected):
    assert np.ptp(expected) > 100  # a picture, not a plain field
    return np.abs(found - expected).max()


def slerp(a, b, t, rows):
    """Scipy's great circle between directions, norms on a line; equal rows stay."""
    flat = [x.double().numpy().reshape(rows, -1) for x in (a, b)]
    made = []
    for u, v in zip(*flat, strict=True):
        if np.array_equal(u, v):
            made.append(u)
            continue
        sizes = [np.linalg.norm(u), np.linalg.norm(v)]
        way = scipy.spatial.geometric_slerp(u / sizes[0], v / sizes[1], t, tol=1e-9)
        made.append(way * ((1 - t) * sizes[0] + t * sizes[1]))
    return torch.from_numpy(np.stack(made)).reshape(a.shape).float()


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_frame_of_a_walk_is_what_diffusers_draws_from_scipys_slerp(engine, pipelines, kind):
    """Text and pooled text turn, noise turns, and the negative half stays where it is."""
    pipeline, end, t = pipelines[kind], CATS, 0.25
    pairs = []
    for prompt in (PROMPT, end):
        if kind == "sdxl":
            pairs.append(pipeline.encode_prompt(prompt, None, "cpu", 1, True, NEGATIVE))
        else:
            pairs.append(pipeline.encode_prompt(prompt, "cpu", 1, True, NEGATIVE))
    (first, *rest), (last, *others) = pairs
    names = ["negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    given = dict(zip(names, rest, strict=False))
    if kind == "sdxl":
        given["pooled_prompt_embeds"] = slerp(rest[1], others[1], t, 1)
    expected = pipeline(
        prompt_embeds=slerp(first, last, t, first.shape[1]), **given,
        latents=slerp(noise(pipeline), noise(pipeline, 40), t, 1), width=64, height=64,
        num_inference_steps=STEPS, guidance_scale=SCALE, output_type="np",
    ).images[0]  # fmt: skip
    walk = Walk(to=end, mode="both", to_seed=40, frames=5)
    found = ours(engine, model=kind, walk=walk)
    assert difference(found[1], np.round(expected * 255)) <= 1
    assert difference(found[1], found[0]) > 10


def test_a_walk_between_equal_ends_stands_still(engine):
    """TRAPS: one angle over the whole pair drags along what is the same at both ends."""
    frames = ours(engine, walk=Walk(to=PROMPT, mode="both", to_seed=SEED, frames=4))
    assert all(np.array_equal(frame, frames[0]) for frame in frames)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        (f"[{PROMPT}:{CATS}:0.5]", [PROMPT] * 2 + [CATS] * 2),
        (f"[{PROMPT}:{CATS}:1]", [PROMPT] + [CATS] * 3),
        (f"[{PROMPT}|{CATS}]", [PROMPT, CATS] * 2),
        (f"a leaf [on {CATS}::0.25]", [f"a leaf on {CATS}"] + ["a leaf "] * 3),
    ],
)
def test_a_prompt_that_changes_on_the_way_is_a_plain_loop_that_exchanges_its_text(
    engine, pipelines, prompt, texts
):
    pipeline = pipelines["sd1"]

    def denoised(step, latents, sigma, t):
        return guided(pipeline, latents, sigma, t, texts[step])

    (found,) = ours(engine, prompt=prompt, prompt_dialect="a1111")
    assert difference(found, loop(pipeline, denoised)) <= 1
    for whole in (texts[0], texts[-1]):
        assert difference(found, ours(engine, prompt=whole)[0]) > 4


def test_a_walk_passes_between_prompts_that_change(engine):
    """Where both ends have changed to the same text, the frames between have as well."""
    walk = Walk(to="a [blue:green:0.5] apple", frames=3)
    frames = ours(engine, prompt="a [red:green:0.5] apple", prompt_dialect="a1111", walk=walk)
    for frame, prompt in zip(frames[::2], ("a [red:green:0.5] apple", walk.to), strict=True):
        assert np.array_equal(frame, ours(engine, prompt=prompt, prompt_dialect="a1111")[0])
    assert not any(np.array_equal(frames[1], end) for end in frames[::2])


def test_a_prompt_with_too_many_faces_is_refused(engine):
    many = " ".join(f"[{'|'.join('abcdefgh'[:k])}]" for k in (2, 3, 5, 7))
    with pytest.raises(InvalidRequest, match="at most 64 different texts on its way, got 100"):
        ours(engine, prompt=many, prompt_dialect="a1111", num_inference_steps=100)


def cells(rows, columns):
    """A mask that is 1 in some latent cells. Shape (1, 1, 16, 16)."""
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., rows, columns] = 1
    return mask


LEFT = cells(slice(0, 16), slice(0, 8))
CORNER = cells(slice(0, 8), slice(4, 12))  # overlaps LEFT in columns 4 to 7; the rest is a hole


def test_regions_are_a_plain_loop_of_diffusers_with_normalised_masks(engine, pipelines):
    pipeline, (left, corner) = pipelines["sd1"], ("a blue cat", "a big leaf")
    both = LEFT * CORNER
    shares = (LEFT * (1 - both) + both * 2 / 3, CORNER * (1 - both) + both / 3)

    def denoised(step, latents, sigma, t):
        ask = lambda prompt: estimate(pipeline, text(pipeline, prompt), latents, sigma, t)  # noqa: E731
        one, two = shares if step < 2 else (LEFT, torch.zeros_like(LEFT))
        rest = 1 - one - two
        positive = rest * ask(PROMPT) + one * ask(left) + two * ask(corner)
        negative = (rest + two) * ask(NEGATIVE) + one * ask("red")
        return negative + SCALE * (positive - negative)

    regions = (
        Region(prompt=left, box=(0, 0, 0.5, 1), weight=2, feather=0, negative_prompt="red"),
        Region(prompt=corner, box=(0.25, 0, 0.75, 0.5), feather=0, end=0.5),
    )
    (found,) = ours(engine, regions=regions)
    assert difference(found, loop(pipeline, denoised)) <= 1
    (plain,) = ours(engine)
    assert difference(found, plain) > 10


def members(pipelines, latents, sigma, t):
    """The guided estimates of both models at one noise level; each counts time in its own way."""
    scheduler = EulerDiscreteScheduler.from_config(pipelines["other"].scheduler.config)
    alphas = scheduler.alphas_cumprod
    time = scheduler._sigma_to_t(sigma.numpy(), (((1 - alphas) / alphas) ** 0.5).log().numpy())
    return (
        guided(pipelines["sd1"], latents, sigma, t),
        guided(pipelines["other"], latents, sigma, torch.tensor(float(time))),
    )


def test_an_ensemble_of_unlike_models_is_a_plain_loop_over_their_clean_estimates(engine, pipelines):
    """Epsilon and velocity, other betas, other text widths: mixed as clean latents alone."""

    def denoised(step, latents, sigma, t):
        one, two = members(pipelines, latents, sigma, t)
        share = 0.25 if step else 0.0
        return (1 - share) * one + share * two

    ensemble = (
        EnsembleMember(model="sd1", weight=0.9),
        EnsembleMember(model="other", weights=(0.0, 0.3, 0.3, 0.3)),
    )
    (found,) = ours(engine, ensemble=ensemble)
    assert difference(found, loop(pipelines["sd1"], denoised)) <= 1


@pytest.mark.parametrize("way", ["box", "mask"])
def test_a_member_with_a_place_answers_there_alone(engine, pipelines, way):
    def denoised(step, latents, sigma, t):
        one, two = members(pipelines, latents, sigma, t)
        return torch.where(LEFT > 0, two, one)

    stream = io.BytesIO()
    Image.fromarray(np.uint8(LEFT[0, 0].numpy() * 255)).resize((64, 64), 0).save(stream, "PNG")
    place = {"box": (0, 0, 0.5, 1)} if way == "box" else {"mask": ImageInput(stream.getvalue())}
    ensemble = (EnsembleMember(model="sd1"), EnsembleMember(model="other", feather=0, **place))
    (found,) = ours(engine, ensemble=ensemble)
    assert difference(found, loop(pipelines["sd1"], denoised)) <= 1
