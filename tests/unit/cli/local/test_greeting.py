import pytest


def test_alone_it_greets_and_says_what_to_do_next(cli):
    done = cli()
    assert (done.code, done.err) == (0, "")
    for words in ('generate "a red apple"', "3 here: plate", "serve", "doctor", "--help"):
        assert words in done.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_is_a_script_that_asks_this_program(cli, shell):
    done = cli("completion", shell)
    assert done.code == 0, done.err
    assert "_MEZZOTINT_COMPLETE=" in done.out
    assert "mezzotint" in done.out


def test_a_shell_that_nobody_knows_is_refused(cli):
    done = cli("completion", "tcsh")
    assert (done.code, "must be one of bash" in done.err) == (2, True)
