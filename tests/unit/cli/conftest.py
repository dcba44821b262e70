import io
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from mezzotint.cli import main, session
from mezzotint.observe import log
from mezzotint.observe.config import LogConfig
from mezzotint.service.fake import FakeConfig, FakeService


@pytest.fixture
def service(monkeypatch):
    """Put a fake behind the verbs; ``service.config`` may be replaced before the call."""
    holder = SimpleNamespace(config=FakeConfig(), made=[])

    def make(settings) -> FakeService:
        holder.made.append(FakeService(holder.config))
        return holder.made[-1]

    monkeypatch.setattr(session, "make_service", make)
    return holder


@pytest.fixture
def cli(monkeypatch, tmp_path, capfd) -> Callable[..., SimpleNamespace]:
    """Run the command line in this process, in an empty folder with a home of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEZZOTINT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")  # set by verbs, and gone with the test

    def run(*arguments: object) -> SimpleNamespace:
        code = main._run([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    yield run
    log.configure(LogConfig(), io.StringIO())
