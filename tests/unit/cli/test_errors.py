"""Bad input: one line, the flag, what came, what is allowed; exit code 2; nothing written.

Tests mezzotint.cli.main.
"""

import errno
import json
from pathlib import Path

import pytest

from mezzotint.errors import WorkFailed
from mezzotint.types import ImageOutput

BAD = [
    (["--model", "plat"], "--model: unknown model 'plat'; did you mean 'plate'"),
    (["--width", "abc"], "--width: must be a whole number, got 'abc'"),
    (["--width", "0"], "--width: width must be 1 to 16384 px, got 0"),
    (["--width", "770.5"], "--width: must be a whole number, got '770.5'"),
    (["--width", "65"], "--width: width must be a multiple of 8 px, got 65"),
    (["--height", "-8"], "--height: height must be 1 to 16384 px, got -8"),
    (["--num-images", "0"], "--num-images: num_images must be 1 to 1024, got 0"),
    (["--steps", "0"], "mezzotint: --steps: num_inference_steps must be 1 to 1000, got 0"),
    (["--steps", "1000000000"], "must be 1 to 1000, got 1000000000"),
    (["--seed", "-1"], "--seed: seed must be 0 to 18446744073709551615, got -1"),
    (["--seed", "18446744073709551616"], "--seed: seed must be 0 to"),
    (["--seed", "lucky"], "--seed: must be a whole number 0 to 18446744073709551615, got 'lucky'"),
    (["--guidance-scale", "nan"], "--guidance-scale: guidance_scale must be 0 to 1000, got nan"),
    (["--guidance-scale", "inf"], "--guidance-scale: guidance_scale must be 0 to 1000, got inf"),
    (["-g", "linear:8:2:1"], "--guidance-scale: must look like linear:START:END, got 'linear:8:2:1'"),
    (["-g", "wobbly:3"], "--guidance-scale: must be a number, or a curve (constant, linear"),
    (["-g", '{"schedule": "sine"}'], "--guidance-scale: guidance_scale.schedule must be one of"),
    (["--scheduler", "eular"], "--scheduler: unknown scheduler 'eular'; did you mean 'euler'"),
    (["--strength", "1.5"], "--strength: strength must be 0 to 1, got 1.5"),
    (["--image", "none.png"], "--image: cannot read none.png: No such file or directory"),
    (["--image", "https://x/y.png"], "--image: must be a file, got the URL 'https://x/y.png'"),
    (["--mask", "good.png"], "--mask: mask needs image"),
    (["--lora", ":0.5"], "--lora: must look like NAME[:SCALE], got ':0.5'"),
    (["--lora", "ink:99"], "--lora: loras.scale must be -10 to 10, got 99.0"),
    (["--control", "canny"], "--control: must look like NAME:PICTURE[:SCALE[:START:END]]"),
    (["--control", "canny:none.png:1"], "--control: cannot read none.png"),
    (["--region", "a cat"], "--region: must look like PROMPT@X0,Y0,X1,Y1"),
    (["--region", "a cat@0,0,2,1"], "--region: regions.box[2] must be 0 to 1, got 2"),
    (["--region", "a cat@0,0,1,1;colour=red"], "--region: must be a number, got 'red'"),
    (["--walk-to", "x", "--frames", "1"], "--frames: walk.frames must be 2 to 1024, got 1"),
    (["--gate", "nsfw:high"], "--gate: must be a number, got 'high'"),
    (["--gate", "nsfw:0.5:perhaps"], "--gate: gates.nsfw.on_error must be one of"),
    (["--max-attempts", "65"], "--max-attempts: gates.max_attempts must be 1 to 64, got 65"),
    (["--upscale", "9"], "--upscale: upscale.factor must be 1 to 8, got 9.0"),
    (["--output-format", "gif"], "--output-format: output.format must be one of 'png', 'jpeg'"),
    (["--quality", "101"], "--quality: output.quality must be 1 to 100, got 101"),
    (["--prompt-dialect", "latin"], "--prompt-dialect: prompt_dialect must be one of 'plain'"),
    (["--reproducibility", "maybe"], "--reproducibility: reproducibility must be one of 'exact'"),
    (["--deadline-s", "-1"], "--deadline-s: deadline_s must be 0 to 604800 s, got -1.0"),
    (["--set", "sedd=3"], "--set: unknown field 'sedd'; did you mean 'seed'"),
    (["--set", "seed"], "--set: must look like FIELD=JSON, got 'seed'"),
    (["--set", "loras={"], "--set: loras must be JSON, got '{'"),
    (["--request", "none.json"], "--request: cannot read none.json: No such file"),
    (["--request", "broken.json"], "--request: broken.json is not JSON"),
    (["--request", "list.json"], "--request: list.json must hold an object, got list"),
    (["--request", "field.json"], "--request: unknown field 'promt'; did you mean 'prompt'"),
    (["-o", "no/such/folder/a.png"], "--output: the folder"),
    (["-o", "folder"], "--output: folder is a folder; name a file"),
    (["-o", "a.txt"], "--output: must end in .png, .jpg, .webp, .gif, .apng, .mp4, .jpeg, got 'a.txt'"),
    (["-o", "a.png", "--output-format", "webp"], "--output-format: webp does not fit the name"),
    (["-o", "-", "-n", "2"], "--output: only one picture fits on standard output"),
    (["--output-dir", "good.png"], "--output-dir: cannot make the folder good.png: it is a file"),
    (["--device", "toaster"], "device must be auto, cpu, mps, cuda or cuda:N, got 'toaster'"),
    (["--gidance-scale", "3"], "No such option: --gidance-scale. Did you mean --guidance-scale?"),
    (["--steps", "x"], "mezzotint: --steps: must be a whole number, got 'x'"),
    (["--num-inference-steps=0"], "mezzotint: --num-inference-steps: num_inference_steps must be 1"),
    (["red", "apples"], 'words of a prompt stand in quotes: mezzotint generate "a red apple"'),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path):
    from mezzotint.service.fake_pictures import draw

    (tmp_path / "good.png").write_bytes(draw(bytes(32), 16, 16, "png"))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "field.json").write_text(json.dumps({"promt": "x"}))
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_a_wrong_request_is_one_line_and_code_two(cli, service, folder, arguments, message):
    done = cli("generate", "x", *arguments)
    assert done.code == 2
    assert done.out == ""
    assert message in done.err
    assert done.err.startswith("mezzotint: ")
    assert done.err.count("\n") == 1
    assert not list(folder.rglob("*.partial"))
    assert not (folder / "outputs").exists() or not list((folder / "outputs").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bake"], "No such command 'bake'"),
        (["verify"], "verify: Missing argument 'PICTURE'"),
        (["verify", "none.png"], "PICTURE: cannot read none.png"),
        (["verify", "good.png"], "PICTURE: good.png carries no recipe"),
        (["replay", "broken.json"], "PICTURE: broken.json carries no recipe"),
        (["inspect", "good.png"], "good.png carries no recipe"),
        (["inspect", "folder"], "PICTURE: cannot read folder"),
        (["models", "show", "plat"], "unknown model 'plat'; did you mean 'plate'"),
        (["models", "remove", "nothing"], "unknown model 'nothing'"),
        (["models", "remove", "plate"], "NAME: plate is built in"),
        (["models", "add", "my model", "folder"], "name must be letters, digits"),
        (
            ["models", "add", "mine", "nowhere"],
            "PATH_OR_ID: there is nothing at nowhere; give a folder",
        ),
        (["keys", "list"], "keys: No such command 'list'. There are: sign, new"),
        (["bake"], "No such command 'bake'. There are: generate, replay"),
        (["cache"], "No such command 'cache'. There are: generate, replay"),
        (
            ["generate", "x", "--palette", "3"],
            "generate: No such option: --palette. See mezzotint generate --help.",
        ),
        (["generate", "x", "--widht", "3"], "No such option: --widht. Did you mean --width?"),
        (["generate", "x", "--cfg", "3"], "--cfg. Did you mean --guidance-scale?"),
        (["--hoem", "x"], "No such option: --hoem. Did you mean --home?"),
        (["genrate"], "No such command 'genrate'. Did you mean 'generate'?"),
        (["models", "defaults", "plate", "--version", "9"], "unknown version of model plate '9'"),
        (["archive", "inspect", "none.mzt"], "ARCHIVE: cannot read none.mzt"),
        (["archive", "import", "none.mzt"], "ARCHIVE: cannot read none.mzt"),
        (["keys", "new", "--scopes", "rule"], "rule"),
        (["keys", "new", "--name", "two words"], "name must be one word"),
        (["serve", "--port", "70000"], "--port: port must be 0 to 65535, got 70000"),
        (["serve", "--host", "0.0.0.0"], "mezzotint keys new"),
        (["serve", "--model-store", "nowhere"], "--model-store: the folder nowhere does not exist"),
        (
            ["serve", "--models", "=x"],
            "--models: must look like NAME, NAME=PATH, FILE.mar or all, got '=x'",
        ),
        (["serve", "--config", "none.toml"], "cannot read none.toml"),
        (["--config", "broken.json", "config", "show"], "broken.json is not TOML"),
        (["--log-level", "loud", "config", "show"], "must be one of 'debug'"),
        (["bench", "nothing"], "unknown benchmark 'nothing'"),
        (["train", "none.toml"], "none.toml"),
        (["sample", "nowhere", "x"], "RUN_DIR: nowhere is no folder"),
        (["lab", "--scheduler", "eular"], "eular"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_verb_says_what_is_wrong_in_one_line(cli, service, folder, arguments, message):
    done = cli(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_an_archive_that_is_none_failed_and_is_code_one(cli, folder):
    (folder / "a.mzt").write_bytes(b"PK\x05\x06 not a zip at all")
    done = cli("archive", "inspect", "a.mzt")
    assert done.code == 1
    assert done.err.count("\n") == 1


def test_a_full_disk_is_one_line_and_leaves_nothing(cli, service, folder, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mezzotint.cli.outputs.write_atomically", full)
    done = cli("generate", "x", "-q")
    assert done.code == 1
    assert done.err == "mezzotint: cannot write to outputs: No space left on device\n"
    assert list((folder / "outputs").iterdir()) == []


def test_a_device_that_takes_nothing_is_not_replaced(cli, service, folder):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    done = cli("generate", "x", "-q", "-o", "/dev/full")
    assert done.code == 1
    assert "cannot write to /dev/full: No space left on device" in done.err
    assert Path("/dev/full").is_char_device()


def test_an_interrupt_is_130_and_leaves_nothing(cli, service, folder, monkeypatch):
    from mezzotint.service.fake import FakeService

    async def interrupted(self, *arguments, **options):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(FakeService, "stream", interrupted)
    done = cli("generate", "x", "-q")
    assert (done.code, done.err) == (130, "mezzotint: interrupted\n")
    assert list((folder / "outputs").iterdir()) == []


def test_a_name_that_another_process_takes_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    from mezzotint.cli.outputs import write_fresh

    (tmp_path / "a.png").write_bytes(b"theirs")
    path = write_fresh(tmp_path, "a", ".png", b"ours")
    assert path.name == "a-2.png"
    assert (tmp_path / "a.png").read_bytes() == b"theirs"


def test_a_file_system_without_links_takes_pictures_too(tmp_path, monkeypatch):
    from mezzotint.cli.outputs import write_fresh

    def no_links(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    assert write_fresh(tmp_path, "a", ".png", b"1").name == "a.png"
    assert write_fresh(tmp_path, "a", ".png", b"2").name == "a-2.png"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-2.png", "a.png"]


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [
        ("A red apple, with a (green) leaf!", "a-red-apple-with-a-green-leaf-7"),
        ("../../etc/passwd", "etc-passwd-7"),
        ("", "plate-7"),
        ("é" * 200, "é" * 30 + "-7"),
        ("\x01\n/\\", "plate-7"),
    ],
)
def test_a_picture_is_called_after_its_words_and_never_leaves_the_folder(prompt, stem):
    from mezzotint.cli.outputs import picture_stem
    from mezzotint.request import GenerationRequest

    assert picture_stem(GenerationRequest(prompt=prompt), 7) == stem


def test_a_picture_that_cannot_be_written_keeps_its_error_short(tmp_path):
    from mezzotint.cli.outputs import Destination
    from mezzotint.request import GenerationRequest

    destination = Destination(tmp_path / "a.png", tmp_path)
    (tmp_path / "a.png").mkdir()
    image = ImageOutput(index=0, seed=1, data=b"x", format="png", width=1, height=1)
    with pytest.raises(WorkFailed, match=r"cannot write to .*a\.png"):
        destination.write(image, GenerationRequest())


def test_the_help_of_a_flag_states_the_bounds_that_its_field_is_checked_by():
    from mezzotint.cli.flags import field_help

    assert field_help("num_images") == "Pictures; picture k has the seed seed + k: 1 to 1024."
    assert field_help("output.quality") == "Of JPEG, WebP and MP4: 1 to 100."
    assert field_help("walk.frames") == "Pictures, both ends included: 2 to 1024."
    assert (
        field_help("gates.keep") == "The first that passes, or the best of all: first_pass, best."
    )


def test_help_is_a_word_too(cli):
    done = cli("help", "generate")
    assert (done.code, done.err) == (0, "")
    assert done.out == cli("generate", "--help").out


def test_a_plan_for_people_is_rounded_and_whole_as_json(cli, service):
    told = json.loads(cli("generate", "x", "--plan", "--json").out)
    seconds = told["cost"]["seconds"]
    lines = cli("generate", "x", "--plan").out.splitlines()
    shown = next(line for line in lines if line.strip().startswith("seconds:"))
    assert float(shown.split(":")[1]) == pytest.approx(seconds, rel=1e-5)
    assert len(shown.split(":")[1].strip().replace(".", "")) <= 6
