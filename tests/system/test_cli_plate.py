"""The command line on the built-in model: the main job, as a person does it."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mezzotint.cli import main
from mezzotint.observe import log
from mezzotint.observe.config import LogConfig

PROGRAM = Path(sys.executable).with_name("mezzotint")


@pytest.fixture(scope="module")
def home(tmp_path_factory, share_exports):
    return share_exports(tmp_path_factory.mktemp("plate") / "home")


@pytest.fixture
def cli(monkeypatch, tmp_path, capfd, home):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEZZOTINT_HOME", str(home))

    def run(*arguments):
        code = main._run([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    yield run
    log.configure(LogConfig(), io.StringIO())


def test_inspect_shows_what_a_prompt_becomes_on_its_way(cli):
    prompt = "a [red:(green:1.5):0.5] apple"
    drawn = cli("generate", prompt, "--prompt-dialect", "a1111", "--steps", 2, "-q", "-o", "e.png")
    assert drawn[0] == 0, drawn[2]
    code, out, _ = cli("inspect", "e.png", "--tokens")
    assert code == 0
    assert 'until step 1.chunks: [["a", 1.0], ["red", 1.0], ["apple", 1.0]]' in out
    assert 'until step 2.chunks: [["a", 1.0], ["green", 1.5], ["apple", 1.0]]' in out


def test_a_picture_is_drawn_verified_replayed_and_told_from_a_retouched_one(cli, tmp_path):
    code, out, err = cli("generate", "a red apple", "--seed", 7, "--steps", 3, "-q")
    assert code == 0, err
    path = tmp_path / out.strip()
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("PNG", (128, 128))
        assert "Steps: 3" in picture.text["parameters"]
        texts, pixels = dict(picture.text), np.array(picture.convert("RGB"))
    assert cli("verify", path, "-q")[:2] == (
        0,
        "identical\nunsigned: a recipe proves how the picture is made, not who made it\n",
    )
    assert cli("replay", path, "-o", "again.png", "-q")[0] == 0
    assert (tmp_path / "again.png").read_bytes() == path.read_bytes()
    pixels[:4, :4] ^= 1
    kept = PngInfo()
    for key, text in texts.items():
        kept.add_itxt(key, text)
    Image.fromarray(pixels).save("retouched.png", pnginfo=kept)
    code, out, _ = cli("verify", "retouched.png", "-q")
    assert code == 1
    assert "16 of 16384 pixels differ" in out


def test_the_command_line_and_python_draw_the_same_bytes(cli, tmp_path, home):
    import mezzotint as mz

    code, out, err = cli("generate", "a cat", "--seed", 5, "--steps", 2, "-n", 2, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert answer["images"][0]["timings"]["model_calls"] >= 2
    request = mz.GenerationRequest(prompt="a cat", seed=6, num_inference_steps=2)
    with mz.Engine(home=home, engine={"cache_memory_bytes": 0, "cache_disk_bytes": 0}) as engine:
        image = engine.generate(request).images[0]
    assert (tmp_path / answer["images"][1]["path"]).read_bytes() == image.data
    assert image.pixels.shape == (128, 128, 3)


def test_the_plan_says_what_it_will_cost(cli):
    code, out, _ = cli("generate", "a cat", "--plan", "--json", "--steps", 7)
    answer = json.loads(out)
    assert code == 0
    assert answer["plan"]["model"] == "plate"
    assert set(answer["cost"]) >= {"seconds", "bytes", "model_calls"}
    assert answer["cost"]["model_calls"] >= 14


def test_profile_shows_the_stages_and_chrome_can_read_the_trace(cli, tmp_path):
    code, out, err = cli("generate", "a dog", "--seed", 3, "--steps", 2, "--profile", "-q")
    assert code == 0
    for stage in ("encode", "denoise", "decode"):
        assert stage in err
    trace = json.loads((tmp_path / out.strip()).with_suffix(".trace.json").read_text())
    assert {event["ph"] for event in trace["traceEvents"]} == {"X"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", 131], "--width: width must be"),
        (["--width", 100_000], "--width: width must be"),
        (["--scheduler", "eular"], "--scheduler: unknown scheduler 'eular'"),
        (["--class-label", 3], "--class-label"),
        (["--lora", "nothing"], "--lora"),
        (["--gate", "nothing"], "--gate"),
        (["--upscale", "2:nothing"], "--upscale"),
    ],
)
def test_what_the_model_cannot_do_is_one_line_and_code_two(cli, arguments, message, tmp_path):
    code, out, err = cli("generate", "a cat", *arguments, "-q")
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.rglob("*.p*"))


def test_an_empty_prompt_is_refused_where_one_is_needed(cli):
    code, _, err = cli("generate", "-q")
    assert code == 2
    assert "prompt" in err


def test_ctrl_c_in_mid_step_leaves_nothing_and_exits_130(tmp_path, home):
    environment = {**os.environ, "MEZZOTINT_HOME": str(home)}
    process = subprocess.Popen(
        [PROGRAM, "generate", "a slow pear", "--seed", "3", "--steps", "1000"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while "step" not in (line := process.stderr.readline()):  # after what is loaded and compiled
        assert line, process.wait()
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err.splitlines()[-1]) == ("", "mezzotint: interrupted")
    assert time.monotonic() - began < 20
    assert list((tmp_path / "outputs").iterdir()) == []


def test_standard_error_has_no_chatter_of_libraries(tmp_path, home):
    done = subprocess.run(
        [PROGRAM, "generate", "a cat", "--seed", "1", "--steps", "1", "-q"],
        cwd=tmp_path, env={**os.environ, "MEZZOTINT_HOME": str(home)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / done.stdout.strip()).is_file()


def torch_free(home, folder, *arguments):
    """Run a command in a process of its own; return its output, and whether it loaded torch."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
        f"from mezzotint.cli import main\nmain.main({[str(a) for a in arguments]!r})"
    )
    environment = {**os.environ, "MEZZOTINT_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr.splitlines()[-1] == "False"


def test_what_is_known_is_answered_without_torch(home, tmp_path):
    asked = ("generate", "a red apple", "--seed", "7", "--steps", "3", "-q")
    torch_free(home, tmp_path, *asked, "-o", "a.png")  # learns what is not known yet
    _, is_free = torch_free(home, tmp_path, *asked, "-o", "b.png")
    assert is_free
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    plan, _ = torch_free(home, tmp_path, *asked, "--plan", "--json")
    again, is_free = torch_free(home, tmp_path, *asked, "--plan", "--json")
    assert is_free
    one, two = json.loads(plan), json.loads(again)
    for answer in (one, two):  # the first has the seconds that it took to plan
        assert answer["cost"].pop("seconds") > 0
    assert one == two
    for arguments in (("models", "list"), ("inspect", "a.png"), ("models", "show", "plate")):
        torch_free(home, tmp_path, *arguments)  # models of other tests may lie there
        assert torch_free(home, tmp_path, *arguments)[1], arguments


def test_a_fresh_home_lists_shows_and_plans_built_in_models_without_torch(tmp_path):
    asked = {
        "plate": ("generate", "a red apple", "--seed", 7, "--plan", "--json", "-q"),
        "plate-quick": (
            "generate", "a pear", "--model", "plate-quick", "--seed", 7, "--plan", "--json", "-q",
        ),
        "plate-gan": ("generate", "--model", "plate-gan", "--seed", 7, "--plan", "--json", "-q"),
    }  # fmt: skip
    for number, arguments in enumerate(
        [("models", "list"), ("models", "show", "plate"), *asked.values()]
    ):
        answer, is_free = torch_free(tmp_path / str(number), tmp_path, *arguments)
        assert is_free, arguments
        assert answer
    code = (
        "import asyncio, json\n"
        "from mezzotint.request import GenerationRequest\n"
        "from mezzotint.service.local import LocalService\n"
        "from mezzotint.settings import load\n"
        "async def ask():\n"
        "    service = LocalService(load().settings.service_config())\n"
        "    for request in ({'prompt': 'a red apple'}, {'prompt': 'a pear', 'model': 'plate-quick'},\n"
        "                    {'model': 'plate-gan'}):\n"
        "        asked = GenerationRequest.from_dict({**request, 'seed': 7})\n"
        "        print(json.dumps(await service.plan(asked)))\n"
        "    await service.close()\n"
        "asyncio.run(ask())\n"
    )
    home = {**os.environ, "MEZZOTINT_HOME": str(tmp_path / "engine")}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=home)
    assert ran.returncode == 0, ran.stderr
    for line, arguments in zip(ran.stdout.splitlines(), asked.values(), strict=True):
        quick, _ = torch_free(tmp_path / "again", tmp_path, *arguments)
        one, two = json.loads(line), json.loads(quick)
        for answer in (one, two):  # predicted from the seconds that planning itself took
            assert answer["cost"].pop("seconds") >= 0
        assert one == two
