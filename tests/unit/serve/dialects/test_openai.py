"""What OpenAI's own client reads, held to its response models without any leniency."""

import json

import pytest
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent, ImagesResponse
from tests.serving import open_door

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
