"""Walks as moving files: Pillow and ffmpeg read what we write."""

import io
import json
import os
import shutil
import stat
import struct

import numpy as np
import pytest
from PIL import Image

from mezzotint.errors import InvalidRequest, ShapeError, WorkFailed
from mezzotint.images.animation import decode_frames, encode_animation, order_frames
from mezzotint.request import Animation
from mezzotint.textchunks import read_texts


def frames(count=5, height=24, width=32):
    ramp = np.linspace(0, 255, width, dtype=np.uint8)
    made = np.zeros((count, height, width, 3), np.uint8)
    for k in range(count):
        made[k, ..., 0] = np.roll(ramp, 5 * k)
        made[k, : 4 * (k + 1), :, 1] = 200
    return list(made)


def opened(data):
    return Image.open(io.BytesIO(data))


def test_apng_is_exact_and_pillow_reads_its_clock_and_loop():
    data = encode_animation(frames(), Animation(format="apng", fps=12.5, loop="once"))
    picture = opened(data)
    assert (picture.n_frames, picture.format, picture.info["loop"]) == (5, "PNG", 1)
    assert picture.info["duration"] == 80.0
    assert all(np.array_equal(a, b) for a, b in zip(decode_frames(data), frames(), strict=True))


def test_webp_has_every_frame_and_its_time():
    data = encode_animation(frames(), Animation(format="webp", fps=3), quality=100)
    picture = opened(data)
    assert (picture.n_frames, picture.format, picture.info["loop"]) == (5, "WEBP", 0)
    durations = []
    for k in range(5):
        picture.seek(k)
        picture.load()
        durations.append(picture.info["duration"])
    assert durations == [333, 334, 333, 333, 334]  # rounding never adds up: 1667 ms in all
    error = np.abs(np.stack(decode_frames(data)).astype(int) - np.stack(frames()))
    assert error.mean() < 6


def test_gif_has_every_frame_its_time_and_few_colours_exactly():
    flat = [np.full((8, 8, 3), (40 * k, 255 - 40 * k, 7), np.uint8) for k in range(4)]
    data = encode_animation(flat, Animation(format="gif", fps=8))
    picture = opened(data)
    assert (picture.n_frames, picture.format, picture.info["loop"]) == (4, "GIF", 0)
    total = 0
    for k in range(4):
        picture.seek(k)
        total += picture.info["duration"]
    assert total == 500
    assert all(np.array_equal(a, b) for a, b in zip(decode_frames(data), flat, strict=True))


def test_gif_played_once_has_no_loop_block():
    assert (
        "loop" not in opened(encode_animation(frames(), Animation(format="gif", loop="once"))).info
    )


def test_ping_pong_comes_back_without_repeating_its_ends():
    shown = order_frames(frames(4), Animation(loop="pingpong"))
    assert [int(f[0, :, 0].argmax()) for f in shown] == [
        int(frames(4)[k][0, :, 0].argmax()) for k in (0, 1, 2, 3, 2, 1)
    ]
    data = encode_animation(frames(4), Animation(format="apng", loop="pingpong"))
    assert opened(data).n_frames == 6


@pytest.mark.parametrize("kind", ["webp", "apng", "gif"])
def test_the_recipe_is_inside_and_equal_frames_give_equal_bytes(kind):
    recipe = json.dumps({"prompt": "a pear — mañana 梨 " * 40})
    made = [
        encode_animation(
            frames(), Animation(format=kind), parameters="a pear\nSteps: 4", recipe=recipe
        )
        for _ in range(2)
    ]
    assert made[0] == made[1]
    texts = read_texts(made[0])
    assert json.loads(texts["mezzotint"]) == json.loads(recipe)
    assert texts["parameters"] == "a pear\nSteps: 4"
    assert opened(made[0]).n_frames == 5


def test_gif_comments_are_comments_for_pillow_too():
    data = encode_animation(frames(2), Animation(format="gif"), parameters="a pear")
    picture = opened(data)
    for k in range(picture.n_frames):
        picture.seek(k)
    assert b"mezzotint" not in data
    assert b"parameters\0a pear" in data


def test_frames_of_two_sizes_are_refused():
    with pytest.raises(ShapeError, match="frames of one size"):
        encode_animation([frames(1)[0], frames(1, 8)[0]], Animation())


def test_a_gif_faster_than_its_clock_is_refused():
    with pytest.raises(InvalidRequest, match="at most 50"):
        encode_animation(frames(), Animation(format="gif", fps=60))


def test_mp4_without_ffmpeg_says_what_to_do(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InvalidRequest, match="ffmpeg, which is not on PATH; install it, or take"):
        encode_animation(frames(), Animation(format="mp4"))


def fake_ffmpeg(folder, script, monkeypatch):
    path = folder / "ffmpeg"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")


def test_mp4_sends_every_frame_and_keeps_the_recipe(tmp_path, monkeypatch):
    # Writes a box that names how many bytes came in.
    script = (
        'for last; do :; done; n=$(wc -c); printf "\\000\\000\\000\\020ftypisom%04d" '
        '$((n / 1000)) > "$last"; echo "$@" > "$(dirname "$0")/said"'
    )
    fake_ffmpeg(tmp_path, script, monkeypatch)
    data = encode_animation(frames(4, 25, 33), Animation(format="mp4", fps=12), recipe='{"a": 1}')
    assert struct.unpack_from(">I4s", data) == (16, b"ftyp")
    assert int(data[12:16]) == 4 * 26 * 34 * 3 // 1000  # odd sides were made even
    assert "-r 12 " in (tmp_path / "said").read_text()
    assert read_texts(data) == {"mezzotint": '{"a": 1}'}


def test_an_ffmpeg_that_fails_is_an_error_with_its_words(tmp_path, monkeypatch):
    fake_ffmpeg(tmp_path, "cat > /dev/null; echo Unknown encoder libx264 >&2; exit 1", monkeypatch)
    with pytest.raises(WorkFailed, match="Unknown encoder libx264"):
        encode_animation(frames(), Animation(format="mp4"))


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_a_real_ffmpeg_writes_an_mp4(tmp_path):
    data = encode_animation(frames(8), Animation(format="mp4"), recipe="{}")
    assert data[4:8] == b"ftyp"
    assert read_texts(data)["mezzotint"] == "{}"


@pytest.mark.parametrize(
    "data", [b"GIF89a", b"GIF89a" + b"\0" * 7 + b"\x21\xfe\xff", b"\0\0\0\x09ftyp"]
)
def test_broken_files_have_no_texts(data):
    assert read_texts(data) == {}
