"""Memory: bytes that a plan needs, and the budget that running images share.

Estimates are deliberately on the high side. A slot is what an image holds while
it runs; activations are what one row needs inside a network call, and are
shared by all images because calls follow each other.
"""

import dataclasses
from dataclasses import dataclass

from mezzotint.models.spec import ModelSpec
from mezzotint.planning.plan import Plan
from mezzotint.schedulers import NATIVE

__all__ = ["Footprint", "measure"]

_FLOAT32 = 4
# Widest feature map of the Stable Diffusion 1.5 U-Net (320 channels) times about twelve
# tensors alive at once; decoders hold about six maps of 128 channels at full size.
_UNET_FLOATS_PER_LATENT_PIXEL = 320 * 12
_DECODER_FLOATS_PER_PIXEL = 128 * 6
_PIXEL_SPACE_FLOATS_PER_PIXEL = 128 * 12
_ANSWERS = 20  # of a published ControlNet of a transformer: 5 to 19 blocks, each a map of tokens
_REGISTERS = 5  # state, two earlier estimates, noise, and what is being computed
_CONDITIONING_BYTES_PER_TOKEN = 4096 * _FLOAT32


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes of one image.

    Args:
        slot_bytes: Held from encoding to the end.
        row_bytes: Activations of one row of the denoiser.
        decode_bytes: Activations of one row of the decoder.
        model_bytes: Weights of its model, which all its images share.
    """

    slot_bytes: int
    row_bytes: int
    decode_bytes: int
    model_bytes: int = 0

    def peak_bytes(self, rows: int) -> int:
        """Return the bytes that the image alone needs at its worst moment."""
        return self.slot_bytes + max(rows * self.row_bytes, self.decode_bytes)


def measure(plan: Plan, spec: ModelSpec) -> Footprint:
    """Estimate the bytes that a plan needs while it runs.

    Args:
        plan: What to make.
        spec: Its model.

    Returns:
        Bytes; weights stand apart, since the model store has a budget of its own.
    """
    if plan.second is not None:
        one, two = measure(dataclasses.replace(plan, second=None), spec), measure(plan.second, spec)
        names = (f.name for f in dataclasses.fields(Footprint))
        return Footprint(**{name: max(getattr(one, name), getattr(two, name)) for name in names})
    pixels = plan.size.width * plan.size.height
    has_latent_space = spec.latent_scale > 1 and spec.has_steps
    latent_pixels = pixels // spec.latent_scale**2 if has_latent_space else pixels
    channels = spec.latent_channels if spec.has_steps else 3
    registers = _REGISTERS if plan.scheduler in NATIVE else 2 * _REGISTERS
    latents = latent_pixels * channels * _FLOAT32
    rows = max(plan.rows, default=1)
    conditioning = rows * spec.token_limit * _CONDITIONING_BYTES_PER_TOKEN
    floats = _UNET_FLOATS_PER_LATENT_PIXEL if has_latent_space else _PIXEL_SPACE_FLOATS_PER_PIXEL
    controls = len(plan.techniques.controls)  # pictures, and residuals beside the U-Net's own
    hints = controls * 3 * pixels * _FLOAT32
    floats += floats // 2 * min(controls, 1)
    # What is added behind blocks, and what one ControlNet after the other answers.
    tokens = pixels // spec.size_multiple**2
    answers = 2 * min(controls, 1) * _ANSWERS * tokens * spec.token_width * _FLOAT32
    decoder = _DECODER_FLOATS_PER_PIXEL if has_latent_space or not spec.has_steps else 8
    return Footprint(
        slot_bytes=latents * registers + conditioning + 3 * pixels + hints,
        row_bytes=latent_pixels * floats * _FLOAT32 + hints + answers,
        decode_bytes=_decoded_at_once(plan, spec) * decoder * _FLOAT32,
        model_bytes=spec.num_bytes,
    )


def _decoded_at_once(plan: Plan, spec: ModelSpec) -> int:
    """Return the pixels of one call of the decoder: a picture's, or those of a tile of it."""
    if not spec.tile_px:
        return plan.size.width * plan.size.height
    return min(plan.size.width, spec.tile_px) * min(plan.size.height, spec.tile_px)
