"""Second passes, outpainting, inpainting, variations and tiling, each against another way to it."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image
from tests import tiny
from tests.roads.test_exactness import differing, run, storm
from tests.techniques import disc, photo, png

from mezzotint.errors import InvalidRequest
from mezzotint.models.formats.components import from_pipeline
from mezzotint.request import (
    EnsembleMember,
    GenerationRequest,
    Hires,
    Inpaint,
    Outpaint,
    Region,
    Upscale,
    Variation,
    Walk,
)
from mezzotint.service.engine import Engine
from mezzotint.types import ImageInput


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    torch.set_num_threads(1)
    names = {"sd1": "sd", "dit": "dit", "ddpm": "ddpm"}
    models = [from_pipeline(tiny.build(kind), name=name) for kind, name in names.items()]
    models.append(from_pipeline(tiny.sd1(seed=900), name="other"))
    with Engine(
        models, device="cpu", home=tmp_path_factory.mktemp("home"), backend="torch"
    ) as started:
        yield started


def ask(**fields):
    defaults = {
        "model": "sd", "prompt": "a red apple", "seed": 5, "num_inference_steps": 3,
        "scheduler": "dpmpp_2m", "guidance_scale": 4.0,
    }  # fmt: skip
    return GenerationRequest(**{**defaults, **fields})


def pixels(engine, **fields):
    return run(engine, ask(**fields)).images[0].pixels


def test_hires_by_pixels_is_a_picture_enlarged_and_painted_again(engine):
    first = pixels(engine)
    enlarged = np.array(Image.fromarray(first).resize((96, 96), Image.Resampling.LANCZOS))
    expected = pixels(engine, image=png(enlarged), strength=0.7, width=96, height=96,
                      num_inference_steps=4)  # fmt: skip
    hires = Hires(scale=1.5, strength=0.7, num_inference_steps=4, upscaler="lanczos")
    assert np.array_equal(pixels(engine, hires=hires), expected)


def test_hires_by_latents_agrees_with_diffusers(engine):
    from diffusers import StableDiffusionImg2ImgPipeline, UniPCMultistepScheduler

    pipeline = tiny.build("sd1")
    config = pipeline.scheduler.config
    pipeline.scheduler = UniPCMultistepScheduler.from_config(config)
    generator = torch.Generator().manual_seed(5)
    common = {"prompt": "a red apple", "guidance_scale": 4.0, "num_inference_steps": 4}
    latents = pipeline(
        **common, width=64, height=64, generator=generator, output_type="latent"
    ).images
    again = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    again.set_progress_bar_config(disable=True)
    again.scheduler = UniPCMultistepScheduler.from_config(config)
    larger = torch.nn.functional.interpolate(latents, size=(24, 24), mode="bilinear")
    drawn = again(
        **common, image=larger, strength=0.5, generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images[0]  # fmt: skip
    ours = pixels(engine, scheduler="unipc", num_inference_steps=4, width=64, height=64,
                  hires=Hires(scale=1.5, strength=0.5))  # fmt: skip
    assert np.abs(np.rint(drawn * 255) - ours).max() <= 1


def test_hires_counts_the_calls_and_steps_of_both_passes(engine):
    request = ask(hires=Hires(scale=1.5, strength=0.5, num_inference_steps=6), num_images=2)
    planned = engine.plan(request)
    assert planned["cost"]["model_calls"] == 2 * (3 * 2 + 3 * 2)
    result = run(engine, request)
    assert [i.timings.model_calls for i in result.images] == [12, 12]
    assert (result.images[0].width, result.images[0].height) == (96, 96)
    alone = ask(hires=Hires(scale=1.5, strength=0.5, num_inference_steps=6), seed=6)
    assert run(engine, alone).images[0].data == result.images[1].data


def test_a_hires_picture_is_made_again_from_its_recipe(engine):
    from mezzotint.images.metadata import read_recipe

    image = run(engine, ask(hires=Hires(scale=1.5), num_images=2, seed=30)).images[1]
    request = GenerationRequest.from_dict(read_recipe(image.data)["request"])
    assert run(engine, request).images[0].data == image.data


def test_hires_can_have_words_of_its_own(engine):
    plain = pixels(engine, hires=Hires(scale=1.5))
    assert not np.array_equal(plain, pixels(engine, hires=Hires(scale=1.5, prompt="two cats")))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"hires": Hires(width=50)}, "hires.width"),
        ({"hires": Hires(strength=0.0)}, "hires.strength"),
    ],
)
def test_hires_that_cannot_be_is_refused(engine, fields, field):
    with pytest.raises(InvalidRequest) as caught:
        engine.submit(ask(**fields))
    assert caught.value.field.startswith(field.partition(".")[0])


def test_hires_and_image_exclude_each_other():
    with pytest.raises(InvalidRequest, match="hires cannot be used with image"):
        ask(hires=Hires(), image=png(photo()))


def test_outpainting_is_inpainting_of_the_extended_picture(engine):
    wide = np.pad(photo(), ((0, 0), (16, 16), (0, 0)), mode="edge")
    mask = np.full((64, 96), 255, np.uint8)
    mask[:, 16:80] = 0
    expected = pixels(engine, image=png(wide), mask=png(mask), strength=0.7)
    outpaint = Outpaint(left=16, right=16)
    assert np.array_equal(
        pixels(engine, image=png(photo()), outpaint=outpaint, strength=0.7), expected
    )
    kept = pixels(engine, image=png(photo()), outpaint=outpaint, strength=0.7,
                  inpaint=Inpaint(paste=True))  # fmt: skip
    assert np.array_equal(kept[:, 16:80], photo())
    assert not np.array_equal(kept, wide)


def test_an_inverted_mask_is_the_other_mask(engine):
    common = {"image": png(photo()), "strength": 0.7}
    other = pixels(engine, **common, mask=png(255 - disc()))
    assert np.array_equal(
        pixels(engine, **common, mask=png(disc()), inpaint=Inpaint(invert=True)), other
    )


def test_one_file_may_be_the_mask_to_repaint_and_that_of_a_region(engine):
    """Turned round and blurred for the one, as it is for the other."""
    again = Image.fromarray(disc())
    stream = io.BytesIO()
    again.save(stream, "PNG", compress_level=1)  # the same mask in other bytes
    common = {"image": png(photo()), "strength": 0.9, "inpaint": Inpaint(invert=True, blur=3)}
    drawn = [
        pixels(engine, **common, mask=png(disc()), regions=(Region(prompt="a cat", mask=mask),))
        for mask in (png(disc()), ImageInput(stream.getvalue()))
    ]
    assert png(disc()) != ImageInput(stream.getvalue())
    assert np.array_equal(*drawn)


def test_painting_the_masked_area_alone_leaves_every_other_pixel(engine):
    picture = photo(128, 160)
    mask = disc(128, 160)
    drawn = pixels(engine, image=png(picture), mask=png(mask), strength=1.0,
                   inpaint=Inpaint(area="masked", padding=8))  # fmt: skip
    assert drawn.shape == picture.shape
    assert np.array_equal(drawn[mask == 0], picture[mask == 0])
    assert not np.array_equal(drawn[mask > 0], picture[mask > 0])


def test_a_blurred_mask_pastes_softly(engine):
    common = {"image": png(photo()), "mask": png(disc()), "strength": 0.9}
    hard = pixels(engine, **common, inpaint=Inpaint(paste=True)).astype(int)
    soft = pixels(engine, **common, inpaint=Inpaint(paste=True, blur=4)).astype(int)
    ring = (disc(radius=18) > 0) & (disc(radius=14) == 0)
    assert np.array_equal(hard[ring], photo().astype(int)[ring])
    assert (soft[ring] != photo().astype(int)[ring]).mean() > 0.3


def test_fills_start_from_something_else_and_noise_is_noise(engine):
    common = {"image": png(photo()), "mask": png(disc()), "strength": 0.7}
    drawn = {
        fill: pixels(engine, **common, inpaint=Inpaint(fill=fill))
        for fill in ("original", "surroundings", "noise", "nothing")
    }
    names = list(drawn)
    for k, name in enumerate(names):
        for other in names[k + 1 :]:
            assert not np.array_equal(drawn[name], drawn[other]), (name, other)


def test_drawing_inwards_takes_the_colour_around():
    from mezzotint.service.finishing.inpainting import draw_inwards

    flat = np.full((64, 64, 3), (200, 40, 90), np.uint8)
    flat[disc() > 0] = 0
    filled = draw_inwards(flat, (disc() > 0).astype(np.float32))
    assert np.abs(filled.astype(int) - (200, 40, 90)).max() <= 1


def test_an_empty_mask_is_refused_where_it_decides_the_area(engine):
    from mezzotint.errors import ImageError

    with pytest.raises(ImageError, match="mask repaints nothing"):
        engine.submit(
            ask(image=png(photo()), mask=png(disc(level=0)), inpaint=Inpaint(area="masked"))
        )


def test_a_variation_of_strength_zero_and_one_are_the_two_seeds(engine):
    assert np.array_equal(pixels(engine, variation=Variation(seed=9, strength=0.0)), pixels(engine))
    assert np.array_equal(
        pixels(engine, variation=Variation(seed=9, strength=1.0)), pixels(engine, seed=9)
    )


def test_a_variation_between_is_the_frame_of_a_seed_walk(engine):
    walk = run(engine, ask(walk=Walk(mode="seed", to_seed=9, frames=5))).images[1]
    assert np.array_equal(pixels(engine, variation=Variation(seed=9, strength=0.25)), walk.pixels)


def test_variations_of_several_images_count_both_seeds_up(engine):
    images = run(engine, ask(num_images=2, variation=Variation(seed=9, strength=0.4))).images
    alone = pixels(engine, seed=6, variation=Variation(seed=10, strength=0.4))
    assert np.array_equal(images[1].pixels, alone)


def test_noise_of_the_same_size_changes_nothing_and_of_another_lies_in_the_middle(engine):
    same = Variation(noise_width=64, noise_height=64)
    assert np.array_equal(pixels(engine, variation=same, width=64, height=64),
                          pixels(engine, width=64, height=64))  # fmt: skip
    from mezzotint.engine.execution.filling import _vary
    from mezzotint.sampling.latents import make_generator
    from mezzotint.types import Size

    model = from_pipeline(tiny.build("sd1"), name="sd")
    planned = Variation(seed=0, noise_width=64, noise_height=64)

    class FakePlan:
        seed, size = 5, Size(96, 64)

    noise = model.draw_latents(FakePlan.size, make_generator(5))
    laid = _vary(FakePlan, planned, model, noise)
    inner = model.draw_latents(Size(64, 64), make_generator(5))
    assert torch.equal(laid[..., 4:20], inner)
    assert torch.equal(laid[..., :4], noise[..., :4])


def test_tiling_agrees_with_diffusers_with_circular_convolutions(engine):
    from diffusers import UniPCMultistepScheduler

    pipeline = tiny.build("sd1")
    for module in (pipeline.unet, pipeline.vae):
        for layer in module.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.padding_mode = "circular"
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)
    drawn = pipeline(
        "a red apple", guidance_scale=4.0, num_inference_steps=4, width=64, height=64,
        generator=torch.Generator().manual_seed(5), output_type="np",
    ).images[0]  # fmt: skip
    ours = pixels(
        engine, scheduler="unipc", num_inference_steps=4, width=64, height=64, tiling=True
    )
    assert np.abs(np.rint(drawn * 255) - ours).max() <= 1


def test_tiling_never_reaches_the_next_request(engine):
    before = run(engine, ask()).images[0].data
    run(engine, ask(tiling=True))
    assert run(engine, ask()).images[0].data == before


def test_tiling_is_refused_where_it_cannot_be_honoured(engine):
    from mezzotint.request import LatentInput

    with pytest.raises(InvalidRequest, match="tiling cannot be honoured by dit"):
        engine.submit(ask(model="dit", tiling=True, latent=LatentInput(class_label=1)))


def test_pictures_and_latents_for_a_second_pass_are_decoded_side_by_side(engine):
    requests = [
        ask(seed=k, reproducibility="stable", hires=Hires(scale=1.5) if k % 2 else None)
        for k in range(6)
    ]
    solo = [run(engine, request).images[0].pixels for request in requests]
    jobs = [engine.submit(request) for request in requests]
    for alone, job in zip(solo, jobs, strict=True):
        noise = np.square(job.result(120).images[0].pixels.astype(float) - alone).mean()
        assert 10 * np.log10(255**2 / max(noise, 1e-9)) >= 60


MIXED = {
    "hires latent": {"hires": Hires(scale=1.5)},
    "hires pixels": {"hires": Hires(scale=1.25, upscaler="lanczos", strength=0.4), "seed": 8},
    "hires regions": {
        "hires": Hires(scale=1.5),
        "regions": (Region(prompt="a cat", box=(0, 0, 0.5, 1)),),
    },
    "hires ensemble": {
        "hires": Hires(scale=1.5),
        "ensemble": (EnsembleMember(model="sd"), EnsembleMember(model="other")),
    },
    "hires walk": {"hires": Hires(scale=1.5), "walk": Walk(to="two cats", frames=2)},
    "outpaint": {"image": png(photo()), "outpaint": Outpaint(top=16, left=16)},
    "masked": {
        "image": png(photo(96, 96)), "mask": png(disc(96, 96)), "strength": 1.0,
        "inpaint": Inpaint(area="masked", blur=2, fill="noise"),
    },
    "fill": {
        "image": png(photo()), "mask": png(disc()),
        "inpaint": Inpaint(fill="surroundings", paste=True),
    },
    "variation": {"variation": Variation(seed=3, strength=0.3)},
    "tiling": {"tiling": True},
    "tiling hires": {"tiling": True, "hires": Hires(scale=1.5)},
    "tiling ensemble": {
        "tiling": True,
        "ensemble": (EnsembleMember(model="sd"), EnsembleMember(model="other", weight=2)),
    },
    "upscale": {"upscale": Upscale(factor=2)},
    "plain": {},
    "plain large": {"width": 96, "height": 96},
}  # fmt: skip


def test_a_storm_of_passes_gives_the_same_bytes_as_each_alone(engine):
    requests = [ask(**fields) for fields in MIXED.values()]
    solo = {k: run(engine, request) for k, request in enumerate(requests)}
    for k, request in enumerate(requests):
        planned = engine.plan(request)["cost"]["model_calls"]
        spent = sum(i.timings.model_calls for i in solo[k].images)
        assert spent == planned, list(MIXED)[k]
    stormy = storm(engine, requests, random.Random(4), cancels=3)
    assert [list(MIXED)[k] for k in differing(solo, stormy)] == []
