"""Canonical files: whether a file holds a picture of ours, its recipe, and nothing else.

Equal pixels and texts give equal bytes here, so a file can be held against the one that
would be written: what was swapped in (another A1111 text, a colour profile, an alpha
channel), or hung on behind, is named. Pixels are not decoded.
"""

import struct
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from mezzotint.errors import ImageError
from mezzotint.images.metadata import canonical_json, make_infotext, read_recipe
from mezzotint.infotext import parse_infotext
from mezzotint.textchunks import (
    PARAMETERS,
    RECIPE,
    gif_comments,
    jpeg_segments,
    make_exif,
    mp4_box,
    png_chunks,
    read_texts,
)

__all__ = ["canonical_file", "name_differences", "program_of"]

_PIXELS = {"IDAT", "fdAT", "VP8 ", "VP8L", "ANMF", "scan", "frames", "mdat"}
"""Blocks that hold compressed pixels."""
_MAX_SHOWN = 8


class _Block(NamedTuple):
    """One block of a file: what it is called, and all of its bytes."""

    kind: str
    data: bytes


def canonical_file(data: bytes, recipe: Mapping[str, Any], made: bytes) -> bytes:
    """Return the file that this program would write for a picture.

    Args:
        data: The file under examination; it says only which version of the program
            wrote A1111's text.
        recipe: Its recipe.
        made: The file of the picture that the recipe made here; its texts are replaced
            by those of ``recipe``, its pixels stay.

    Raises:
        ImageError: If ``made`` carries no texts.
    """
    before = read_texts(made)
    own, own_recipe = before.get(PARAMETERS, ""), read_recipe(made)
    if own_recipe is None:
        raise ImageError("the picture that was made again carries no recipe to compare with")
    has_steps = own == make_infotext(own_recipe, has_steps=True, version=program_of(made))
    after = {
        PARAMETERS: make_infotext(recipe, has_steps=has_steps, version=program_of(data)),
        RECIPE: canonical_json(recipe),
    }
    return _with_texts(made, before, after)


def program_of(data: bytes) -> str:
    """Return the program and version that a file's A1111 text names, "" if it is none of ours."""
    parsed = parse_infotext(read_texts(data).get(PARAMETERS, ""))
    found = parsed.fields.get("Version", "") if parsed else ""
    return found if found.startswith("mezzotint ") and len(found) < 60 else ""


def _with_texts(made: bytes, before: Mapping[str, str], after: Mapping[str, str]) -> bytes:
    """Replace the texts of a file that this program wrote."""
    kind = _format(made)
    old, new = _text_block(kind, before), _text_block(kind, after)
    if not old or made.count(old) != 1:
        raise ImageError("the picture that was made again carries no recipe to compare with")
    whole = made.replace(old, new)
    if kind == "webp":
        whole = whole[:4] + struct.pack("<I", len(whole) - 8) + whole[8:]
    return whole


def _text_block(kind: str, texts: Mapping[str, str]) -> bytes:
    """Return the bytes that hold texts in a file of a kind, as its encoder writes them."""
    parameters, recipe = texts.get(PARAMETERS, ""), texts.get(RECIPE, "")
    kept = {key: text for key, text in ((PARAMETERS, parameters), (RECIPE, recipe)) if text}
    if kind == "png":
        return png_chunks(kept)
    if kind == "jpeg":
        return jpeg_segments(parameters, recipe)
    if kind == "gif":
        return gif_comments(kept)
    if kind == "mp4":
        return mp4_box(kept)
    exif = make_exif(parameters, recipe)
    return b"EXIF" + struct.pack("<I", len(exif)) + exif + b"\0" * (len(exif) % 2)


def _format(data: bytes) -> Literal["png", "jpeg", "webp", "gif", "mp4"]:
    if data.startswith(b"\x89PNG"):
        return "png"
    if data.startswith(b"\xff\xd8"):
        return "jpeg"
    if data.startswith(b"GIF8"):
        return "gif"
    if data[4:8] == b"ftyp":
        return "mp4"
    return "webp"


def name_differences(data: bytes, canonical: bytes, *, pixels_too: bool = True) -> tuple[str, ...]:
    """Name what a file holds that the canonical one does not, and the other way round.

    Args:
        data: The file under examination.
        canonical: What :func:`canonical_file` gave.
        pixels_too: Whether blocks of compressed pixels count.

    Returns:
        One sentence each; () only where the files (or all but their pixels) are equal.
    """
    if data == canonical:
        return ()
    found = _differing(data, canonical, skip=frozenset() if pixels_too else _PIXELS)
    rest = len(found) - _MAX_SHOWN
    return (*found[:_MAX_SHOWN], *((f"and {rest} more differences",) if rest > 0 else ()))


def _differing(data: bytes, canonical: bytes, *, skip: "set[str] | frozenset[str]") -> list[str]:
    if _format(data) != _format(canonical):
        return [f"the file is a {_format(data)}, the recipe makes a {_format(canonical)}"]
    ours, theirs = _named(canonical), _named(data)
    found: list[str] = []
    for name in [*theirs, *(n for n in ours if n not in theirs)]:
        kind = name.partition(" number")[0]
        if kind in skip and name in ours and name in theirs:
            continue
        if name not in ours:
            found.append(f"{name} ({len(theirs[name])} bytes) is in the file, not in ours")
        elif name not in theirs:
            found.append(f"{name} is missing in the file")
        elif theirs[name] != ours[name]:
            found.append(f"{name} differs from ours")
    if not found and [*theirs] != [*ours]:
        found.append("the blocks of the file stand in another order than in ours")
    return found


def _named(data: bytes) -> dict[str, bytes]:
    """Return the blocks of a file by name; the second of a kind is ``kind number 2``."""
    blocks: dict[str, bytes] = {}
    counts: dict[str, int] = {}
    for block in _blocks(data):
        counts[block.kind] = count = counts.get(block.kind, 0) + 1
        blocks[block.kind if count == 1 else f"{block.kind} number {count}"] = block.data
    return blocks


def _blocks(data: bytes) -> list[_Block]:
    """Cut a file of any of our formats into its blocks; what fits no block is named so."""
    kind = _format(data)
    if kind == "png":
        return _cut(data, 8, _png_block)
    if kind == "jpeg":
        return _jpeg_blocks(data)
    if kind == "webp":
        size = int.from_bytes(data[4:8], "little") + 8
        inside = _cut(data[:size], 12, _webp_block)
        return inside if size >= len(data) else [*inside, _Block("what follows", data[size:])]
    if kind == "mp4":
        return _cut(data, 0, _mp4_block)
    return [_Block("frames", data)]


def _cut(data: bytes, start: int, read: Any) -> list[_Block]:
    """Cut data into blocks; the first that is broken takes all the rest."""
    # The size that RIFF writes first says nothing that its chunks do not.
    head = data[:4] + data[8:start] if start == 12 else data[:start]
    blocks = [_Block("head", head)] if start else []
    position = start
    while position < len(data):
        kind, size = read(data, position)
        if size <= 0 or position + size > len(data):
            return [*blocks, _Block("what follows", data[position:])]
        blocks.append(_Block(kind, data[position : position + size]))
        position += size
        if kind == "IEND" and position < len(data):
            return [*blocks, _Block("what follows", data[position:])]
    return blocks


def _png_block(data: bytes, position: int) -> tuple[str, int]:
    if position + 12 > len(data):
        return "", 0
    length, kind = struct.unpack_from(">I4s", data, position)
    name = kind.decode("latin-1")
    if kind in (b"tEXt", b"iTXt", b"zTXt"):
        keyword = data[position + 8 : position + 8 + min(length, 80)].partition(b"\0")[0]
        name = f"{name} {keyword.decode('latin-1')}"
    return name, length + 12


def _webp_block(data: bytes, position: int) -> tuple[str, int]:
    if position + 8 > len(data):
        return "", 0
    kind, length = struct.unpack_from("<4sI", data, position)
    return kind.decode("latin-1"), 8 + length + length % 2


def _mp4_block(data: bytes, position: int) -> tuple[str, int]:
    if position + 8 > len(data):
        return "", 0
    length, kind = struct.unpack_from(">I4s", data, position)
    return kind.decode("latin-1"), length


def _jpeg_blocks(data: bytes) -> list[_Block]:
    """Cut a JPEG into its segments, its scan, and what follows the end of the picture."""
    blocks = [_Block("head", data[:2])]
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:
        size = 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        blocks.append(_Block(f"segment {data[position + 1]:02X}", data[position : position + size]))
        position += size
    # Inside a scan 0xFF is followed by 0, so the first FF D9 is its end.
    end = data.find(b"\xff\xd9", position)
    end = len(data) if end < 0 else end + 2
    blocks.append(_Block("scan", data[position:end]))
    return blocks if end == len(data) else [*blocks, _Block("what follows", data[end:])]
