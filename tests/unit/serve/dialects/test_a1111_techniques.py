"""What A1111's own Python client sends becomes techniques, not warnings."""

import numpy as np
import pytest
import webuiapi
from PIL import Image

from mezzotint.errors import InvalidRequest
from mezzotint.request import Hires, Inpaint, Variation
from mezzotint.serve.dialects.a1111 import to_request
from mezzotint.serve.dialects.a1111_bodies import TextToImage
from mezzotint.serve.dialects.a1111_techniques import read_plainly, read_variation
from mezzotint.serve.wire import read_fields


@pytest.fixture
def sent(monkeypatch):
    """The real client with its wire cut; gives the body it would have sent."""
    bodies = []

    class Answer:
        status_code = 200

        def json(self):
            return {"images": [], "info": "{}", "parameters": {}}

    api = webuiapi.WebUIApi()

    def post(url, json=None, **_):
        bodies.append(json)
        return Answer()

    monkeypatch.setattr(api.session, "post", post)

    def call(verb, **fields):
        getattr(api, verb)(**fields)
        body = bodies[-1]
        return to_request(body, is_img2img=verb == "img2img")

    return call


def picture(level=0):
    return Image.fromarray(np.full((32, 32, 3), level, np.uint8))


def test_a_plain_call_asks_for_nothing_and_warns_of_nothing(sent):
    order = sent("txt2img", prompt="a pear", seed=3)
    request = order.request
    assert order.warnings == ()
    assert (request.hires, request.variation, request.tiling) == (None, None, False)


def test_hires_fields_are_a_second_pass(sent):
    order = sent(
        "txt2img", prompt="a pear", enable_hr=True, hr_scale=1.5, denoising_strength=0.4,
        hr_second_pass_steps=7, hr_upscaler=webuiapi.HiResUpscaler.ESRGAN_4x, hr_prompt="two",
    )  # fmt: skip
    assert order.warnings == ()
    assert order.request.hires == Hires(
        scale=1.5, strength=0.4, num_inference_steps=7, upscaler="real-esrgan", prompt="two"
    )
    latent = sent("txt2img", prompt="a", enable_hr=True, hr_resize_x=96, hr_resize_y=64)
    assert latent.request.hires == Hires(strength=0.7, width=96, height=64)


def test_an_upscaler_we_lack_is_said(sent):
    order = sent("txt2img", prompt="a", enable_hr=True, hr_upscaler="SwinIR_4x")
    assert order.warnings == ("hr_upscaler 'SwinIR_4x' is not offered here; Latent was used",)


def test_subseeds_and_seed_resize_are_a_variation(sent):
    order = sent("txt2img", prompt="a", seed=3, subseed=8, subseed_strength=0.25,
                 seed_resize_from_w=64, seed_resize_from_h=96, tiling=True)  # fmt: skip
    assert order.request.variation == Variation(
        seed=8, strength=0.25, noise_width=64, noise_height=96
    )
    assert order.request.tiling
    assert order.warnings == ()


def test_a_drawn_subseed_is_drawn_once():
    fields = {"subseed": -1, "subseed_strength": 0.5}
    seeds = {read_variation(read_fields(TextToImage, fields)[0])["seed"] for _ in range(4)}
    assert len(seeds) == 4


def test_masks_are_painted_as_the_client_says(sent):
    order = sent(
        "img2img", images=[picture()], mask_image=picture(255), mask_blur=6, inpainting_fill=2,
        inpaint_full_res=False, inpaint_full_res_padding=12, inpainting_mask_invert=1,
    )  # fmt: skip
    assert order.warnings == ()
    assert order.request.inpaint == Inpaint(
        invert=True, blur=6, fill="noise", area="whole", padding=12, paste=True
    )


def test_masks_by_default_are_filled_and_painted_alone(sent):
    order = sent("img2img", images=[picture()], mask_image=picture(255))
    assert order.request.inpaint == Inpaint(
        blur=4, fill="surroundings", area="masked", padding=0, paste=True
    )
    assert sent("img2img", images=[picture()]).request.inpaint == Inpaint()


@pytest.mark.parametrize(
    "fields", [{"subseed_strength": 2}, {"subseed": -5, "subseed_strength": 0.5},
               {"enable_hr": True, "hr_scale": 99}]
)  # fmt: skip
def test_values_out_of_range_are_named_in_their_words(fields):
    with pytest.raises(InvalidRequest) as caught:
        to_request({"prompt": "a", **fields})
    assert caught.value.field in {"subseed_strength", "subseed", "hr_scale"}


@pytest.mark.parametrize(
    ("prompt", "dialect"),
    [
        ("a red apple, by the sea: evening", "plain"),
        ("a (red) apple", "a1111"),
        ("a red apple [on a table]", "a1111"),
        ("an apple BREAK a leaf", "a1111"),
        ("an apple AND a leaf", "a1111"),
        ("<lora:ink:1> apple", "a1111"),
        ("an apple, Scribble", "a1111"),
        ("apple " * 13, "a1111"),  # 78 bytes may be more than a chunk
        ("apple " * 12, "plain"),
    ],
)
def test_a_prompt_without_syntax_has_the_recipe_of_any_door(prompt, dialect):
    request = to_request({"prompt": prompt, "negative_prompt": "fog"}).request
    assert read_plainly(request, ["scribble"]).prompt_dialect == dialect
    swapped = to_request({"prompt": "fog", "negative_prompt": prompt}).request
    assert read_plainly(swapped, ["scribble"]).prompt_dialect == dialect


@pytest.mark.parametrize(("steps", "strength"), [(2, 0.4), (4, 0.0), (49, 0.01)])
def test_a_strength_below_one_step_runs_one_step_and_says_so(sent, steps, strength):
    order = sent("img2img", images=[picture()], steps=steps, denoising_strength=strength)
    assert int(steps * order.request.strength) == 1
    assert order.warnings == (
        f"denoising_strength {strength:g} is less than one of {steps} steps; one step was run",
    )


def test_a_second_pass_counts_its_own_steps(sent):
    order = sent(
        "txt2img", steps=2, enable_hr=True, hr_second_pass_steps=10, denoising_strength=0.4
    )
    assert order.request.hires.strength == 0.4
    assert order.warnings == ()
