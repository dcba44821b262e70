import io
import json

import pytest

from mezzotint.observe import log
from mezzotint.observe.config import LogConfig


@pytest.fixture
def lines():
    """Configure JSON logs and hand back a reader of what was written."""
    stream = io.StringIO()

    def configure(**options):
        log.configure(LogConfig(level="info", format="json", **options), stream)
        return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]

    yield configure
    log.configure(LogConfig(), io.StringIO())


def test_an_event_is_one_json_line_with_its_fields(lines):
    read = lines()
    log.info("engine.started", model="plate", images=4)
    (line,) = read()
    assert line["event"] == "engine.started"
    assert (line["level"], line["model"], line["images"]) == ("info", "plate", 4)
    assert line["time"].endswith("Z")


def test_the_request_id_comes_from_the_context_and_goes_with_it(lines):
    read = lines()
    with log.request("r-1"):
        assert log.request_id() == "r-1"
        log.info("inside")
    log.info("outside")
    inside, outside = read()
    assert inside["request_id"] == "r-1"
    assert "request_id" not in outside


def test_prompts_stay_out_unless_asked_for(lines):
    read = lines()
    log.info("a", prompt="my secret", request={"negative_prompt": "other", "seed": 7})
    (line,) = read()
    assert "secret" not in json.dumps(line)
    assert line["prompt"] == "<9 characters>"
    assert line["request"] == {"negative_prompt": "<5 characters>", "seed": 7}


def test_prompts_appear_when_asked_for(lines):
    read = lines(prompts=True)
    log.info("a", prompt="a red apple")
    assert read()[0]["prompt"] == "a red apple"


def test_bytes_never_reach_the_log(lines):
    read = lines(prompts=True)
    log.warning("a", image=b"12345")
    assert read()[0]["image"] == "<5 bytes>"


def test_a_field_cannot_forge_the_line(lines):
    read = lines()
    log.info("a", path='x\n{"event": "forged"}', level="error")
    (line,) = read()
    assert line["event"] == "a"
    assert line["level"] == "info"


def test_less_important_events_are_dropped(lines):
    read = lines()
    log.debug("a")
    assert read() == []


def test_an_exception_brings_its_trace(lines):
    read = lines()
    try:
        raise ValueError("broken")
    except ValueError as error:
        log.error("a", exception=error)
    assert "ValueError: broken" in read()[0]["trace"]


def test_text_for_people_quotes_what_would_break_the_line():
    stream = io.StringIO()
    log.configure(LogConfig(level="info"), stream)
    with log.request("r-1"):
        log.info("a", name="two words", line="x\ny", number=3)
    log.configure(LogConfig(), io.StringIO())
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert 'info    a request=r-1 name="two words" line="x\\ny" number=3' in text
