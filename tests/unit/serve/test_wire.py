"""Wire: bodies say what they are, and name the field that cannot be read."""

import pytest
from tests.serving import open_door

PATHS = ("/v1/generations", "/v1/jobs", "/v1/plan", "/v1/inspect", "/v1/images/generations",
         "/v1/images/edits", "/sdapi/v1/txt2img", "/sdapi/v1/options", "/sdapi/v1/png-info",
         "/hf/plate")  # fmt: skip


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    with open_door(tmp_path_factory.mktemp("wire")) as opened:
        yield opened


@pytest.mark.parametrize("path", PATHS)
def test_a_body_without_a_content_type_is_a_415_that_says_what_is_expected(door, path):
    answer = door.http.post(path, content=b'{"prompt": "x"}')
    assert answer.status_code == 415, answer.text
    assert "application/json" in answer.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models/plate:predict", b'{"instances": ["x"]}'),
        ("/v2/models/plate/infer", b'{"inputs": [{"name": "prompt", "data": ["x"]}]}'),
        ("/predictions/plate", b"x"),
    ],
)
def test_clients_of_torchserve_and_kserve_name_no_content_type(door, path, body):
    assert door.http.post(path, content=body).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b'{"strength": NaN}', 400, "strength"),
        (b'{"guidance_scale": {"start": Infinity}}', 400, "guidance_scale.start"),
        (b'{"prompt": "\\ud800"}', 400, "prompt"),
        (b'{"width": 1e999}', 422, "width"),
        (b'{"prompt": "a\\u0000b"}', 422, "prompt"),
        (b'{"regions": [{"prompt": "\\u0000", "box": [0, 0, 1, 1]}]}', 422, "regions[0].prompt"),
        (b'{"walk": {"to": "\\u0000", "frames": 2}}', 422, "walk.to"),
        (b'{"guidance_scale": {}}', 422, "guidance_scale.schedule"),
    ],
)
def test_a_value_that_cannot_be_read_names_its_field(door, body, status, field):
    answer = door.http.post(
        "/v1/generations", content=body, headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["field"]) == (status, field)
