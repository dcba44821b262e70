"""Signatures: who made a picture, said by an Ed25519 key inside its file.

A recipe proves that a picture can be made again, and anybody can do that. A signature is
over every byte of the file without it, pixels and recipe included, so it proves that
whoever holds the private key wrote this file. It stands where the format has room for
words, at one place, and is taken out before the file is compared with anything.

Source: RFC 8032 (Ed25519), RFC 5958 (PKCS #8).
"""

import base64
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mezzotint.errors import InvalidRequest
from mezzotint.files import write_atomically
from mezzotint.images.config import ImageConfig
from mezzotint.request import Output
from mezzotint.textchunks import gif_comments, mp4_box, png_chunk

__all__ = [
    "Signature",
    "check_can_sign",
    "check_signature",
    "load_signing_key",
    "make_key_pair",
    "read_trusted_keys",
    "sign_file",
    "split_signature",
]

_KEYWORD = "mezzotint-signature"
_TAG = _KEYWORD.encode() + b"\0"
_CHUNK = b"MZSG"
_PURPOSE = b"mezzotint picture signature, version 1\0"
_ALGORITHM = "ed25519"


class Signature(NamedTuple):
    """What a file's signature says.

    Args:
        status: ``unsigned``; ``known`` and ``unknown`` are right ones, by a trusted key and by
            another; ``broken`` fits neither the file nor the form.
        name: Who the trusted key belongs to, "" otherwise.
        key: The public key in base64, "" where there is none.
    """

    status: Literal["unsigned", "known", "unknown", "broken"]
    name: str = ""
    key: str = ""


def make_key_pair(path: Path, name: str) -> str:
    """Write a new private key, readable by its owner alone, and its public line beside it.

    Args:
        path: PEM file to write; ``.pub`` is added for the public line.
        name: Who signs with it; one word.

    Returns:
        The public line: algorithm, key in base64, name.

    Raises:
        InvalidRequest: If the file exists, or the name is not one word.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not name.isprintable() or len(name.split()) != 1:
        raise InvalidRequest(f"--name must be one word, got {name!r}", field="--name")
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise InvalidRequest(
            f"--output {path} exists; a key is never overwritten", field="--output"
        ) from None
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(pem)
    line = f"{_ALGORITHM} {_public_text(key)} {name}"
    write_atomically(path.with_name(path.name + ".pub"), f"{line}\n".encode())
    return line


def _public_text(key: Any) -> str:
    return base64.b64encode(key.public_key().public_bytes_raw()).decode("ascii")


def check_can_sign(output: Output, config: ImageConfig) -> None:
    """Refuse a signature that was asked for and could not be made, before a picture is drawn.

    Raises:
        InvalidRequest: If there is no key, or no recipe to sign with the picture.
    """
    if not output.sign:
        return
    if not config.signing_key:
        raise InvalidRequest(
            "output.sign needs a key: `mezzotint keys sign` makes one, images.signing_key names it",
            field="output.sign",
        )
    if not output.metadata:
        raise InvalidRequest(
            "output.sign signs a picture and its recipe: it needs output.metadata true",
            field="output.sign",
        )
    load_signing_key(Path(config.signing_key))


def load_signing_key(path: Path) -> Any:
    """Read a private key that :func:`make_key_pair` wrote.

    Raises:
        InvalidRequest: If it cannot be read, or is no Ed25519 key.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    expected = f"images.signing_key must name an Ed25519 key of `mezzotint keys sign`, got {path}"
    try:
        key = serialization.load_pem_private_key(Path(path).expanduser().read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise InvalidRequest(f"{expected}: {error}", field="images.signing_key") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidRequest(expected, field="images.signing_key")
    return key


def read_trusted_keys(path: Path) -> dict[str, str]:
    """Read public lines: the name of each key, by the key in base64.

    Raises:
        InvalidRequest: If the file cannot be read or holds a line of another form.
    """
    try:
        lines = Path(path).expanduser().read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"cannot read trusted keys {path}: {error}", field="--trusted"
        ) from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if len(words) != 3 or words[0] != _ALGORITHM:
            raise InvalidRequest(
                f"{path}, line {number}: expected `{_ALGORITHM} KEY NAME`", field="--trusted"
            )
        found[words[1]] = words[2]
    return found


def sign_file(data: bytes, key: Any) -> bytes:
    """Sign an encoded picture; equal files and keys give equal bytes.

    Args:
        data: PNG, JPEG, WebP, GIF or MP4, without a signature.
        key: As :func:`load_signing_key` gives it.
    """
    signature = base64.b64encode(key.sign(_PURPOSE + data)).decode("ascii")
    text = json.dumps({"key": _public_text(key), "signature": signature}, separators=(",", ":"))
    return _insert(data, text)


def _insert(data: bytes, text: str) -> bytes:
    """Put a text into a file at the one place that its format has for signatures."""
    body = _TAG + text.encode("ascii")
    if data.startswith(b"\x89PNG"):
        return data[:-12] + png_chunk(b"tEXt", body) + data[-12:]
    if data.startswith(b"\xff\xd8"):
        place = 4 + int.from_bytes(data[4:6], "big")  # behind SOI and APP0
        segment = b"\xff\xea" + struct.pack(">H", len(body) + 2) + body
        return data[:place] + segment + data[place:]
    if data.startswith(b"GIF8"):
        return data[:-1] + gif_comments({_KEYWORD: text}) + data[-1:]
    if data[4:8] == b"ftyp":
        return data + mp4_box({_KEYWORD: text})
    chunk = _CHUNK + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
    whole = data + chunk
    return whole[:4] + struct.pack("<I", len(whole) - 8) + whole[8:]


def split_signature(data: bytes) -> tuple[bytes, str | None]:
    """Return a file without its signature, and the signature's text.

    A signature at another place than the one that is written to is none: the file stays
    whole, and None is returned.
    """
    place = data.rfind(_TAG)
    if place < 0:
        return data, None
    # The text ends with the first closing brace: base64 holds none.
    end = data.find(b"}", place) + 1
    text = data[place + len(_TAG) : end].decode("ascii", "replace")
    overhead = len(_insert(_EMPTY.get(data[:2], _EMPTY[b"RI"]), text)) - len(
        _EMPTY.get(data[:2], _EMPTY[b"RI"])
    )
    for before in (8, 4, 3, 28):  # bytes of each format's block in front of the tag
        start = place - before
        plain = data[:start] + data[start + overhead :]
        if plain[:4] == b"RIFF":
            plain = plain[:4] + struct.pack("<I", len(plain) - 8) + plain[8:]
        if start > 0 and len(plain) > 16 and text.isascii() and _insert(plain, text) == data:
            return plain, text
    return data, None


# Any file of a kind, to measure how long its block for a signature is.
_EMPTY: Mapping[bytes, bytes] = {
    b"\x89P": b"\x89PNG" + b"\0" * 20,
    b"\xff\xd8": b"\xff\xd8\xff\xe0\0\x02",
    b"GI": b"GIF89a;",
    b"\0\0": b"\0\0\0\x08ftyp",
    b"RI": b"RIFF\0\0\0\0WEBP",
}


def check_signature(data: bytes, trusted: Mapping[str, str]) -> Signature:
    """Check the signature of a file.

    Args:
        data: The file.
        trusted: Names by public key, as :func:`read_trusted_keys` gives them.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    plain, text = split_signature(data)
    if text is None:
        return Signature("broken" if _TAG in data else "unsigned")
    try:
        fields = json.loads(text)
        shown = str(fields["key"])
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(shown, validate=True))
        key.verify(base64.b64decode(str(fields["signature"]), validate=True), _PURPOSE + plain)
    except (ValueError, KeyError, TypeError, InvalidSignature):
        return Signature("broken")
    if shown in trusted:
        return Signature("known", trusted[shown], shown)
    return Signature("unknown", "", shown)
