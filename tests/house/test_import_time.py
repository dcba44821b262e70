import os
import subprocess
import sys

import pytest

HEAVY = (
    "torch", "diffusers", "transformers", "numpy", "PIL", "scipy", "fastapi", "openvino",
    "prometheus_client",
)  # fmt: skip


def loaded_by(code, heavy=HEAVY):
    """Return which heavy libraries a fresh interpreter has after running ``code``."""
    program = f"{code}\nimport sys\nprint(*[m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize(
    "code",
    [
        "import mezzotint",
        "import mezzotint as mz; mz.GenerationRequest(prompt='a red apple')",
        "import mezzotint as mz; mz.Client(); mz.AsyncClient()",
        "import mezzotint.settings",
        "import mezzotint.cli.main",
        "import mezzotint.observe.log, mezzotint.observe.metrics, mezzotint.observe.spans",
    ],
)
def test_words_load_nothing_heavy(code):
    assert loaded_by(code) == []


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["generate", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    code = (
        "from mezzotint.cli import main\n"
        f"try:\n    main.main({arguments!r})\nexcept SystemExit:\n    pass"
    )
    assert loaded_by(code) == []


def test_a_verb_begins_without_what_only_some_wait_or_ask_with():
    assert loaded_by("import mezzotint.cli.main", ("asyncio", "ssl", "urllib.request")) == []


def test_the_service_of_the_command_line_imports_neither_diffusers_nor_transformers(tmp_path):
    code = (
        "import sys; from mezzotint.cli.session import make_service; "
        "from mezzotint.settings import load; service = make_service(load().settings); "
        "service.shut(); print([m for m in ('diffusers', 'transformers') if m in sys.modules])"
    )
    environment = {**os.environ, "MEZZOTINT_HOME": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert ran.stdout.strip() == "[]"
