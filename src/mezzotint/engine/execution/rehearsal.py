"""Rehearsal: everything a plan will call is loaded and compiled, and nothing computed.

Meant for a thread beside the one that steps: it takes the seconds that reading
weights and compiling networks cost away from whoever is being stepped meanwhile.

Dimensions: C latent channels, h and w latent rows and columns.
"""

import contextlib
from collections.abc import Generator

import torch

from mezzotint.engine.execution.adapting import with_full_scales
from mezzotint.engine.execution.certify import REFERENCE
from mezzotint.engine.execution.filling import Filler, ModelSource, device_of
from mezzotint.engine.execution.prompts import at_step
from mezzotint.errors import MezzotintError
from mezzotint.models.base import Conditioning, Model
from mezzotint.models.networks import NetworkReady, TorchNetwork, preparing
from mezzotint.observe import log
from mezzotint.observe.spans import span
from mezzotint.planning.plan import Plan

__all__ = ["rehearse"]


def rehearse(plan: Plan, models: ModelSource, filler: Filler) -> Model:
    """Load the models of a plan, encode its prompts, compile what it will call.

    Args:
        plan: What will be made.
        models: Where models come from.
        filler: Encodes prompts, and keeps them for the device thread.

    Returns:
        The plan's model.

    Raises:
        MezzotintError: If a model cannot be loaded or does not take the prompt. A
            network that only fails while it is rehearsed is left to the real call.
    """
    with contextlib.ExitStack() as pin, span("load"), torch.no_grad():
        adapters = plan.techniques.adapters
        model = pin.enter_context(models.use(plan.model, adapters, turbo=plan.is_turbo))
        names = [member.part.model for member in plan.techniques.ensemble]
        members = [pin.enter_context(models.use(name, adapters)) for name in names]
        for one in members or [model]:
            conditioning = at_step(filler.encode_prompts(plan, one, device_of(one))[0], 1)
            _call_denoiser(one, plan, with_full_scales(plan, conditioning))
        _call_decoder(model, plan)
        for network in model.networks.values():
            if isinstance(network, TorchNetwork):
                _ = network.module
        return model


def _call_denoiser(model: Model, plan: Plan, conditioning: Conditioning) -> None:
    """Compile a denoiser for the plan's shapes; a GAN has none."""
    if model.denoiser is None:
        return
    device = device_of(model)
    with _rehearsing(model, "denoiser"):
        model.denoiser(
            torch.zeros((REFERENCE, *model.latent_shape(plan.size)), device=device),
            torch.ones(REFERENCE, dtype=torch.float64, device=device),
            Conditioning.stack([conditioning] * REFERENCE),
        )


def _call_decoder(model: Model, plan: Plan) -> None:
    """Compile a latent model's decoder and, where a picture comes in, its encoder."""
    if model.denoiser is None:
        return
    device = device_of(model)
    with _rehearsing(model, "decoder"):
        model.decode(torch.zeros((1, *model.latent_shape(plan.size)), device=device))
    if "preview" in model.networks:
        with _rehearsing(model, "preview"):
            model.preview(torch.zeros((1, *model.latent_shape(plan.size)), device=device))
    if plan.techniques.image is not None:
        with _rehearsing(model, "encoder"):
            size = (1, 3, plan.size.height, plan.size.width)
            model.encode_image(torch.zeros(size, device=device), [None])


@contextlib.contextmanager
def _rehearsing(model: Model, role: str) -> Generator[None]:
    """Compute nothing inside; what fails for want of real numbers is told to the log."""
    try:
        with preparing():
            yield
    except (NetworkReady, MezzotintError):  # ready, or zeros made no sense to it
        return
    except Exception as error:  # the real call will tell whoever asked
        log.info("model.rehearsal_failed", model=model.spec.name, role=role, error=repr(error))
