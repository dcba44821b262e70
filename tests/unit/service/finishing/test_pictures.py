import io
import time

import pytest
from PIL import Image

from mezzotint.errors import PictureTooLarge
from mezzotint.images.config import ImageConfig
from mezzotint.request import Control, GenerationRequest, Inpaint, Outpaint, Output
from mezzotint.service.finishing import tools
from mezzotint.service.finishing.inpainting import read_inpainting
from mezzotint.service.finishing.pictures import check_pictures
from mezzotint.types import ImageInput

SERVED = ImageConfig(max_output_pixels=2048 * 2048)


def flat(side: int, mode: str = "L") -> ImageInput:
    stream = io.BytesIO()
    Image.new(mode, (side, side), 255).save(stream, "PNG")
    return ImageInput(stream.getvalue())


@pytest.fixture(scope="module")
def large() -> ImageInput:
    return flat(6320)


@pytest.fixture
def nothing_is_decoded(monkeypatch):
    def load(picture):
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)


@pytest.mark.usefixtures("nothing_is_decoded")
@pytest.mark.parametrize(
    "inpaint",
    [
        Inpaint(area="masked"),
        Inpaint(area="masked", fill="surroundings"),
        Inpaint(fill="surroundings"),
        Inpaint(blur=4),
    ],
)
def test_a_large_picture_under_a_mask_is_refused_by_its_head(large, inpaint):
    request = GenerationRequest(
        image=large, mask=flat(64), inpaint=inpaint, width=64, height=64
    )  # fmt: skip
    began = time.monotonic()
    with pytest.raises(PictureTooLarge, match="image must give at most 4194304 pixels"):
        read_inpainting(request, SERVED)
    assert time.monotonic() - began < 1.0


@pytest.mark.usefixtures("nothing_is_decoded")
def test_an_extension_beyond_the_limit_is_refused_by_the_head():
    out = Outpaint(left=1024, right=1024, top=1024, bottom=1024)
    request = GenerationRequest(image=flat(1024), outpaint=out)
    with pytest.raises(PictureTooLarge, match="outpaint must give at most"):
        read_inpainting(request, SERVED)


@pytest.mark.usefixtures("nothing_is_decoded")
def test_an_enlargement_beyond_the_limit_is_refused_by_the_head():
    with pytest.raises(PictureTooLarge, match="2400x2400"):
        tools.upscale(
            flat(600).data, factor=4, model=None, output=Output(), limits=SERVED
        )  # fmt: skip


@pytest.mark.parametrize(
    ("crop", "expected"), [(True, (48, 80)), (False, (80, 80))], ids=["cut", "whole"]
)
@pytest.mark.parametrize("side", [40, 160], ids=["larger", "smaller"])
def test_a_picture_is_brought_to_cover_a_size(side, crop, expected):
    made = tools.upscale(
        flat(side).data, factor=2, model=None, output=Output(), limits=SERVED, cover=(48, 80),
        crop=crop,
    )  # fmt: skip
    assert (made.width, made.height) == expected
    assert Image.open(io.BytesIO(made.data)).size == expected


@pytest.mark.usefixtures("nothing_is_decoded")
def test_a_size_to_cover_beyond_the_limit_is_refused_by_the_head():
    with pytest.raises(PictureTooLarge, match="16000x16000"):
        tools.upscale(
            flat(600).data, factor=1, model=None, output=Output(), limits=SERVED,
            cover=(16_000, 8),
        )  # fmt: skip


@pytest.mark.usefixtures("nothing_is_decoded")
def test_the_pictures_of_a_request_are_counted_together_before_one_is_decoded(large):
    control = Control(model="canny", image=large)
    with pytest.raises(PictureTooLarge, match=r"controls\[0\].image: the pictures of one request"):
        check_pictures(GenerationRequest(image=large, controls=(control,)), SERVED)
    check_pictures(GenerationRequest(image=large), SERVED)


def test_what_is_brought_to_the_size_of_the_plan_may_be_larger():
    request = GenerationRequest(image=flat(3000), width=64, height=64)
    inpainting = read_inpainting(request, SERVED)
    assert inpainting is not None
    assert inpainting.image.shape == (3000, 3000, 3)


def test_filling_under_a_flat_mask_takes_little_time():
    request = GenerationRequest(
        image=flat(2048), mask=flat(2048), inpaint=Inpaint(area="masked", fill="surroundings"),
        width=64, height=64,
    )  # fmt: skip
    inpainting = read_inpainting(request, SERVED)
    assert inpainting is not None
    from mezzotint.service.finishing.inpainting import draw_inwards

    began = time.monotonic()
    drawn = draw_inwards(inpainting.image, inpainting.mask)
    assert time.monotonic() - began < 5.0
    assert drawn.max() == 0  # nothing is known that could be drawn inwards
