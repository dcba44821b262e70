"""OpenVINO is used without the package that reports its use."""

import subprocess
import sys

CODE = """
import sys
{before}
from mezzotint.models.backends.quiet import import_openvino
openvino = import_openvino()
assert openvino.Core().available_devices
import openvino.tools.ovc.telemetry_utils as utils
print(utils.tm.__name__, any(n.startswith("openvino_telemetry.") for n in sys.modules))
"""


def said(before=""):
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(before=before)],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return done.stdout.split()


def test_importing_openvino_loads_nothing_that_sends():
    assert said() == ["openvino.tools.ovc.telemetry_stub", "False"]


def test_a_program_that_imported_the_package_itself_keeps_it():
    assert said("import openvino_telemetry") == ["openvino_telemetry", "True"]
