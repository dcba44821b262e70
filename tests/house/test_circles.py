"""No module leads back to itself, wherever its imports stand.

``lint-imports`` reads imports at the head of a file as well as inside functions, but
its contracts speak of rooms; here every import statement of every file counts.
"""

import ast
from collections import defaultdict
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src"


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, known: set[str]) -> set[str]:
    """Return the modules of this project that any statement of a file imports."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & known
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found |= {full if full in known else node.module} & known
    return found


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that can all reach each other (Tarjan 1972)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = lowest[name] = len(index)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in index:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], index[other])
        if lowest[name] == index[name]:
            start = stack.index(name)
            group = stack[start:]
            del stack[start:]
            if len(group) > 1 or name in edges[name]:
                groups.append(sorted(group))

    for name in sorted(edges):
        if name not in index:
            visit(name)
    return groups


def read_edges() -> dict[str, set[str]]:
    trees = {module_name(p): ast.parse(p.read_text()) for p in SOURCE.rglob("*.py")}
    edges: dict[str, set[str]] = defaultdict(set)
    for name, tree in trees.items():
        edges[name] = imports(tree, set(trees))
    return edges


def test_a_planted_circle_inside_a_function_is_found():
    known = {"a", "b", "c"}
    edges = {
        "a": imports(ast.parse("import b"), known),
        "b": imports(ast.parse("def f():\n    def g():\n        from c import x"), known),
        "c": imports(ast.parse("class C:\n    def m(self):\n        import a"), known),
    }
    assert circles(edges) == [["a", "b", "c"]]


def test_no_module_leads_back_to_itself():
    assert circles(read_edges()) == []


def test_folders_and_files_can_be_read():
    """A folder holds at most 20 modules, a module at most 500 lines."""
    sources = [p for p in SOURCE.rglob("*.py") if p.name != "__init__.py"]
    counts: dict[str, int] = defaultdict(int)
    for path in sources:
        counts[str(path.parent.relative_to(SOURCE))] += 1
    assert {folder: n for folder, n in counts.items() if n > 20} == {}
    lines = {str(p.relative_to(SOURCE)): len(p.read_text().splitlines()) for p in sources}
    assert {name: n for name, n in lines.items() if n > 500} == {}
