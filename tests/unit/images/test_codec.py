import io
import time

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mezzotint.errors import ImageError, ShapeError, WorkFailed
from mezzotint.images.codec import (
    check_image,
    decode_image,
    decode_mask,
    encode,
    to_images,
    to_pixels,
)
from mezzotint.images.config import ImageConfig
from mezzotint.images.png import encode_png


def picture(height=37, width=53, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(side=64):
    y, x = np.mgrid[0:side, 0:side] * 255 // (side - 1)
    return np.stack([x, y, (x + y) // 2], axis=-1).astype(np.uint8)


def packed(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_every_exact_level_comes_back_as_itself():
    levels = np.arange(256, dtype=np.uint8)
    pixels = np.broadcast_to(levels[:, None, None], (256, 2, 3))
    assert np.array_equal(to_pixels(to_images(pixels)), pixels)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_levels_round_and_do_not_truncate(dtype):
    # x / 127.5 - 1 in half precision is off by less than half a level
    levels = np.arange(256)
    images = (levels / 127.5 - 1).astype(dtype).reshape(1, 1, 256).repeat(3, 0)
    assert np.array_equal(to_pixels(images)[0, :, 0], levels)


def test_values_outside_the_range_are_clipped():
    images = np.array([-9.0, -1.0, 1.0, 9.0], np.float32).reshape(1, 1, 4).repeat(3, 0)
    assert to_pixels(images)[0, :, 0].tolist() == [0, 0, 255, 255]


def test_both_sides_of_every_edge_between_levels_round_to_their_own_level():
    edges = np.arange(255) + 0.5
    for nudge, expected in ((-1e-3, np.arange(255)), (1e-3, np.arange(1, 256))):
        images = ((edges + nudge) / 127.5 - 1).astype(np.float32).reshape(1, 1, -1).repeat(3, 0)
        assert np.array_equal(to_pixels(images)[0, :, 0], expected)


def test_levels_and_their_edges_round_as_the_plain_formula_does():
    # every level and edge, and the three float32 numbers on either side of each
    nearest = (np.arange(511) / 255 - 1).astype(np.float32)
    values = [nearest]
    for towards in (np.float32(-2), np.float32(2)):
        value = nearest
        for _ in range(3):
            value = np.nextafter(value, towards)
            values.append(value)
    images = np.stack([np.stack(values)] * 3)
    expected = np.round(np.clip(images / 2 + np.float32(0.5), 0, 1) * 255)
    assert expected.dtype == np.float32
    pixels = to_pixels(images)
    assert np.array_equal(pixels, expected.astype(np.uint8).transpose(1, 2, 0))
    exact = (images.astype(np.float64).clip(-1, 1) + 1) * 127.5
    assert np.abs(pixels.transpose(2, 0, 1) - exact).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 1, 1, 1), (1, 2, 3, 4)])
def test_a_picture_that_is_not_finite_is_an_error_and_not_black(bad, dtype, place):
    images = np.zeros((2, 3, 4, 5), dtype)
    images[place] = bad
    with pytest.raises(WorkFailed, match="not finite"):
        to_pixels(images)
    with pytest.raises(WorkFailed, match="not finite"):
        to_pixels(images[place[0]])


def test_the_largest_finite_values_are_clipped_and_not_refused():
    most = np.finfo(np.float32).max
    images = np.array([-most, most, 0.0], np.float32).reshape(1, 1, 3).repeat(3, 0)
    assert to_pixels(images)[0, :, 0].tolist() == [0, 255, 128]
    assert to_pixels(np.zeros((0, 3, 4, 5), np.float32)).shape == (0, 4, 5, 3)


def test_rounding_leaves_what_it_was_given_alone():
    images = np.linspace(-2, 2, 3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)
    before = images.copy()
    to_pixels(images)
    assert np.array_equal(images, before)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_is_lossless_and_read_by_pillow(channels):
    pixels = picture(channels=channels)
    read = np.asarray(Image.open(io.BytesIO(encode_png(pixels))))
    assert np.array_equal(read.reshape(pixels.shape), pixels)


def test_png_bytes_are_a_function_of_the_arguments():
    pixels = picture()
    assert encode(pixels, recipe="{}") == encode(pixels.copy(), recipe="{}")
    assert encode(np.asfortranarray(pixels)) == encode(pixels)


def test_png_of_a_smooth_picture_is_small():
    assert len(encode(smooth())) < smooth().size / 3


@pytest.mark.slow
def test_png_is_several_times_faster_than_pillow():
    pixels = smooth(1024)
    times = []
    for work in (lambda: encode(pixels), lambda: packed(Image.fromarray(pixels))):
        work()
        started = time.perf_counter()
        for _ in range(5):
            work()
        times.append(time.perf_counter() - started)
    assert times[0] * 3 < times[1]


def test_png_refuses_what_is_no_picture():
    with pytest.raises(ShapeError, match="uint8"):
        encode_png(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(ShapeError, match="0x4"):
        encode_png(np.zeros((4, 0, 3), np.uint8))


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_lossy_formats_stay_near_the_picture(kind):
    read = decode_image(encode(smooth(), kind, quality=95, parameters="x", recipe="{}"))
    assert np.abs(read.astype(int) - smooth()).mean() < 3


def test_jpeg_quality_changes_the_size():
    assert len(encode(picture(), "jpeg", quality=10)) < len(encode(picture(), "jpeg", quality=95))


def test_transparency_is_laid_on_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = [0, 255, 51]
    read = decode_image(encode_png(rgba))
    assert read[0, :, 0].tolist() == [255, 0, 204]


def test_palette_with_transparency_is_laid_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putdata([0, 1])
    read = decode_image(packed(image, transparency=0))
    assert read.tolist() == [[[255, 255, 255], [0, 255, 0]]]


def test_sixteen_bits_are_scaled_and_not_cut_off():
    array = np.array([[0, 256, 32_768, 65_535]], np.uint16)
    read = decode_image(packed(Image.fromarray(array)))
    assert read[0, :, 0].tolist() == [0, 1, 128, 255]


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    image = Image.fromarray(smooth(16)[:8])
    turned = decode_image(packed(image, "PNG", exif=exif))
    assert np.array_equal(turned, np.rot90(smooth(16)[:8], -1))


def test_other_modes_become_rgb():
    for mode in ("1", "L", "LA", "CMYK", "RGBA"):
        kind = "JPEG" if mode == "CMYK" else "PNG"
        assert decode_image(packed(Image.new(mode, (5, 4)), kind)).shape == (4, 5, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not a picture", "known format"),
        (packed(Image.fromarray(picture()))[:200], "broken"),
        (packed(Image.fromarray(picture()), "TIFF"), "known format"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "known format|broken"),
    ],
)
def test_what_is_no_picture_says_so_and_names_the_field(data, message):
    with pytest.raises(ImageError, match=message) as caught:
        decode_image(data, field="controls[0].image")
    assert caught.value.field == "controls[0].image"


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    for side in (9_000, 12_000, 60_000):  # under, over and far over Pillow's own limits
        bomb = bytearray(encode_png(np.zeros((1, 1), np.uint8)))
        bomb[16:24] = side.to_bytes(4, "big") * 2
        import zlib

        bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
        started = time.perf_counter()
        with pytest.raises(ImageError, match="pixels"):
            decode_image(bytes(bomb))
        assert time.perf_counter() - started < 1


def test_limits_come_from_the_config():
    config = ImageConfig(max_pixels=100)
    with pytest.raises(ImageError, match="at most 100 pixels"):
        decode_image(encode(smooth(16)), config=config)
    with pytest.raises(ImageError, match="at most 50 bytes"):
        decode_image(encode(smooth(16)), config=ImageConfig(max_bytes=50))


def test_animations_are_refused():
    frames = [Image.fromarray(picture(seed=k)) for k in range(3)]
    data = packed(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="still picture"):
        decode_image(data)


def test_text_bombs_do_not_stop_the_decoding_thread():
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a" * 5_000_000, zip=True)
    with pytest.raises(ImageError, match="broken"):
        decode_image(packed(Image.fromarray(picture()), pnginfo=info))


def test_a_mask_is_its_brightness():
    mask = decode_mask(encode_png(np.array([[0, 51, 255]], np.uint8)))
    assert mask.dtype == np.float32
    assert mask[0].tolist() == pytest.approx([0, 0.2, 1])


def test_transparent_parts_of_a_picture_repaint():
    rgba = picture(2, 2, 4)
    rgba[..., 3] = [[255, 0], [255, 255]]
    assert decode_mask(encode_png(rgba)).tolist() == [[0, 1], [0, 0]]


def test_white_strokes_on_a_transparent_canvas_repaint_the_strokes():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 1] = 255
    assert decode_mask(encode_png(rgba)).tolist() == [[0, 1], [0, 0]]


def test_a_check_reads_every_pixel_and_keeps_none():
    whole = packed(Image.fromarray(picture()))
    assert check_image(whole) is None
    with pytest.raises(ImageError, match="start is a broken picture"):
        check_image(whole[: len(whole) // 2], field="start")
    with pytest.raises(ImageError, match="start must be a picture of a known format"):
        check_image(whole[:8], field="start")
