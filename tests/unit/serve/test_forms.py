"""Forms: what their schema says, and how their parts are read."""

import pytest
from tests.serving import open_door

from mezzotint.serve.dialects.native_bodies import REQUEST
from mezzotint.serve.forms import FILE, form_schema, read_text

PICTURE = {"type": "string", "contentEncoding": "base64"}


def test_a_form_has_files_texts_and_json():
    schema = form_schema(
        {
            "type": "object",
            "required": ["name", "pictures"],
            "properties": {
                "name": {"anyOf": [{"type": "string", "maxLength": 9}, {"type": "null"}]},
                "number": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                "picture": {"anyOf": [PICTURE, {"type": "null"}], "description": "One."},
                "pictures": {"type": "array", "items": PICTURE, "maxItems": 3},
            },
        }
    )
    several = {"type": "array", "items": FILE, "maxItems": 3}
    assert schema["properties"] == {
        "name": {"type": "string", "maxLength": 9},
        "number": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "picture": FILE | {"description": "One."},
        "pictures": several,
        "pictures[]": several,
    }
    assert schema["required"] == ["name"]
    assert schema["anyOf"] == [{"required": ["pictures"]}, {"required": ["pictures[]"]}]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("prompt", "7", "7"),
        ("scheduler", "null", "null"),
        ("seed", "18446744073709551615", "18446744073709551615"),
        ("num_images", "7", 7),
        ("tiling", "true", True),
        ("upscale", '{"factor": 2}', {"factor": 2}),
        ("num_images", "seven", "seven"),
        ("nobody", "7", "7"),
    ],
)
def test_a_part_is_a_text_where_one_may_stand_and_json_elsewhere(name, text, value):
    assert read_text(REQUEST, name, text) == value


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([("prompt", (None, "a")), ("prompt", (None, "b"))], "prompt is given twice"),
        (
            [("request", (None, '{"prompt": "a"}')), ("prompt", (None, "b"))],
            "prompt is given twice",
        ),
        ([("num_images", ("a.png", b"a"))], "num_images must be a value, got a file"),
        ([("prompt", ("a.txt", b"\xff"))], "prompt must be a text, got a file of bytes"),
        ([("image", ("a.png", b""))], "image must be a picture, got a file without bytes"),
        ([("request", (None, "[1]"))], "the part named request must be a JSON object"),
    ],
)
def test_a_form_that_cannot_be_meant_is_refused_by_its_field(parts, said):
    with open_door() as door:
        answer = door.http.post("/v1/generations", files=parts)
    assert answer.status_code == 422
    assert answer.json()["detail"] == said


def test_a_form_says_what_json_says():
    with open_door() as door:
        parts = [
            ("prompt", ("a.txt", b"a pear")),
            ("num_inference_steps", (None, "3")),
            ("image_references[]", ("b.png", b"b")),
            ("image_references[]", ("c.png", b"c")),
        ]
        answer = door.http.post("/v1/generations", files=parts)
        assert answer.status_code == 200, answer.text
        asked = door.service.requests[-1]
    assert (asked.prompt, asked.num_inference_steps) == ("a pear", 3)
    assert [picture.data for picture in asked.image_references] == [b"b", b"c"]
