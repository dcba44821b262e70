import io
import os
import struct
import sys

import pytest

from mezzotint.cli.terminal import escaped, fitted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a cat, 猫 é 👩\u200d🎨 \\", "a cat, 猫 é 👩\u200d🎨 \\"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\r\nb\tc", "a\\r\\nb\\tc"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        ("\x9b2J\x85\u2028\ud800\x7f", "\\x9b2J\\x85\\u2028\\ud800\\x7f"),
        (7, "7"),
    ],
)
def test_what_could_command_a_terminal_is_shown_and_other_letters_stay(text, shown):
    assert escaped(text) == shown


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_terminal_gets_lines_that_end_between_words_and_a_pipe_the_line_as_it_is():
    import fcntl
    import pty
    import termios

    line = "known: " + ", ".join(f"scheduler-{n}" for n in range(9)) + " and /a/" + "b" * 70
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    with os.fdopen(side, "w") as terminal:
        lines = fitted(line, terminal, 4).split("\n")
        assert fitted("short", terminal) == "short"
    os.close(main)
    assert len(lines) > 2
    assert all(len(text) <= 60 for text in lines[:-1])
    assert lines[-1] == "    /a/" + "b" * 70  # a path stays in one piece
    assert all(text.startswith("    ") and text[4] != " " for text in lines[1:])
    assert " ".join(text.strip() for text in lines) == line
    assert fitted(line, io.StringIO()) == line
    assert fitted(line, terminal) == line  # closed
