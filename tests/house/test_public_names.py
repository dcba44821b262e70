import ast
import importlib
from pathlib import Path

import pytest

import mezzotint


def test_all_is_sorted_and_without_doubles():
    assert list(mezzotint.__all__) == sorted(set(mezzotint.__all__))


@pytest.mark.parametrize("name", mezzotint.__all__)
def test_every_public_name_can_be_had(name):
    assert getattr(mezzotint, name) is not None
    assert name in dir(mezzotint)


def test_all_is_complete():
    """Every error, every part of a request, every event of a run is public."""
    from mezzotint import errors, request

    classes = {n for n in (*errors.__all__, *request.__all__) if n[0].isupper()}
    public = set(mezzotint.__all__)
    assert classes <= public
    assert {"Engine", "Model", "TrainConfig", "Trainer", "generate", "sample"} <= public
    assert {"Started", "Stepped", "Finished", "Failed", "Cancelled"} <= public


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        mezzotint.generat  # noqa: B018


@pytest.mark.parametrize("path", sorted(Path(mezzotint.__file__).parent.rglob("*.py")), ids=str)
def test_every_modules_own_list_of_names_is_sorted_and_true(path):
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            if path.parent.name == "mezzotint" and path.name == "__init__.py":
                return
            names = ast.literal_eval(node.value)
            defined = set()
            for child in ast.walk(tree):
                if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    defined.add(child.name)
                elif isinstance(child, ast.Assign | ast.AnnAssign):
                    defined |= {t.id for t in ast.walk(child) if isinstance(t, ast.Name)}
                elif isinstance(child, ast.ImportFrom):
                    defined |= {alias.asname or alias.name for alias in child.names}
            assert set(names) <= defined
            assert len(names) == len(set(names))


def test_type_checkers_see_the_same_names():
    stub = Path(mezzotint.__file__).with_name("__init__.pyi")
    seen = {}
    for node in ast.walk(ast.parse(stub.read_text())):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = importlib.import_module(node.module).__all__ if alias.name == "*" else ()
                seen |= {name: node.module for name in whole or (alias.asname,)}
    assert {**seen, "__version__": None}.keys() == set(mezzotint.__all__)
    for name, module in seen.items():
        assert getattr(mezzotint, name) is getattr(importlib.import_module(module), name)
    assert stub.with_name("py.typed").is_file()
