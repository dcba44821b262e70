"""Filling: from a plan to a slot full of tensors.

Prompts are encoded, noise is drawn with the image's own generator, the start
picture and masks become latents, the solver stands at its first evaluation.
Prompt embeddings are kept, so a text is encoded once however often its owner asks for it;
for others it is not there, since an answer that comes too fast tells what was asked for.
"""

import contextlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from mezzotint.engine.cache import ByteCache
from mezzotint.engine.execution.adapting import (
    adapt,
    reference_pictures,
    under_control,
    with_pictures,
)
from mezzotint.engine.execution.operators import ClassifierFree, Ensemble, Operator, Region, Regions
from mezzotint.engine.execution.prompts import (
    Steered,
    at_step,
    between,
    region_negatives,
    staged,
    staged_prompts,
    walks_words,
)
from mezzotint.engine.execution.slots import KeptPart, Slot
from mezzotint.engine.execution.solving import make_solver
from mezzotint.models.adapters.tiling import tiled
from mezzotint.models.base import Conditioning, Model, Prompt
from mezzotint.models.networks import TorchNetwork
from mezzotint.observe import metrics
from mezzotint.planning.assets import mask_asset
from mezzotint.planning.plan import (
    ENLARGED,
    Adapters,
    Plan,
    Resolved,
)
from mezzotint.request import EnsembleMember, Variation
from mezzotint.request import Region as RequestRegion
from mezzotint.sampling.compose import box_mask, soften, to_latent
from mezzotint.sampling.ensemble import check_members
from mezzotint.sampling.latents import make_generator, slerp
from mezzotint.sampling.schedules import frame_of

__all__ = ["Filler", "ModelSource", "device_of"]


NO_ADAPTERS = Adapters()


class ModelSource(Protocol):
    """Who has models; the model store does."""

    def use(
        self, name: str, adapters: Adapters = NO_ADAPTERS, *, turbo: bool = False
    ) -> contextlib.AbstractContextManager[Model]:
        """Give a model that stays in memory for the length of the block.

        Args:
            name: Its name.
            adapters: What it is to wear; it keeps full precision then.
            turbo: Whether a copy of lower precision is wanted.
        """
        ...


class Filler:
    """Fills slots; its caches are shared by all threads that use it.

    Args:
        models: Where models come from.
        cache_bytes: Prompt embeddings kept, in bytes.
    """

    def __init__(self, models: ModelSource, cache_bytes: int) -> None:
        self._models = models
        self._lock = threading.Lock()
        self._prompts: ByteCache[tuple[str, str, Prompt], Conditioning] = ByteCache(
            cache_bytes, lambda c: c.num_bytes + 1024
        )

    def fill(
        self,
        plan: Plan,
        model: Model,
        pin: contextlib.ExitStack,
        assets: Mapping[str, Any],
        *,
        owner: str = "",
    ) -> Slot:
        """Encode the prompts, draw the noise, prepare the solver."""
        if plan.techniques.tiling:
            model = tiled(model)
        generator = make_generator(plan.seed)
        device = device_of(model)
        if not plan.rows or plan.is_alone:
            encoded = self.encode_prompts(plan, model, device, assets, owner=owner)
            positive = at_step(encoded[0], 1)
            positive = with_pictures(plan, assets, positive)
            noise = _draw(plan, model, generator).to(device)
            if "is_w" in positive:
                noise, positive = _map(plan, model, noise, positive)
            slot = Slot(plan=plan, model=model, pin=pin, conditioning=positive, latents=noise)
            if plan.is_alone:
                slot.run = model.begin(noise, positive)
                pin.callback(slot.run.close)
            return slot
        clean = _encode_picture(plan, model, assets, generator, device)
        noise = _draw(plan, model, generator).to(device)
        inpainting = _keep_outside(plan, model, assets, clean, noise)
        members = self._members(plan, model, pin)
        if plan.techniques.tiling:
            members = tuple(tiled(member) for member in members)
        operators = [self._operator(plan, member, assets, noise, owner) for member in members]
        shares = tuple(zip(*(m.part.weights for m in plan.techniques.ensemble), strict=True))
        masks = tuple(
            _mask_of(m, plan, assets, noise) if m.part.is_local else None
            for m in plan.techniques.ensemble
        )
        operator = Ensemble(tuple(operators), shares, masks) if shares else operators[0]
        return Slot(
            plan=plan,
            model=model,
            pin=pin,
            conditioning=operator.rows(1)[0].conditioning,
            latents=noise,
            members=members,
            operator=operator,
            solver=make_solver(
                plan,
                model,
                noise=noise,
                clean=None if _repaints_all(plan) else _start(plan, clean, inpainting),
                generator=generator,
            ),
            inpainting=inpainting,
        )

    def _members(self, plan: Plan, model: Model, pin: contextlib.ExitStack) -> tuple[Model, ...]:
        """Return whose denoisers are asked, pinned: the model's own or an ensemble's."""
        planned = plan.techniques.ensemble
        if not planned:
            return (model,)
        members = tuple(
            pin.enter_context(self._models.use(member.part.model, plan.techniques.adapters))
            for member in planned
        )
        spaces = [
            (m.spec.name, m.latent_shape(plan.size), frame_of(m.spec.scheduler_config))
            for m in (model, *members)
        ]
        check_members(spaces)
        return members

    def _operator(
        self, plan: Plan, model: Model, assets: Mapping[str, Any], noise: Tensor, owner: str
    ) -> Operator:
        """Encode all prompts for one denoiser."""
        positive, negative, *rest = self.encode_prompts(
            plan, model, noise.device, assets, owner=owner
        )
        base = ClassifierFree(
            positive=positive,
            negative=negative if any(scale != 1 for scale in plan.guidance) else None,
            scales=plan.guidance,
            rescale=plan.techniques.guidance_rescale,
            prediction_type=model.spec.prediction_type,
            norm_block=model.spec.guidance_norm_block,
        )
        planned = plan.techniques.regions
        if not planned:
            return under_control(plan, base, noise.device)
        texts = region_negatives(planned)
        regions = tuple(
            Region(
                positive=rest[k],
                negative=texts.index(r.part.negative_prompt) if r.part.negative_prompt else None,
                mask=_mask_of(r, plan, assets, noise),
                weight=r.part.weight,
                start=r.part.start,
                end=r.part.end,
            )
            for k, r in enumerate(planned)
        )
        whole = Regions(base=base, regions=regions, negatives=tuple(rest[len(planned) :]))
        return under_control(plan, whole, noise.device)

    def encode_prompts(
        self,
        plan: Plan,
        model: Model,
        device: torch.device,
        assets: Mapping[str, Any] | None = None,
        *,
        owner: str = "",
    ) -> list[Steered]:
        """Encode an image's prompts to one shape.

        Args:
            plan: What is made.
            model: Who makes it.
            device: Where the tensors go.
            assets: Pictures that adapters look at; blank ones if None.
            owner: Whose embeddings may be used again.

        Returns:
            The prompt's conditioning, the negative prompt's, the regions', and the
            regions' own negative ones.
        """
        found = staged_prompts(plan, model)
        prompts = list(dict.fromkeys(prompt for stages in found for _, prompt in stages))
        pictures = reference_pictures(plan, assets) if model.reads_references else []
        is_blank = bool(pictures) and assets is None
        encoded = [
            model.encode_seeing(p, pictures)
            if is_blank
            else self._encode(model, p, owner, pictures)
            for p in prompts
        ]
        encoded = adapt(plan, model, assets, encoded, [p.negative for p in prompts])
        known = {p: c.to(device) for p, c in zip(prompts, encoded, strict=True)}
        steered = [staged([(until, known[p]) for until, p in stages]) for stages in found]
        walk = plan.techniques.walk
        if walk is not None and walks_words(plan):
            end = steered.pop()
            steered[0] = between(steered[0], end, walk.share)
        return steered if len(steered) > 1 else [*steered, steered[0]]

    def num_chunks(self, plan: Plan, model: Model) -> int:
        """Return how many chunks of tokens the prompts of a plan fill."""
        if not model.spec.takes_prompt:
            return 1
        return staged_prompts(plan, model)[0][0][1].num_chunks

    def _encode(
        self, model: Model, prompt: Prompt, owner: str, pictures: Sequence[Any] = ()
    ) -> Conditioning:
        """Encode one prompt, with the pictures that it names, or find it among its owner's."""
        key = (owner, model.spec.digest, prompt)
        with self._lock:
            found = self._prompts.get(key)
        metrics.count(
            "mezzotint_cache_lookups_total", cache="prompts", answer="hit" if found else "miss"
        )
        if found is None:
            if prompt.references:
                found = model.encode_seeing(prompt, pictures)
            else:
                (found,) = model.encode([prompt])
            if model.spec.digest:
                with self._lock:
                    self._prompts.put(key, found)
        return found


def _draw(plan: Plan, model: Model, generator: torch.Generator) -> Tensor:
    """Draw the starting noise; on a seed walk, between the noises of both ends."""
    noise = model.draw_latents(plan.size, generator)
    variation = plan.techniques.variation
    if variation is not None:
        noise = _vary(plan, variation, model, noise)
    position = plan.techniques.walk
    walk = position and position.walk
    if position is None or walk is None or walk.mode == "prompt" or walk.to_seed is None:
        return noise
    if walk.space == "w":  # both ends are mapped first, see _map
        return noise
    end = model.draw_latents(plan.size, make_generator(walk.to_seed))
    return slerp(noise, end, position.share)


def _vary(plan: Plan, variation: Variation, model: Model, noise: Tensor) -> Tensor:
    """Mix in another seed's noise, and lay noise drawn for another size in the middle."""
    size = variation.noise_size
    drawn = noise if size is None else model.draw_latents(size, make_generator(plan.seed))
    if variation.strength:
        assert variation.seed is not None  # noqa: S101 - the planner gave it
        other = model.draw_latents(size or plan.size, make_generator(variation.seed))
        drawn = slerp(drawn, other, variation.strength)
    if size is None:
        return drawn
    laid = noise.clone()
    ours, theirs = zip(
        *(_centred(a, b) for a, b in zip(laid.shape[-2:], drawn.shape[-2:], strict=True)),
        strict=True,
    )
    laid[..., ours[0], ours[1]] = drawn[..., theirs[0], theirs[1]]
    return laid


def _centred(outer: int, inner: int) -> tuple[slice, slice]:
    """Return where the middles of two lengths lie on each other, in the one and the other."""
    count = min(outer, inner)
    at, start = (outer - count) // 2, (inner - count) // 2
    return slice(at, at + count), slice(start, start + count)


def _map(
    plan: Plan, model: Model, noise: Tensor, conditioning: Conditioning
) -> tuple[Tensor, Conditioning]:
    """Take a walk in w: map both ends, join them straight, and say that it is w."""
    position = plan.techniques.walk
    walk = position and position.walk
    if position is None or walk is None or walk.space != "w" or walk.to_seed is None:
        return noise, conditioning
    end = model.draw_latents(plan.size, make_generator(walk.to_seed)).to(noise.device)
    first, last = model.map_latents(noise), model.map_latents(end)
    assert first is not None and last is not None  # noqa: S101, PT018 - the planner saw to it
    place = position.share
    joined = {0.0: first, 1.0: last}.get(place, first + place * (last - first))
    return joined, conditioning.replace(is_w=torch.ones(1, device=noise.device))


def _mask_of(
    resolved: Resolved[RequestRegion | EnsembleMember],
    plan: Plan,
    assets: Mapping[str, Any],
    noise: Tensor,
) -> Tensor:
    """Return where a region or a member acts, softened in pixels. Shape (1, h, w)."""
    part = resolved.part
    if part.box is not None:
        mask = box_mask(part.box, plan.size.height, plan.size.width)
    else:
        mask = torch.as_tensor(assets[mask_asset(resolved.pictures[0])])
    rows, columns = noise.shape[-2:]
    return to_latent(soften(mask, part.feather), rows, columns).to(noise.device)


def device_of(model: Model) -> torch.device:
    """Return where a model's networks compute."""
    for network in model.networks.values():
        if isinstance(network, TorchNetwork):
            return network.device
    return torch.device("cpu")


def _encode_picture(
    plan: Plan,
    model: Model,
    assets: Mapping[str, Any],
    generator: torch.Generator,
    device: torch.device,
) -> Tensor | None:
    """Return the clean latents of the start image. Shape (1, ...), or None without one."""
    digest = plan.techniques.image
    if digest is None:
        return None
    if digest == ENLARGED and plan.techniques.upscaler[0] == "latent":
        latents = torch.as_tensor(assets[digest])[None].to(device)
        size = model.latent_shape(plan.size)[-2:]
        return torch.nn.functional.interpolate(latents, size=size, mode="bilinear")
    picture = torch.as_tensor(assets[digest])[None].to(device)
    return model.encode_image(picture, [generator]).float()


def _start(plan: Plan, clean: Tensor | None, inpainting: KeptPart | None) -> Tensor | None:
    """Return what a run on a picture starts from: under a mask not always the picture."""
    asked = plan.techniques.inpaint
    if clean is None or inpainting is None or asked is None:
        return clean
    if asked.fill == "nothing":
        return clean * (1 - inpainting.mask)
    if asked.fill == "noise":
        return clean * (1 - inpainting.mask) + inpainting.noise * inpainting.mask
    return clean


def _repaints_all(plan: Plan) -> bool:
    """Whether the repainted part starts from pure noise, as diffusers' inpainting does."""
    return plan.techniques.mask is not None and plan.techniques.strength == 1


def _keep_outside(
    plan: Plan, model: Model, assets: Mapping[str, Any], clean: Tensor | None, noise: Tensor
) -> KeptPart | None:
    """Return what stays outside the mask, or None without one."""
    digest = plan.techniques.mask
    if digest is None or clean is None:
        return None
    pixels = torch.as_tensor(assets[digest])[None, None].to(noise.device)
    mask = torch.nn.functional.interpolate(pixels, size=noise.shape[-2:], mode="area")
    return KeptPart(
        mask=mask, clean=clean, noise=noise, is_flow=model.spec.prediction_type == "flow"
    )
