import math

import pytest

from mezzotint.errors import InvalidField
from mezzotint.serve.dialects.webui.scripts import SCRIPTS, Enlarge, read_script, script_infos
from mezzotint.serve.errors import TooLarge


def read(name, *arguments, is_img2img=True, **body):
    return read_script(
        {"script_name": name, "script_args": list(arguments), **body}, is_img2img=is_img2img
    )


def field(script, name):
    return [[body.get(name) for body in chain] for chain in script.chains]


def test_no_script_is_no_script():
    for body in ({}, {"script_name": None}, {"script_name": ""}, {"script_name": "None"}):
        assert read_script(body, is_img2img=False) is None


@pytest.mark.parametrize("name", ["Outpainting mk2", "img2img alternative test", 5])
def test_a_script_that_is_not_offered_is_refused_by_name(name):
    with pytest.raises(InvalidField, match=f"script_name '{name}' is not offered here; offered"):
        read(name)
    with pytest.raises(InvalidField, match="'Loopback' is not offered here"):
        read("Loopback", is_img2img=False)


def test_a_prompt_matrix_draws_every_combination_with_one_seed():
    script = read("prompt matrix", prompt="a|b,|c", seed=7, batch_size=4)
    assert field(script, "prompt") == [["a"], ["a, b"], ["a, c"], ["a, b, c"]]
    assert field(script, "seed") == [[7]] * 4
    assert field(script, "batch_size") == [[1]] * 4
    assert (script.sheets[0].pictures, script.sheets[0].columns) == ((0, 1, 2, 3), 2)


def test_a_prompt_matrix_reads_its_arguments():
    script = read(
        "Prompt matrix", True, True, "negative", "space", 3, negative_prompt="a|b", seed=7
    )
    assert field(script, "negative_prompt") == [["a"], ["b a"]]
    assert field(script, "seed") == [[7], [8]]
    assert script.sheets[0].margin == 3


def test_a_drawn_seed_is_the_same_in_every_cell():
    seeds = {seed for (seed,) in field(read("Prompt matrix", prompt="a|b|c", seed=-1), "seed")}
    assert len(seeds) == 1
    assert seeds != {-1}


def test_a_plot_draws_x_within_y_within_z():
    script = read(
        "X/Y/Z plot", 4, "1,2", [], "CFG Scale", "3-4", [], "Seed", "8,9", [],
        False, True, True, prompt="p",
    )  # fmt: skip
    cells = [(b["steps"], b["cfg_scale"], b["seed"]) for (b,) in script.chains]
    assert cells == [
        (1, 3.0, 8), (2, 3.0, 8), (1, 4.0, 8), (2, 4.0, 8),
        (1, 3.0, 9), (2, 3.0, 9), (1, 4.0, 9), (2, 4.0, 9),
    ]  # fmt: skip
    whole, first, second = script.sheets
    assert (whole.pictures, whole.columns) == ((0, 1, 4, 5, 2, 3, 6, 7), 4)
    assert (first.pictures, second.pictures) == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert (script.sends, script.warnings) == ("all", ())


def test_a_plot_answers_its_grid_alone_unless_told_otherwise():
    script = read("x/y/z plot", 4, "1,2")
    assert (script.sends, len(script.sheets)) == ("none", 1)
    assert script.warnings == ("X/Y/Z plot draws no legend here",)


def test_seeds_of_a_plot_vary_along_the_axes_that_say_so():
    axes = (4, "1,2", [], "CFG Scale", "3,4", [], 0, "", [])
    script = read("X/Y/Z plot", *axes, True, False, False, False, True, True, False, seed=10)
    assert field(script, "seed") == [[10], [11], [12], [13]]
    older = read("X/Y/Z plot", *axes, True, False, False, False, 5, False, seed=10)
    assert field(older, "seed") == [[10]] * 4
    assert older.sheets[0].margin == 5


@pytest.mark.parametrize(
    ("curve", "middle"),
    [("Linear", 0.5), ("Aggressive", math.sin(math.pi / 4)), ("Lazy", 1 - math.cos(math.pi / 4))],
)
def test_loopback_goes_on_from_its_own_pictures(curve, middle):
    script = read("Loopback", 3, 0.2, curve, "None", denoising_strength=0.6, seed=1, n_iter=2)
    assert field(script, "seed") == [[1, 2, 3], [4, 5, 6]]
    expected = [0.6, 0.6 - 0.4 * middle, 0.2]
    assert field(script, "denoising_strength") == [pytest.approx(expected)] * 2
    assert field(script, "inpainting_fill") == [[None, 1, 1]] * 2
    assert script.sends == "last"
    assert read("Loopback", 2, denoising_strength=0.6, seed=1).sends == "all"


def test_sd_upscale_enlarges_first():
    script = read("sd upscale", "", 8, "Lanczos", 2.0, prompt="p")
    assert script.enlarge == Enlarge(factor=2.0, upscaler="Lanczos", overlap=8)
    assert script.chains == (({"prompt": "p"},),)


@pytest.mark.parametrize(
    ("name", "arguments", "where"),
    [
        ("Loopback", [0], "Loops"),
        ("Loopback", [2, 2], "Final denoising strength"),
        ("Loopback", [2, 0.5, "Wild"], "Denoising strength curve"),
        ("Loopback", [2, 0.5, "Linear", "CLIP"], "Append interrogated prompt"),
        ("SD upscale", ["", 64, 0, 9], "Scale Factor"),
        ("SD upscale", ["", "wide"], "Tile overlap"),
        ("Prompt matrix", [False, False, "neutral"], "Select prompt"),
    ],
)
def test_wrong_arguments_are_named(name, arguments, where):
    with pytest.raises(InvalidField, match=f"{name}: {where}"):
        read(name, *arguments)
    with pytest.raises(InvalidField, match="script_args must be a list"):
        read_script({"script_name": name, "script_args": "x"}, is_img2img=True)


def test_more_pictures_than_a_request_may_have_are_refused():
    with pytest.raises(TooLarge, match="Prompt matrix would draw 2048 pictures"):
        read("Prompt matrix", prompt="|".join("abcdefghijkl"))
    with pytest.raises(TooLarge, match="X/Y/Z plot would draw 10000 pictures"):
        read("X/Y/Z plot", 1, "1-100", [], 4, "1-100")


def test_infos_describe_what_is_offered():
    infos = {row["name"]: row for row in script_infos(is_img2img=True)}
    assert list(infos) == [name.lower() for name in SCRIPTS["img2img"]]
    assert infos["loopback"]["args"][0]["maximum"] == 32
    assert infos["x/y/z plot"]["args"][0]["choices"][4] == "Steps"
