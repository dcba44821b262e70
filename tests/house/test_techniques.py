"""A technique is declared once: few files name it, and the rest derives from its row."""

import ast
from pathlib import Path

import pytest
import typer

from mezzotint.cli.main import app
from mezzotint.plain import field_names
from mezzotint.request import (
    Control,
    Embedding,
    EnsembleMember,
    GenerationRequest,
    Hires,
    ImagePrompt,
    Lora,
    Region,
    Upscale,
    Walk,
)
from mezzotint.techniques.table import ADAPTERS, FLAGS, TECHNIQUES
from mezzotint.techniques.walking import names_of, pictures_of, texts_of
from mezzotint.types import ImageInput

SRC = Path(__file__).parents[2] / "src" / "mezzotint"
MOST = 10
"""Files of src that may name a technique; with its tests and its page still a small change."""

WIDE = {"image": 14, "walk": 12, "ensemble": 12}
"""What whole rooms are about: a start picture, a request of many frames, several denoisers."""


def read_fields(tree):
    """Yield the fields that a file reads of a request or of a plan's techniques."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if owner in ("request", "techniques", "t", "asked", "wanted"):
                yield node.attr


@pytest.fixture(scope="module")
def reading():
    """The files that read each technique's field."""
    found = {t.field: [] for t in TECHNIQUES}
    for path in sorted(SRC.rglob("*.py")):
        said = set(read_fields(ast.parse(path.read_text("utf-8"))))
        for field in found.keys() & said:
            found[field].append(str(path.relative_to(SRC)))
    return found


@pytest.mark.parametrize("field", [t.field for t in TECHNIQUES])
def test_few_files_read_a_technique(reading, field):
    assert len(reading[field]) <= WIDE.get(field, MOST), reading[field]


@pytest.mark.parametrize("word", ["hires", "image_prompts"])
def test_few_files_say_its_name_at_all(word):  # no other thing is called so
    texts = ((path, path.read_text("utf-8")) for path in SRC.rglob("*.py"))
    assert len(found := [str(path) for path, text in texts if word in text]) <= MOST, found


def test_every_technique_is_a_field_of_a_request_and_none_is_asked_by_default():
    assert {t.field for t in TECHNIQUES} <= set(field_names(GenerationRequest))
    assert not [t.field for t in TECHNIQUES if t.is_asked(GenerationRequest())]


PICTURES = {name: ImageInput(name.encode()) for name in "abcdefg"}
FULL = GenerationRequest(
    model="plate",
    prompt="p",
    negative_prompt="n",
    image=PICTURES["a"],
    mask=PICTURES["b"],
    controls=(Control(model="c", image=PICTURES["c"]),),
    loras=(Lora(name="l"),),
    image_prompts=(ImagePrompt(model="i", images=(PICTURES["d"], PICTURES["e"])),),
    embeddings=(Embedding(name="e"),),
    regions=(Region(prompt="r", negative_prompt="rn", mask=PICTURES["f"]),),
    ensemble=(EnsembleMember(model="m", mask=PICTURES["g"]),),
    walk=Walk(to="w"),
    upscale=Upscale(model="u"),
)


def test_every_picture_of_a_request_is_found_with_its_field():
    assert [(path, image.data.decode()) for path, image in pictures_of(FULL)] == [
        ("image", "a"),
        ("mask", "b"),
        ("controls[0].image", "c"),
        ("image_prompts[0].images[0]", "d"),
        ("image_prompts[0].images[1]", "e"),
        ("regions[0].mask", "f"),
        ("ensemble[0].mask", "g"),
    ]


def test_every_name_of_a_request_is_found_with_its_kind():
    assert set(names_of(FULL)) == {
        ("model", "model", "plate"),
        ("controls.model", "control", "c"),
        ("loras.name", "lora", "l"),
        ("image_prompts.model", "image_prompt", "i"),
        ("embeddings.name", "embedding", "e"),
        ("ensemble.model", "model", "m"),
        ("upscale.model", "upscaler", "u"),
    }
    assert set(ADAPTERS.values()) <= {kind for _, kind, _ in names_of(FULL)}


def test_every_text_that_a_model_reads_is_found():
    assert sorted(filter(None, texts_of(FULL))) == ["n", "p", "r", "rn", "w"]
    second = GenerationRequest(prompt="p", hires=Hires(prompt="h", negative_prompt="hn"))
    assert sorted(filter(None, texts_of(second))) == ["h", "hn", "p"]


def test_a_request_says_what_its_passes_are():
    (one,) = GenerationRequest(width=64).passes()
    assert (one.width, one.height, one.num_inference_steps) == (64, None, None)
    hires = Hires(scale=1.5, num_inference_steps=7)
    _, two = GenerationRequest(width=64, height=96, hires=hires).passes()
    assert (two.width, two.height, two.num_inference_steps) == (96, 144, 7)
    assert (two.steps_field, two.size_field) == ("hires.num_inference_steps", "hires.scale")


def test_every_technique_can_be_asked_for_by_a_flag_that_its_row_declares():
    verb = typer.main.get_command(app).commands["generate"]
    offered = {name: option.help for option in verb.params for name in option.opts}
    assert all(technique.flags for technique in TECHNIQUES)
    for flag in FLAGS.values():
        assert offered[flag.name].startswith(flag.about)
