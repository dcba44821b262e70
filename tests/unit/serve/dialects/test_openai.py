"""What OpenAI's own client reads, held to its response models without any leniency."""

import json

import pytest
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent, ImagesResponse
from tests.serving import open_door

from mezzotint.service.fake import FakeService

BODY = {"prompt": "a pear", "n": 2, "size": "64x64", "seed": 3}


@pytest.mark.parametrize(
    ("asked", "quality"),
    [({}, "high"), ({"quality": None}, "high"), ({"quality": "auto", "background": "auto"}, "high"),
     ({"quality": "standard"}, "medium"), ({"quality": "low"}, "low")],
)  # fmt: skip
def test_an_answer_fits_the_response_model_strictly(asked, quality):
    with open_door() as door:
        answer = door.http.post("/v1/images/generations", json={**BODY, **asked})
    assert answer.status_code == 200
    read = ImagesResponse.model_validate_json(answer.content, strict=True)
    assert (read.quality, read.background, read.output_format) == (quality, "opaque", "png")
    assert read.size == "64x64"
    assert len(read.data) == 2


def test_events_fit_the_event_models_strictly():
    body = {**BODY, "n": 1, "stream": True, "partial_images": 1}
    with open_door() as door:
        answer = door.http.post("/v1/images/generations", json=body)
    kinds = []
    for line in answer.text.splitlines():
        if line.startswith("data: {"):
            data = line.removeprefix("data: ")
            kinds.append(json.loads(data)["type"])
            is_partial = kinds[-1].endswith("partial_image")
            model = ImageGenPartialImageEvent if is_partial else ImageGenCompletedEvent
            model.model_validate_json(data, strict=True)
    assert kinds == ["image_generation.partial_image", "image_generation.completed"]


class Editors(FakeService):
    """Two models: ``plate`` begins from pictures, ``plate-gan`` edits them."""

    async def models(self):
        plate = {"name": "plate", "version": "1.0", "default": True, "image_references": [0, 0]}
        return (plate, {**plate, "name": "plate-gan", "image_references": [1, 3]})


def edit(door, *pictures, **fields):
    """Edit pictures as a form; return the request that reached the service."""
    files = [(name, (f"{k}.png", data, "image/png")) for k, (name, data) in enumerate(pictures)]
    answer = door.http.post("/v1/images/edits", data={"prompt": "a pear", **fields}, files=files)
    assert answer.status_code == 200, answer.text
    return door.service.requests[-1]


def test_pictures_of_an_edit_are_begun_from_or_edited_as_the_model_takes_them():
    with open_door(service=Editors()) as door:
        one = edit(door, ("image", b"a"), model="plate")
        assert (one.image.data, one.image_references) == (b"a", ())
        one = edit(door, ("image", b"a"), model="plate-gan")
        assert (one.image, [p.data for p in one.image_references]) == (None, [b"a"])
        one = edit(door, ("image[]", b"b"), ("image[]", b"a"), model="plate-gan")
        assert (one.image, [p.data for p in one.image_references]) == (None, [b"b", b"a"])
        one = edit(door, ("image", b"a"), ("mask", b"m"), model="plate-gan")
        assert (one.image.data, one.mask.data, one.image_references) == (b"a", b"m", ())


def test_an_edit_without_a_picture_and_a_variation_of_two_are_refused():
    with open_door() as door:
        answer = door.http.post("/v1/images/edits", json={"prompt": "a pear"})
        assert answer.status_code == 422
        assert "image is needed" in answer.json()["error"]["message"]
        files = [("image", ("a.png", b"a", "image/png"))] * 2
        answer = door.http.post("/v1/images/variations", files=files)
        assert answer.json()["error"]["message"] == "image is given twice"
