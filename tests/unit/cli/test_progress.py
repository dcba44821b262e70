import base64
import contextlib
import io
import os
import pty
import re
import subprocess
import sys

import pytest
from PIL import Image
from rich.console import Console
from rich.live import Live
from rich.progress import Progress, TextColumn
from rich.text import Text

from mezzotint.cli import progress
from mezzotint.cli.progress import half_blocks, show_picture
from mezzotint.observe import stages
from mezzotint.observe.progress import Counter
from mezzotint.types import ImageFinished, ImageOutput, Stepped


def picture(colours, size=(2, 2)):
    image = Image.new("RGB", size)
    image.putdata(colours)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def test_steps_add_up_over_images_in_any_order():
    counter = Counter(2)
    for image, step in ((0, 1), (1, 1), (0, 2), (1, 3), (0, 2)):
        counter.take(Stepped(id="a", image=image, step=step, steps=4))
    assert (counter.done, counter.total) == (5, 8)
    image = ImageOutput(index=0, seed=1, data=b"x", format="png", width=1, height=1)
    counter.take(ImageFinished(id="a", image=image))
    assert counter.finished == 1


def test_two_pixels_share_one_character():
    red, blue = (255, 0, 0), (0, 0, 255)
    text = half_blocks(picture([red, red, blue, blue]), columns=2)
    assert isinstance(text, Text)
    assert text.plain == "▀▀\n"
    assert str(text.spans[0].style) == "rgb(255,0,0) on rgb(0,0,255)"


def test_a_pipe_is_spared_pictures(capsys):
    show_picture(picture([(0, 0, 0)] * 4), "kitty")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("how", "mark"),
    [
        ("kitty", "\033_Ga=T,f=100,"),
        ("iterm", "\033]1337;File=inline=1"),
        ("sixel", "\033P"),
        ("blocks", "▀"),
    ],
)
def test_a_terminal_gets_the_picture_in_its_own_way(capsys, monkeypatch, how, mark):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    show_picture(picture([(0, 0, 0)] * 4), how)
    assert mark in capsys.readouterr().err


def test_a_terminal_shows_a_bar_and_previews_and_a_clean_path(tmp_path):
    code = (
        "from mezzotint.cli import session, main\n"
        "from mezzotint.service.fake import FakeConfig, FakeService\n"
        "session.make_service = lambda settings: FakeService(FakeConfig(step_s=0.15))\n"
        "main.main(['generate', 'x', '--seed', '7', '--preview', '-n', '2'])"
    )
    master, slave = pty.openpty()
    environment = {**os.environ, "MEZZOTINT_HOME": str(tmp_path), "TERM": "xterm-256color",
                   "COLORTERM": "truecolor", "COLUMNS": "100", "LINES": "40"}  # fmt: skip
    for name in ("NO_COLOR", "TERM_PROGRAM", "KITTY_WINDOW_ID"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=slave, stdin=slave,
        cwd=tmp_path, env=environment,
    )  # fmt: skip
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    out, _ = process.communicate(timeout=30)
    os.close(master)
    assert process.returncode == 0
    assert out.decode().split() == ["outputs/x-7.png", "outputs/x-8.png"]
    text = shown.decode()
    assert "drawing" in text
    assert "steps/s" in text
    assert "▀" in text


def test_a_finished_picture_stands_on_lines_of_its_own_where_the_bar_was(tmp_path):
    code = (
        "import io, sys\n"
        "from PIL import Image\n"
        "from mezzotint.cli import progress\n"
        "from mezzotint.types import Stepped\n"
        "stream = io.BytesIO(); Image.new('RGB', (4, 4), 'red').save(stream, 'PNG')\n"
        "with progress.reporting(1) as report:\n"
        "    report(Stepped(id='a', image=0, step=1, steps=4, preview=stream.getvalue()))\n"
        "    with report.aside():\n"
        "        print('a-path.png')\n"
        "        progress.show_picture(stream.getvalue(), sys.argv[1])\n"
        "    report(Stepped(id='a', image=0, step=2, steps=4))\n"
    )
    for how, begins in (("kitty", "\033_Ga=T,f=100,m=0;"), ("blocks", "\033[38;2;255;0;0")):
        shown = on_a_terminal(code, how, tmp_path)
        before, path, after = shown.partition("a-path.png\r\n")
        assert path and after.startswith(begins)  # nothing of the bar comes between
        # nor stands on the line of the path: that was cleared after the bar was drawn last
        assert not re.search("[━╸╺▀]", before.rpartition("\033[2K")[2])
        # and nothing that comes later goes up to them again
        after = after.rpartition("\033\\" if how == "kitty" else "▀")[2]
        row = 0
        for step in re.findall("\n|\033\\[1A", after):
            row += 1 if step == "\n" else -1
            assert row >= 0
        if how == "kitty":
            body = shown.partition(begins)[2].partition("\033\\")[0]
            assert Image.open(io.BytesIO(base64.b64decode(body))).size == (4, 4)


def on_a_terminal(code: str, argument: str, folder) -> str:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor",
                   "COLUMNS": "100", "LINES": "40"}  # fmt: skip
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-c", code, argument], stdout=slave, stderr=slave, stdin=slave,
        cwd=folder, env=environment,
    )  # fmt: skip
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # how the end of a terminal reads
        while piece := os.read(master, 65536):
            shown += piece
    os.close(master)
    assert process.wait(60) == 0
    return shown.decode()


def test_a_pipe_is_told_what_goes_on_before_the_first_step_and_no_more_after(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    with progress.reporting(1) as report:
        with stages.stage("compiling", "denoiser", 52_000_000):
            pass
        report(Stepped(id="a", image=0, step=1, steps=4))
        with stages.stage("compiling", "encoder"):
            pass
    with stages.stage("compiling", "decoder"):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "compiling denoiser, 52 MB"
    assert len(lines) == 2 and lines[1].startswith("step 1/4")


def test_a_bar_names_what_goes_on_until_the_first_step():
    counter = Counter(1)
    shown = Progress(TextColumn("{task.description}"), console=Console(file=io.StringIO()))
    bar = progress._Bar(counter, lambda: Live(shown), shown)
    with stages.listening(bar.hear):
        with stages.stage("converting", "decoder", 3_000_000):
            assert shown.tasks[0].description == "converting decoder, 3 MB"
        assert shown.tasks[0].description == "loading"
        bar(Stepped(id="a", image=0, step=1, steps=4))
        with stages.stage("compiling", "encoder"):
            assert shown.tasks[0].description == "drawing"


def test_a_bar_counts_nothing_until_it_has_steps():
    shown = Progress(progress._Count(), console=Console(file=io.StringIO()))
    task = shown.add_task("loading", total=None)
    assert str(shown.columns[0].render(shown.tasks[0])) == ""
    shown.update(task, completed=4, total=20)
    assert str(shown.columns[0].render(shown.tasks[0])).split() == ["4/20"]


def test_a_terminal_is_asked_for_sixels_only_where_it_alone_reads_the_answer(monkeypatch):
    assert progress.ask_terminal("kitty") == "kitty"
    assert progress.ask_terminal("ask") == "blocks"  # the tests' output is no terminal


@pytest.mark.parametrize(("answer", "shown"), [("\033[?62;4;6c", "sixel"), ("\033[?6c", "blocks")])
def test_sixels_are_what_a_terminal_says_that_it_takes(answer, shown):
    """A terminal that answers the question for its attributes, as xterm does, or does not."""
    code = (
        "import sys\nfrom mezzotint.cli.progress import ask_terminal\n"
        "sys.stderr.write('is ' + ask_terminal('ask'))\n"
    )
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    heard = b""
    while True:
        try:
            heard += os.read(master, 1024)
        except OSError:
            break
        if b"\033[c" in heard and answer:
            os.write(master, answer.encode())
            answer = ""
        if f"is {shown}".encode() in heard:
            break
    process.wait(timeout=30)
    os.close(master)
    assert f"is {shown}".encode() in heard
