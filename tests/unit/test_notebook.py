import base64
import sys
import types

import pytest

import mezzotint as mz
from mezzotint import api, notebook


@pytest.fixture
def kernel(monkeypatch):
    """An IPython with a kernel, as far as it can be told from inside."""
    module = types.ModuleType("IPython")
    module.get_ipython = lambda: types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", module)
    return module


def picture(format, data=b"\x89PNG", index=0):
    return mz.ImageOutput(
        index=index, seed=7 + index, data=data, format=format, width=64, height=32
    )


def test_a_notebook_is_an_ipython_with_a_kernel(kernel):
    assert notebook.is_notebook()
    kernel.get_ipython = lambda: types.SimpleNamespace(config={"TerminalIPythonApp": {}})
    assert not notebook.is_notebook()
    kernel.get_ipython = lambda: None
    assert not notebook.is_notebook()


def test_without_ipython_there_is_no_notebook():
    assert not notebook.is_notebook()


@pytest.mark.parametrize(
    ("format", "hook"),
    [
        ("png", "_repr_png_"),
        ("apng", "_repr_png_"),
        ("jpeg", "_repr_jpeg_"),
        ("webp", "_repr_html_"),
        ("gif", "_repr_html_"),
        ("mp4", "_repr_html_"),
    ],
)
def test_a_picture_shows_by_the_one_hook_of_its_format(format, hook):
    hooks = ("_repr_png_", "_repr_jpeg_", "_repr_html_")
    shown = {name: getattr(picture(format, b"abc"), name)() for name in hooks}
    assert [name for name, value in shown.items() if value is not None] == [hook]
    kind = "video" if format == "mp4" else "image"
    expected = f"data:{kind}/{format};base64,YWJj"
    assert shown[hook] == b"abc" if hook != "_repr_html_" else expected in shown[hook]


def test_several_pictures_show_as_a_grid_of_four_columns():
    images = tuple(picture("png", bytes([k]), k) for k in range(6))
    html = mz.GenerationResult(id="a", images=images)._repr_html_()
    assert "repeat(4,1fr)" in html
    assert "max-width:256px" in html
    for image in images:
        assert base64.b64encode(image.data).decode() in html
        assert f"seed {image.seed}" in html
    one = mz.GenerationResult(id="a", images=images[:1])._repr_html_()
    assert "repeat(1,1fr)" in one
    assert mz.GenerationResult(id="a", images=())._repr_html_() is None


def test_generate_in_a_notebook_shows_a_bar_and_stops_with_its_cell(kernel, monkeypatch):
    bars, cancelled = [], []
    result = mz.GenerationResult(id="a", images=())

    class Bar:
        n, total = 0, None

        def __init__(self, **given):
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.is_closed = True

        def update(self, steps):
            self.n += steps

    class Handle:
        def events(self):
            yield mz.Started(id="a")
            for step in (1, 2):
                yield mz.Stepped(id="a", image=0, step=step, steps=2)
            if cancelled is stopping:
                raise KeyboardInterrupt
            yield mz.Finished(id="a", result=result)

        def result(self):
            return result

        def cancel(self):
            cancelled.append(self)

    engine = types.SimpleNamespace(submit=lambda request: Handle())
    stopping = None
    monkeypatch.setattr(api, "shared_engine", lambda: engine)
    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    assert mz.generate("x", num_images=2) is result
    assert (bars[0].n, bars[0].total, bars[0].is_closed) == (2, 4, True)
    stopping = cancelled
    with pytest.raises(KeyboardInterrupt):
        mz.generate("x")
    assert len(cancelled) == 1
