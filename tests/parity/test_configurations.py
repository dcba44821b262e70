"""Configurations that lack keys: each draws what the classes and pipelines of diffusers draw."""

import json

import numpy as np
import pytest
import torch
from tests import tiny

from mezzotint.errors import MezzotintError
from mezzotint.models.class_defaults import CLASS_DEFAULTS
from mezzotint.models.formats.folders import load_pipeline
from mezzotint.request import GenerationRequest, LatentInput
from mezzotint.service.engine import Engine

pytestmark = pytest.mark.filterwarnings("ignore")
READ = {
    "addition_embed_type", "force_upcast", "latents_mean", "latents_std", "num_class_embeds",
    "sample_size", "shift_factor", "time_cond_proj_dim", "use_attention_mask",
}  # fmt: skip
LEVEL = 2  # of 255
SIDE_PX = dict.fromkeys(("ddpm", "dit"), None)  # their own size
CASES = [("sd1", "read"), ("ddpm", "read")]
CASES += [pytest.param(name, "every", marks=pytest.mark.slow) for name in tiny.BUILDERS]


def configurations(folder, kind):
    """Yield (file, key): a key that is looked for here, or every key there is."""
    for path in sorted(folder.rglob("*.json")):
        role = path.parent.name
        if role.startswith("tokenizer"):
            continue
        config = json.loads(path.read_text())
        known = READ | set(CLASS_DEFAULTS.get(class_of(folder, role), {}))
        for key, value in config.items():
            if key.startswith("_") or (isinstance(value, list) and path.parent == folder):
                continue
            if kind == "every" or role in ("scheduler", folder.name) or key in known:
                yield path, key


def class_of(folder, role):
    return (json.loads((folder / "model_index.json").read_text()).get(role) or [None, None])[1]


def without(path, key, target):
    """Write the file at ``path`` to ``target`` without a key; return what it holds then."""
    config = {k: v for k, v in json.loads(path.read_text()).items() if k != key}
    target.write_text(json.dumps(config))
    return config


def theirs(pipeline, role, config, side):
    """Draw with diffusers' classes made from ``config``; None if weights do not fit it."""
    parts = dict(pipeline.components)
    settings = {k: v for k, v in pipeline.config.items() if k not in parts and k[0] != "_"}
    try:
        if role in parts:
            old = parts[role]
            if hasattr(type(old), "from_config"):
                parts[role] = type(old).from_config(config)
            else:
                read = {k: v for k, v in config.items() if k not in ("architectures", "dtype")}
                parts[role] = type(old)(type(old.config).from_dict(read))
            if isinstance(old, torch.nn.Module):
                parts[role].load_state_dict(old.state_dict())
                parts[role].eval()
        else:
            settings = {k: v for k, v in settings.items() if k in config}
        other = type(pipeline)(**parts, **settings)
        other.set_progress_bar_config(disable=True)
        return np.asarray(draw(other, side))
    except Exception:
        return None


def draw(pipeline, side):
    generator = torch.Generator().manual_seed(11)
    name = type(pipeline).__name__
    if name == "DDPMPipeline":
        return pipeline(generator=generator, num_inference_steps=4).images[0]
    if name == "DiTPipeline":
        return pipeline([1], generator=generator, guidance_scale=3.0, num_inference_steps=2)[0][0]
    return pipeline(
        "a red apple", generator=generator, guidance_scale=3.0, num_inference_steps=2,
        width=side, height=side,
    ).images[0]  # fmt: skip


def ours(model, home, side):
    spec = model.spec
    request = GenerationRequest(
        model=spec.name,
        prompt="a red apple" if spec.takes_prompt else "",
        seed=11,
        num_inference_steps=4 if spec.family == "unconditional" else 2,
        guidance_scale=3.0 if spec.takes_guidance or spec.takes_distilled_guidance else None,
        latent=LatentInput(class_label=1 if spec.num_classes else None),
        width=side,
        height=side,
    )
    with Engine([model], device="cpu", home=home, backend="torch") as engine:
        return engine.generate(request).images[0].pixels


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_a_key_that_is_not_there_means_what_its_class_says(family, kind, tmp_path):
    torch.set_num_threads(1)
    folder = tiny.copy_of(family, tmp_path / family)
    pipeline, side = tiny.build(family), SIDE_PX.get(family, 64)
    wrong = []
    for path, key in list(configurations(folder, kind)):
        whole = path.read_text()
        role = path.parent.name
        config = without(path, key, path)
        expected = theirs(pipeline, role, config, side)
        try:
            drawn = ours(load_pipeline(folder, name=family), tmp_path / "home", side)
        except MezzotintError as error:
            drawn = None
            reason = str(error)
        if expected is None and key == "sample_size":
            assert drawn is not None  # diffusers stops at a size of None, here it has a default
        elif expected is None and key == "shift_factor":
            assert drawn is not None  # diffusers adds a shift of None, here there is none then
        elif expected is None and key == "skip_prk_steps":
            assert drawn is not None  # of Runge-Kutta diffusers needs four steps, here PLMS goes on
        elif (drawn is None) != (expected is None):
            wrong.append((role, key, reason if drawn is None else "diffusers refuses it"))
        elif drawn is not None and expected is not None:
            gap = int(np.abs(drawn.astype(int) - expected.astype(int)).max())
            if gap > LEVEL:
                wrong.append((role, key, gap))
        path.write_text(whole)
    assert wrong == []
