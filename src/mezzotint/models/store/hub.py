"""Hub: models by id, at one commit, as data.

Only safetensors, JSON and tokenizer texts are fetched, and code in a repository
never runs. Once fetched, a model is used without a network; which commit it is
stands in its card, so that a name means the same bytes tomorrow.
"""

import os
import re
import socket
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from mezzotint.errors import ModelNotAllowed, WeightsError
from mezzotint.models.cards import CARDS_FOLDER, Card, read_card

__all__ = ["fetch", "known_card"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors")
_LEFT_OUT = (
    # whole checkpoints beside the folders, and parts that no family uses
    "*.non_ema.safetensors",
    "safety_checker/*",
    "feature_extractor/*",
    "*openvino*",
    "*onnx*",
    "*flax*",
)


@cache
def hub_cards() -> dict[str, Card]:
    """Return the cards of well-known Hub models by id, in lower case."""
    cards = (read_card(path) for path in sorted((CARDS_FOLDER / "hub").glob("*.toml")))
    return {card.repo.lower(): card for card in cards}


def known_card(repo: str) -> Card | None:
    """Return what is known of a Hub model: its defaults, its licence."""
    return hub_cards().get(repo.lower())


def fetch(repo: str, revision: str | None = None, *, allow: bool = True) -> tuple[Path, str]:
    """Return the folder of a Hub model and the commit it is at.

    What is on disk already is used without asking the network.

    Args:
        repo: ``"owner/name"``.
        revision: Commit, tag or branch; None is the newest commit that is on
            disk, or else the newest there is.
        allow: Whether the network may be used.

    Raises:
        WeightsError: If the model is not on disk and cannot be fetched; says what
            to do.
        ModelNotAllowed: If it is not on disk and fetching is not allowed.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted = {"repo_id": repo, "revision": revision}
    try:
        return _at_commit(snapshot_download(**wanted, local_files_only=True))
    except HFValidationError as error:
        raise WeightsError(f"{repo!r} is no Hub id: {error}") from None
    except LocalEntryNotFoundError:
        if not allow:
            raise ModelNotAllowed(
                f"{repo} is not on this machine, and fetching models is not allowed here"
            ) from None
    try:
        _look_up_hub()
        path = snapshot_download(
            **wanted, allow_patterns=list(_PATTERNS), ignore_patterns=list(_LEFT_OUT)
        )
    except GatedRepoError:
        raise WeightsError(
            f"{repo} is gated: accept its licence on its page, then run `hf auth login`"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at {revision}" if revision else ""
        raise WeightsError(f"the Hub has no {repo}{at}: {_first_line(error)}") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        at = f"@{revision}" if revision else ""
        raise WeightsError(
            f"{repo}{at} is not on this machine and the Hub cannot be reached "
            f"({_first_line(error)}). On a machine with a network run `hf download {repo}`, copy "
            "the folder here and name it by its path, or set HF_ENDPOINT to a mirror"
        ) from None
    return _at_commit(path)


def _look_up_hub() -> None:
    """Find the Hub's address once: without a network the library would ask for over a minute.

    Raises:
        OSError: If its name cannot be resolved.
    """
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
