"""Canvases are no larger than what may be read; masks that are not as meant are told."""

import io

import numpy as np
import pytest
from PIL import Image

from mezzotint.errors import ImageError
from mezzotint.images.config import ImageConfig
from mezzotint.request import GenerationRequest, Inpaint, Outpaint
from mezzotint.service.finishing.inpainting import read_inpainting
from mezzotint.types import ImageInput


def test_outpainting_beyond_the_limit_on_pixels_is_refused_before_it_is_made():
    stream = io.BytesIO()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(stream, "PNG")
    image, limits = ImageInput(stream.getvalue()), ImageConfig(max_pixels=10_000)
    fits = GenerationRequest(image=image, outpaint=Outpaint(left=36, top=36))
    assert read_inpainting(fits, limits).size == (100, 100)
    too_large = GenerationRequest(image=image, outpaint=Outpaint(left=37, bottom=36))
    with pytest.raises(ImageError, match="at most 10000 pixels, got 101x100") as caught:
        read_inpainting(too_large, limits)
    assert caught.value.field == "outpaint"


def gray(width, height, value):
    stream = io.BytesIO()
    Image.new("L", (width, height), value).save(stream, "PNG")
    return ImageInput(stream.getvalue())


@pytest.mark.parametrize(
    ("mask", "invert", "warnings"),
    [
        (gray(64, 64, 255), False, ()),
        (gray(64, 64, 0), False, ("mask repaints nothing: no pixel of it is white",)),
        (gray(64, 64, 255), True, ("mask repaints nothing: no pixel of it is white",)),
        (
            gray(32, 16, 255),
            False,
            ("mask is 32x16 and was resized to the size of image, 64x64",),
        ),
    ],
    ids=["fits", "black", "turned round", "another size"],
)
def test_a_mask_that_is_not_as_meant_is_told(mask, invert, warnings):
    request = GenerationRequest(image=gray(64, 64, 9), mask=mask, inpaint=Inpaint(invert=invert))
    assert read_inpainting(request).warnings == warnings
