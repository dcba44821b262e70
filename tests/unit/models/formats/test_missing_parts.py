"""Folders that lack what reads their prompts: :mod:`mezzotint.models.formats.folders` refuses them.

In one line, before a weight is read.
"""

import json
import shutil

import pytest
from tests import tiny, tiny_flows

from mezzotint.errors import ModelError
from mezzotint.models.formats import folders
from mezzotint.models.formats.folders import load_pipeline

FAMILIES = ("sd1", "sdxl", "sd3", "flux", *tiny_flows.BUILDERS)
OPTIONAL = {("sd3", "text_encoder_3"), ("sd3", "tokenizer_3")}  # SD 3 draws without its T5


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    made = {}

    def copy(name):
        if name not in made:
            made[name] = tiny.copy_of(name, tmp_path_factory.mktemp("copies") / name)
        return made[name]

    return copy


@pytest.mark.parametrize("name", FAMILIES)
def test_a_missing_text_encoder_or_tokenizer_is_named(name, copies, monkeypatch):
    def never(*_args, **_options):
        raise AssertionError("weights were read")

    monkeypatch.setattr(folders.TorchNetwork, "module", property(never))
    copy = copies(name)
    index = copy / "model_index.json"
    said = json.loads(index.read_text())
    for role in [r for r in said if r.startswith(("text_encoder", "tokenizer", "processor"))]:
        away = shutil.move(copy / role, copy.parent / "away")
        with pytest.raises(ModelError, match=role) as caught:
            load_pipeline(copy)
        assert "\n" not in str(caught.value)
        shutil.move(away, copy / role)
        if (name, role) in OPTIONAL:
            continue
        index.write_text(json.dumps(said | {role: [None, None]}))
        with pytest.raises(ModelError, match=f"{role}|text states of width") as caught:
            load_pipeline(copy)
        assert "\n" not in str(caught.value)
        index.write_text(json.dumps(said))
