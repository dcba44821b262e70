"""Weights that need a quantizer's package are refused where it is missing (:mod:`mezzotint.models.parts`)."""

import importlib.util
import json

import pytest
from tests import tiny

from mezzotint.errors import WeightsError
from mezzotint.models.formats.folders import load_pipeline
from mezzotint.models.parts import QUANTIZERS, refuse_missing_quantizer


@pytest.mark.parametrize("method", sorted(QUANTIZERS))
def test_a_missing_package_is_named(monkeypatch, method):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    config = {"quantization_config": {"quant_method": method, "load_in_4bit": True}}
    with pytest.raises(WeightsError, match=f"pip install {QUANTIZERS[method][1]}, or take"):
        refuse_missing_quantizer(config, where="unet/config.json")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"quantization_config": None},
        {"quantization_config": {"quant_method": "of tomorrow"}},
        {"quantization_config": {"quant_method": ["gguf"]}},
    ],
)
def test_what_needs_no_package_passes(monkeypatch, config):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    refuse_missing_quantizer(config, where="unet/config.json")


def test_a_package_that_is_there_passes(monkeypatch):
    monkeypatch.setitem(QUANTIZERS, "gguf", ("json", "gguf"))
    refuse_missing_quantizer({"quantization_config": {"quant_method": "gguf"}}, where="")


def test_a_module_below_a_package_that_is_missing_is_missing(monkeypatch):
    monkeypatch.setitem(QUANTIZERS, "quanto", ("no_such_package.quanto", "optimum-quanto"))
    with pytest.raises(WeightsError, match="optimum-quanto"):
        refuse_missing_quantizer({"quantization_config": {"quant_method": "quanto"}}, where="")


def test_a_folder_says_so_when_it_is_read(tmp_path, monkeypatch):
    tiny.ddpm().save_pretrained(tmp_path)
    file = tmp_path / "unet" / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] = {"quant_method": "sdnq"}
    file.write_text(json.dumps(config))
    monkeypatch.setitem(QUANTIZERS, "sdnq", ("no_such_package", "sdnq"))
    with pytest.raises(WeightsError, match=r"unet/config\.json says .* pip install sdnq"):
        load_pipeline(tmp_path)
