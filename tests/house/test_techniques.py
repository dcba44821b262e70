"""A technique is declared once: few files name it, and the rest derives from its row."""

import ast
import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import typer
from tests.techniques import DISC, EXAMPLES, PHOTO

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

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "mezzotint"

NEW = {
    "src/mezzotint/techniques/parts.py": "its part of a request",
    "src/mezzotint/techniques/table.py": "its row: flag, what refuses it, where its adapters lie",
    "src/mezzotint/request.py": "its field",
    "src/mezzotint/planning/plan.py": "its place in a plan, and in the batch key if calls differ",
    "src/mezzotint/engine/execution/*.py": "its operator, where the engine asks for it",
    "web/src/techniques.ts": "its group of the form and its names in all languages",
    "tests/techniques.py": "an example, which all tests of every technique draw",
    "tests/unit/*/test_*.py": "its own test",
    "docs/techniques/*.md": "its page",
}
"""What a person writes for a new technique, and what for."""

MADE = (
    "docs/reference/request.md",
    "docs/techniques/index.md",
    "mkdocs.yml",
    "src/mezzotint/serve/web/*",
)
"""What ``./dev docs`` and ``./dev web`` write of that."""

READERS = {
    "cli/grid.py": ("a sheet takes no walk", "walk"),
    "cli/pictures.py": ("explains tokens, learnt ones too", "embeddings"),
    "cli/requests.py": ("the mode of a walk follows from its flags", "walk"),
    "planning/adapters.py": ("checks and resolves adapters", "controls embeddings loras"),
    "planning/costs.py": (
        "seconds of what is done beside a call",
        "controls ensemble image upscale",
    ),
    "planning/ensemble.py": ("weights of the members", "ensemble"),
    "planning/guidance.py": ("guess mode steers without a prompt", "controls"),
    "planning/memory.py": ("bytes of what a ControlNet reads", "controls"),
    "planning/planner.py": (
        "rules of their own: seeds, frames, masks",
        "image mask outpaint regions upscale variation walk",
    ),
    "planning/refusals.py": (
        "what a model cannot do with them",
        "image image_references mask outpaint tiling walk",
    ),
    "planning/second_pass.py": ("the whole of it", "hires"),
    "planning/sizing.py": ("the size follows the picture", "image upscale"),
    "planning/steps.py": ("strength leaves steps out", "image"),
    "planning/tiers.py": ("what turbo cannot be given", "ensemble regions tiling"),
    "serve/dialects/a1111.py": ("says them in its words", "image variation"),
    "serve/dialects/openai.py": ("says them in its words", "image image_references mask"),
    "serve/front.py": ("pixels of an answer", "upscale walk"),
    "service/fake.py": ("draws as many pictures, of that size", "upscale walk"),
    "service/finishing/inpainting.py": (
        "decodes the picture that is begun from",
        "image image_references mask outpaint",
    ),
    "service/finishing/pictures.py": (
        "decodes what adapters look at; enlarges",
        "controls image_prompts image_references upscale",
    ),
    "service/finishing/recipes.py": ("an animation says its walk", "walk"),
    "service/finishing/writer.py": ("enlarges", "upscale"),
    "service/preparing.py": ("fetches members and masks", "ensemble regions"),
    "service/provision/adapters.py": (
        "each kind of weights is read by its own reader",
        "controls embeddings image_prompts loras",
    ),
    "service/provision/loader.py": ("compiles the encoder of pictures", "image"),
    "service/provision/model_provider.py": ("gives members of an ensemble", "ensemble"),
    "service/requests.py": (
        "the request of one picture, from its plan",
        "controls embeddings image loras upscale variation walk",
    ),
    "service/workers/routing.py": ("what a worker must have", "ensemble upscale walk"),
}
"""The modules that read techniques by name beside plan and operators, each with its reason: a new
technique is read by one of these only where it is like those that stand there."""

SAID = {
    "hires": {
        "src/mezzotint/planning/second_pass.py": "its plan",
        "src/mezzotint/cli/flags.py": "the form of its flag",
        "src/mezzotint/images/readers.py": "A1111's text says it in nine keys",
        "src/mezzotint/serve/dialects/a1111.py": "A1111's bodies say it",
        "src/mezzotint/serve/dialects/a1111_techniques.py": "A1111's bodies say it",
        "src/mezzotint/serve/dialects/webui/axes.py": "labels of A1111's script",
        "docs/figures.py": "counts who names it",
        "docs/techniques/hires.md": "its page",
        "web/src/words/en.ts": "its scale is a factor, that of others a strength",
        "web/src/words/de.ts": "its scale is a factor, that of others a strength",
        "web/src/words/zh.ts": "its scale is a factor, that of others a strength",
        "docs/techniques/controlnet.md": "what a second pass means to a control picture",
        "docs/tutorials/from-a1111.md": "A1111's word for it, and ours",
        "bench/techniques.py": "predicted against measured seconds",
        "examples/technique_sheets.py": "draws the picture of its page",
        "tests/house/test_techniques.py": "this file",
        "tests/roads/golden/requests.py": "golden pictures",
        "tests/roads/test_adapters.py": "with adapters",
        "tests/roads/test_mixed_storm.py": "with all others",
        "tests/roads/test_passes.py": "its test",
        "tests/roads/test_techniques_http.py": "in A1111's words",
        "tests/system/hostile_cases.py": "of a million pixels",
        "tests/unit/images/test_readers.py": "A1111's text",
        "tests/unit/planning/test_planner.py": "its test",
        "tests/unit/planning/test_refusals.py": "which models may be asked",
        "tests/unit/planning/test_templates.py": "a template has two passes",
        "tests/unit/serve/dialects/test_a1111_techniques.py": "A1111's bodies",
        "tests/unit/serve/dialects/webui/test_axes.py": "labels of A1111's script",
        "tests/unit/serve/test_app.py": "limits hold for both passes",
        "tests/unit/serve/test_schema.py": "a limit inside a part",
        "tests/unit/service/test_requests.py": "resolved in a recipe",
        "tests/unit/test_request.py": "a text inside a part",
    },
    "image_prompts": {
        "src/mezzotint/engine/execution/adapting.py": "its operator",
        "src/mezzotint/models/adapters/ip_adapter.py": "errors of its weights name the field",
        "src/mezzotint/service/finishing/pictures.py": "decodes its pictures",
        "src/mezzotint/service/provision/adapters.py": "finds its weights",
        "docs/figures.py": "counts who names it",
        "tests/house/test_techniques.py": "this file",
        "docs/techniques/ip-adapter.md": "its page",
        "tests/parity/test_adapters.py": "against diffusers",
        "tests/parity/test_transformer_adapters.py": "against diffusers",
        "tests/properties/test_engine_properties.py": "in the cache key",
        "tests/roads/golden/requests.py": "golden pictures",
        "tests/roads/test_adapters.py": "its test",
        "tests/roads/test_mixed_storm.py": "with all others",
        "tests/roads/test_techniques_http.py": "with other adapters",
        "tests/roads/test_transformer_adapters.py": "its test on transformers",
        "tests/unit/cli/test_generate.py": "its flag",
        "tests/unit/planning/test_model_abilities.py": "which families wear it",
        "tests/unit/planning/test_planner.py": "is refused with tiling",
        "tests/unit/service/provision/test_adapters.py": "counts under the bound on weights",
    },
}
"""Where else two techniques are named at all, whose names nothing else bears, and why."""

SPOKEN = {"hires": r"\bhires\b|\bHires\b", "image_prompts": r"\bimage_prompts\b|\bImagePrompt\b"}
MOST = 10
"""Modules of src that may say such a name."""
KINDS = (".py", ".ts", ".tsx", ".md", ".yml")


def read_fields(tree):
    """Yield the fields that a file reads of a request or of a plan's techniques."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if owner in ("request", "techniques", "t", "asked", "wanted"):
                yield node.attr


def is_among(path, patterns):
    """Whether a path is one of those, with ``*`` for a name or for folders."""
    return any(fnmatch(path, pattern) for pattern in patterns)


def test_a_new_technique_is_ten_files_at_most_and_each_is_there():
    assert len(NEW) <= 10
    known = [str(path.relative_to(ROOT)) for path in sources()]
    assert [pattern for pattern in NEW if not any(is_among(p, [pattern]) for p in known)] == []


def test_techniques_are_read_where_there_is_a_reason_to():
    fields = {t.field for t in TECHNIQUES}
    found = {}
    for path in sorted(SRC.rglob("*.py")):
        named = fields & set(read_fields(ast.parse(path.read_text("utf-8"))))
        if named and not is_among(str(path.relative_to(ROOT)), NEW):
            found[str(path.relative_to(SRC))] = named
    assert found == {path: set(names.split()) for path, (_, names) in READERS.items()}


def sources():
    """Return the files of people's hands."""
    folders = (SRC, *(ROOT / f for f in ("web/src", "tests", "docs", "bench", "examples")))
    return [p for f in folders for p in sorted(f.rglob("*")) if p.suffix in KINDS]


@pytest.mark.parametrize("field", SAID)
def test_a_name_is_said_where_there_is_a_reason_to(field):
    said = re.compile(SPOKEN[field])
    found = {str(p.relative_to(ROOT)) for p in sources() if said.search(p.read_text("utf-8"))}
    everywhere = (*(path for path in NEW if "*" not in path), *MADE)
    assert {p for p in found if not is_among(p, everywhere)} == set(SAID[field])
    inside = [p for p in found if p.startswith("src/")]
    assert len(inside) <= MOST, inside


def test_every_technique_has_its_example_its_page_and_its_names():
    fields = {t.field for t in TECHNIQUES}
    assert EXAMPLES.keys() == fields
    pages = "\n".join(p.read_text("utf-8") for p in (ROOT / "docs" / "techniques").glob("*.md"))
    assert [field for field in fields if not re.search(rf"\b{field}\b", pages)] == []
    rows = (ROOT / "web" / "src" / "techniques.ts").read_text("utf-8")
    shown = re.findall(r"^  (\w+): \{ group: \"\w+\", en: \"", rows, re.MULTILINE)
    assert fields <= set(shown)
    assert set(shown) <= set(field_names(GenerationRequest))


@pytest.mark.parametrize("field", EXAMPLES)
def test_an_example_asks_for_its_technique_and_shows_its_pictures(field):
    said = {n: v for n, v in EXAMPLES[field].fields.items() if v is not None}
    request = GenerationRequest.from_dict(said)
    (technique,) = (t for t in TECHNIQUES if t.field == field)
    assert technique.is_asked(request)
    again = json.loads(request.canonical())
    assert GenerationRequest.from_dict(again) == request
    shown = {path: image.to_base64() for path, image in pictures_of(request)}
    assert shown == dict(pictures_said(said))


def pictures_said(value, path=""):
    """Yield every picture of a request in JSON with its field, by what the text is."""
    if value in (PHOTO, DISC):
        yield path, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from pictures_said(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from pictures_said(inner, f"{path}[{position}]")


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
