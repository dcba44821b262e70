"""What is installed is pinned, hashed and listed; deploy/supply_chain.py says so."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
DIGEST = "a" * 64


@pytest.fixture(scope="module")
def chain() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chain", ROOT / "deploy" / "supply_chain.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pins_hashes_and_bill_of_materials_agree():
    command = [sys.executable, str(ROOT / "deploy" / "supply_chain.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_lint_checks_them():
    assert '"deploy/supply_chain.py", "--check"' in (ROOT / "dev").read_text()


def test_the_bill_names_every_package_by_its_url(chain):
    pins, wrong = chain.read_pins((ROOT / "constraints.txt").read_text())
    assert wrong == []
    document = json.loads((ROOT / "deploy" / "sbom.cdx.json").read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.5")
    listed = {part["name"]: part for part in document["components"]}
    assert set(listed) == set(pins)
    assert "torchvision" not in listed
    for name, part in listed.items():
        assert part["purl"].startswith(f"pkg:pypi/{name}@")
        assert all(len(one["content"]) == 64 for one in part["hashes"])


@pytest.mark.parametrize(
    ("constraints", "hashes", "message"),
    [
        ("a>=1\n", "", "'a>=1' is not NAME==VERSION"),
        ("a==1\na==1\n", f"a==1 --hash=sha256:{DIGEST}\n", "a stands there twice"),
        ("a==1\n", "", "no sha256 of a==1"),
        ("a==2\n", f"a==1 --hash=sha256:{DIGEST}\n", "has a 1, pinned is 2"),
        ("a==1\n", f"a==1 --hash=sha256:{DIGEST}\nb==1 --hash=sha256:{DIGEST}\n", "has b, which"),
    ],
)
def test_what_is_wrong_is_named(chain, constraints, hashes, message):
    pins, _ = chain.read_pins(constraints)
    sbom = chain.bill(pins, chain.read_hashes(hashes))
    assert any(message in sentence for sentence in chain.audit(constraints, hashes, sbom))


def test_a_bill_that_is_not_current_is_named(chain):
    hashes = f"a==1 --hash=sha256:{DIGEST}\n"
    assert chain.audit("a==1\n", hashes, "{}") == [
        "deploy/sbom.cdx.json is not current: run python deploy/supply_chain.py"
    ]
