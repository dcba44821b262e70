from dataclasses import replace

from tests.unit.engine.fakes import make_plan

from mezzotint.models.spec import ModelSpec
from mezzotint.planning.memory import measure
from mezzotint.planning.plan import Resolved
from mezzotint.request import Control
from mezzotint.types import ImageInput

SD = ModelSpec(name="sd", digest="d", family="sd", prediction_type="epsilon")
PIXELS = ModelSpec(name="ddpm", digest="d", family="unconditional", latent_scale=1, token_limit=0)
GAN = ModelSpec(name="gan", digest="d", family="gan", has_steps=False, token_limit=0)


def test_bytes_grow_with_the_picture():
    small, large = (measure(make_plan(side=side), SD) for side in (256, 512))
    assert large.row_bytes == 4 * small.row_bytes
    assert large.decode_bytes == 4 * small.decode_bytes
    assert large.slot_bytes > small.slot_bytes


def test_guided_images_hold_two_conditionings():
    guided, free = (measure(make_plan(guidance=g), SD) for g in (5.0, 1.0))
    assert guided.slot_bytes > free.slot_bytes


def test_the_peak_is_the_slot_and_the_wider_of_both_stages():
    footprint = measure(make_plan(side=512), SD)
    assert footprint.peak_bytes(1) == footprint.slot_bytes + max(
        footprint.row_bytes, footprint.decode_bytes
    )
    assert footprint.peak_bytes(100) == footprint.slot_bytes + 100 * footprint.row_bytes


def test_a_512_px_stable_diffusion_picture_needs_about_a_gigabyte_at_most():
    assert 0.1e9 < measure(make_plan(side=512), SD).peak_bytes(2) < 1.5e9


def test_what_controlnets_add_behind_blocks_is_counted():
    flux = ModelSpec(
        name="flux", digest="d", family="flux", prediction_type="flow", latent_channels=16,
        size_multiple=16, token_width=3072,
    )  # fmt: skip
    plain = make_plan(side=1024)
    part = Control(model="net", image=ImageInput(b"x"))
    control = Resolved(part=part, digest="n", pictures=("p",))
    steered = replace(plain, techniques=replace(plain.techniques, controls=(control,)))
    more = measure(steered, flux).row_bytes - measure(plain, flux).row_bytes
    one = 64 * 64 * 3072 * 4  # 50 MB behind each block at 1024 px
    assert more > 2 * 15 * one  # 5 blocks and 10 single ones, answered and added up
    assert more < 2 * 25 * one
    other = replace(flux, token_width=0)
    assert measure(steered, other).row_bytes < measure(steered, flux).row_bytes


def test_pixel_space_and_gans_are_measured_in_pixels():
    assert measure(make_plan(side=64), PIXELS).row_bytes > 0
    assert measure(make_plan(side=64, steps=0), GAN).decode_bytes > 0
