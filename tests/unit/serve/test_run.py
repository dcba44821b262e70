import asyncio

from mezzotint.serve import run
from mezzotint.serve.config import ServeConfig
from mezzotint.service.config import JobsConfig, WorkerConfig
from mezzotint.service.fake import FakeService
from mezzotint.service.provision.own_adapters import OwnAdapters
from mezzotint.service.training import TrainingRuns


def test_what_a_server_is_run_with_reaches_its_doors(monkeypatch, tmp_path):
    told = {}

    async def serve(config, jobs, service, **given):
        told.update(given)

    monkeypatch.setattr(run, "serve", serve)
    monkeypatch.setattr(run, "create_workers", lambda worker, log_config: None)
    monkeypatch.setattr(run.log, "configure", lambda config: None)
    training = TrainingRuns(tmp_path / "runs", dict)
    given = {"training": training, "model_store": tmp_path, "version": "7"}
    assert run.run(ServeConfig(), JobsConfig(), WorkerConfig(), **given) == 0
    assert told.items() >= given.items()


def test_what_a_killed_server_left_of_uploads_is_swept_at_start(tmp_path):
    left = tmp_path / "loras" / f".{'0a' * 8}.safetensors"
    left.parent.mkdir()
    left.touch()
    seen = []

    async def body():
        stop = asyncio.Event()
        stop.set()
        await run.serve(
            ServeConfig(port=0, management_port=0, metrics_port=0),
            JobsConfig(folder=str(tmp_path / "jobs")),
            FakeService(),
            adapters=OwnAdapters(tmp_path),
            model_store=tmp_path / "store",
            announce=lambda line: seen.append(left.exists()),
            stop=stop,
        )

    asyncio.run(body())
    assert seen
    assert not any(seen)


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
