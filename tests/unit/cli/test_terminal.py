import pytest

from mezzotint.cli.terminal import escaped


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
