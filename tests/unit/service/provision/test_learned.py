"""What one machine learned and drew is there for the next one with the same environment.

Tests :mod:`mezzotint.service.provision.learned` and :meth:`mezzotint.engine.cache.ResultCache.fetch`.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.roads.test_exactness import gan

from mezzotint.engine import cache as cache_module
from mezzotint.models.config import ModelsConfig, PlacementConfig
from mezzotint.request import GenerationRequest
from mezzotint.service.composition import ServiceConfig
from mezzotint.service.local import LocalService
from mezzotint.service.objects import FolderObjects
from mezzotint.service.provision.learned import Shared
from mezzotint.types import GenerationResult


def files(folder: Path) -> dict[str, bytes]:
    found = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def machine(tmp_path: Path, name: str, environment: str = "here") -> Shared:
    return Shared(FolderObjects(tmp_path / "place"), tmp_path / name, environment)


def learn(cache: Path, name: str, data: bytes) -> None:
    path = cache / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_what_was_learned_goes_to_machines_with_the_same_environment_alone(tmp_path):
    first = machine(tmp_path, "first")
    learned = {
        "certificates/a.json": b"[2, 4]",
        "costs/costs.json": b"{}",
        "openvino/b/c.blob": b"x",
    }
    for name, data in learned.items():
        learn(tmp_path / "first", name, data)
    learn(tmp_path / "first", "results/secret.cached", b"a picture")
    first.close()
    machine(tmp_path, "second").close()
    machine(tmp_path, "other", "elsewhere").close()
    assert files(tmp_path / "second") == learned
    assert files(tmp_path / "other") == {}


def test_what_a_machine_knows_itself_stays_and_what_is_damaged_is_left_out(tmp_path):
    first = machine(tmp_path, "first")
    for name in ("certificates/a.json", "certificates/b.json"):
        learn(tmp_path / "first", name, b"theirs")
    first.close()
    damaged = next((tmp_path / "place").rglob("b.json"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    learn(tmp_path / "second", "certificates/a.json", b"ours")
    machine(tmp_path, "second").close()
    assert files(tmp_path / "second") == {"certificates/a.json": b"ours"}


def test_a_place_that_is_away_is_asked_again_after_a_while_and_stops_nobody(tmp_path):
    class Away(FolderObjects):
        asked = 0

        def names(self, prefix: str) -> list[str]:
            self.asked += 1
            raise OSError("away")

        get = put = names  # type: ignore[assignment]

    away = Away(tmp_path)
    shared = Shared(away, tmp_path / "cache", "here")
    assert shared.fetch("ab" * 32) is None
    shared.offer("ab" * 32, b"picture")
    shared.close()
    assert away.asked == 1


@pytest.fixture(scope="module")
def models() -> list[object]:
    return [gan()]


@pytest.fixture
def services(tmp_path, models, monkeypatch) -> Iterator[list[LocalService]]:
    """Two machines, each with a home of its own, that share a place."""
    monkeypatch.setattr(cache_module, "_WORTH_A_FILE_S", 0.0)
    started = []
    for name in ("first", "second"):
        config = ModelsConfig(
            home=str(tmp_path / name), backend="torch", placement=PlacementConfig(device="cpu"),
            shared_url=str(tmp_path / "place"),
        )  # fmt: skip
        started.append(LocalService(ServiceConfig(models=config), models=models))
    yield started
    for service in started:
        service.shut()


def test_an_equal_request_is_answered_by_what_another_machine_drew_for_the_same_key(
    services, tmp_path
):
    first, second = services

    def draw(service: LocalService, client: str, **fields: object) -> GenerationResult:
        request = GenerationRequest(model="gan", seed=3, **fields)
        return asyncio.run(
            service.generate(request, request_id=f"{client}-{fields}", client=client)
        )

    drawn = draw(first, "ada", num_images=2)
    stable = draw(first, "ada", reproducibility="stable")
    first._shared.close()
    assert len(list((tmp_path / "place" / "pictures").rglob("*"))) >= 2
    found = draw(second, "ada", num_images=2)
    assert (drawn.cache, found.cache) == ("miss", "hit")
    assert [i.data for i in found.images] == [i.data for i in drawn.images]
    assert draw(second, "bob", num_images=2).cache == "miss"
    assert stable.cache == draw(second, "ada", reproducibility="stable").cache == "miss"
