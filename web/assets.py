"""Assets: builds the web page into the package, and tells whether what lies there belongs.

``built.json`` beside the built files holds a digest of the sources and one of each file,
so that a check needs no Node and no network.

    python web/assets.py           install the tools where they are missing, and build
    python web/assets.py --check   exit 1 unless the built files belong to the sources
"""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

WEB = Path(__file__).resolve().parent
BUILT = WEB.parent / "src" / "mezzotint" / "serve" / "web"
NOTE = BUILT / "built.json"
_TOP = ("index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.js")


def sources() -> list[Path]:
    """Return every file that decides what is built, in order."""
    inside = [p for folder in ("src", "public") for p in (WEB / folder).rglob("*") if p.is_file()]
    return sorted([*inside, *(WEB / name for name in _TOP)])


def digest_sources() -> str:
    """Return one sha256 over the names and bytes of the sources."""
    digest = hashlib.sha256()
    for path in sources():
        name = path.relative_to(WEB).as_posix()
        data = path.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def digest_built() -> dict[str, str]:
    """Return the sha256 of every built file, by name."""
    files = sorted(p for p in BUILT.iterdir() if p.is_file() and p != NOTE)
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def check() -> list[str]:
    """Return what does not belong together, nothing if all is well."""
    if not NOTE.is_file():
        return [f"{NOTE} is missing"]
    note = json.loads(NOTE.read_text())
    wrong: list[str] = []
    if note["sources"] != digest_sources():
        wrong.append("the sources of the page changed since it was built")
    if note["files"] != digest_built():
        wrong.append("the built files of the page were changed by something else")
    return wrong


def build() -> int:
    """Build the page and note what it was built from."""
    npm = shutil.which("npm")
    if npm is None:
        print("web: npm is needed to build the page (Node 20 or newer)", file=sys.stderr)
        return 1
    if not (WEB / "node_modules" / ".package-lock.json").is_file():
        subprocess.run([npm, "install", "--no-save"], cwd=WEB, check=True)
    subprocess.run([npm, "run", "--silent", "build"], cwd=WEB, check=True)
    note = {"sources": digest_sources(), "files": digest_built()}
    NOTE.write_text(json.dumps(note, indent=2, sort_keys=True) + "\n")
    return 0


def main() -> int:
    """Build, or check."""
    if "--check" not in sys.argv[1:]:
        return build()
    wrong = check()
    for line in wrong:
        print(f"web: {line}; run ./dev web", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
