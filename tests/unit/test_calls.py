import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mezzotint.calls import read_call
from mezzotint.errors import ImageError, InvalidField


def test_pictures_to_edit_may_be_paths_bytes_and_pil_pictures(tmp_path):
    stream = io.BytesIO()
    picture = Image.new("RGB", (8, 8), "red")
    picture.save(stream, "PNG")
    path = tmp_path / "red.png"
    path.write_bytes(stream.getvalue())
    request = read_call("blue", {"image_references": [path, str(path), stream.getvalue(), picture]})
    assert [p.data for p in request.image_references] == [stream.getvalue()] * 4


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"]
)
def test_a_pil_picture_of_any_colour_mode_is_taken_as_pil_shows_it(mode):
    picture = Image.new("RGB", (4, 4), (255, 0, 0)).convert("RGBA")
    picture = (
        picture.convert(mode) if mode in ("PA", "RGBa") else picture.convert("RGB").convert(mode)
    )
    found = Image.open(io.BytesIO(read_call("x", {"image": picture}).image.data))
    expected = picture.convert("RGBA").convert("RGB") if mode == "RGBa" else picture.convert("RGB")
    assert found.convert("RGB").tobytes() == expected.tobytes()


@pytest.mark.parametrize("mode", ["F", "LAB"])
def test_a_pil_picture_that_no_png_can_hold_is_refused_in_one_line(mode):
    with pytest.raises(ImageError, match=f"image must be a picture .* mode {mode}: ") as caught:
        read_call("x", {"image": Image.new(mode, (4, 4))})
    assert "\n" not in str(caught.value)


def test_a_closed_picture_and_a_file_that_is_not_there_are_named(tmp_path):
    picture = Image.new("RGB", (4, 4))
    picture.save(tmp_path / "there.png")
    opened = Image.open(tmp_path / "there.png")
    opened.close()
    with pytest.raises(ImageError, match="closed"):
        read_call("x", {"image": opened})
    with pytest.raises(ImageError, match=r"cannot read .*gone\.png: No such file"):
        read_call("x", {"image": str(tmp_path / "gone.png")})


def test_short_base64_is_no_file_name_that_is_too_long():
    stream = io.BytesIO()
    Image.new("L", (16, 16)).save(stream, "BMP")  # nothing but A in base64: no "/" in it
    text = base64.b64encode(stream.getvalue()).decode()
    assert (
        255 < max(map(len, text.split("/"))) < len(text) < 4096
    )  # longer than a name may be, shorter than a path may be
    assert read_call("x", {"image": text}).image.data == stream.getvalue()


def test_pictures_inside_parts_open_files_and_what_is_no_picture():
    picture, stream = Image.new("RGB", (4, 4), "red"), io.BytesIO()
    picture.save(stream, "PNG")
    control = {"model": "edges", "image": picture}
    request = read_call("x", {"controls": [control], "image": io.BytesIO(stream.getvalue())})
    assert request.controls[0].image.data == request.image.data == stream.getvalue()
    with pytest.raises(InvalidField, match="a PIL picture, got ndarray"):
        read_call("x", {"image": np.zeros((4, 4, 3), np.uint8)})


def test_numbers_of_numpy_are_numbers_and_a_path_names_a_model():
    fields = {"seed": np.int64(7), "num_inference_steps": np.int16(3)}
    request = read_call("x", {**fields, "guidance_scale": np.float32(3.5), "model": Path("run")})
    assert (request.seed, type(request.seed), request.num_inference_steps) == (7, int, 3)
    assert (request.guidance_scale, type(request.guidance_scale)) == (3.5, float)
    assert request.model == "./run"
    for wrong in (np.bool_(True), np.float32(2.5), np.array([3])):
        with pytest.raises(InvalidField, match="seed must be a whole number"):
            read_call("x", {"seed": wrong})


def test_help_shows_every_field_with_its_default_and_what_it_means():
    import dataclasses
    import inspect

    import mezzotint as mz

    names = {field.name for field in dataclasses.fields(mz.GenerationRequest)}
    for call in (mz.generate, mz.Client.generate, mz.AsyncClient.submit):
        assert names <= set(inspect.signature(call).parameters)
        assert "**fields" not in str(inspect.signature(call))
    shown = inspect.signature(mz.generate).parameters
    assert shown["num_images"].default == 1
    assert shown["num_images"].annotation is int
    assert "num_inference_steps: " in mz.generate.__doc__
    assert "1 to 1000" in mz.generate.__doc__
