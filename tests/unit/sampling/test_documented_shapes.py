"""Every public function of tensors runs on the shapes that its docstring names.

The docstrings are read, tensors of exactly the named shapes are made, and what comes
back is held to the shape and type that stand under ``Returns``. A new function joins by
itself; one whose docstring names no shapes fails.

Tests mezzotint.sampling.
"""

import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import mezzotint.sampling
from mezzotint.sampling.latents import make_generator
from mezzotint.sampling.solvers import REGISTERS, Clip, plan_table

SIDES = {"B": 2, "N": 2, "C": 4, "H": 12, "W": 16, "h": 6, "w": 8, "T": 5, "D": 7, "R": REGISTERS}
REST = (4, 6, 8)  # what the three dots stand for
EPSILON = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_end": 0.012}
TABLE = plan_table("euler", EPSILON, 3)

SHAPE = re.compile(r"[Ss]hape \(([^)]*)\)")


def given(name: str) -> dict:
    """Return the arguments of a function that are no tensors."""
    return {
        "box_mask": {"box": (0.1, 0.2, 0.6, 0.9), "height": 12, "width": 16},
        "region_weights": {"weights": (1.0, 2.0)},
        "soften": {"feather": 3.0},
        "to_latent": {"rows": 6, "columns": 8, "mask": torch.ones(12, 16)},
        "denoised_from_prediction": {"prediction_type": "v_prediction"},
        "prediction_from_denoised": {"prediction_type": "v_prediction"},
        "prediction_scale": {"prediction_type": "epsilon"},
        "combine": {"weights": (0.5, 0.5)},
        "normalised": {"prediction_type": "epsilon", "block": (0, 2, 2)},
        "rescaled": {"prediction_type": "epsilon"},
        "draw_noise": {"shape": REST, "generators": [make_generator(1), make_generator(2)]},
        "slerp": {"t": 0.25},
        "slerp_embeddings": {"t": 0.25},
        "denoise": {"estimate": lambda latents, sigma, _: latents * 0.5, "table": TABLE},
        "sample": {"denoiser": lambda latents, sigma: latents * 0.5, "num_inference_steps": 3},
        "clip_denoised": {"clip": Clip(limit=1.0)},
    }.get(name, {})


def functions() -> list:
    found = []
    for module in pkgutil.iter_modules(mezzotint.sampling.__path__):
        loaded = importlib.import_module(f"mezzotint.sampling.{module.name}")
        for name in loaded.__all__:
            function = getattr(loaded, name)
            if inspect.isfunction(function) and typing.get_type_hints(function)["return"] is Tensor:
                found.append(pytest.param(function, id=f"{module.name}.{name}"))
    return found


def sizes(text: str) -> tuple[int, ...]:
    """Turn ``B, R, R + 4`` or ``B, ...`` into numbers."""
    shape: list[int] = []
    for part in (p.strip() for p in text.split(",") if p.strip()):
        if part in ("...", "*shape"):
            shape += REST
        else:
            shape.append(eval(part, {}, dict(SIDES)))
    return tuple(shape)


def entries(doc: str, section: str) -> dict[str, str]:
    """Return ``{argument: text}`` of a section; the text of ``Returns`` under ``""``."""
    match = re.search(rf"^{section}:\n((?:    .*\n|\n)*)", doc + "\n", re.MULTILINE)
    if match is None:
        return {}
    body = inspect.cleandoc(match.group(1))
    if section == "Returns":
        return {"": " ".join(body.split())}
    parts = re.split(r"^(\w+): ", body, flags=re.MULTILINE)[1:]
    return {
        name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)
    }


@pytest.mark.parametrize("function", functions())
def test_a_function_answers_on_its_documented_shapes(function):
    doc = inspect.getdoc(function)
    hints = typing.get_type_hints(function)
    arguments = dict(given(function.__name__))
    generator = make_generator(0)
    last: tuple[int, ...] = ()
    described = entries(doc, "Args")
    assert SHAPE.search(doc), "the docstring names no shape"
    for name in inspect.signature(function).parameters:
        is_list = hints[name] == Sequence[Tensor]
        if name in arguments or not (hints[name] is Tensor or is_list):
            continue
        text = described.get(name, doc)
        named = SHAPE.search(text)
        assert named or "Same shape" in text, f"{name} has no shape"
        shape = sizes(named.group(1)) if named else last
        last = shape if len(shape) > 1 else last
        value = torch.rand(shape, generator=generator) * 0.8 + 0.1
        arguments[name] = [value, value + 0.1] if is_list else value
    answer = function(**arguments)
    returns = entries(doc, "Returns").get("", doc)
    named = SHAPE.search(returns)
    expected = sizes(named.group(1)) if named else last
    assert tuple(answer.shape) == expected
    for dtype in (torch.float32, torch.float64):
        if str(dtype).removeprefix("torch.") in returns:
            assert answer.dtype == dtype


def test_a_wrong_shape_in_a_docstring_is_found():
    def doubled(latents: Tensor) -> Tensor:
        """Return twice the latents.

        Args:
            latents: Shape (B, C, h, w).

        Returns:
            Shape (B, C, h).
        """
        return 2 * latents

    with pytest.raises(AssertionError):
        test_a_function_answers_on_its_documented_shapes(doubled)
