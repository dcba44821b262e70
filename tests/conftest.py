"""What holds for every test: a thread for each process, and the longest files first."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Before torch is imported, and inherited by every process that a test starts. The suite fills
# the cores with processes: threads of one layer then wait for each other longer than they
# compute, and results would depend on how many cores there are.
os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).resolve().parent
LONGEST = (
    "roads/test_golden.py",
    "system/test_server_page.py",
    "roads/test_tiers.py",
    "system/test_cli_plate.py",
    "contracts/test_schema_contract.py",
    "parity/test_pipelines_solvers.py",
    "roads/test_openvino_exactness.py",
    "system/test_server_handlers.py",
    "roads/test_five_dialects.py",
    "roads/test_exactness.py",
)
"""Files of many seconds, longest first: two processes end together if long files begin."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first where several processes share the files."""
    if hasattr(config, "workerinput"):
        places = {HERE / name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def share_exports(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Callable[[Path], Path]:
    """Prepare a home that shares its exported networks with the other homes of this run.

    Exporting ``plate`` takes 20 s of processor time. An export is written whole, under the
    digest of all that decides what is in it; whoever tests the exports takes a home apart.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if hasattr(pytestconfig, "workerinput") else base) / "exports"
    folder.mkdir(exist_ok=True)

    def prepare(home: Path) -> Path:
        (home / "cache").mkdir(parents=True)
        (home / "cache" / "openvino").symlink_to(folder, target_is_directory=True)
        return home

    return prepare
