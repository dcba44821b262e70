import pytest

from mezzotint.client.event_stream import EventReader, ServerEvent

STREAM = (
    ': keep-alive\n\nid: 1\nevent: queued\ndata: {"id": "a"}\n\n'
    'id: 2\r\nevent: step\r\ndata: {"text": "a\u2028b\x85c é"}\r\n\r\n'
    "event: none\n\ndata: [1,\ndata: 2]\n\ndata: unfinished"
).encode()
EVENTS = [
    ServerEvent(id=1, kind="queued", data={"id": "a"}),
    ServerEvent(id=2, kind="step", data={"text": "a\u2028b\x85c é"}),
    ServerEvent(id=0, kind="message", data=[1, 2]),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_the_same_however_the_bytes_are_cut(size):
    reader = EventReader()
    chunks = [STREAM[k : k + size] for k in range(0, len(STREAM), size)]
    assert [event for chunk in chunks for event in reader.feed(chunk)] == EVENTS
