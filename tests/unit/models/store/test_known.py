import json
import os
import shutil

import pytest
from tests import tiny

from mezzotint.models.config import ModelsConfig, PlacementConfig
from mezzotint.models.store.entries import is_name
from mezzotint.models.store.known import Facts, key_of, recall_spec, remember_spec, spec_key
from mezzotint.models.store.store import ModelStore
from mezzotint.service.capabilities import capabilities
from mezzotint.service.provision.model_provider import ModelProvider


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "model"
    tiny.ddpm().save_pretrained(path)
    for file in path.rglob("*"):
        os.utime(file, (1e9, 1e9))
    return path


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Take files for settled at once; the clock of their last change cannot be set."""
    monkeypatch.setattr("mezzotint.models.store.known._SETTLED_NS", 0)


def store(home):
    return ModelStore(ModelsConfig(home=str(home)))


def test_facts_outlive_their_process_and_a_broken_file_knows_nothing(tmp_path):
    path = tmp_path / "facts.json"
    Facts(path).put("a", {"b": 1})
    Facts(path).put("c", 2)
    assert (Facts(path).get("a"), Facts(path).get("c")) == ({"b": 1}, 2)
    path.write_text("[1")
    assert Facts(path).get("a") is None


def test_the_oldest_facts_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr("mezzotint.models.store.known._MAX_FACTS", 2)
    facts = Facts(tmp_path / "facts.json")
    for key in "abc":
        facts.put(key, key)
    assert list(json.loads((tmp_path / "facts.json").read_text())) == ["b", "c"]


def test_a_spec_that_was_read_once_is_known_to_the_next_process_whole(tmp_path, folder):
    first = store(tmp_path)
    assert first.known_spec(str(folder)) is None
    spec = first.spec(str(folder))
    assert store(tmp_path).known_spec(str(folder)) == spec


def test_a_built_in_model_comes_back_with_its_infinities(tmp_path):
    spec = store(tmp_path).spec("plate")
    assert spec.scheduler_config["lambda_min_clipped"] == float("-inf")
    assert store(tmp_path).known_spec("plate") == spec


def test_a_file_that_was_written_to_makes_the_spec_unknown(tmp_path, folder):
    own = shutil.copytree(folder, tmp_path / "own")
    first = store(tmp_path)
    first.spec(str(own))
    config = own / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("1000", "900"))
    assert store(tmp_path).known_spec(str(own)) is None
    assert store(tmp_path).spec(str(own)).scheduler_config["num_train_timesteps"] == 900


def test_a_spec_is_known_for_one_placement_and_not_while_files_are_in_motion(
    tmp_path, folder, monkeypatch
):
    entry = store(tmp_path).entry(str(folder))
    usual = spec_key(entry, PlacementConfig())
    assert usual != spec_key(entry, PlacementConfig(dtype="float16"))
    monkeypatch.setattr("mezzotint.models.store.known._SETTLED_NS", 1 << 62)
    assert spec_key(entry, PlacementConfig()) is None


def test_what_json_would_change_is_not_kept(tmp_path, folder):
    from dataclasses import replace

    facts = Facts(tmp_path / "facts.json")
    spec = store(tmp_path).spec(str(folder))
    remember_spec(facts, "k", replace(spec, scheduler_config={"levels": (1, 2)}))
    assert recall_spec(facts, "k") is None
    facts.put("odd", {"name": 3})
    assert recall_spec(facts, "odd") is None


def test_keys_differ_where_anything_differs():
    assert key_of("a", [1]) != key_of("a", [2])
    assert len(key_of()) == 64


@pytest.mark.parametrize(("text", "good"), [("a.b_c-1", True), ("", False), ("../a", False)])
def test_names_are_letters_digits_dots_dashes(text, good):
    assert is_name(text) is good


def test_a_model_in_memory_is_described_without_a_look_at_its_files(tmp_path, folder, monkeypatch):
    """A server lists its models again and again while it draws."""
    first = store(tmp_path)
    model = first.load(str(folder))
    looked = []
    monkeypatch.setattr(
        "mezzotint.models.store.store.spec_key", lambda *arguments: looked.append(arguments)
    )
    assert first.describe(str(folder))["family"] == model.spec.family
    assert looked == []


def test_a_server_tells_what_a_known_model_can_do_without_loading_it(tmp_path, monkeypatch):
    spec = store(tmp_path).spec("plate-quick")
    provider = ModelProvider(ModelsConfig(home=str(tmp_path)))
    monkeypatch.setattr(ModelStore, "load", lambda self, name: pytest.fail(f"{name} was loaded"))
    only = provider.store.entry("plate-quick")
    monkeypatch.setattr(provider.store, "entries", lambda: (only,))
    told = capabilities(provider, None, environment={}, certificates=(), costs={})["by_model"]
    assert [fields["limits"]["token_limit"] for fields in told.values()] == [spec.token_limit]
