"""Hub: models by id, at one commit, as data.

Only safetensors, JSON and tokenizer texts are fetched, and code in a repository
never runs. Once fetched, a model is used without a network; which commit it is
stands in its card, so that a name means the same bytes tomorrow.
"""

import contextlib
import os
import re
from collections.abc import Generator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mezzotint.errors import ModelNotAllowed, WeightsError
from mezzotint.models.cards import CARDS_FOLDER, Card, read_card
from mezzotint.models.parts import read_json
from mezzotint.models.reading import refuse_special

__all__ = ["cached_snapshot", "fetch", "fetch_file", "files_that_load", "known_card"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILE = re.compile(r"(?P<repo>[^/]+/[^/]+)(?:/(?P<file>.+\.safetensors))?")
_TEXTS = (".json", ".txt", ".model")
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?P<rest>[.-].*)?\.safetensors(?:\.index(?P<kind>\..+)?\.json)?"
)
_NEVER = ("safety_checker", "feature_extractor")  # gates take the former's place
_OTHERWISE = ("*.json", "*.txt", "*.model", "*.safetensors")  # a repository of no pipeline


@cache
def hub_cards() -> dict[str, Card]:
    """Return the cards of well-known Hub models by id, in lower case."""
    cards = (read_card(path) for path in sorted((CARDS_FOLDER / "hub").glob("*.toml")))
    return {card.repo.lower(): card for card in cards}


def known_card(repo: str) -> Card | None:
    """Return what is known of a Hub model: its defaults, its licence."""
    return hub_cards().get(repo.lower())


def cached_snapshot(path: Path) -> Path | None:
    """Return the model inside a repository's folder of the Hub's cache, None for another folder.

    Args:
        path: ``.../models--owner--name``; its ``main`` is taken, or else the newest.
    """
    snapshots = path / "snapshots"
    if not path.name.startswith("models--") or not snapshots.is_dir():
        return None
    refuse_special(path / "refs" / "main")
    with contextlib.suppress(OSError):
        main = snapshots / (path / "refs" / "main").read_text().strip()
        if main.is_dir():
            return main
    return max(snapshots.iterdir(), key=lambda p: p.stat().st_mtime_ns, default=None)


def files_that_load(
    names: Sequence[str], index: Mapping[str, Any], variant: str | None = None
) -> list[str]:
    """Choose the files of a repository that loading its pipeline reads.

    Whole checkpoints beside the folders, other precisions, pickles and parts that no family
    uses stay where they are. A GGUF file is read where a folder has one, and no safetensors.

    Args:
        names: Every file of the repository.
        index: Its ``model_index.json``.
        variant: Set of weights; None takes the plain ones, or what there is where there
            are none.
    """
    chosen = [name for name in names if name == "model_index.json"]
    parts = {k for k, v in index.items() if isinstance(v, list) and v and v[0] is not None}
    for role in sorted(parts - {*_NEVER} | {"preview_decoder"}):
        own = [n for n in names if n.startswith(f"{role}/") and n.count("/") == 1]
        weights = {n: _kind(match) for n in own if (match := _WEIGHTS.fullmatch(n.split("/")[1]))}
        kinds = {*weights.values()}
        plain = None if None in kinds else min((k for k in kinds if k), default=None)
        wanted = variant if variant in kinds else plain
        chosen += [n for n in own if n.endswith(_TEXTS) and n not in weights]
        chosen += [n for n, kind in weights.items() if kind == wanted]
        packed = [n for n in own if n.endswith(".gguf")]
        chosen += packed if len(packed) == 1 and not weights else []
    return chosen


def _kind(match: re.Match[str]) -> str | None:
    """Return ``fp16`` of ``model.fp16.safetensors``, its shards and their index."""
    rest = re.sub(r"-\d+-of-\d+", "", match["rest"] or "") + (match["kind"] or "")
    return rest.strip(".") or None


def fetch(
    repo: str, revision: str | None = None, *, variant: str | None = None, allow: bool = True
) -> tuple[Path, str]:
    """Return the folder of a Hub model and the commit it is at.

    What is on disk already is used without asking the network.

    Args:
        repo: ``"owner/name"``.
        revision: Commit, tag or branch; None is the newest commit that is on
            disk, or else the newest there is.
        variant: Set of weights to fetch, see :func:`files_that_load`.
        allow: Whether the network may be used.

    Raises:
        WeightsError: If the model is not on disk and cannot be fetched; says what
            to do.
        ModelNotAllowed: If it is not on disk and fetching is not allowed.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with _telling(repo, revision):
        try:
            return _at_commit(snapshot_download(repo, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError:
            _may_fetch(repo, allow)
        patterns = _patterns(repo, revision, variant)
        path = snapshot_download(repo, revision=revision, allow_patterns=patterns)
    return _at_commit(path)


def fetch_file(source: str, *, allow: bool) -> Path:
    """Return one safetensors file of a Hub repository.

    What is on disk already is used without asking the network.

    Args:
        source: ``OWNER/NAME``, of a repository with one such file, or ``OWNER/NAME/FILE``.
        allow: Whether it may be fetched; what is on disk is used anyhow.

    Raises:
        WeightsError: If it is no such name, or not on disk and cannot be fetched.
        ModelNotAllowed: If it is not on disk and fetching is not allowed.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    match = _FILE.fullmatch(source)
    if match is None:
        raise WeightsError(
            f"{source[:200]!r} is neither a file here nor a file of the Hub (OWNER/NAME or "
            "OWNER/NAME/FILE.safetensors)"
        )
    repo, name = match["repo"], match["file"] or ""
    with _telling(repo, None):
        if not name:
            try:
                folder = Path(snapshot_download(repo, local_files_only=True))
                found = [str(p.relative_to(folder)) for p in folder.rglob("*.safetensors")]
            except LocalEntryNotFoundError:
                _may_fetch(repo, allow)
                found = [n for n in HfApi().list_repo_files(repo) if n.endswith(".safetensors")]
            name = _only(repo, found)
        try:
            return Path(hf_hub_download(repo, name, local_files_only=True))
        except LocalEntryNotFoundError:
            _may_fetch(repo, allow)
            return Path(hf_hub_download(repo, name))


def _may_fetch(repo: str, allow: bool) -> None:
    """Refuse to ask the Hub where that is not allowed, or where it is not known by name."""
    if not allow:
        raise ModelNotAllowed(
            f"{repo} is not on this machine, and fetching models is not allowed here"
        ) from None
    _look_up_hub()


def _only(repo: str, names: Sequence[str]) -> str:
    """Return the one file there is, or that diffusers would take."""
    if len(names) == 1:
        return names[0]
    shown = ", ".join(sorted(names)[:5]) or "none"
    raise WeightsError(
        f"{repo} must hold one .safetensors file, it holds {len(names)} ({shown}): name one as "
        f"{repo}/FILE.safetensors"
    )


@contextlib.contextmanager
def _telling(repo: str, revision: str | None) -> Generator[None]:
    """Tell what the Hub or its library refuses, in one line.

    Raises:
        WeightsError: If the model is not on disk and cannot be fetched.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except HFValidationError as error:
        raise WeightsError(f"{repo!r} is no Hub id: {error}") from None
    except GatedRepoError:
        raise WeightsError(
            f"{repo} is gated: accept its licence on its page, then run `hf auth login`"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at {revision}" if revision else ""
        raise WeightsError(f"the Hub has no {repo}{at}: {_first_line(error)}") from None
    except RemoteEntryNotFoundError as error:
        raise WeightsError(f"{repo} has no such file: {_first_line(error)}") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        at = f"@{revision}" if revision else ""
        raise WeightsError(
            f"{repo}{at} is not on this machine and the Hub cannot be reached "
            f"({_first_line(error)}). On a machine with a network run `hf download {repo}`, copy "
            "the folder here and name it by its path, or set HF_ENDPOINT to a mirror"
        ) from None


def _patterns(repo: str, revision: str | None, variant: str | None) -> list[str]:
    """Ask the Hub which files there are, and choose."""
    from huggingface_hub import HfApi, hf_hub_download

    names = HfApi().list_repo_files(repo, revision=revision)
    if "model_index.json" not in names:
        return list(_OTHERWISE)
    index = read_json(Path(hf_hub_download(repo, "model_index.json", revision=revision)))
    return files_that_load(names, index, variant)


def _look_up_hub() -> None:
    """Find the Hub's address once: without a network the library would ask for over a minute.

    Raises:
        OSError: If its name cannot be resolved.
    """
    import socket
    from urllib.request import getproxies

    from huggingface_hub import constants

    if getproxies():  # then the proxy resolves names
        return
    address = urlsplit(constants.ENDPOINT)
    socket.getaddrinfo(address.hostname, address.port or 443)


def _at_commit(path: str) -> tuple[Path, str]:
    """Split the cache's folder name, which is the commit."""
    folder = Path(path)
    return folder, folder.name if _COMMIT.fullmatch(folder.name) else ""


def _first_line(error: Exception) -> str:
    text = str(error).strip() or os.strerror(getattr(error, "errno", None) or 0)
    return text.splitlines()[0][:160]
