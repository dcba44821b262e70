import pytest


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("generate --model pla", ["plate", "plate-gan", "plate-quick"]),
        ("generate --scheduler heu", ["heun"]),
        ("generate --sigma-schedule kar", ["karras"]),
        ("generate --gate nsf", ["nsfw"]),
        ("generate --lora in", ["ink"]),
        ("models show plate-g", ["plate-gan"]),
        ("gener", ["generate"]),
    ],
)
def test_a_shell_is_offered_the_names_that_begin_so(
    cli, capfd, monkeypatch, tmp_path, line, offered
):
    (tmp_path / "home" / "loras").mkdir(parents=True)
    (tmp_path / "home" / "loras" / "ink.safetensors").write_bytes(b"")
    words = f"mezzotint {line}"
    monkeypatch.setenv("_MEZZOTINT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit):
        cli()
    out, err = capfd.readouterr()
    assert (out.split(), err) == (offered, "")


def test_settings_that_are_wrong_offer_nothing_and_say_nothing(cli, capfd, monkeypatch):
    monkeypatch.setenv("MEZZOTINT_SERVE__PORT", "none")
    monkeypatch.setenv("_MEZZOTINT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "mezzotint generate --model pla")
    monkeypatch.setenv("COMP_CWORD", "3")
    with pytest.raises(SystemExit):
        cli()
    out, err = capfd.readouterr()
    assert (out.strip(), err) == ("", "")
