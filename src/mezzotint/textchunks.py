"""Text chunks: words inside picture files, without decoding a pixel.

PNG keeps text in ``tEXt`` (Latin-1), ``zTXt`` and ``iTXt`` chunks. JPEG and WebP
keep A1111's parameters in the Exif tag UserComment; our own recipe goes into
Exif MakerNote (WebP) or APP10 segments (JPEG, where Exif is limited to 64 KiB).
GIF keeps them in comment blocks, MP4 in a ``uuid`` box of ours, each with its key in
front.
Standard library only; everything read is bounded, since files come from anyone.

Source: PNG 3rd edition, section 11.3.3; Exif 2.32, sections 4.6.4 and 4.6.5;
WebP container specification.
"""

import struct
import zlib
from collections.abc import Container, Iterator, Mapping

__all__ = [
    "PARAMETERS",
    "RECIPE",
    "gif_comments",
    "jpeg_segments",
    "make_exif",
    "mp4_box",
    "png_chunks",
    "read_texts",
]

PARAMETERS = "parameters"
"""Key of A1111's text."""

RECIPE = "mezzotint"
"""Key of our own recipe."""

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_MAX_TEXT_BYTES = 64 << 20
_MAX_INFLATED_BYTES = 8 << 20  # of a file: what is packed may be a thousand times its size
_USER_COMMENT = 0x9286
_MAKER_NOTE = 0x927C
_EXIF_IFD = 0x8769
_UNICODE = b"UNICODE\0"
_APP10_TAG = RECIPE.encode() + b"\0"
_APP10_ROOM = 65_000  # a segment holds 65533 bytes, tag and counters included
_EXIF_ROOM = 65_500
_BOX_ID = b"mezzotint-texts\0"  # the sixteen bytes that name our uuid box
_MAX_BLOCKS = 1 << 20


def png_chunks(texts: Mapping[str, str]) -> bytes:
    """Make the PNG chunks for some texts: ``tEXt`` where Latin-1 can hold it, else ``iTXt``.

    Args:
        texts: Keyword (1 to 79 Latin-1 characters) to text.

    Raises:
        ValueError: If a keyword does not fit the format.
    """
    out = bytearray()
    for keyword, text in texts.items():
        key = keyword.encode("latin-1")
        if not 1 <= len(key) <= 79 or b"\0" in key:
            raise ValueError(f"a PNG keyword has 1 to 79 characters, got {keyword!r}")
        clean = text.replace("\0", "")
        try:
            out += png_chunk(b"tEXt", key + b"\0" + clean.encode("latin-1"))
        except UnicodeEncodeError:
            body = key + b"\0\0\0\0\0" + clean.encode("utf-8", "replace")
            out += png_chunk(b"iTXt", body)
    return bytes(out)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Return one PNG chunk: length, kind, body, checksum."""
    checksum = zlib.crc32(body, zlib.crc32(kind))
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def make_exif(parameters: str, recipe: str = "") -> bytes:
    """Make an Exif block (big-endian TIFF, without the ``Exif`` header of JPEG).

    Args:
        parameters: A1111's text, for UserComment.
        recipe: Our recipe, for MakerNote; "" leaves it out.
    """
    comment = _UNICODE + parameters.encode("utf-16-be", "surrogatepass")
    tags = [(_USER_COMMENT, comment)]
    if recipe:
        tags.append((_MAKER_NOTE, _APP10_TAG + recipe.encode("utf-8", "replace")))
    tags.sort()
    ifd0_end = 8 + 2 + 12 + 4
    data_start = ifd0_end + 2 + 12 * len(tags) + 4
    entries, data = bytearray(), bytearray()
    for tag, value in tags:
        entries += struct.pack(">HHII", tag, 7, len(value), data_start + len(data))
        data += value + b"\0" * (len(value) % 2)
    header = b"MM\0*" + struct.pack(">IHHHIII", 8, 1, _EXIF_IFD, 4, 1, ifd0_end, 0)
    return header + struct.pack(">H", len(tags)) + bytes(entries) + b"\0\0\0\0" + bytes(data)


def jpeg_segments(parameters: str, recipe: str = "") -> bytes:
    """Make the JPEG segments that carry the texts, to stand right behind SOI and APP0.

    The parameters are left out where they exceed the 64 KiB of an Exif segment;
    the recipe is split into as many segments as it needs.
    """
    out = bytearray()
    exif = b"Exif\0\0" + make_exif(parameters)
    if len(exif) <= _EXIF_ROOM:
        out += b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    body = recipe.encode("utf-8", "replace")
    pieces = [body[k : k + _APP10_ROOM] for k in range(0, len(body), _APP10_ROOM)]
    for number, piece in enumerate(pieces):
        segment = _APP10_TAG + struct.pack(">HH", number, len(pieces)) + piece
        out += b"\xff\xea" + struct.pack(">H", len(segment) + 2) + segment
    return bytes(out)


def gif_comments(texts: Mapping[str, str]) -> bytes:
    """Make one GIF comment block per text: keyword, NUL, text in UTF-8."""
    out = bytearray()
    for body in _keyed(texts):
        out += b"\x21\xfe"
        for k in range(0, len(body), 255):
            piece = body[k : k + 255]
            out += bytes([len(piece)]) + piece
        out += b"\0"
    return bytes(out)


def mp4_box(texts: Mapping[str, str]) -> bytes:
    """Make the MP4 box that carries the texts, to stand at the end of the file; b"" for none."""
    if not texts:
        return b""
    body = b"".join(struct.pack(">I", len(item)) + item for item in _keyed(texts))
    return struct.pack(">I", 24 + len(body)) + b"uuid" + _BOX_ID + body


def _keyed(texts: Mapping[str, str]) -> Iterator[bytes]:
    for keyword, text in texts.items():
        clean = text.replace("\0", "")
        yield keyword.encode("latin-1") + b"\0" + clean.encode("utf-8", "replace")


def _split_key(body: bytes) -> tuple[str, str]:
    """Split keyword and text; a comment of another program has no keyword."""
    keyword, separator, text = body.partition(b"\0")
    if not separator:
        return "comment", body.decode("utf-8", "replace")
    return keyword.decode("latin-1"), text.decode("utf-8", "replace")


def read_texts(data: bytes) -> dict[str, str]:
    """Read every text of a PNG, JPEG, WebP, GIF or MP4 file.

    Args:
        data: The encoded picture; need not be valid.

    Returns:
        Texts by keyword; the first of a kind wins. Exif texts have the keywords
        :data:`PARAMETERS` and :data:`RECIPE`. Empty for other or broken files.
    """
    texts: dict[str, str] = {}
    try:
        if data.startswith(_PNG_MAGIC):
            pairs = _png_texts(data)
        elif data.startswith(b"\xff\xd8"):
            pairs = _jpeg_texts(data)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            pairs = _webp_texts(data)
        elif data[:6] in (b"GIF87a", b"GIF89a"):
            pairs = _gif_texts(data)
        elif data[4:8] == b"ftyp":
            pairs = _mp4_texts(data)
        else:
            return {}
        for keyword, text in pairs:
            texts.setdefault(keyword, text)
    except (struct.error, ValueError, IndexError, zlib.error):
        return texts
    return texts


def _png_texts(data: bytes) -> Iterator[tuple[str, str]]:
    position, budget = 8, _MAX_INFLATED_BYTES
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 8 : position + 8 + length]
        position += 12 + length
        if kind not in (b"tEXt", b"zTXt", b"iTXt") or len(body) < length:
            continue
        keyword, _, rest = body.partition(b"\0")
        text = _png_text(kind, rest, budget)
        if text is not None:
            is_packed = kind == b"zTXt" or rest[:1] == b"\1"
            budget -= len(text) if is_packed and kind != b"tEXt" else 0
            yield keyword.decode("latin-1"), text


def _png_text(kind: bytes, rest: bytes, budget: int) -> str | None:
    """Decode the body of one text chunk behind its keyword."""
    if kind == b"tEXt":
        return rest.decode("latin-1")
    if kind == b"zTXt":
        return _inflate(rest[1:], budget).decode("latin-1")
    compressed, rest = rest[0], rest[2:]
    _, _, rest = rest.partition(b"\0")  # language
    _, _, rest = rest.partition(b"\0")  # translated keyword
    return (_inflate(rest, budget) if compressed else rest).decode("utf-8", "replace")


def _inflate(data: bytes, budget: int) -> bytes:
    """Decompress at most ``budget`` bytes."""
    inflater = zlib.decompressobj()
    text = inflater.decompress(data, max(budget, 1))
    if inflater.unconsumed_tail:
        raise ValueError("compressed text is larger than allowed")
    return text


def _jpeg_texts(data: bytes) -> Iterator[tuple[str, str]]:
    position = 2
    pieces: dict[int, bytes] = {}
    count = 0
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], struct.unpack_from(">H", data, position + 2)[0]
        if marker == 0xDA:  # the picture itself begins
            break
        body = data[position + 4 : position + 2 + length]
        position += 2 + length
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            yield from _exif_texts(body[6:])
        elif marker == 0xEA and body.startswith(_APP10_TAG):
            number, count = struct.unpack_from(">HH", body, len(_APP10_TAG))
            pieces[number] = body[len(_APP10_TAG) + 4 :]
    if count and set(pieces) == set(range(count)):
        whole = b"".join(pieces[number] for number in range(count))
        yield RECIPE, whole.decode("utf-8", "replace")


def _webp_texts(data: bytes) -> Iterator[tuple[str, str]]:
    position = 12
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        body = data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2
        if kind == b"EXIF":
            yield from _exif_texts(body.removeprefix(b"Exif\0\0"))


def _gif_texts(data: bytes) -> Iterator[tuple[str, str]]:
    position = 13 + _table_bytes(data[10])
    for _ in range(_MAX_BLOCKS):
        kind = data[position]
        if kind == 0x2C:  # a frame: its own table of colours, then compressed pixels
            position += 10 + _table_bytes(data[position + 9]) + 1
            _, position = _sub_blocks(data, position, keep=False)
        elif kind == 0x21:
            is_comment = data[position + 1] == 0xFE
            body, position = _sub_blocks(data, position + 2, keep=is_comment)
            if is_comment:
                yield _split_key(body)
        else:  # the trailer, or what is no GIF any more
            return


def _table_bytes(flags: int) -> int:
    """Return the bytes of a GIF table of colours that its flags announce."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _sub_blocks(data: bytes, position: int, *, keep: bool) -> tuple[bytes, int]:
    """Read GIF sub-blocks; return what they hold together and where they end."""
    body = bytearray()
    while size := data[position]:
        if keep and len(body) < _MAX_TEXT_BYTES:
            body += data[position + 1 : position + 1 + size]
        position += 1 + size
    return bytes(body), position + 1


def _mp4_texts(data: bytes) -> Iterator[tuple[str, str]]:
    position = 0
    while position + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        start = position + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start)
            start += 8
        if size < start - position:
            return
        if kind == b"uuid" and data[start : start + 16] == _BOX_ID:
            yield from _box_texts(data[start + 16 : position + size])
        position += size


def _box_texts(body: bytes) -> Iterator[tuple[str, str]]:
    position = 0
    while position + 4 <= len(body):
        (length,) = struct.unpack_from(">I", body, position)
        yield _split_key(body[position + 4 : position + 4 + length])
        position += 4 + length


def _exif_texts(tiff: bytes) -> Iterator[tuple[str, str]]:
    """Read the two tags we know from a TIFF block of either byte order."""
    order = {b"MM": ">", b"II": "<"}.get(tiff[:2])
    if order is None:
        return
    (ifd0,) = struct.unpack_from(f"{order}I", tiff, 4)
    pointer = _entries(tiff, ifd0, order, (_EXIF_IFD,)).get(_EXIF_IFD)
    if pointer is None:
        return
    (offset,) = struct.unpack(f"{order}I", pointer[:4])
    for tag, value in _entries(tiff, offset, order, (_MAKER_NOTE, _USER_COMMENT)).items():
        if tag == _USER_COMMENT:
            yield PARAMETERS, _user_comment(value, order)
        elif value.startswith(_APP10_TAG):
            yield RECIPE, value[len(_APP10_TAG) :].decode("utf-8", "replace")


def _entries(tiff: bytes, offset: int, order: str, wanted: Container[int]) -> dict[int, bytes]:
    """Return the value bytes of some tags of one directory, the first of each.

    Only these are copied: each of 512 entries may claim the whole block.
    """
    found: dict[int, bytes] = {}
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 9: 4, 10: 8}
    (count,) = struct.unpack_from(f"{order}H", tiff, offset)
    for number in range(min(count, 512)):
        position = offset + 2 + 12 * number
        tag, kind, length = struct.unpack_from(f"{order}HHI", tiff, position)
        if tag in found or tag not in wanted:
            continue
        num_bytes = sizes.get(kind, 1) * length
        start = position + 8
        if num_bytes > 4:
            (start,) = struct.unpack_from(f"{order}I", tiff, start)
        found[tag] = tiff[start : start + num_bytes]
    return found


def _user_comment(value: bytes, order: str) -> str:
    """Decode a comment by its eight-byte character code."""
    code, body = value[:8], value[8:]
    if code == _UNICODE:
        if body.startswith((b"\xff\xfe", b"\xfe\xff")):
            return body.decode("utf-16", "replace")
        # Tools differ: most write big-endian whatever the block's own order is.
        big, own = body.decode("utf-16-be", "replace"), "utf-16-be" if order == ">" else "utf-16-le"
        plausible = sum(c < "\u0250" for c in big[:256]) * 2 >= len(big[:256])
        return big if plausible else body.decode(own, "replace")
    if code == b"ASCII\0\0\0":
        return body.decode("ascii", "replace").rstrip("\0")
    return body.decode("utf-8", "replace").rstrip("\0")
