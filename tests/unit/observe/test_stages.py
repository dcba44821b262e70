import threading

import pytest

from mezzotint.observe import stages
from mezzotint.observe.stages import Stage, stage


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "timing plate"), (999_999, "timing plate"), (3_438_000_000, "timing plate, 3438 MB")],
)
def test_a_stage_is_described_in_a_few_words(num_bytes, text):
    assert Stage(doing="timing", what="plate", num_bytes=num_bytes).describe() == text


def test_listeners_hear_of_begin_and_end_from_any_thread():
    heard = []

    def work():
        with stage("converting", "denoiser", 7), stage("reading", "weights"):
            pass

    with stages.listening(heard.append):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    work()  # nobody listens any more
    told = [(s.doing, s.what, s.num_bytes, s.seconds is None) for s in heard]
    assert told == [
        ("converting", "denoiser", 7, True),
        ("reading", "weights", 0, True),
        ("reading", "weights", 0, False),
        ("converting", "denoiser", 7, False),
    ]
    assert all(0 <= s.seconds < 10 for s in heard[2:])


def test_what_goes_on_is_the_stage_that_began_last_and_nothing_when_all_are_over():
    assert stages.current() is None
    with pytest.raises(ValueError, match="broken"), stage("converting", "decoder"):
        with stage("reading", "weights"):
            assert stages.current().describe() == "reading weights"
        assert stages.current().describe() == "converting decoder"
        raise ValueError("broken")
    assert stages.current() is None
