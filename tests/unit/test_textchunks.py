import io
import random
import zlib

import pytest
from PIL import Image, PngImagePlugin

from mezzotint.textchunks import jpeg_segments, make_exif, png_chunk, png_chunks, read_texts


def packed(kind, **options):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, kind, **options)
    return stream.getvalue()


def png_with(body):
    return b"\x89PNG\r\n\x1a\n" + body


def test_texts_that_pillow_wrote_are_read():
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "café")
    info.add_text("packed", "x" * 5000, zip=True)
    info.add_itxt("prompt", "猫", zip=True)
    texts = read_texts(packed("PNG", pnginfo=info))
    assert texts == {"parameters": "café", "packed": "x" * 5000, "prompt": "猫"}


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_pillow_reads_the_user_comment_that_we_wrote(kind):
    exif = make_exif("a 猫", "{}")
    options = {"exif": (b"Exif\0\0" + exif) if kind == "JPEG" else exif}
    data = packed(kind, **options)
    comment = Image.open(io.BytesIO(data)).getexif().get_ifd(0x8769)[0x9286]
    assert comment == b"UNICODE\0" + "a 猫".encode("utf-16-be")
    assert read_texts(data)["parameters"] == "a 猫"


@pytest.mark.parametrize("order", ["<", ">"])
def test_user_comments_of_either_byte_order_are_read(order):
    image = Image.Exif()
    image.endian = order
    image.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "Steps: 20".encode("utf-16-be")
    assert read_texts(packed("WEBP", exif=image.tobytes()))["parameters"] == "Steps: 20"


def test_a_text_that_unpacks_to_more_than_allowed_is_left_out():
    bomb = b"key\0\0" + zlib.compress(b"\0" * (65 << 20), 9)
    assert read_texts(png_with(png_chunk(b"zTXt", bomb))) == {}


def test_keywords_have_one_to_79_characters():
    with pytest.raises(ValueError, match="79"):
        png_chunks({"k" * 80: "x"})


def test_a_missing_jpeg_piece_makes_no_recipe():
    whole = jpeg_segments("p", "r" * 100_000)
    second = whole.rindex(b"\xff\xea")
    assert "mezzotint" not in read_texts(b"\xff\xd8" + whole[:second])
    assert read_texts(b"\xff\xd8" + whole)["mezzotint"] == "r" * 100_000


def test_broken_files_give_what_can_be_read_and_never_raise():
    rng = random.Random(5)
    sources = [
        png_with(png_chunks({"parameters": "x", "mezzotint": "猫"})),
        b"\xff\xd8" + jpeg_segments("p", "r" * 70_000),
        packed("WEBP", exif=make_exif("p", "r")),
    ]
    for source in sources:
        for _ in range(300):
            broken = bytearray(source)
            for _ in range(rng.randint(1, 8)):
                broken[rng.randrange(min(len(broken), 400))] = rng.randrange(256)
            read_texts(bytes(broken[: rng.randrange(len(broken))]))
