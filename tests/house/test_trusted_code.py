"""No call loads a stranger's code: each says so, and classes are found by name in one place."""

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src" / "mezzotint"
LOADERS = ("from_pretrained", "from_config")
HOME = "models/exported.py"
EMBEDDING = "nn.Embedding"  # torch's from_pretrained takes a table, and no other argument


def untrusting(call: ast.Call) -> bool:
    return any(
        word.arg == "trust_remote_code"
        and isinstance(word.value, ast.Constant)
        and word.value.value is False
        for word in call.keywords
    )


def faults(name: str, text: str) -> Iterator[str]:
    """Name the calls that say nothing of remote code, or look a class up by a word."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        place = f"{name}:{node.lineno}"
        called = node.func
        is_loader = isinstance(called, ast.Attribute) and called.attr in LOADERS
        if is_loader and ast.unparse(called.value) != EMBEDDING and not untrusting(node):
            yield f"{place} calls {called.attr} without trust_remote_code=False"
        looks_up = isinstance(called, ast.Name) and called.id == "getattr" and name != HOME
        if looks_up and ast.unparse(node.args[0]) in ("diffusers", "transformers"):
            yield f"{place} takes a class by name; exported_class is there for that"


def test_every_call_that_loads_says_that_no_code_is_trusted():
    files = {path.relative_to(SOURCE).as_posix(): path for path in SOURCE.rglob("*.py")}
    found = [fault for name, path in files.items() for fault in faults(name, path.read_text())]
    assert found == []
    loading = [name for name, path in files.items() if f".{LOADERS[0]}(" in path.read_text()]
    assert len(loading) > 8


def test_calls_that_say_nothing_are_found():
    assert list(faults("a.py", "A.from_pretrained(folder)")) == [
        "a.py:1 calls from_pretrained without trust_remote_code=False"
    ]
    assert list(faults("a.py", "A.from_config(c, trust_remote_code=True)")) != []
    assert list(faults("a.py", "A.from_pretrained(f, trust_remote_code=trusted)")) != []
    assert list(faults("a.py", "getattr(diffusers, name)")) != []
    assert list(faults("a.py", "A.from_pretrained(f, trust_remote_code=False)")) == []
    assert list(faults("a.py", "nn.Embedding.from_pretrained(table)")) == []
