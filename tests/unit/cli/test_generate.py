import base64
import dataclasses
import json

import pytest

from mezzotint.request import GenerationRequest
from mezzotint.service.fake import FakeConfig
from mezzotint.service.fake_pictures import draw

PICTURE = draw(bytes(32), 16, 16, "png")


@pytest.fixture
def asked(cli, service):
    """Run ``generate`` and return the request that reached the service."""

    def run(*arguments) -> GenerationRequest:
        done = cli("generate", "a red apple", "--seed", 7, "-q", *arguments)
        assert done.code == 0, done.err
        return service.made[-1].requests[-1]

    return run


def test_it_prints_the_path_of_the_picture_it_wrote(cli, service, tmp_path):
    done = cli("generate", "a red apple", "--seed", 7)
    assert done.code == 0
    assert done.out == "outputs/a-red-apple-7.png\n"
    assert (tmp_path / "outputs/a-red-apple-7.png").read_bytes().startswith(b"\x89PNG")


def test_the_service_is_closed_at_the_end(cli, service):
    cli("generate", "x")
    assert service.made[0]._closed


def test_four_pictures_have_four_seeds_and_four_files(cli, service):
    done = cli("generate", "a red apple", "--seed", 7, "--num-images", 4)
    assert done.out.split() == [f"outputs/a-red-apple-{seed}.png" for seed in (7, 8, 9, 10)]


def test_the_same_picture_again_takes_another_name(cli, service, tmp_path):
    first, second = (cli("generate", "x", "--seed", 7).out.strip() for _ in range(2))
    assert (first, second) == ("outputs/x-7.png", "outputs/x-7-2.png")
    assert (tmp_path / first).read_bytes() == (tmp_path / second).read_bytes()


def test_a_named_file_is_replaced_and_that_is_said(cli, service, tmp_path):
    (tmp_path / "a.png").write_bytes(b"old")
    done = cli("generate", "x", "-o", "a.png")
    assert done.code == 0
    assert "replaced a.png" in done.err
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_no_clobber_keeps_the_named_file(cli, service, tmp_path):
    (tmp_path / "a.png").write_bytes(b"old")
    done = cli("generate", "x", "-o", "a.png", "--no-clobber")
    assert done.code == 2
    assert (tmp_path / "a.png").read_bytes() == b"old"


def test_several_pictures_are_numbered_behind_a_named_file(cli, service):
    done = cli("generate", "x", "-o", "a.png", "-n", 2)
    assert done.out.split() == ["a-0000.png", "a-0001.png"]


def test_the_file_name_decides_the_encoding(cli, service, tmp_path):
    assert cli("generate", "x", "-o", "a.jpg").code == 0
    assert (tmp_path / "a.jpg").read_bytes().startswith(b"\xff\xd8")


def test_a_dash_writes_the_picture_to_standard_output(service, tmp_path):
    import os
    import subprocess
    import sys

    code = (
        "from mezzotint.cli import session, main\n"
        "from mezzotint.service.fake import FakeService\n"
        "session.make_service = lambda settings: FakeService()\n"
        "main.main(['generate', 'x', '-o', '-'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "MEZZOTINT_HOME": str(tmp_path)},
    )
    assert done.returncode == 0
    assert done.stdout.startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == []


def test_json_is_one_object_with_paths_seeds_and_plan(cli, service):
    done = cli("generate", "x", "--seed", 2**64 - 1, "-n", 2, "--json")
    answer = json.loads(done.out)
    assert answer["status"] == "succeeded"
    assert [image["seed"] for image in answer["images"]] == [2**64 - 1, 0]
    assert [image["path"] for image in answer["images"]] == [
        f"outputs/x-{2**64 - 1}.png",
        "outputs/x-0.png",
    ]
    assert answer["plan"]["scheduler"] == "euler"
    assert set(answer["images"][0]["timings"]) >= {"queue_s", "denoise_s", "decode_s"}
    assert done.err == ""


def test_plan_prints_and_makes_nothing(cli, service, tmp_path):
    done = cli("generate", "x", "--plan")
    assert done.code == 0
    assert "num_inference_steps: 4" in done.out
    assert service.made[0].requests == []
    assert not (tmp_path / "outputs").exists()
    assert json.loads(cli("generate", "x", "--plan", "--json").out)["plan"]["width"] == 128


def test_a_plan_begins_with_what_it_comes_to(cli, service):
    first, second, empty, *_ = cli("generate", "x", "--plan", "-n", 3).out.splitlines()
    assert first == "3 pictures, plate, 128 x 128 px, 4 steps of euler, guidance 5"
    assert second.startswith("about 0.0 s, ")
    assert second.endswith(" MB of memory (guessed: nothing like it was drawn here)")
    assert empty == ""


def test_flags_of_the_picture_reach_the_request(asked):
    request = asked(
        "--model", "plate@1.0", "-n", 2, "--width", 64, "--height", 72, "--steps", 3,
        "--scheduler", "ddim", "--sigma-schedule", "karras", "-g", 3.5,
        "--negative-prompt", "blue", "--prompt-dialect", "a1111", "--reproducibility", "turbo",
        "--priority", 5, "--deadline-s", 60, "--output-format", "webp", "--quality", 50,
        "--no-metadata",
    )  # fmt: skip
    plain = request.to_dict()
    assert plain == {
        "model": "plate@1.0", "prompt": "a red apple", "negative_prompt": "blue",
        "width": 64, "height": 72, "num_images": 2, "seed": 7, "num_inference_steps": 3,
        "scheduler": "ddim", "sigma_schedule": "karras", "guidance_scale": 3.5,
        "prompt_dialect": "a1111", "reproducibility": "turbo", "priority": 5, "deadline_s": 60.0,
        "output": {"format": "webp", "quality": 50, "metadata": False},
    }  # fmt: skip


def test_flags_of_techniques_reach_the_request(asked, tmp_path):
    (tmp_path / "in.png").write_bytes(PICTURE)
    request = asked(
        "--image", "in.png", "--strength", 0.5, "--mask", "in.png",
        "--lora", "ink:0.5", "--lora", "C:/x.safetensors",
        "--control", "canny:in.png:0.7:0.1:0.9", "--control", "tile:in.png;preprocess=tile:2",
        "--control", "union:in.png:0.5;mode=4;guess",
        "--image-prompt", "style:in.png:0.4", "--image-prompt", "style:in.png",
        "--embedding", "scribble", "--embedding", "ink:<ink>",
        "--region", "a cat@0,0,0.5,1;weight=2;negative=dog", "--region", "sky@in.png",
        "--ensemble", "plate:2", "--ensemble", "other:1,0.5",
        "--ensemble", "dog@1.0:3;box=0,0,0.5,1;feather=0.1", "--ensemble", "cat;mask=in.png",
        "--gate", "nsfw:0.7:open", "--gate", "quality", "--max-attempts", 3, "--keep", "best",
        "--upscale", "2:anime-x4",
    )  # fmt: skip
    encoded = base64.b64encode(PICTURE).decode()
    plain = request.to_dict()
    assert plain["image"] == plain["mask"] == encoded
    assert plain["strength"] == 0.5
    assert plain["loras"] == [{"name": "ink", "scale": 0.5}, {"name": "C:/x.safetensors"}]
    assert plain["controls"] == [
        {"model": "canny", "image": encoded, "scale": 0.7, "start": 0.1, "end": 0.9},
        {"model": "tile", "image": encoded, "preprocess": "tile:2"},
        {"model": "union", "image": encoded, "scale": 0.5, "mode": 4, "guess": True},
    ]
    assert plain["image_prompts"] == [
        {"model": "style", "images": [encoded], "scale": 0.4},
        {"model": "style", "images": [encoded]},
    ]
    assert plain["embeddings"] == [{"name": "scribble"}, {"name": "ink", "token": "<ink>"}]
    assert plain["regions"] == [
        {"prompt": "a cat", "negative_prompt": "dog", "box": [0.0, 0.0, 0.5, 1.0], "weight": 2.0},
        {"prompt": "sky", "mask": encoded},
    ]
    assert plain["ensemble"] == [
        {"model": "plate", "weight": 2.0},
        {"model": "other", "weights": [1.0, 0.5]},
        {"model": "dog@1.0", "weight": 3.0, "box": [0.0, 0.0, 0.5, 1.0], "feather": 0.1},
        {"model": "cat", "mask": encoded},
    ]
    assert plain["gates"] == {
        "nsfw": {"threshold": 0.7, "on_error": "open"},
        "quality": {},
        "max_attempts": 3,
        "keep": "best",
    }
    assert plain["upscale"] == {"model": "anime-x4"}


def test_a_flag_without_a_form_of_its_own_takes_the_fields_of_its_part(asked, tmp_path):
    (tmp_path / "in.png").write_bytes(PICTURE)
    pictures = ("--image", "in.png", "--mask", "in.png")
    fields = {"blur": 4.0, "fill": "noise", "area": "masked", "padding": 8, "paste": True}
    said = "blur=4,fill=noise,area=masked,padding=8,paste"
    assert asked(*pictures, "--inpaint", said).to_dict()["inpaint"] == fields
    assert asked(*pictures, "--inpaint", json.dumps(fields)).to_dict()["inpaint"] == fields


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("=4", "must look like KEY"),
        ("padding=4.5", "padding must be a whole number"),
        ("padding=inf", "padding must be a whole number"),
        ("blurr=4", "blurr"),
    ],
)
def test_what_such_a_flag_cannot_take_is_said(cli, tmp_path, said, told):
    (tmp_path / "in.png").write_bytes(PICTURE)
    done = cli("generate", "x", "--image", "in.png", "--mask", "in.png", "--inpaint", said)
    assert done.code == 2
    assert told in done.err


def test_a_walk_makes_its_frames(cli, service):
    done = cli("generate", "a cat", "--seed", 7, "--walk-to", "a dog", "--frames", 3)
    assert len(done.out.split()) == 3
    assert service.made[0].requests[0].walk.mode == "prompt"


@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        (["--to-seed", 9], "seed"),
        (["--to-seed", 9, "--walk-to", "x"], "both"),
        (["--to-seed", 9, "--walk-to", "x", "--walk-mode", "prompt"], "prompt"),
    ],
)
def test_the_mode_of_a_walk_follows_from_what_is_given(asked, flags, mode):
    assert asked(*flags).walk.mode == mode


def test_gan_inputs_reach_the_request(asked):
    request = asked("--model", "plate-gan", "--truncation", 0.5, "--class-label", 3)
    assert dataclasses.astuple(request.latent) == (0.5, 3)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("5", 5.0),
        ("constant:4", {"schedule": "constant", "start": 4.0}),
        ("linear:8:2", {"schedule": "linear", "start": 8.0, "end": 2.0}),
        ("power:8:2:3", {"schedule": "power", "start": 8.0, "end": 2.0, "power": 3.0}),
        ("interval:6:0.2:0.8", {"schedule": "interval", "start": 6.0, "from": 0.2, "until": 0.8}),
        ("list:8,6,4", {"schedule": "list", "values": [8.0, 6.0, 4.0]}),
        ('{"schedule": "cosine", "start": 8}', {"schedule": "cosine", "start": 8.0}),
    ],
)
def test_guidance_is_a_number_a_curve_or_json(asked, text, plain):
    written = asked("-g", text).to_dict()["guidance_scale"]
    expected = dict(plain) if isinstance(plain, dict) else plain
    if isinstance(expected, dict) and expected["schedule"] == "constant":
        expected.pop("schedule")
    assert written == expected


def test_a_request_file_gives_everything_and_flags_override_it(cli, service, tmp_path):
    data = {"prompt": "from the file", "seed": 3, "width": 64, "num_images": 2}
    (tmp_path / "r.json").write_text(json.dumps(data))
    assert cli("generate", "--request", "r.json", "--seed", 5).code == 0
    request = service.made[0].requests[0]
    assert (request.prompt, request.seed, request.width, request.num_images) == (
        "from the file", 5, 64, 2,
    )  # fmt: skip


def test_set_overrides_everything_by_dotted_field(asked):
    request = asked(
        "--set", "seed=11", "--set", "output.quality=10", "--set", "negative_prompt=blue",
        "--set", 'loras=[{"name": "ink"}]',
    )  # fmt: skip
    assert (request.seed, request.output.quality, request.negative_prompt) == (11, 10, "blue")
    assert request.loras[0].name == "ink"


def test_a_pipe_sees_plain_lines_with_rate_and_time_left(cli, service, monkeypatch):
    monkeypatch.setattr("mezzotint.cli.progress._LINE_EVERY_S", 0.0)
    service.config = FakeConfig(step_s=0.01)
    done = cli("generate", "x")
    assert "step 4/4" in done.err
    assert "steps/s" in done.err
    assert "s left" in done.err


def test_quiet_says_nothing(cli, service, monkeypatch):
    monkeypatch.setattr("mezzotint.cli.progress._LINE_EVERY_S", 0.0)
    assert cli("generate", "x", "-q").err == ""


def test_profile_prints_a_table_and_writes_a_trace(cli, service, tmp_path):
    done = cli("generate", "x", "--seed", 7, "--profile")
    assert "total s" in done.err
    trace = json.loads((tmp_path / "outputs/x-7.trace.json").read_text())
    assert "traceEvents" in trace


def test_words_come_from_standard_input(cli, service, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("a green leaf\n"))
    assert cli("generate", "-").code == 0
    assert service.made[0].requests[0].prompt == "a green leaf"


@pytest.mark.parametrize("error", ["OutOfMemory", "GateRejected", "WeightsError", "QueueFull"])
def test_work_that_fails_is_one_line_and_code_one(cli, service, tmp_path, error):
    service.config = FakeConfig(failures={"x": error})
    done = cli("generate", "x", "-q")
    assert (done.code, done.out) == (1, "")
    assert done.err == "mezzotint: the fake was told to fail\n"
    assert list((tmp_path / "outputs").iterdir()) == []
