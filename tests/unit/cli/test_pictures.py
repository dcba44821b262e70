import io
import json

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mezzotint.cli import session
from mezzotint.cli.comparison import compare
from mezzotint.images.codec import decode_image, encode
from mezzotint.images.metadata import build_recipe, canonical_json, make_infotext
from mezzotint.images.signing import load_signing_key, sign_file
from mezzotint.request import GenerationRequest
from mezzotint.service.fake import FakeService
from mezzotint.textchunks import make_exif, png_chunk
from mezzotint.types import Finished, GenerationResult, ImageOutput

ENVIRONMENT = {
    "device": "cpu",
    "dtype": "float32",
    "model_digest": "ab",
    "versions": {"torch": "2"},
}


class Studio(FakeService):
    """Makes pictures of the seed's colour with a real recipe inside."""

    environment = ENVIRONMENT

    async def stream(
        self, request, *, request_id, client="", use_cache=True, preview_every=0, quiet=False
    ):
        self.use_cache = use_cache
        count = request.walk.frames if request.walk else request.num_images
        images = tuple(self._image(request, (request.seed or 0) + k, k) for k in range(count))
        yield Finished(id=request_id, result=GenerationResult(id=request_id, images=images))

    def _image(self, request, seed, index):
        pixels = np.full((8, 8, 3), seed % 256, np.uint8)
        frame = index if request.walk else 0
        plain = {**request.to_dict(), "seed": seed if not request.walk else request.seed}
        recipe = build_recipe(plain, environment=self.environment, index=frame)
        data = encode(
            pixels,
            request.output.format,
            parameters=make_infotext(recipe),
            recipe=canonical_json(recipe),
        )
        return ImageOutput(
            index=index, seed=seed, data=data, format=request.output.format, width=8, height=8,
            recipe=recipe,
        )  # fmt: skip


@pytest.fixture
def studio(monkeypatch):
    made = []

    def make(settings):
        made.append(Studio())
        return made[-1]

    monkeypatch.setattr(session, "make_service", make)
    return made


@pytest.fixture
def picture(cli, studio, tmp_path):
    assert cli("generate", "a red apple", "--seed", 7, "-o", "a.png", "-q").code == 0
    return tmp_path / "a.png"


def retouch(picture, count):
    """Change ``count`` pixels and keep the recipe."""
    with Image.open(picture) as opened:
        texts = dict(opened.text)
        pixels = np.array(opened.convert("RGB"))
    pixels.reshape(-1, 3)[:count, 0] += 3
    kept = PngInfo()
    for key, text in texts.items():
        kept.add_itxt(key, text)
    Image.fromarray(pixels).save(picture, pnginfo=kept)


def test_verify_says_identical_and_exits_0(cli, picture, studio):
    done = cli("verify", picture)
    assert (done.code, done.out.splitlines()[0]) == (0, "identical")
    assert "not who made it" in done.out
    assert studio[-1].use_cache is False


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
def test_verify_works_for_every_encoding(cli, studio, name):
    cli("generate", "a red apple", "--seed", 7, "-o", name, "-q")
    assert cli("verify", name).out.startswith("identical\n")


def test_verify_counts_the_pixels_of_a_retouched_picture_and_exits_1(cli, picture):
    retouch(picture, 5)
    done = cli("verify", picture)
    assert done.code == 1
    assert "5 of 64 pixels differ, by at most 3 of 255" in done.out
    assert "the environment is the same" in done.out


def test_verify_names_what_differs_in_the_environment(cli, picture, monkeypatch):
    retouch(picture, 1)
    now = {**ENVIRONMENT, "device": "cuda", "versions": {"torch": "3"}}
    monkeypatch.setattr(Studio, "environment", now)
    done = cli("verify", picture)
    assert done.code == 1
    assert "device: was cpu, is cuda" in done.out
    assert "versions.torch: was 2, is 3" in done.out
    assert "dtype" not in done.out


def test_verify_tells_of_another_size(cli, picture):
    with Image.open(picture) as opened:
        texts, small = dict(opened.text), opened.resize((4, 4))
    kept = PngInfo()
    for key, text in texts.items():
        kept.add_itxt(key, text)
    small.save(picture, pnginfo=kept)
    done = cli("verify", picture)
    assert done.code == 1
    assert "the sizes differ" in done.out


def test_verify_answers_in_json(cli, picture):
    answer = json.loads(cli("verify", picture, "--json").out)
    assert answer["identical"] is True
    assert (answer["differing_pixels"], answer["pixels"]) == (0, 64)


def with_chunk(data, kind, body, *, before=b"IDAT"):
    position = data.index(before) - 4
    return data[:position] + png_chunk(kind, body) + data[position:]


FORGERIES = {
    "A1111 text": lambda d: d.replace(
        *(
            png_chunk(b"tEXt", t)
            for t in (
                next(c for c in chunk_bodies(d) if c.startswith(b"parameters\0")),
                b"parameters\0forged\nSteps: 1, Seed: 2, Size: 3x3, Model: other",
            )
        )
    ),
    "sRGB": lambda d: d.replace(png_chunk(b"sRGB", b"\0"), png_chunk(b"sRGB", b"\1")),
    "gAMA": lambda d: with_chunk(d, b"gAMA", (100_000).to_bytes(4, "big")),
    "eXIf": lambda d: with_chunk(d, b"eXIf", make_exif("x")),
    "what follows": lambda d: d + b"trailing",
    "IHDR": lambda d: alpha(d),
    "IDAT": lambda d: recompressed(d),
}


def chunk_bodies(data):
    position = 8
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        yield data[position + 8 : position + 8 + length]
        position += 12 + length


def again(data, pixels, **options):
    """Write pixels with Pillow and our own text chunks."""
    stream = io.BytesIO()
    kept = PngInfo()
    with Image.open(io.BytesIO(data)) as opened:
        for key, text in opened.text.items():
            kept.add_text(key, text)
    Image.fromarray(pixels).save(stream, "PNG", pnginfo=kept, **options)
    return stream.getvalue()


def alpha(data):
    """Give a picture an alpha channel that hides nothing from verify and all from a viewer."""
    pixels = decode_image(data)
    opaque = np.full((*pixels.shape[:2], 1), 255, np.uint8)
    return again(data, np.concatenate([pixels, opaque], axis=-1))


def recompressed(data):
    return again(data, decode_image(data), compress_level=0)


@pytest.mark.parametrize("what", FORGERIES)
def test_verify_names_what_was_put_into_a_file_with_the_same_pixels(cli, picture, what):
    data = picture.read_bytes()
    forged = FORGERIES[what](data)
    assert forged != data
    picture.write_bytes(forged)
    done = cli("verify", picture)
    assert done.code == 1
    assert "different: every pixel is the same" in done.out
    assert {"A1111 text": "tEXt parameters"}.get(what, what) in done.out


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
def test_verify_names_what_hangs_behind_a_jpeg_or_webp(cli, studio, tmp_path, name):
    cli("generate", "a red apple", "--seed", 7, "-o", name, "-q")
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b"<script>")
    done = cli("verify", tmp_path / name)
    assert done.code == 1
    assert "what follows (8 bytes)" in done.out


@pytest.mark.parametrize("digest", ["", "00"])
def test_verify_does_not_call_a_claim_of_other_weights_identical(cli, studio, tmp_path, digest):
    claimed = Studio()
    claimed.environment = {**ENVIRONMENT, "model_digest": digest}
    request = GenerationRequest(prompt="a red apple", seed=7)
    (tmp_path / "a.png").write_bytes(claimed._image(request, 7, 0).data)
    done = cli("verify", tmp_path / "a.png")
    assert done.code == 1
    assert f"model_digest: was {digest}, is ab" in done.out


def test_verify_says_identical_of_a_picture_from_another_version_and_names_it(
    cli, studio, tmp_path
):
    then = Studio()
    then.environment = {**ENVIRONMENT, "versions": {"torch": "1"}}
    request = GenerationRequest(prompt="a red apple", seed=7)
    (tmp_path / "a.png").write_bytes(then._image(request, 7, 0).data)
    done = cli("verify", tmp_path / "a.png")
    assert (done.code, done.out.splitlines()[:2]) == (
        0, ["identical", "  versions.torch: was 1, is 2"]
    )  # fmt: skip


def test_a_block_painted_over_breaks_the_promise_of_turbo():
    pixels = np.full((256, 256, 3), 100, np.uint8)
    painted = pixels.copy()
    painted[32:48, 64:80] += 60
    recipe = build_recipe({"reproducibility": "turbo", "seed": 1}, environment=ENVIRONMENT)
    texts = {"parameters": make_infotext(recipe), "recipe": canonical_json(recipe)}
    image = ImageOutput(
        index=0, seed=1, data=encode(pixels, **texts), format="png", width=256, height=256,
        recipe=recipe,
    )  # fmt: skip
    found = compare(encode(painted, **texts), image, recipe)
    assert found.decibels > 30
    assert found.worst_block == (64, 32, 12.6)
    assert not found.keeps_promise
    noisy = pixels.copy()
    noisy[::2] += 2
    assert compare(encode(noisy, **texts), image, recipe).keeps_promise


@pytest.mark.parametrize("flag", [(), ("--allow-download",)])
@pytest.mark.parametrize("verb", ["verify", "replay"])
def test_a_strangers_picture_fetches_no_model_unless_asked(cli, picture, monkeypatch, verb, flag):
    seen = []
    monkeypatch.setattr(
        session, "make_service", lambda s: seen.append(s.models.allow_downloads) or Studio()
    )
    output = ("-o", "b.png") if verb == "replay" else ()
    assert cli(verb, picture, *flag, *output, "-q").code == 0
    assert seen == [bool(flag)]


def test_verify_tells_known_unknown_missing_and_broken_signatures_apart(cli, picture, tmp_path):
    made = cli("keys", "sign", "-o", tmp_path / "sign.pem", "--name", "studio")
    assert (made.code, "studio" in made.out) == (0, True)
    trusted = ("--trusted", tmp_path / "sign.pem.pub")
    assert "unsigned" in cli("verify", picture, *trusted).out
    signed = sign_file(picture.read_bytes(), load_signing_key(tmp_path / "sign.pem"))
    picture.write_bytes(signed)
    done = cli("verify", picture, *trusted)
    assert (done.code, done.out) == (0, "identical\nsigned by studio\n")
    done = cli("verify", picture)
    assert done.code == 0
    assert "signed by an unknown key" in done.out
    answer = json.loads(cli("verify", picture, "--json", *trusted).out)
    assert (answer["signature"]["status"], answer["identical"]) == ("known", True)
    picture.write_bytes(signed.replace(b'"signature":"', b'"signature":"AAAA', 1))
    done = cli("verify", picture, *trusted)
    assert done.code == 1
    assert "the signature is broken" in done.out


HOSTILE = "a \x1b]0;owned\x07 \u202e\n cat \x9b31m"


def test_no_terminal_line_holds_what_a_file_could_command(cli, studio, tmp_path):
    text = f"{HOSTILE}\nSteps: 1, Sampler: \x1b[2J, Seed: 2, Size: 8x8, Odd key: \x1b[31mred"
    (tmp_path / "a.png").write_bytes(encode(np.zeros((8, 8, 3), np.uint8), parameters=text))
    for flags in ((), ("--request",), ("--json",), ("--json", "--request")):
        done = cli("inspect", tmp_path / "a.png", *flags)
        assert done.code == 0
        for said in (done.out, done.err):
            assert all(line.isprintable() for line in said.split("\n")), flags


def test_no_error_holds_what_a_recipe_could_command(cli, studio, tmp_path):
    recipe = build_recipe({"prompt": "x", "model\x1b[2J": 1}, environment={})
    data = encode(np.zeros((8, 8, 3), np.uint8), recipe=canonical_json(recipe))
    (tmp_path / "a.png").write_bytes(data)
    done = cli("verify", tmp_path / "a.png")
    assert done.code == 2
    assert "\x1b" not in done.err
    assert "\\x1b[2J" in done.err


def test_verify_refuses_a_recipe_that_was_changed(cli, picture):
    with Image.open(picture) as opened:
        texts, pixels = dict(opened.text), opened.copy()
    kept = PngInfo()
    for key, text in texts.items():
        kept.add_itxt(key, text.replace('"seed":7', '"seed":8'))
    pixels.save(picture, pnginfo=kept)
    done = cli("verify", picture)
    assert done.code == 2
    assert "was changed" in done.err


def test_a_picture_of_a_walk_is_verified_as_that_picture(cli, studio):
    done = cli("generate", "a", "--seed", 7, "--walk-to", "b", "--frames", 3, "-q")
    third = done.out.split()[2]
    assert cli("verify", third).out.startswith("identical\n")


def test_replay_makes_the_same_bytes_in_another_file(cli, picture, tmp_path):
    done = cli("replay", picture, "-o", "b.png")
    assert (done.code, done.out) == (0, "b.png\n")
    assert (tmp_path / "b.png").read_bytes() == picture.read_bytes()


def test_inspect_prints_our_recipe(cli, picture):
    done = cli("inspect", picture)
    assert "generator: Mezzotint" in done.out
    assert "request.prompt: a red apple" in done.out
    assert json.loads(cli("inspect", picture, "--json").out)["request"]["seed"] == 7


def test_inspect_request_can_be_given_back_to_generate(cli, picture, tmp_path):
    (tmp_path / "r.json").write_text(cli("inspect", picture, "--request").out)
    done = cli("generate", "--request", "r.json", "-o", "b.png", "-q")
    assert done.code == 0, done.err
    assert decode_image((tmp_path / "b.png").read_bytes())[0, 0, 0] == 7


A1111 = (
    "a red apple\nNegative prompt: blur\n"
    "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 965400086, "
    "Size: 512x512, Model hash: 45dee52b, Model: dreamshaper, Clip skip: 2, Version: v1.10.1"
)


@pytest.fixture
def foreign(tmp_path):
    kept = PngInfo()
    kept.add_text("parameters", A1111)
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG", pnginfo=kept)
    path = tmp_path / "foreign.png"
    path.write_bytes(stream.getvalue())
    return path


def test_inspect_reads_the_recipes_of_others(cli, foreign):
    done = cli("inspect", foreign)
    assert "generator: AUTOMATIC1111" in done.out
    assert "prompt: a red apple" in done.out


def test_inspect_request_is_the_nearest_that_runs_and_names_what_is_lost(cli, foreign):
    done = cli("inspect", foreign, "--request")
    request = json.loads(done.out)
    assert request["scheduler"] == "dpmpp_2m"
    assert request["sigma_schedule"] == "karras"
    assert (request["seed"], request["width"]) == (965400086, 512)
    assert "not honoured: Clip skip (2)" in done.err
    assert "not honoured: model dreamshaper is not in the store" in done.err


def test_verify_of_a_foreign_picture_exits_2(cli, foreign):
    done = cli("verify", foreign)
    assert done.code == 2
    assert "carries no recipe of Mezzotint" in done.err
