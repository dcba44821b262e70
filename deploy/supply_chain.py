"""Supply chain: what is installed, as a list that others can read, and whether it is true.

``constraints.txt`` names every package with its version; ``deploy/hashes.txt`` has the
sha256 of the files that the tests ran with (Linux, x86-64, CPython 3.11);
``deploy/sbom.cdx.json`` says both in CycloneDX 1.5. Nothing here uses the network.

    python deploy/supply_chain.py                  write sbom.cdx.json
    python deploy/supply_chain.py --check          exit 1 unless all three agree
    python deploy/supply_chain.py --hashes REPORT  write hashes.txt from pip's report, made by
        pip install --dry-run --ignore-installed --no-deps --report REPORT -r constraints.txt
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
HASHES = ROOT / "deploy" / "hashes.txt"
SBOM = ROOT / "deploy" / "sbom.cdx.json"

NEVER = frozenset({"torchvision"})
"""Pinned to a version that does not exist, so that it cannot come in."""

_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.+!_-]*)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def normal(name: str) -> str:
    """Return a package's name as indexes write it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(text: str) -> tuple[dict[str, str], list[str]]:
    """Read constraints.

    Returns:
        Version by name, what may never come in left out; and what is wrong, one
        sentence each.
    """
    pins: dict[str, str] = {}
    wrong: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        pin = line.partition("#")[0].strip()
        if not pin:
            continue
        found = _PIN.fullmatch(pin)
        if found is None:
            wrong.append(f"constraints.txt, line {number}: {pin!r} is not NAME==VERSION")
            continue
        name = normal(found[1])
        if name in pins:
            wrong.append(f"constraints.txt, line {number}: {name} stands there twice")
        if name not in NEVER:
            pins[name] = found[2]
    return dict(sorted(pins.items())), wrong


def read_hashes(text: str) -> dict[str, tuple[str, list[str]]]:
    """Read version and sha256 digests by name from a file of pip's requirements."""
    found: dict[str, tuple[str, list[str]]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        pin = _PIN.match(line)
        if pin is not None:
            found[normal(pin[1])] = (pin[2], sorted(_HASH.findall(line)))
    return found


def hashes_of(report: Mapping[str, Any]) -> str:
    """Return the hashes file of what pip reports that it would install."""
    lines = [
        "# sha256 of the files that the tests ran with: Linux, x86-64, CPython 3.11.",
        "# pip install --require-hashes --no-deps -r deploy/hashes.txt installs no others;",
        "# torch is the build of the index of CPU builds.",
    ]
    rows: list[str] = []
    for item in report["install"]:
        meta, archive = item["metadata"], item["download_info"]["archive_info"]
        digest = archive["hashes"]["sha256"]
        rows.append(f"{normal(meta['name'])}=={meta['version']} --hash=sha256:{digest}")
    return "\n".join([*lines, *sorted(rows)]) + "\n"


def bill(pins: Mapping[str, str], hashes: Mapping[str, tuple[str, list[str]]]) -> str:
    """Return the bill of materials as CycloneDX 1.5, the same bytes for the same pins."""
    components: list[dict[str, Any]] = []
    for name, version in pins.items():
        purl = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
        component: dict[str, Any] = {
            "type": "library",
            "bom-ref": purl,
            "name": name,
            "version": version,
            "purl": purl,
        }
        digests = hashes[name][1] if name in hashes else []
        if digests:
            component["hashes"] = [{"alg": "SHA-256", "content": digest} for digest in digests]
        components.append(component)
    about = {"type": "application", "bom-ref": "mezzotint", "name": "mezzotint"}
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": about},
        "components": components,
    }
    return json.dumps(document, indent=1) + "\n"


def audit(constraints: str, hashes: str, sbom: str) -> list[str]:
    """Return what is wrong with the three files, one sentence each."""
    pins, wrong = read_pins(constraints)
    known = read_hashes(hashes)
    for name, version in pins.items():
        if name not in known or not known[name][1]:
            wrong.append(f"deploy/hashes.txt has no sha256 of {name}=={version}")
        elif known[name][0].partition("+")[0] != version.partition("+")[0]:  # torch's +cpu
            wrong.append(f"deploy/hashes.txt has {name} {known[name][0]}, pinned is {version}")
    wrong += [f"deploy/hashes.txt has {name}, which nothing pins" for name in known.keys() - pins]
    if bill(pins, known) != sbom:
        wrong.append("deploy/sbom.cdx.json is not current: run python deploy/supply_chain.py")
    return wrong


def main(arguments: list[str]) -> int:
    """Write or check."""
    if arguments[:1] == ["--hashes"]:
        HASHES.write_text(hashes_of(json.loads(Path(arguments[1]).read_text())))
        arguments = []
    texts = [path.read_text() if path.is_file() else "" for path in (CONSTRAINTS, HASHES, SBOM)]
    if arguments == ["--check"]:
        wrong = audit(*texts)
        for sentence in wrong:
            print(sentence, file=sys.stderr)
        return 1 if wrong else 0
    pins, _ = read_pins(texts[0])
    SBOM.write_text(bill(pins, read_hashes(texts[1])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
