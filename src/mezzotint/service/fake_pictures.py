"""Fake pictures: plain-colour PNG, JPEG and WebP files from the standard library.

Formats: PNG (ISO/IEC 15948), baseline JPEG (ITU-T T.81) with one grey component
and two Huffman codes, WebP lossless (RFC 9649) with single-symbol codes. Any
decoder reads them; none of them needs a codec to be written.
"""

import struct
import zlib
from collections.abc import Mapping

from mezzotint.errors import ImageError
from mezzotint.types import OutputFormat

__all__ = ["draw", "read_colour", "read_png_text", "read_size"]

_PNG = b"\x89PNG\r\n\x1a\n"


def draw(
    digest: bytes,
    width: int,
    height: int,
    format_: OutputFormat,
    chunks: Mapping[str, str] | None = None,
) -> bytes:
    """Return a picture in one colour.

    Args:
        digest: At least 3 bytes; the first three are the colour.
        width: Pixels.
        height: Pixels.
        format_: Encoding.
        chunks: Texts by name to write into a PNG; other formats carry none.
    """
    if format_ == "png":
        return _png(digest[:3], digest, width, height, chunks or {})
    return _jpeg(digest[0], width, height) if format_ == "jpeg" else _webp(digest, width, height)


def read_png_text(data: bytes) -> dict[str, str]:
    """Return the texts inside a PNG by name.

    Raises:
        ImageError: If the bytes are not a PNG.
    """
    if not data.startswith(_PNG):
        raise ImageError("image must be a picture, got something else", field="image")
    texts: dict[str, str] = {}
    at = len(_PNG)
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        if kind == b"tEXt":
            key, _, value = body.partition(b"\0")
            texts[key.decode("latin-1")] = value.decode("latin-1")
        elif kind == b"iTXt":
            key, _, rest = body.partition(b"\0")
            texts[key.decode("latin-1")] = rest[2:].split(b"\0", 2)[2].decode()
        at += 12 + length
    return texts


def read_size(data: bytes) -> tuple[int, int]:
    """Return width and height of a PNG, or of the files written here.

    Raises:
        ImageError: If the bytes are none of these.
    """
    if data.startswith(_PNG) and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return width, height
    if data.startswith(b"\xff\xd8") and (at := data.find(b"\xff\xc0")) > 0:
        height, width = struct.unpack(">HH", data[at + 5 : at + 9])
        return width, height
    if data[8:16] == b"WEBPVP8L":
        (bits,) = struct.unpack("<I", data[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise ImageError("image must be a picture, got something else", field="image")


def read_colour(data: bytes) -> bytes:
    """Return the three bytes of the one colour of a PNG written here."""
    begin = data.index(b"IDAT") + 4
    return zlib.decompressobj().decompress(data[begin:], 4)[1:]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(colour: bytes, digest: bytes, width: int, height: int, chunks: Mapping[str, str]) -> bytes:
    rows = (b"\0" + colour * width) * height
    body = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body += _chunk(b"tEXt", b"fake\0" + digest.hex().encode())
    for key, value in chunks.items():
        body += _chunk(b"iTXt", key.encode("latin-1") + b"\0\0\0\0\0" + value.encode())
    return _PNG + body + _chunk(b"IDAT", zlib.compress(rows, 1)) + _chunk(b"IEND", b"")


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _jpeg(grey: int, width: int, height: int) -> bytes:
    """Write one grey: the first block carries it, the others differ by nothing."""
    level = grey - 128
    size = abs(level).bit_length()
    table = b"\0" + bytes([8]) + bytes([1]) * 63  # DC step 8 = one grey level
    head = b"\xff\xd8" + _segment(0xDB, table)
    head += _segment(0xC0, struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\0")
    two_codes = bytes([1, 1] + [0] * 14)
    head += _segment(0xC4, b"\0" + two_codes + bytes([0, size or 1]))
    head += _segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\0")
    head += _segment(0xDA, b"\x01\x01\0\0\x3f\0")
    blocks = -(-width // 8) * -(-height // 8)
    value = level if level >= 0 else level + (1 << size) - 1
    bits = (f"10{value:0{size}b}" if size else "0") + "0" + "00" * (blocks - 1)
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return head + data + b"\xff\xd9"


def _webp(digest: bytes, width: int, height: int) -> bytes:
    """Write one colour: five prefix codes of one symbol each, so pixels take no bits."""
    bits = (width - 1) | (height - 1) << 14
    at = 14 + 14 + 1 + 3 + 3  # size, alpha, version; no transform, cache or meta code
    for symbol in (digest[1], digest[0], digest[2], 255, 0):
        bits |= (0b101 | symbol << 3) << at
        at += 11
    body = b"\x2f" + bits.to_bytes(-(-at // 8) + 1, "little")
    padded = body + b"\0" * (len(body) % 2)
    chunk = b"WEBPVP8L" + struct.pack("<I", len(body)) + padded
    return b"RIFF" + struct.pack("<I", len(chunk)) + chunk
