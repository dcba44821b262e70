"""Messages between the processes: everything comes back as it went."""

import dataclasses

import pytest

from mezzotint import errors, types
from mezzotint.service.workers import messages
from mezzotint.service.workers.transport import pack, unpack
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


def carry(message, kind):
    """Send a message and read it on the other side."""
    return unpack(bytes(pack(message)[8:]), kind)


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
def test_events_come_back_equal(event):
    message = carry(messages.write_event(7, event), messages.FromWorker)
    assert message.call == 7
    assert messages.read_event(message) == event


def test_a_failure_comes_back_with_its_error():
    event = types.Failed(id="r", error=errors.QueueFull("full", retry_after_s=2.5))
    back = messages.read_event(carry(messages.write_event(7, event), messages.FromWorker))
    assert (back.id, str(back.error), back.error.retry_after_s) == ("r", "full", 2.5)


def test_pictures_that_were_sent_are_not_sent_again():
    finished = types.Finished(id="r", result=RESULT)
    whole = pack(messages.write_event(7, finished))
    short = pack(messages.write_event(7, finished, {IMAGE.index: IMAGE}))
    assert len(whole) - len(short) > len(IMAGE.data)
    told = unpack(bytes(short[8:]), messages.FromWorker)
    assert messages.read_event(told, {IMAGE.index: IMAGE}) == finished


def test_pixels_stay_on_their_side():
    image = dataclasses.replace(IMAGE, pixels=object())
    event = types.ImageFinished(id="r", image=image)
    back = messages.read_event(carry(messages.write_event(7, event), messages.FromWorker))
    assert back.image.pixels is None
    assert back.image == IMAGE


@pytest.mark.parametrize(
    "message",
    [
        messages.Hello(factory="a:b", options={"x": 1}, log={}, cores=[0]),
        messages.CallMethod(call=1, method="grid", arguments={"images": [b"1", b""], "n": None}),
        messages.StreamRequest(
            call=1, request="{}", request_id="r", client="", use_cache=True, preview_every=0,
            quiet=False,
        ),
        messages.Cancel(call=1),
        messages.Ready(pid=3),
        messages.Refused(error={"type": "ModelError"}),
        messages.Answered(call=1, value=[{"a": b"bytes"}]),
        messages.CallFailed(call=1, error={}),
        messages.StreamEnded(call=1),
    ],
    ids=lambda m: type(m).__name__,
)  # fmt: skip
def test_messages_come_back_equal(message):
    assert carry(message, type(message)) == message


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (messages.Ready(pid=3), messages.FromWorker),
        (messages.Answered(call=1, value=1), messages.ToWorker),
        ({"type": "Exec", "call": 1}, messages.ToWorker),
        ({"call": 1}, messages.ToWorker),
        ({"type": "Cancel", "call": "1"}, messages.ToWorker),
        ([], messages.ToWorker),
    ],
)
def test_what_is_in_no_union_is_refused(message, kind):
    with pytest.raises(ValueError):
        carry(message, kind)
