import io
import json

import numpy as np
from PIL import Image
from tests.serving import open_door

from mezzotint.serve.arrays import to_lists


def test_pixels_come_as_height_width_and_three_numbers():
    pixels = np.arange(2 * 2 * 3 * 3, dtype=np.uint8).reshape(2, 2, 3, 3)
    assert to_lists(pixels.tobytes(), 2, 2, 3) == pixels.tolist()
    assert to_lists(pixels[0].tobytes(), 1, 2, 3) == pixels[0].tolist()


def test_predictions_answer_arrays_as_torchserves_example_does():
    body = {"data": "a cat", "seed": 4, "width": 64, "height": 32, "output": "array"}
    with open_door() as door:
        answer = door.http.post("/predictions/plate", json=body)
        several = door.http.post("/predictions/plate", json={**body, "num_images": 2})
        picture = door.http.post("/predictions/plate", json={**body, "output": {"metadata": False}})
        form = door.http.post("/predictions/plate", data=body)
    found = np.array(json.loads(answer.text))
    assert answer.headers["content-type"] == "application/json"
    assert found.shape == (32, 64, 3)
    assert np.array_equal(found, np.asarray(Image.open(io.BytesIO(picture.content))))
    assert np.array(several.json()).shape == (2, 32, 64, 3)
    assert form.json() == answer.json()


def test_a_model_may_be_registered_to_answer_arrays():
    body = {"data": "a cat", "seed": 4, "width": 64, "height": 32}
    with open_door() as door:
        registered = {"url": "drawer", "initial_workers": "1", "synchronous": "true"}
        wrong = door.management.post("/models", params={**registered, "output": "list"})
        right = door.management.post("/models", params={**registered, "output": "array"})
        assert right.status_code == 200
        lists = door.http.post("/predictions/drawer", json=body)
        asked = door.http.post("/predictions/drawer", json={**body, "output": {"format": "png"}})
        other = door.http.post("/predictions/plate", json=body)
        accepting = {"accept": "image/png"}
        picture = door.http.post("/predictions/drawer", json=body, headers=accepting)
    assert wrong.status_code == 400
    assert "output must be one of picture, array" in wrong.json()["message"]
    assert np.array(json.loads(lists.text)).shape == (32, 64, 3)
    for answer in (asked, other, picture):
        assert answer.headers["content-type"] == "image/png"
