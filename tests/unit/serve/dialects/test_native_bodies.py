"""Native requests as forms."""

import json

import pytest
from tests.serving import open_door


@pytest.mark.parametrize("count", [1, 3])
def test_parts_named_image_references_are_a_list_in_order(count):
    pictures = [bytes([k]) for k in range(count)]
    files = [("image_references", (f"{k}.png", p, "image/png")) for k, p in enumerate(pictures)]
    with open_door() as door:
        form = {"request": json.dumps({"prompt": "a pear", "seed": 3})}
        answer = door.http.post("/v1/generations", data=form, files=files)
        assert answer.status_code == 200, answer.text
        asked = door.service.requests[-1]
    assert [picture.data for picture in asked.image_references] == pictures
    assert asked.image is None
