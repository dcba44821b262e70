"""Canvases are no larger than what may be read."""

import io

import numpy as np
import pytest
from PIL import Image

from mezzotint.errors import ImageError
from mezzotint.images.config import ImageConfig
from mezzotint.request import GenerationRequest, Outpaint
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
