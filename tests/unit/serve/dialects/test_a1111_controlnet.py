"""ControlNet units as A1111's own extension writes them."""

import base64

import pytest

from mezzotint.errors import InvalidRequest, UnknownName
from mezzotint.serve.dialects.a1111 import to_request
from mezzotint.serve.dialects.a1111_controlnet import FIELD, read_units

PICTURE = base64.b64encode(b"picture").decode()


def units(*args):
    return {"ControlNet": {"args": list(args)}}


def test_a_unit_becomes_a_control():
    unit = {
        "enabled": True, "image": PICTURE, "model": "canny-sd15 [d14c016b]", "module": "canny",
        "weight": 0.6, "guidance_start": 0.1, "guidance_end": 0.8, "threshold_a": 50,
        "threshold_b": 120, "processor_res": 512, "pixel_perfect": False,
        "control_mode": "Balanced", "resize_mode": "Just Resize",
    }  # fmt: skip
    warnings = []
    (control,) = read_units(units(unit, {**unit, "enabled": False}), warnings)
    assert control == {
        "model": "canny-sd15", "image": PICTURE, "scale": 0.6, "start": 0.1, "end": 0.8,
        "preprocess": "canny:50:120",
    }  # fmt: skip
    assert warnings == []


def test_what_a_unit_cannot_have_is_said():
    unit = {"image": {"image": PICTURE, "mask": "x"}, "model": "net", "threshold_a": -1,
            "module": "tile_resample", "control_mode": "My prompt is more important"}  # fmt: skip
    warnings = []
    assert read_units(units(unit), warnings)[0]["preprocess"] == "tile"
    assert warnings == [
        f"{FIELD}[0].control_mode 'My prompt is more important' is not offered here and was left "
        "out"
    ]
    assert read_units(units({"image": PICTURE, "model": "None"}), warnings) == []
    assert warnings[-1] == f"{FIELD}[0] names no model and was left out"


@pytest.mark.parametrize(
    "said",
    [
        {"control_mode": "ControlNet is more important"},
        {"control_mode": 2},
        {"guess_mode": True},
    ],
)
def test_a_unit_that_counts_more_than_the_prompt_guesses(said):
    warnings = []
    (control,) = read_units(units({"image": PICTURE, "model": "net", **said}), warnings)
    assert control["guess"] is True
    assert warnings == []


def test_a_union_follows_the_type_that_the_unit_names():
    unit = {"image": PICTURE, "model": "net", "pixel_perfect": True}
    kinds = ["OpenPose", "Depth", "Soft Edge", "Hard Edge", "Normal Map", "Segmentation", "Tile"]
    found = read_units(units(*({**unit, "union_control_type": k} for k in kinds)), [])
    assert [control["mode"] for control in found] == list(range(7))
    assert "mode" not in read_units(units({**unit, "union_control_type": "Unknown"}), [])[0]
    with pytest.raises(InvalidRequest) as caught:
        read_units(units({**unit, "union_control_type": "canny"}), [])
    assert caught.value.field == f"{FIELD}[0].union_control_type"


def test_a_unit_without_a_picture_takes_that_of_img2img():
    body = {
        "prompt": "x", "init_images": [PICTURE], "alwayson_scripts": units({"model": "net"}),
    }  # fmt: skip
    request = to_request(body, is_img2img=True).request
    assert request.controls[0].image == request.image
    with pytest.raises(InvalidRequest, match="must be a picture") as caught:
        to_request({**body, "init_images": None})
    assert caught.value.field == f"{FIELD}[0].image"


@pytest.mark.parametrize(
    ("scripts", "field"),
    [
        ({"controlnet": {}}, FIELD),
        ({"controlnet": []}, FIELD),
        (units("unit"), f"{FIELD}[0]"),
        (units({"model": "net", "image": PICTURE, "module": "openpose_full"}),
         f"{FIELD}[0].module"),
    ],
)  # fmt: skip
def test_broken_units_are_refused_by_their_place(scripts, field):
    with pytest.raises((InvalidRequest, UnknownName)) as caught:
        read_units(scripts, [])
    assert caught.value.field == field


def test_other_scripts_are_not_ours():
    assert read_units({"ADetailer": {"args": [1]}}, []) == []
    assert read_units(None, []) == []
