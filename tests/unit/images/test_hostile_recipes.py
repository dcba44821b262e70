"""A stranger's recipe costs what its length costs, and no more than its deadline.

Tests :mod:`mezzotint.images.readers` and :mod:`mezzotint.images.foreign`.
"""

import json
import time
import zlib

import numpy as np
import pytest
from tests.growth import assert_linear

from mezzotint.images import foreign
from mezzotint.images.png import encode_png
from mezzotint.images.readers import read_foreign, recipe_from_infotext
from mezzotint.textchunks import png_chunk

PIXELS = np.zeros((8, 8, 3), np.uint8)
PAIRS = "\nSteps: 20, Sampler: Euler, Seed: 1, CFG scale: 7"


@pytest.mark.parametrize("piece", ["<lora:a", "<lora:", "<lora::", "<lora:a:1", "(", "a\n", "a"])
def test_prompts_of_infotext_are_read_in_linear_time(piece):
    assert_linear(lambda text: recipe_from_infotext(text + PAIRS), lambda n: piece * n, 10_000)


def test_a_picture_that_unpacks_to_a_megabyte_of_tags_is_read_at_once():
    text = "<lora:a" * 142_857 + PAIRS
    chunk = png_chunk(b"zTXt", b"parameters\0\0" + zlib.compress(text.encode("latin-1"), 9))
    plain = encode_png(PIXELS)
    data = plain[:33] + chunk + plain[33:]
    assert len(data) < 20_000
    began = time.monotonic()
    read_foreign(data)
    assert time.monotonic() - began < 2


def test_text_beyond_its_bound_is_no_recipe():
    assert recipe_from_infotext("a" * (1 << 20) + PAIRS) is None


def test_a_thousand_unknown_pairs_are_told_of_shortly():
    pairs = ", ".join(f"Key{k}: {k}" for k in range(1000))
    recipe = recipe_from_infotext(f"x{PAIRS}, {pairs}")
    assert len(recipe.not_honoured) <= 101
    assert any("901 more" in line for line in recipe.not_honoured)


def long_chain(nodes: int) -> dict[str, str]:
    """Return a ComfyUI graph whose samplers each see all of a long chain of nodes."""
    links = [[k, k + 1, 0, k, 0, "CONDITIONING"] for k in range(nodes)]
    prompt: dict[str, object] = {
        str(k): {"class_type": "C", "inputs": {"x": k}} for k in range(nodes)
    }
    for k in range(nodes):
        inputs = {"sampler_name": "euler", "steps": 1, "cfg": 1, "positive": ["0", 0]}
        prompt[f"s{k}"] = {"class_type": "KSampler", "inputs": inputs}
    return {"prompt": json.dumps(prompt), "workflow": json.dumps({"links": links})}


def test_a_graph_that_would_take_minutes_is_given_up_at_the_deadline(monkeypatch):
    monkeypatch.setattr(foreign, "DEADLINE_S", 1.0)
    began = time.monotonic()
    assert read_foreign(encode_png(PIXELS, long_chain(3000))) is None
    assert time.monotonic() - began < 4


@pytest.mark.parametrize(
    "texts",
    [
        {"parameters": "Hashes:{" * 100_000},
        {"Dream": '"' + "[" * 200_000 + '" -s 1'},
        {"Dream": '"x" ' + " " * 200_000},
        {"Comment": '{"sampler": "k"}', "Description": "x", "Source": " " * 200_000},
        {"prompt": "[" * 100_000, "workflow": "[" * 100_000},
        {"invokeai_metadata": '{"a":' * 50_000},
    ],
)
def test_patterns_of_the_library_never_meet_a_long_text(texts):
    began = time.monotonic()
    assert read_foreign(encode_png(PIXELS, texts)) is None
    assert time.monotonic() - began < 4
