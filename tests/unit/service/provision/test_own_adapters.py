"""Whose LoRAs are, whatever path leads to them and whatever happens meanwhile."""

import json
import os
import struct

import pytest

from mezzotint.errors import InvalidRequest, ModelNotAllowed, Refused, UnknownName
from mezzotint.models.parts import LORA_HEADER_BYTES
from mezzotint.request import Embedding, GenerationRequest, Lora
from mezzotint.service.provision import adapter_descriptions, own_adapters
from mezzotint.service.provision.adapter_files import AdapterFiles
from mezzotint.service.provision.own_adapters import OwnAdapters


def lora(**metadata):
    shape = {"dtype": "F32", "shape": [2, 0], "data_offsets": [0, 0]}
    text = json.dumps({"__metadata__": metadata, "unet.a.lora_A.weight": shape}).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.fixture(autouse=True)
def nothing_ships(monkeypatch):
    """LoRAs of the package are looked at in test_shipped_loras.py."""
    monkeypatch.setattr(own_adapters, "shipped", lambda kind: {})


@pytest.fixture
def own(tmp_path):
    kept = OwnAdapters(tmp_path)
    bring(kept, "ink", "alice")
    return kept


def bring(own, name, owner, data=None, *, most=0):
    with own.incoming() as upload:
        upload.write_bytes(lora() if data is None else data)
        return own.take(name, upload, owner, most=most)


def wears(own, client, request):
    try:
        own.check(request, client, sees_all=False)
    except UnknownName:
        return False
    return True


def paths(home):
    """Ways to a file that are not its name."""
    file = home / "loras" / "ink.safetensors"
    (home / "link.safetensors").symlink_to(file)
    os.link(file, home / "hard.safetensors")
    (home / "run").mkdir()
    (home / "run" / "pytorch_lora_weights.safetensors").symlink_to(file)
    return [
        str(file), str(home / "loras" / ".." / "loras" / "ink.safetensors"), "~/ink.safetensors",
        "ink.safetensors", "./ink.safetensors", *(str(home / n) for n in
        ("link.safetensors", "hard.safetensors", "run")),
    ]  # fmt: skip


def test_a_path_to_the_file_is_as_good_as_its_name(own, tmp_path, monkeypatch):
    bring(own, "mine", "bob")
    monkeypatch.chdir(tmp_path / "loras")
    monkeypatch.setenv("HOME", str(tmp_path / "loras"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "loras"))
    for path in ["ink", *paths(tmp_path)]:
        for request in (
            GenerationRequest(loras=(Lora(name=path),)),
            GenerationRequest(prompt=f"a <lora:{path}:1>", prompt_dialect="a1111"),
        ):
            assert (wears(own, "bob", request), wears(own, "alice", request)) == (False, True), path
    foreign = GenerationRequest(embeddings=(Embedding(name=str(tmp_path / "hard.safetensors")),))
    assert not wears(own, "bob", foreign)
    assert wears(own, "bob", GenerationRequest(loras=(Lora(name="mine"), Lora(name="nowhere"))))


@pytest.mark.parametrize("moment", ["names", "_owner"])
def test_a_lora_that_comes_and_goes_while_it_is_listed_is_shown_to_nobody_else(
    own, monkeypatch, moment
):
    real = getattr(AdapterFiles, moment)
    monkeypatch.setattr(own_adapters, "HELD_S", 0.0)  # that names are free at once

    def meanwhile(self, *arguments):
        """Exchange a LoRA of everybody's for one of alice's, at the worst moment."""
        if not done:
            done.append(1)
            own.drop("ink", "alice", sees_all=True)
            found = real(self, *arguments)
            bring(own, "ink", "alice")
            return found
        return real(self, *arguments)

    for before in ("alice", ""):
        own.drop("ink", "", sees_all=True)
        bring(own, "ink", before)
        done = []
        with monkeypatch.context() as patch:
            patch.setattr(AdapterFiles, moment, meanwhile)
            told = own.listed("bob", sees_all=False)
        assert (done, told) == ([1], [])


def test_a_note_that_cannot_be_read_makes_a_lora_nobodys(own, tmp_path):
    (tmp_path / "loras" / ".owners" / "ink").write_bytes(b"\xff")
    assert own.hidden_from("bob", sees_all=False) == {"ink"}
    assert not wears(own, "bob", GenerationRequest(loras=(Lora(name="ink"),)))
    assert own.listed("ops", sees_all=True) == own.listed("bob", sees_all=False) == []
    own.drop("ink", "ops", sees_all=True)


def test_a_file_that_goes_meanwhile_is_unknown(own, tmp_path, monkeypatch):
    names = own.files.names("lora")
    (tmp_path / "loras" / "ink.safetensors").unlink()
    monkeypatch.setattr(AdapterFiles, "names", lambda self, kind: names)
    with pytest.raises(UnknownName):
        own.files.path("lora", "ink")
    assert own.listed("alice", sees_all=True) == []


def test_a_header_of_a_lora_is_bounded_and_read_once(own, monkeypatch):
    with pytest.raises(InvalidRequest, match=f"at most {LORA_HEADER_BYTES}"):
        bring(own, "big", "bob", lora(told="x" * LORA_HEADER_BYTES))
    assert own.listed("alice", sees_all=False)[0]["ranks"] == [2]
    monkeypatch.setattr(adapter_descriptions, "read_header", lambda *_, **__: pytest.fail("read"))
    assert own.listed("alice", sees_all=False)[0]["ranks"] == [2]


def test_names_and_quota_are_checked_before_and_at_the_end(own):
    own.check_free("other", "alice", most=2)
    with pytest.raises(InvalidRequest, match="exists already"):
        own.check_free("ink", "bob", most=2)
    with pytest.raises(Refused, match="1 LoRAs"):
        own.check_free("other", "alice", most=1)
    with pytest.raises(Refused, match="1 LoRAs"):
        bring(own, "other", "alice", most=1)


def test_what_a_killed_server_left_is_swept(own, tmp_path):
    folder = tmp_path / "loras"
    (folder / f".{'0a' * 8}.safetensors").touch()
    own.sweep()
    assert own.files.names("lora") == ("ink",)
    assert sorted(path.name for path in folder.iterdir()) == [".owners", "ink.safetensors"]


def test_a_name_that_was_given_up_stays_its_owners_for_a_while(own, monkeypatch):
    """A request that was let pass by a name must never be planned with another key's file."""
    own.drop("ink", "alice", sees_all=False)
    with pytest.raises(InvalidRequest, match="was dropped less than 60 s ago"):
        bring(own, "ink", "bob")
    bring(own, "ink", "alice")
    own.drop("ink", "root", sees_all=True)
    with pytest.raises(InvalidRequest, match="was dropped less than 60 s ago"):
        bring(own, "ink", "bob")
    later = own_adapters.time.monotonic() + 61
    monkeypatch.setattr(own_adapters.time, "monotonic", lambda: later)
    assert bring(own, "ink", "bob")["owner"] == "bob"


def test_where_nothing_may_be_fetched_no_lora_comes_from_the_hub(tmp_path):
    own = OwnAdapters(tmp_path, allow_downloads=False)
    for source in ("nobody/ink-for-tests", "nobody/ink-for-tests/ink.safetensors"):
        with pytest.raises(ModelNotAllowed, match="fetching models is not allowed here"):
            own.bring("ink", source)
