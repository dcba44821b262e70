import pytest

import mezzotint as mz
from mezzotint.client.exchange import JobState, connection, picture_bytes, request_headers


def test_a_key_is_sent_as_a_bearer_token_and_nothing_without_one():
    assert connection("http://a", "secret", None)["headers"]["authorization"] == "Bearer secret"
    assert "authorization" not in connection("http://a", None, None)["headers"]


def test_the_headers_of_a_request():
    assert request_headers(use_cache=True) == {"accept": "application/json"}
    assert request_headers(use_cache=False, events=True, idempotency_key="k") == {
        "accept": "text/event-stream",
        "cache-control": "no-cache",
        "idempotency-key": "k",
    }


def test_a_picture_is_bytes_or_one_that_was_made():
    image = mz.ImageOutput(index=0, seed=1, data=b"abc", format="png", width=1, height=1)
    assert picture_bytes(image) == picture_bytes(mz.ImageInput(b"abc")) == b"abc"
    with pytest.raises(mz.ImageError, match="got int"):
        picture_bytes(7)


@pytest.mark.parametrize(
    ("about", "error"),
    [
        ({"status": "cancelled"}, "Cancelled"),
        ({"status": "expired"}, "DeadlineExceeded"),
        ({"status": "failed", "error": {"error": "OutOfMemory", "detail": "x"}}, "OutOfMemory"),
    ],
)
def test_a_bad_ending_is_its_error(about, error):
    state = JobState({"id": "a", "position": 0, "eta_s": 1.5, **about})
    assert state.is_done
    assert (state.position, state.eta_s, str(state)) == (0, 1.5, f"<job a: {about['status']}>")
    with pytest.raises(mz.MezzotintError) as caught:
        state.raise_for_ending()
    assert type(caught.value).__name__ == error
