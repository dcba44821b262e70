import numpy as np
import pytest
import torch

import mezzotint as mz

SMALL = {"num_inference_steps": 2, "guidance_scale": 3.0, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    with mz.pipeline("plate", device="cpu", home=str(tmp_path_factory.mktemp("home"))) as made:
        yield made


def test_a_call_answers_the_pictures_of_generate_as_pil(pipe):
    made = pipe("a red apple", seed=7, num_images_per_prompt=2, **SMALL)
    own = mz.generate("a red apple", seed=7, num_images=2, **SMALL)
    assert [image.size for image in made.images] == [(64, 64), (64, 64)]
    for picture, image in zip(made.images, own.images, strict=True):
        assert np.array_equal(np.asarray(picture), image.pixels)
    assert made.results[0].images[0].bytes == own.images[0].bytes
    assert "repeat(2,1fr)" in made._repr_html_()


def test_a_generator_is_its_initial_seed(pipe):
    generator = torch.Generator().manual_seed(7)
    state = generator.get_state()
    made = pipe("a red apple", generator=generator, output_type="np", **SMALL)
    own = pipe("a red apple", seed=7, output_type="np", **SMALL)
    assert np.array_equal(made.images[0], own.images[0])
    assert torch.equal(generator.get_state(), state)


def test_several_prompts_and_generators_draw_prompt_after_prompt(pipe):
    made = pipe(["a pear", "a plum"], seed=7, num_images_per_prompt=2, **SMALL)
    asked = [(r.images[0].seed, r.images[1].seed) for r in made.results]
    assert asked == [(7, 8), (9, 10)]
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8, 9, 10)]
    each = pipe(["a pear", "a plum"], generator=generators, num_images_per_prompt=2, **SMALL)
    assert [r.images[0].seed for r in each.results] == [7, 8, 9, 10]
    for one, other in zip(made.images, each.images, strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"generator": 7}, "generator"),
        ({"generator": torch.Generator(), "seed": 7}, "generator"),
        ({"generator": [torch.Generator(), torch.Generator()]}, "generator"),
        ({"num_images": 1, "num_images_per_prompt": 2}, "num_images_per_prompt"),
        ({"output_type": "latent"}, "output_type"),
        ({"callback_on_step_end": print}, "callback_on_step_end"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
    ],
)
def test_what_cannot_be_honoured_is_named(pipe, fields, field):
    with pytest.raises(mz.InvalidRequest) as caught:
        pipe("a pear", **fields)
    assert caught.value.field == field


def test_no_prompt_among_several_is_refused(pipe):
    with pytest.raises(mz.InvalidRequest, match="empty list"):
        pipe([])
