"""The device thread when there is no engine to run."""

import queue

import pytest

from mezzotint.engine.state import ImageFailed, ImageId
from mezzotint.engine.step_engine import Submission
from mezzotint.service.dispatch.device_messages import Stop
from mezzotint.service.dispatch.device_thread import DeviceThread


def test_an_engine_that_cannot_be_built_fails_its_work_and_lets_nobody_wait():
    def build(emit):
        raise NameError("a library is broken")

    heard: queue.Queue = queue.Queue()
    thread = DeviceThread(build, heard.put)
    for number in range(2):
        submission = object.__new__(Submission)
        object.__setattr__(submission, "id", ImageId(f"r{number}", 0))
        thread.send(submission)
        event = heard.get(timeout=5)
        assert isinstance(event, ImageFailed)
        assert event.id.request == f"r{number}"
        assert "a library is broken" in str(event.error)
    thread.send(Stop())
    thread.join(5)
    with pytest.raises(queue.Empty):
        heard.get_nowait()
