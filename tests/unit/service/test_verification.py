"""Verification: the request of a recipe, and the file that it makes."""

import pytest

import mezzotint as mz
from mezzotint.service.verification import compare_files, recipe_request
from mezzotint.types import GenerationResult, ImageOutput


def picture(index, data):
    return ImageOutput(
        index=index, seed=7, data=data, format="png", width=1, height=1, recipe={"digest": "d"}
    )


@pytest.mark.parametrize("about", [{}, {"recipe": None}, {"recipe": {"index": 0}}])
def test_a_picture_without_a_recipe_is_refused(about):
    with pytest.raises(mz.InvalidRequest, match="no recipe of ours"):
        recipe_request(about)


def test_the_file_of_the_recipes_own_index_is_compared():
    request, index = recipe_request({"recipe": {"request": {"prompt": "a"}, "index": 1}})
    assert (request.prompt, index) == ("a", 1)
    result = GenerationResult(id="r", images=(picture(0, b"x"), picture(1, b"y")), plan={})
    assert compare_files(b"y", request, index, result).identical
    assert not compare_files(b"x", request, index, result).identical


def test_a_recipe_that_does_not_make_its_picture_is_a_failure():
    with pytest.raises(mz.WorkFailed, match="picture 2"):
        compare_files(b"x", mz.GenerationRequest(), 2, GenerationResult(id="r", images=(), plan={}))
