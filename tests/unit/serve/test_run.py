import asyncio

from mezzotint.serve import run


class _Loading:
    """A service whose models load in three stages."""

    def __init__(self):
        self.asked = iter(
            [
                {"plate": "is being loaded (converting denoiser)"},
                {"plate": "is being loaded (converting denoiser)"},
                {"plate": "is being loaded (compiling denoiser, 52 MB)"},
                {},
            ]
        )
        self.done = asyncio.Event()

    async def health(self):
        waiting = next(self.asked, None)
        if waiting is None:
            self.done.set()
        return {"waiting_for": waiting}


def test_serve_says_what_it_is_at_until_it_is_ready_and_says_nothing_twice(monkeypatch):
    monkeypatch.setattr(run, "_TELL_EVERY_S", 0.01)
    told = []

    async def body():
        service = _Loading()
        starting = asyncio.ensure_future(service.done.wait())
        await asyncio.wait_for(run._wait_for_start(service, {starting}, told.append), 20)
        assert starting.result() is True

    asyncio.run(body())
    assert told == [
        "loading     plate is being loaded (converting denoiser)",
        "loading     plate is being loaded (compiling denoiser, 52 MB)",
    ]
