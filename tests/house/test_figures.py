"""The figures of the house: what a plain request walks through stays bounded."""

import ast

import pytest
from docs.figures import PICTURE, REQUEST, SOURCE, walked


@pytest.mark.parametrize("name", [*REQUEST, *PICTURE])
def test_every_form_that_is_counted_is_there(name):
    module, _, form = name.rpartition(".")
    tree = ast.parse((SOURCE / f"{module.replace('.', '/')}.py").read_text())
    assert form in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


@pytest.mark.slow
def test_a_plain_request_walks_from_the_door_to_the_bytes_through_few_modules():
    entered = walked()
    assert {"serve/dialects/openai.py", "planning/templates.py", "images/codec.py"} <= set(entered)
    assert len(entered) <= 104, entered
