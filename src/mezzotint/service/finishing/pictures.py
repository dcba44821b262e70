"""Pictures: from what the engine decoded to an encoded file with its recipe.

CPU work that runs beside the device: rounding to 8 bits, enlargement, recipe,
encoding. The bytes of a picture depend on its plan and environment alone, not
on who asked, in which words, or beside whom it was made.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mezzotint.errors import PictureTooLarge
from mezzotint.images.animation import encode_animation, order_frames
from mezzotint.images.codec import decode_image, encode, read_size, to_images, to_pixels
from mezzotint.images.config import ImageConfig
from mezzotint.images.metadata import build_recipe, canonical_json, make_infotext
from mezzotint.images.preprocess import preprocess
from mezzotint.images.resize import fit
from mezzotint.images.signing import load_signing_key, sign_file
from mezzotint.models.adapters.ip_adapter import crop_picture
from mezzotint.planning.assets import control_asset, prompt_asset, reference_asset
from mezzotint.planning.plan import Plan
from mezzotint.request import GenerationRequest
from mezzotint.service.finishing.inpainting import read_inpainting
from mezzotint.service.finishing.recipes import Recipes
from mezzotint.service.finishing.tools import Upscalers, enlarge, loaded_anew
from mezzotint.service.requests import RequestSubmission, standalone
from mezzotint.techniques.walking import pictures_of
from mezzotint.types import ImageOutput, StageTimings

__all__ = ["Finisher", "adapter_assets", "check_pictures", "pastes", "with_pixels"]


@dataclass(frozen=True, kw_only=True)
class Finisher:
    """Turns decoded pictures into finished ones.

    Args:
        environment: Device, dtype and versions, for the recipe.
        program: Name and version of this program.
        limits: On the picture that an inpainting goes back into.
        upscalers: Gives upscalers by name.
    """

    environment: Mapping[str, Any]
    program: str
    limits: ImageConfig = field(default_factory=ImageConfig)
    upscalers: Upscalers = loaded_anew

    @cached_property
    def recipes(self) -> Recipes:
        """What writes the recipes."""
        return Recipes(self.environment, self.program)

    def pixels(self, picture: np.ndarray) -> np.ndarray:
        """Round a picture in [-1, 1], (3, H, W), to uint8, (H, W, 3).

        Raises:
            WorkFailed: If a value is not finite.
        """
        return to_pixels(picture)

    def finish(
        self,
        pixels: np.ndarray,
        *,
        request: GenerationRequest,
        plan: Plan,
        index: int,
        timings: StageTimings,
        warnings: tuple[str, ...],
    ) -> ImageOutput:
        """Enlarge if asked, write the recipe, encode.

        Args:
            pixels: The model's own picture. Shape (H, W, 3), uint8.
            request: What was asked.
            plan: What was made.
            index: Position within the request.
            timings: Where the time went before.
            warnings: What was changed on the way.
        """
        began = time.monotonic()
        if pastes(plan):
            inpainting = read_inpainting(request, self.limits)
            assert inpainting is not None  # noqa: S101 - a plan that pastes has a picture
            pixels = inpainting.paste(pixels, plan)
        if plan.techniques.upscale is not None:
            upscale = plan.techniques.upscale.part
            pixels = enlarge(pixels, upscale.factor, upscale.model or "lanczos", self.upscalers)
        spelt = self.recipes.write(request, plan, warnings)
        output = plan.output
        data = encode(
            pixels,
            output.format,
            quality=output.quality,
            parameters=spelt.infotext if output.metadata else "",
            recipe=spelt.text if output.metadata else "",
        )
        if output.sign:
            data = self.sign(data)
        return ImageOutput(
            index=index,
            seed=plan.seed,
            data=data,
            format=output.format,
            width=pixels.shape[1],
            height=pixels.shape[0],
            recipe=spelt.recipe,
            warnings=warnings,
            timings=replace(timings, write_s=time.monotonic() - began),
            pixels=pixels,
        )

    def sign(self, data: bytes) -> bytes:
        """Sign a file with this service's key.

        Raises:
            InvalidRequest: If there is none, or it cannot be read.
        """
        return sign_file(data, load_signing_key(Path(self.limits.signing_key)))

    def between(self, picture: np.ndarray, plan: Plan) -> np.ndarray:
        """Enlarge what the first pass of a plan drew, for its second.

        Args:
            picture: A decoded picture, (3, H, W) in [-1, 1]; or latents where the plan
                ends in them, which stay as they are.
            plan: Has a second pass.

        Returns:
            What the second pass takes as its start picture: (3, H2, W2), or latents.
        """
        if plan.ends_in_latents or plan.second is None:
            return picture
        size = plan.second.size
        pixels = to_pixels(picture)
        name = plan.second.techniques.upscaler[0]
        if name != "lanczos":
            with self.upscalers(name) as network:
                pixels = network(pixels)
        return to_images(fit(pixels, size))

    def animate(self, submission: RequestSubmission, frames: Sequence[ImageOutput]) -> ImageOutput:
        """Make one moving file of the pictures of a walk.

        Args:
            submission: What was asked, with ``output.animation``.
            frames: The finished pictures, in order.

        Raises:
            WorkFailed: If the file cannot be written.
        """
        began = time.monotonic()
        output = submission.request.output
        animation = output.animation
        assert animation is not None  # noqa: S101 - asked for by requests with one
        pictures = [with_pixels(frame).pixels for frame in frames]
        plan = submission.planned.plans[0]
        whole = standalone(submission.request, plan)
        recipe = build_recipe(
            replace(whole, output=output).to_dict(),
            resolved={"model": plan.model, "width": plan.size.width, "height": plan.size.height},
            environment=self.recipes.environment(plan),
        )
        texts = {
            "parameters": make_infotext(recipe, has_steps=bool(plan.steps), version=self.program),
            "recipe": canonical_json(recipe),
        }
        data = encode_animation(
            pictures,
            animation,
            quality=output.quality,
            **(texts if output.metadata else {}),
        )
        if output.sign:
            data = self.sign(data)
        spent = [frame.timings for frame in frames]
        total = {f.name: sum(getattr(t, f.name) for t in spent) for f in fields(StageTimings)}
        timings = StageTimings(**total)
        return ImageOutput(
            index=0,
            seed=plan.seed,
            data=data,
            format=animation.format,
            width=pictures[0].shape[1],
            height=pictures[0].shape[0],
            recipe=recipe,
            warnings=tuple(dict.fromkeys(w for frame in frames for w in frame.warnings)),
            attempts=tuple(a for frame in frames for a in frame.attempts),
            timings=replace(timings, write_s=timings.write_s + time.monotonic() - began),
            pixels=pictures[0],
            frames=len(order_frames(pictures, animation)),
        )


def pastes(plan: Plan) -> bool:
    """Whether what was drawn goes back into the picture that came with the request."""
    asked = plan.techniques.inpaint
    return asked is not None and (asked.paste or asked.area == "masked")


def check_pictures(request: GenerationRequest, limits: ImageConfig) -> None:
    """Hold the pictures of a request to the limits before one of them is decoded.

    Args:
        request: What was asked.
        limits: On each picture, on all of them together, and on what is answered.

    Raises:
        ImageError: If one is no picture.
        PictureTooLarge: If there are too many pixels; names the field.
    """
    total = 0
    for name, image in pictures_of(request):
        size = read_size(image.data, field=name, config=limits)
        total += size.width * size.height
        if total > limits.max_request_pixels:
            raise PictureTooLarge(
                f"{name}: the pictures of one request may have {limits.max_request_pixels} "
                f"pixels together, these have at least {total}",
                field=name,
                value=total,
                allowed=f"at most {limits.max_request_pixels} pixels together",
            )


def adapter_assets(
    request: GenerationRequest,
    plan: Plan,
    limits: ImageConfig,
    view: Callable[[str], tuple[int, bool]],
) -> dict[str, np.ndarray]:
    """Decode and prepare the pictures that adapters of a request look at.

    Args:
        request: What was asked.
        plan: What is made.
        limits: On pictures that come from outside.
        view: How an IP-Adapter, by name, sees pictures: pixels of each side, and whether the
            middle alone.

    Returns:
        Control pictures at the sizes of all passes, (3, H, W) in [0, 1], and the middles of
        pictures of image prompts, (side, side, 3), uint8: what waits in a queue stays small.
        Pictures to edit as they are, (H, W, 3), uint8.

    Raises:
        ImageError: If one is no picture; names the field.
    """
    assets: dict[str, np.ndarray] = {}
    sizes = [one.size for one in (plan, plan.second) if one is not None]
    for k, control in enumerate(plan.techniques.controls):
        pixels = decode_image(control.part.image.data, field=f"controls[{k}].image", config=limits)
        for size in sizes:
            prepared = preprocess(fit(pixels, size), control.part.preprocess)
            array = prepared.astype(np.float32).transpose(2, 0, 1) / np.float32(255)
            assets[control_asset(control, size)] = np.ascontiguousarray(array)
    for k, prompt in enumerate(plan.techniques.image_prompts):
        named = zip(prompt.part.images, prompt.pictures, strict=True)
        for place, (image, digest) in enumerate(named):
            where = f"image_prompts[{k}].images[{place}]"
            pixels = decode_image(image.data, field=where, config=limits)
            side, is_cropped = view(prompt.part.model)
            assets[prompt_asset(k, digest)] = crop_picture(pixels, side, is_cropped=is_cropped)
    for k, image in enumerate(request.image_references):
        pixels = decode_image(image.data, field=f"image_references[{k}]", config=limits)
        assets[reference_asset(image.digest)] = pixels
    return assets


def with_pixels(image: ImageOutput) -> ImageOutput:
    """Return the image with its pixels, decoded from the file where they are not at hand."""
    if image.pixels is not None:
        return image
    return replace(image, pixels=decode_image(image.data))
