import warnings

from mezzotint.observe.progress import Counter, notebook_bar
from mezzotint.types import Stepped


def test_steps_are_counted_over_images_in_any_order():
    counter = Counter(2)
    for image, step in ((0, 1), (1, 1), (1, 2), (0, 1)):
        counter.take(Stepped(id="a", image=image, step=step, steps=3))
    assert (counter.done, counter.total) == (3, 6)


def test_the_bar_of_a_notebook_is_text_where_there_are_no_widgets(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with notebook_bar(1) as take:
            take(Stepped(id="a", image=0, step=1, steps=2))
            take(Stepped(id="a", image=0, step=2, steps=2))
    assert "drawing" in capsys.readouterr().err
