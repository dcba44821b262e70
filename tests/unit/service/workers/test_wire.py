"""Messages between the processes: everything comes back as it went."""

import dataclasses

import pytest

from mezzotint import errors, types
from mezzotint.service.workers import wire
from mezzotint.types import Attempt, GenerationResult, ImageOutput, StageTimings, Verdict

IMAGE = ImageOutput(
    index=1,
    seed=2**64 - 1,
    data=b"\x00\xff" * 50,
    format="webp",
    width=64,
    height=32,
    recipe={"digest": "ab", "request": {"prompt": "é", "seed": 2**63}},
    warnings=("w",),
    attempts=(
        Attempt(
            number=2,
            seed=9,
            accepted=False,
            verdicts=(Verdict(gate="nsfw", score=0.1, threshold=0.5, passed=True, reason="r"),),
        ),
    ),
    timings=StageTimings(queue_s=0.5, denoise_s=1.25, model_calls=40),
)
RESULT = GenerationResult(
    id="r", images=(IMAGE,), plan={"a": [1, 2.5, None]}, cache="hit", warnings=("x",)
)
EVENTS = [
    types.Queued(id="r", position=3, eta_s=1.5),
    types.Started(id="r"),
    types.Stepped(id="r", image=1, step=2, steps=3, preview=b"png"),
    types.Stepped(id="r", image=1, step=2, steps=3),
    types.ImageFinished(id="r", image=IMAGE),
    types.Finished(id="r", result=RESULT),
    types.Cancelled(id="r"),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
def test_events_come_back_equal(event):
    message = wire.pack({"event": wire.write_event(event)})
    size = int.from_bytes(message[:8], "big")
    assert size == len(message) - 8
    assert wire.read_event(wire.unpack(message[8:])["event"]) == event


ERRORS = [
    errors.UnknownName("model", "plat", ["plate"], field="model"),
    errors.InvalidRequest("m", field="width", value=3, allowed="multiples"),
    errors.ImageError("m", field="image"),
    errors.QueueFull("m", retry_after_s=4.5),
    errors.OutOfMemory("m"),
    errors.GateRejected("m"),
    errors.ArchiveError("m"),
    errors.WeightsError("m", field="loras"),
    errors.DeadlineExceeded("m"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_errors_come_back_with_what_they_carry(error):
    back = wire.read_error(wire.describe_error(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    for name in ("field", "value", "allowed", "retry_after_s", "kind", "name", "known"):
        assert getattr(back, name, None) == getattr(error, name, None)


def test_an_unexpected_error_tells_nothing_but_where_to_look():
    back = wire.read_error(wire.describe_error(RuntimeError("secret path")))
    assert type(back) is errors.WorkFailed
    assert str(back) == "something went wrong inside; the server's log says what"


@pytest.mark.parametrize("kind", ["os", "__builtins__", "nearest_name", "Iterable", ""])
def test_only_errors_of_the_tree_are_ever_made(kind):
    assert type(wire.read_error({"type": kind, "message": "m"})) is errors.WorkFailed


def test_byte_strings_travel_beside_the_json_at_any_depth():
    head = {"a": b"1", "b": [{"c": b""}, b"2" * 300], "d": {"e": "text"}}
    assert wire.unpack(wire.pack(head)[8:]) == head


def test_a_message_whose_lengths_lie_is_refused():
    body = bytearray(wire.pack({"a": b"12345"})[8:])
    with pytest.raises(ValueError):
        wire.unpack(bytes(body[:-2]))


def test_pixels_stay_on_their_side():
    image = dataclasses.replace(IMAGE, pixels=object())
    assert wire.read_image(wire.write_image(image)).pixels is None
