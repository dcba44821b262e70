"""Texts that strangers write are read in time proportional to their length.

Tests :mod:`mezzotint.infotext`, :mod:`mezzotint.textchunks`,
:mod:`mezzotint.models.prompt_syntax` and :mod:`mezzotint.models.prompt_editing`.
"""

import struct
import time
import tracemalloc

import pytest
from tests.growth import assert_linear

from mezzotint.infotext import parse_infotext
from mezzotint.models.prompt_editing import edits
from mezzotint.models.prompt_syntax import spans
from mezzotint.techniques.tags import lora_tags
from mezzotint.textchunks import read_texts

PAIRS = "\nSteps: 1, Seed: 2, Size: 8x8"


@pytest.mark.parametrize(
    "piece",
    ["a", " ", "a:", 'aa:"', 'aa:"\\",', "aa: ", "aa:\t", ",", '"', "\\", "-a", "é", "Steps: 1, "],
)
def test_infotext_is_read_in_linear_time(piece):
    assert_linear(lambda text: parse_infotext("p\n" + text), lambda n: piece * n, 5000)


@pytest.mark.parametrize("dialect", ["a1111", "comfyui", "compel"])
@pytest.mark.parametrize(
    "text",
    [" ", "a", "\\a", "\\)", "a-", "BREAK ", ":1", '" ', "a+b ", "\n", ". ", "1", ":", "a BREAK"],
)
def test_weights_are_read_in_linear_time(dialect, text):
    assert_linear(lambda t: spans(t, dialect), lambda n: (text * n)[:n], 8000)


@pytest.mark.parametrize("opener", ["(", "(["])
@pytest.mark.parametrize("dialect", ["a1111", "comfyui", "compel"])
@pytest.mark.parametrize("rest", ["\\)", "BREAK ", "a)", "x "])
def test_weights_in_many_brackets_are_read_in_linear_time(dialect, opener, rest):
    def make(n: int) -> str:
        return (opener * 1000)[:1000] + (rest * n)[:n]

    assert_linear(lambda t: spans(t, dialect), make, 4000)


@pytest.mark.parametrize("opener", ["[", "(", "[a:", "([a|"])
@pytest.mark.parametrize("rest", ["1", " ", "\\]", "x:1"])
def test_editing_is_read_in_linear_time(opener, rest):
    def make(n: int) -> str:
        return (opener * 30)[:30] + (rest * n)[:n]

    assert_linear(lambda t: edits(t, 20), make, 8000)


def test_editing_that_would_be_read_again_for_every_bracket_is_text():
    text = "[" * 1000 + "|" * 30_000 + ")" + "]" * 969
    began = time.thread_time()
    assert [(e.until_step, e.text) for e in edits(text, 20)] == [(20, text)]
    assert time.thread_time() - began < 4


@pytest.mark.parametrize("piece", ["<lora:a", "<lora:", "<lora::", "<lora:a:1", "a", "<lora:a:1:"])
def test_lora_tags_of_a_prompt_are_read_in_linear_time(piece):
    assert_linear(lora_tags, lambda n: "<lora:a" + piece * n, 5000)


def hostile_exif(size: int, *, tag_step: int) -> bytes:
    """Return a TIFF block whose 512 entries each claim all of its bytes."""
    entries = b"".join(struct.pack(">HHII", 0x9000 + tag_step * k, 7, size, 8) for k in range(512))
    return b"MM\0*" + struct.pack(">IH", 8, 512) + entries + b"\0" * size


@pytest.mark.parametrize("tag_step", [0, 1])
def test_entries_that_all_claim_the_whole_block_are_not_copied(tag_step):
    body = hostile_exif(1 << 20, tag_step=tag_step)
    data = b"RIFF\0\0\0\0WEBPEXIF" + struct.pack("<I", len(body)) + body
    tracemalloc.start()
    try:
        assert read_texts(data) == {}
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_one_comment_claimed_many_times_is_read_once():
    def make(size: int) -> bytes:
        comment = struct.pack(">HHII", 0x9286, 7, size, 8) * 512
        inner = struct.pack(">H", 512) + comment
        head = b"MM\0*" + struct.pack(">IHHHIII", 8, 1, 0x8769, 4, 1, 26, 0)
        body = head + inner + b"a" * size
        return b"RIFF\0\0\0\0WEBPEXIF" + struct.pack("<I", len(body)) + body

    data = make(1 << 20)
    began = time.thread_time()
    assert set(read_texts(data)) == {"parameters"}
    assert time.thread_time() - began < 0.5
