import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def test_every_import_contract_holds():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert re.search(r"Contracts: \d+ kept, 0 broken", done.stdout)


def test_nothing_in_src_is_left_for_later():
    marks = re.compile(r"\b(TODO|FIXME|XXX)\b|raise NotImplementedError")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert found == []


def test_the_glossary_is_short_and_says_each_word_once():
    text = (ROOT / "docs" / "structure.md").read_text()
    lines = text.partition("## Glossary")[2].partition("\n## ")[0].splitlines()
    words = [line.split("|")[1].strip() for line in lines if line.startswith("| ")][1:]
    each = [word.strip() for words_of_row in words for word in words_of_row.split(",")]
    assert 20 <= len(words) <= 30
    assert len(set(each)) == len(each)


@pytest.mark.parametrize(
    "word", ["Engine", "Job", "Accept", "Order", "Ledger", "Kept", "Inpainting", "Plan", "Slot"]
)
def test_one_word_is_one_class(word):
    defined = re.compile(rf"^class {word}\b", re.MULTILINE)
    found = [str(p.relative_to(ROOT)) for p in SOURCES if defined.search(p.read_text())]
    assert len(found) <= 1, found


def test_nobody_seeds_a_global_generator():
    seeding = re.compile(r"\b(torch|np|numpy|random)\.(cuda\.)?(random\.)?(manual_)?seed(_all)?\(")
    found = [str(p.relative_to(ROOT)) for p in SOURCES if seeding.search(p.read_text())]
    assert found == []


def test_package_files_are_empty_so_that_words_stay_light():
    full = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path.name == "__init__.py"
        and path.parent.name != "mezzotint"
        and path.read_text().strip()
    ]
    assert full == []


def test_a_broad_except_says_in_its_line_why_it_is_one():
    broad = re.compile(r"except (\(.*)?\b(Base)?Exception\b")
    silent = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if broad.search(line) and "#" not in line
    ]
    assert silent == []
