"""Checkpoints: the whole state of a run, whole or absent.

A checkpoint is a folder ``step-00001000`` with ``state.safetensors`` and
``state.json``. It is written beside its place and renamed, so a kill or a full
disk leaves the older ones as they were. It is read back only if its digest is
right; a damaged one is passed over for the one before.
"""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mezzotint.errors import InvalidRequest, WeightsError
from mezzotint.files import digest_file, write_atomically
from mezzotint.plain import is_dict, is_list
from mezzotint.train.config.config import TrainConfig
from mezzotint.train.config.model import DataConfig

__all__ = ["CheckpointStore", "Restored", "check_same_run", "pack", "unpack"]

_FORMAT = 1


def pack(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Part a tree of dicts and lists into plain data and named tensors.

    Returns:
        Plain data that JSON can hold, and the tensors it refers to.
    """
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = f"t{len(tensors):06d}"
            kept = value.detach().contiguous()
            where = kept.untyped_storage().data_ptr()
            tensors[name] = kept.clone() if where in seen or where == 0 else kept
            seen.add(where)
            return {"$tensor": name}
        if is_dict(value):
            return {"$items": [[key, walk(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return [walk(item) for item in cast("Sequence[Any]", value)]
        return value

    return walk(tree), tensors


def unpack(plain: Any, tensors: dict[str, Tensor]) -> Any:
    """Put together what :func:`pack` parted; tuples come back as lists."""
    if is_dict(plain):
        if "$tensor" in plain:
            return tensors[plain["$tensor"]]
        return {key: unpack(item, tensors) for key, item in plain["$items"]}
    if is_list(plain):
        return [unpack(item, tensors) for item in plain]
    return plain


@dataclass(frozen=True, slots=True)
class Restored:
    """A checkpoint that was read back: its step, its state, the run it belongs to."""

    step: int
    state: dict[str, Any]
    deciding: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run folder.

    Args:
        folder: Where they are.
        keep: How many of the newest stay.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder, self._keep = Path(folder), keep

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, rising."""
        found: list[int] = []
        for path in self._folder.glob("step-*"):
            with contextlib.suppress(ValueError):
                found.append(int(path.name.removeprefix("step-")))
        return sorted(found)

    def save(self, step: int, state: dict[str, Any], config: TrainConfig) -> Path:
        """Write a checkpoint and let go of the oldest.

        Raises:
            OSError: If it cannot be written; nothing of it is left behind.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        plain, tensors = pack(state)
        target = self._folder / f"step-{step:08d}"
        with _partial_folder(target) as partial:
            save_file(tensors, partial / "state.safetensors")
            _sync(partial / "state.safetensors")
            about = {
                "format": _FORMAT,
                "step": step,
                "torch": torch.__version__,
                "deciding": config.deciding(),
                "sha256": digest_file(partial / "state.safetensors"),
                "state": plain,
            }
            write_atomically(partial / "state.json", json.dumps(about).encode())
        for old in self.steps()[: -self._keep]:
            shutil.rmtree(self._folder / f"step-{old:08d}", ignore_errors=True)
        return target

    def drop_oldest(self) -> bool:
        """Make room by removing the oldest checkpoint but never the last one."""
        steps = self.steps()
        if len(steps) < 2:
            return False
        shutil.rmtree(self._folder / f"step-{steps[0]:08d}", ignore_errors=True)
        return True

    def load_newest(self) -> tuple[Restored | None, list[str]]:
        """Read the newest checkpoint that is whole.

        Returns:
            The checkpoint, or None if there is none, and a sentence for each
            damaged one that was passed over.

        Raises:
            WeightsError: If there are checkpoints and every one is damaged.
        """
        damaged: list[str] = []
        for step in reversed(self.steps()):
            try:
                return self._load(step), damaged
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                damaged.append(
                    f"checkpoint step-{step:08d} is damaged and was passed over: {error}"
                )
        if damaged:
            raise WeightsError("; ".join(damaged))
        return None, damaged

    def _load(self, step: int) -> Restored:
        folder = self._folder / f"step-{step:08d}"
        about = json.loads((folder / "state.json").read_text("utf-8"))
        if digest_file(folder / "state.safetensors") != about["sha256"]:
            raise ValueError("its digest is wrong")
        tensors = load_file(folder / "state.safetensors")
        return Restored(about["step"], unpack(about["state"], tensors), about["deciding"])

    def _sweep(self) -> None:
        """Remove what a killed run left half-written."""
        for path in self._folder.glob(".*.partial"):
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _partial_folder(target: Path) -> Generator[Path]:
    """Give a folder beside ``target`` that takes its place on success."""
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir()
    try:
        yield partial
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until a file is on the disk, so that a full disk is noticed here."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def check_same_run(restored: Restored, config: TrainConfig) -> None:
    """Refuse to go on with another configuration than the checkpoint's.

    Raises:
        InvalidRequest: Names the fields that differ and both values.
    """
    asked = json.loads(json.dumps(config.deciding()))
    # A field that is younger than the checkpoint was what its default is.
    plain = TrainConfig(
        output_dir="x", data=DataConfig(path="x"), kind=config.kind, base=config.base
    )
    was = {**json.loads(json.dumps(plain.deciding())), **restored.deciding}
    differing = [name for name in {**was, **asked} if was.get(name) != asked.get(name)]
    if differing:
        name = differing[0]
        more = f" (and {', '.join(differing[1:4])})" if len(differing) > 1 else ""
        raise InvalidRequest(
            f"{config.output_dir} was begun with another configuration: {name} was "
            f"{was.get(name)!r} and is {asked.get(name)!r}{more}; resume with the old value or "
            "choose another output_dir",
            field=name,
            value=asked.get(name),
            allowed=repr(was.get(name)),
        )
