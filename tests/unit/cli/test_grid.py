import io

import pytest
from PIL import Image

from mezzotint.cli.flags import WrongFlag
from mezzotint.cli.grid import Axis, parse_axis


def test_a_grid_draws_every_pair_of_values_on_one_sheet(cli, service, tmp_path):
    done = cli("generate", "x", "--width", 64, "--height", 64, "-o", "sheet.png",
               "--grid-x", "guidance_scale=1,3,7", "--grid-y", "seed=4,5")  # fmt: skip
    assert (done.code, done.out) == (0, "sheet.png\n"), done.err
    asked = {(r.guidance_scale, r.seed) for r in service.made[0].requests}
    assert asked == {(g, s) for g in (1, 3, 7) for s in (4, 5)}
    with Image.open(tmp_path / "sheet.png") as sheet:
        width, height = sheet.size
    assert width > 3 * 64
    assert height == 24 + 2 * (64 + 6)


def test_the_pictures_on_the_sheet_are_those_drawn_alone(cli, service, tmp_path):
    size = ("--width", 64, "--height", 64, "--output-format", "png")
    cli("generate", "x", *size, "-o", "sheet.png", "--grid-x", "seed=4,5")
    cli("generate", "x", *size, "-o", "alone.png", "--seed", 5)
    with Image.open(tmp_path / "sheet.png") as opened:
        sheet = opened.convert("RGB")
    with Image.open(io.BytesIO((tmp_path / "alone.png").read_bytes())) as alone:
        corner = sheet.crop((sheet.width - 70, 24, sheet.width - 6, 88))
        assert corner.tobytes() == alone.convert("RGB").tobytes()


def test_cells_without_a_seed_share_one(cli, service):
    cli("generate", "x", "--grid-x", "scheduler=euler,ddim")
    assert len({request.seed for request in service.made[0].requests}) == 1


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("seed=1,2", Axis("seed", (1, 2))),
        ("scheduler=euler, ddim", Axis("scheduler", ("euler", "ddim"))),
        ('prompt=["a, b", "c"]', Axis("prompt", ("a, b", "c"))),
    ],
)
def test_an_axis_is_a_field_and_its_values(text, axis):
    assert parse_axis(text, "--grid-x") == axis


@pytest.mark.parametrize("text", ["seed", "=1", "seed=", "seed=[1"])
def test_an_axis_that_is_none_is_refused(text):
    with pytest.raises(WrongFlag):
        parse_axis(text, "--grid-x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid-x", "sed=1,2"], "unknown field 'sed'; did you mean 'seed'"),
        (["--grid-x", "seed=1,-2"], "seed must be 0 to"),
        (["--grid-x", "seed=1,2", "-n", "2"], "every cell is one picture"),
    ],
)
def test_a_wrong_grid_is_refused_before_any_work(cli, service, arguments, message):
    done = cli("generate", "x", *arguments)
    assert done.code == 2
    assert message in done.err
    assert not service.made
