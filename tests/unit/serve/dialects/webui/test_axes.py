import pytest

from mezzotint.errors import InvalidField
from mezzotint.serve.dialects.webui.axes import apply, axis_labels, find_axis, read_values


def axis(name, *, is_img2img=False):
    return find_axis(name, is_img2img=is_img2img, where="script_args[0]")


def read(name, text="", chosen=None, *, is_csv=False):
    return read_values(axis(name), text, chosen, is_csv=is_csv, where="script_args[1]")


def test_axes_are_found_by_their_place_in_each_list():
    assert [axis(k).label for k in range(6)] == [
        "Nothing", "Seed", "Var. seed", "Var. strength", "Steps", "Hires steps",
    ]  # fmt: skip
    assert [axis(k, is_img2img=True).label for k in (4, 5)] == ["Steps", "CFG Scale"]
    assert axis_labels(is_img2img=True).index("Sampler") == 9


@pytest.mark.parametrize("name", ["Sigma Churn", "VAE", 999, -1, "nothing at all", None, True])
def test_axes_that_are_not_offered_are_named(name):
    with pytest.raises(InvalidField, match=r"X/Y/Z plot: the axis .* is not offered here"):
        axis(name)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("Seed", "1, 5-7, -1", [1, 5, 6, 7, -1]),
        ("Steps", "10-20 (+5)", [10, 15, 20]),
        ("Steps", "5-1 (-2)", [5, 3, 1]),
        ("Steps", "1-9 [3]", [1, 5, 9]),
        ("CFG Scale", "1-2 (+0.5)", [1.0, 1.5, 2.0]),
        ("CFG Scale", "7.5", [7.5]),
        ("CFG Scale", "5-10 [3]", [5.0, 7.5, 10.0]),
        ("Prompt S/R", 'apple,"pear, ripe"', ["apple", "pear, ripe"]),
        ("Prompt order", "a, b", [("a", "b"), ("b", "a")]),
        ("Nothing", "whatever", [0]),
    ],
)
def test_values_are_read_as_a1111_reads_them(name, text, expected):
    assert read(name, text) == expected


def test_choices_come_as_a_list_or_as_text():
    assert read("Sampler", "", ["Euler", "DDIM"]) == ["Euler", "DDIM"]
    assert read("Sampler", "Heun, LCM", ["Euler"], is_csv=True) == ["Heun", "LCM"]
    assert read("Sampler", "Heun") == ["Heun"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("Seed", "one"), ("Seed", ""), ("Steps", "1-99999999"), ("Prompt order", "a,b,c,d,e,f,g")],
)
def test_wrong_values_are_refused_by_the_name_of_the_axis(name, text):
    with pytest.raises(InvalidField, match=f"X/Y/Z plot: {name}"):
        read(name, text)


def test_each_axis_changes_its_field():
    body = {"prompt": "a red apple, a leaf", "negative_prompt": "red"}
    swapped = apply(axis("Prompt S/R"), "blue", ["red", "blue"], body)
    assert (swapped["prompt"], swapped["negative_prompt"]) == ("a blue apple, a leaf", "blue")
    ordered = apply(axis("Prompt order"), ("a leaf", "a red apple"), [], body)
    assert ordered["prompt"] == "a leaf, a red apple"
    assert apply(axis("Size"), "64x96", [], body) == {**body, "width": 64, "height": 96}
    assert apply(axis("Denoising"), 0.5, [], body)["denoising_strength"] == 0.5
    named = apply(axis("Checkpoint name"), "m", [], {"override_settings": {"x": 1}})
    assert named["override_settings"] == {"x": 1, "sd_model_checkpoint": "m"}
    with pytest.raises(InvalidField, match="did not find 'green'"):
        apply(axis("Prompt S/R"), "blue", ["green", "blue"], body)
    with pytest.raises(InvalidField, match="Size takes"):
        apply(axis("Size"), "large", [], body)
