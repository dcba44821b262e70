import pytest
from tests.serving import open_door

from mezzotint.serve.accept import choose

OFFERED = ("application/json", "image/png", "image/jpeg", "image/webp")
EVENTS = "text/event-stream"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", None),
        ("text/html", None),
        ("*/*", ("application/json", False)),
        ("image/*", ("image/png", False)),
        ("image/webp", ("image/webp", True)),
        ("image/webp;q=0.5, image/png;q=0.9", ("image/png", True)),
        ("image/webp, image/png", ("image/webp", True)),
        ("image/png;q=0.2, application/json;q=0.1", ("image/png", True)),
        ("image/png; q=0.2, application/json", ("application/json", True)),
        ("image/*;q=0.8, image/png;q=0", ("image/jpeg", False)),
        ("*/*;q=0.1, IMAGE/JPEG;Q=0.3", ("image/jpeg", True)),
        ("image/avif, image/webp, */*;q=0.8", ("image/webp", True)),
        ("image/png;q=high", ("image/png", True)),
        ("application/json;q=0", None),
    ],
)
def test_quality_values_choose(accept, expected):
    assert choose(accept, OFFERED) == expected


def test_events_come_only_by_name():
    offered = (EVENTS, *OFFERED)
    assert choose("*/*", offered, only_named=(EVENTS,)).media == "application/json"
    assert choose("text/*", offered, only_named=(EVENTS,)) is None
    both = "application/json, text/event-stream"
    assert choose(both, offered, only_named=(EVENTS,)).media == EVENTS
    assert choose(f"{both};q=0.5", offered, only_named=(EVENTS,)).media == "application/json"


def test_a_hostile_header_is_read_in_part():
    assert choose("image/png," * 100_000, OFFERED) == ("image/png", True)
    assert choose(",".join(["x/y"] * 60) + ",image/png", OFFERED) is None


@pytest.mark.parametrize("path", ["/v1/generations", "/hf/plate"])
@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("image/webp", "image/webp"),
        ("image/webp;q=0.2, image/jpeg;q=0.7", "image/jpeg"),
        ("image/png;q=0.1, image/webp;q=0.2, */*;q=0.05", "image/webp"),
        ("image/*", "image/png"),
    ],
)
def test_both_doors_answer_the_format_that_a_client_would_rather_have(path, accept, media):
    body = {"inputs": "x"} if path.startswith("/hf") else {"prompt": "x"}
    with open_door() as door:
        answer = door.http.post(path, json=body, headers={"accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (200, media)


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("image/png;q=0.9, application/json;q=0.5", "image/png"),
        ("image/png, application/json", "application/json"),
        ("image/png;q=0.5, application/json", "application/json"),
        ("text/event-stream;q=0.1, application/json", "application/json"),
        ("application/json, text/event-stream", "text/event-stream"),
        ("text/html", "application/json"),
    ],
)
def test_json_and_events_are_weighed_against_pictures(accept, media):
    with open_door() as door:
        answer = door.http.post("/v1/generations", json={"prompt": "x"}, headers={"accept": accept})
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, media)


def test_a_format_in_hugging_faces_parameters_goes_before_accept():
    body = {"inputs": "x", "parameters": {"output": {"format": "webp"}}}
    with open_door() as door:
        answer = door.http.post("/hf/plate", json=body, headers={"accept": "image/png"})
    assert answer.headers["content-type"] == "image/webp"
