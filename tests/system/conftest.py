"""One server and one tab for all tests of the page: starting a browser takes seconds."""

from collections.abc import Iterator

import pytest
from tests.browser import Page, open_page
from tests.pages import READY
from tests.serving import RunningServer, running_server


@pytest.fixture(scope="session")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(
        tmp_path_factory.mktemp("page"), fake={"step_s": 0.05}, jobs={"preview_every": 1}
    ) as running:
        yield running


@pytest.fixture(scope="session")
def page_tab(
    page_server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    with open_page(page_server.url, tmp_path_factory.mktemp("tab")) as opened:
        yield opened


@pytest.fixture
def page(page_tab: Page) -> Iterator[Page]:
    """The tab with an empty form in its first room."""
    page_tab.errors.clear()
    page_tab.wait(READY)
    page_tab.run("location.hash = '#create'")
    page_tab.run("[...document.querySelectorAll('.submit .quiet')][0]?.click()")
    page_tab.run("[...document.querySelectorAll('.notices .icon')].forEach((b) => b.click())")
    page_tab.wait("document.getElementById('prompt').value === ''")
    yield page_tab
    assert page_tab.errors == []
