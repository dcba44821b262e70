"""Shared models: what one machine gives another one takes, byte for byte or not at all.

Tests :mod:`mezzotint.service.provision.shared_models`.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests import tiny

from mezzotint.errors import InvalidRequest, ModelError, WeightsError, WorkFailed
from mezzotint.models.config import ModelsConfig
from mezzotint.models.store.store import ModelStore
from mezzotint.request import GenerationRequest
from mezzotint.service.buckets import open_objects
from mezzotint.service.composition import ServiceConfig
from mezzotint.service.engine import Engine
from mezzotint.service.provision import shared_models
from mezzotint.service.provision.shared_models import SharedModels, open_shared_models


def machine(tmp_path: Path, name: str, place: str | None = None) -> ModelsConfig:
    return ModelsConfig(home=str(tmp_path / name), shared_url=place or str(tmp_path / "place"))


def shared(config: ModelsConfig) -> SharedModels:
    found = open_shared_models(config)
    assert found is not None
    return found


@pytest.fixture
def giver(tmp_path: Path) -> ModelsConfig:
    """A machine that has given a model of its own, called ``dream``."""
    config = machine(tmp_path, "giver")
    store = ModelStore(config)
    store.add("dream", tiny.folder("sd1"), version="2.0")
    entry, copied = shared(config).give(store, "dream")
    assert (entry.full_name, copied > 0) == ("dream@2.0", True)
    assert shared(config).give(store, "dream")[1] == 0  # all of it is there already
    return config


def files_of(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")
    }  # fmt: skip


def test_a_machine_that_lacks_a_model_takes_it_at_its_start_and_draws_the_same(tmp_path, giver):
    config = machine(tmp_path, "taker")
    request = GenerationRequest(
        model="dream", prompt="a red apple", seed=3, num_inference_steps=2, width=64, height=64
    )
    drawn = []
    for models in (giver, config):
        with Engine(models=["dream"], config=ServiceConfig(models=models)) as engine:
            drawn.append(engine.generate(request).images[0].data)
    assert drawn[0] == drawn[1]
    kept = tmp_path / "taker" / "models" / "dream" / "2.0" / "files"
    assert files_of(kept) == files_of(Path(tiny.folder("sd1")))
    assert ModelStore(config).entry("dream").is_owned  # it stays, and is removed like any other


def test_a_bucket_carries_models_too(tmp_path, giver, bucket):
    giver = machine(tmp_path, "giver", bucket)
    shared(giver).give(ModelStore(giver), "dream@2.0")
    taker = machine(tmp_path, "taker", bucket)
    assert shared(taker).take("dream")
    assert ModelStore(taker).entry("dream").full_name == "dream@2.0"
    assert not shared(taker).take("dream@9")
    assert not shared(taker).take("nothing")


def test_a_damaged_or_missing_file_is_named_and_nothing_is_kept(tmp_path, giver):
    config, files = machine(tmp_path, "taker"), tmp_path / "place" / "models" / "files"
    victim = max(files.iterdir(), key=lambda path: path.stat().st_size)
    right = victim.read_bytes()
    victim.write_bytes(right[:-1] + b"?")
    with pytest.raises(
        WeightsError, match=f"is damaged in models.shared_url .sha256 {victim.name[:12]}"
    ):
        shared(config).take("dream")
    victim.unlink()
    with pytest.raises(WeightsError, match=r"is missing in models\.shared_url"):
        shared(config).take("dream")
    assert "dream" not in ModelStore(config).names()
    assert not list((tmp_path / "taker").rglob("*.partial"))
    victim.write_bytes(right[:-1] + b"?")
    assert shared(giver).give(ModelStore(giver), "dream")[1] == len(right)  # as the error advises
    assert shared(config).take("dream")
    assert shared(config).take("dream")  # a second process of the machine: no error


def test_a_damaged_file_of_a_bucket_is_put_right_by_force(tmp_path, giver, bucket):
    giver, taker = machine(tmp_path, "giver", bucket), machine(tmp_path, "taker", bucket)
    place, store = open_objects(bucket, "models.shared_url"), ModelStore(giver)
    shared(giver).give(store, "dream")
    victim = place.names("models/files/")[0]
    place.put(victim, b"damaged")
    with pytest.raises(WeightsError, match="share it again with `mezzotint models share --force`"):
        shared(taker).take("dream")
    assert shared(giver).give(store, "dream")[1] == 0  # what is there is not read back
    assert shared(giver).give(store, "dream", force=True)[1] > 0
    assert shared(taker).take("dream")


def test_what_a_killed_process_left_is_removed_and_the_model_taken_whole(tmp_path, giver):
    config = machine(tmp_path, "taker")
    folder = config.models_path / "dream" / "2.0"
    for left in (folder / ".0123456789ab.partial" / "unet", folder / "files" / "unet"):
        left.mkdir(parents=True)
        (left / "half").write_bytes(b"?")
    assert shared(config).take("dream")
    assert files_of(folder / "files") == files_of(Path(tiny.folder("sd1")))
    assert not list(folder.glob("*.partial")) and not list(folder.glob(".*.partial"))


def test_of_processes_that_take_a_model_at_once_one_copies_it(tmp_path, giver, monkeypatch):
    config = machine(tmp_path, "taker")
    copied: list[str] = []
    take = SharedModels._take_file

    def count(self, path, digest, model):
        copied.append(path.name)
        take(self, path, digest, model)

    monkeypatch.setattr(SharedModels, "_take_file", count)
    with ThreadPoolExecutor(3) as threads:
        assert all(threads.map(lambda _: shared(config).take("dream"), range(3)))
    assert len(copied) == len(files_of(Path(tiny.folder("sd1"))))


def test_a_disk_that_refuses_the_name_is_an_error_and_not_a_model(tmp_path, giver, monkeypatch):
    config = machine(tmp_path, "taker")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shared_models.os, "rename", refuse)
    with pytest.raises(WorkFailed, match="Permission denied"):
        shared(config).take("dream")
    assert "dream" not in ModelStore(config).names()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plain: plain["files"].update({"../x": "a" * 64}), "no file of a model"),
        (lambda plain: plain["files"].update({"/etc/x": "a" * 64}), "no file of a model"),
        (lambda plain: plain["files"].update({"a\\..\\x": "a" * 64}), "no file of a model"),
        (lambda plain: plain["files"].update({"x": "../../etc"}), "no file of a model"),
        (lambda plain: plain.update(files={}), "has 0 files"),
        (lambda plain: plain.update(card='name = "other"'), "another model's"),
        (
            lambda plain: plain.update(card='name = "dream"\nversion = "2.0"\npath = "/etc"'),
            "another",
        ),
        (lambda plain: plain.pop("card"), "is broken"),
    ],
)
def test_a_list_that_is_no_list_of_a_model_is_refused(tmp_path, giver, change, words):
    file = tmp_path / "place" / "models" / "named" / "dream" / "2.0.json"
    plain = json.loads(file.read_text())
    change(plain)
    file.write_text(json.dumps(plain))
    with pytest.raises(ModelError, match=words):
        shared(machine(tmp_path, "taker")).take("dream")


def test_what_need_not_or_must_not_be_shared_is_refused(tmp_path, giver):
    store = ModelStore(giver)
    with pytest.raises(InvalidRequest, match="comes with the program"):
        shared(giver).give(store, "plate")
    other = machine(tmp_path, "other")
    theirs = ModelStore(other)
    theirs.add("dream", tiny.folder("ddpm"), version="2.0")
    with pytest.raises(InvalidRequest, match=r"another dream@2\.0 is shared already"):
        shared(other).give(theirs, "dream")
    assert open_shared_models(ModelsConfig()) is None


def test_a_place_that_is_away_is_said(tmp_path, bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(WorkFailed, match=r"models\.shared_url cannot be used"):
        shared(machine(tmp_path, "taker", bucket)).take("dream")
