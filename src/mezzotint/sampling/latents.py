"""Latents: noise, starts, and the way between two points.

Noise is always drawn on the CPU in float32 from one generator per image, so
that an image does not depend on its neighbours, its device or its precision.

Spherical interpolation: Gaussian latents of a high dimension lie near a sphere;
the straight line between two of them passes through its inside, where no
latents are. Directions are interpolated along the great circle and norms on
their own, so the ends come back bit for bit and equal ends stay what they are:
``slerp(a, b, t) = r(t) (sin((1 - t) omega) u + sin(t omega) v) / sin(omega)`` with unit
directions u and v, the angle omega between them from atan2, and
``r(t) = (1 - t) |a| + t |b|`` (Shoemake 1985).

Starts: a clean picture c enters a run at level sigma as a draw from what training saw
there: ``c + sigma noise``, or ``(1 - sigma) c + sigma noise`` in the flow frame.
Inpainting replaces what is kept by such a draw after every step (Lugmayr et al. 2022,
arXiv:2201.09865, equation 8).

Dimensions: B images, T tokens, D features, then any rank.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from mezzotint.errors import InvalidRequest, ShapeError

__all__ = [
    "blend_inpainting",
    "derive",
    "draw_noise",
    "make_generator",
    "slerp",
    "slerp_embeddings",
    "start_from",
]

_NEARLY_PARALLEL = 1e-6  # radians; below, the circle is straight to float64's precision
_NEARLY_OPPOSITE = 1e-4


def make_generator(seed: int) -> torch.Generator:
    """Return a CPU generator of a seed in 0 .. 2**64 - 1.

    torch's CPU generator starts from the low 32 bits of the seed: seeds that
    agree in them draw the same noise, here as everywhere else in torch.

    Raises:
        InvalidRequest: If the seed is out of range.
    """
    if not 0 <= seed < 2**64:
        raise InvalidRequest(f"seed must be 0 to {2**64 - 1}, got {seed}", field="seed")
    generator = torch.Generator()
    return generator.manual_seed(seed if seed < 2**63 else seed - 2**64)


def derive(seed: int, image: int, attempt: int) -> int:
    """Derive the seed of a further attempt at an image.

    Args:
        seed: Seed of the request.
        image: Index of the image within the request.
        attempt: 0 for the first, which keeps ``seed + image``.

    Returns:
        A seed in 0 .. 2**63 - 1 that different arguments practically never share.
    """
    if attempt == 0:
        return (seed + image) % 2**64
    digest = hashlib.sha256(f"mezzotint:{seed}:{image}:{attempt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw_noise(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Draw standard noise, one image per generator.

    Args:
        shape: Shape of one image's latents.
        generators: One CPU generator per image.

    Returns:
        Shape (B, *shape), float32, on the CPU.
    """
    return torch.cat(
        [torch.randn((1, *shape), generator=g, dtype=torch.float32) for g in generators]
    )


def start_from(clean: Tensor, noise: Tensor, sigma: Tensor, *, frame: str = "ve") -> Tensor:
    """Noise clean latents up to a level, to start from a picture.

    Args:
        clean: Clean latents. Shape (B, ...), float32.
        noise: Standard noise. Same shape.
        sigma: Level of each image in the frame's terms. Shape (B,).
        frame: ``"ve"`` or ``"flow"``.

    Returns:
        Noisy latents. Same shape.
    """
    level = sigma.to(clean).reshape(-1, *([1] * (clean.ndim - 1)))
    kept = (1 - level) * clean if frame == "flow" else clean
    return kept + level * noise


def blend_inpainting(
    latents: Tensor,
    original: Tensor,
    noise: Tensor,
    mask: Tensor,
    sigma: Tensor,
    *,
    frame: str = "ve",
) -> Tensor:
    """Put the part that is kept back to the original, at the same noise level.

    Args:
        latents: Latents of the run. Shape (B, C, h, w).
        original: Clean latents of the picture. Same shape.
        noise: The noise that the run started from. Same shape.
        mask: 1 where the picture is repainted, 0 where it is kept. Shape (B, 1, h, w).
        sigma: Level that the latents are at, 0 after the last step. Shape (B,).
        frame: ``"ve"`` or ``"flow"``.

    Returns:
        Shape (B, C, h, w).
    """
    kept = start_from(original, noise, sigma, frame=frame)
    return mask * latents + (1 - mask) * kept


def slerp(a: Tensor, b: Tensor, t: float, *, dims: int | None = None) -> Tensor:
    """Interpolate along great circles, with norms interpolated on their own.

    Args:
        a: Where to start. Shape (B, ...) for latents.
        b: Where to end. Same shape.
        t: 0 returns ``a``, 1 returns ``b``, bit for bit; between, the way.
        dims: How many trailing dimensions make one vector: None takes all but
            the first (a latent is one vector), 1 takes the last (a token is one).

    Returns:
        Same shape and type as ``a``.

    Raises:
        ShapeError: If the shapes differ.
        InvalidRequest: If ``t`` is outside [0, 1].

    Decided cases: nearly parallel vectors go straight; exactly opposite ones turn
    through a fixed perpendicular direction, always the same; where one vector is
    zero its direction is taken from the other.

    Source: Shoemake 1985, Animating Rotation with Quaternion Curves, section 3.3.
    """
    if a.shape != b.shape:
        raise ShapeError(f"slerp needs equal shapes, got {tuple(a.shape)} and {tuple(b.shape)}")
    if not 0 <= t <= 1:
        raise InvalidRequest(f"interpolation position must be 0 to 1, got {t}")
    if t in (0, 1):
        return (a if t == 0 else b).clone()
    count = (a.ndim - 1 or 1) if dims is None else dims
    lead = a.shape[: a.ndim - count]
    size = math.prod(a.shape[a.ndim - count :])
    rows_a, rows_b = (x.reshape(-1, size).double() for x in (a, b))
    moved = torch.stack([_slerp_row(x, y, t) for x, y in zip(rows_a, rows_b, strict=True)])
    same = (rows_a == rows_b).all(dim=1, keepdim=True)
    moved = torch.where(same, rows_a, moved)
    return moved.reshape(*lead, *a.shape[a.ndim - count :]).to(a.dtype)


def _norm(vector: Tensor) -> Tensor:
    """Return the length of a vector; torch leaves the type of it open."""
    return cast("Any", vector).norm()


def _slerp_row(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Interpolate two vectors. Shape (D,), float64."""
    norm_a, norm_b = _norm(a), _norm(b)
    if norm_a == 0 or norm_b == 0:
        return (1 - t) * a + t * b
    u, v = a / norm_a, b / norm_b
    # 2 atan2(|u - v|, |u + v|) is exact where acos of a dot product loses half its digits
    angle = 2 * torch.atan2(_norm(u - v), _norm(u + v))
    norm = (1 - t) * norm_a + t * norm_b
    if angle < _NEARLY_PARALLEL:
        direction = (1 - t) * u + t * v
        return norm * direction / _norm(direction)
    if math.pi - float(angle) < _NEARLY_OPPOSITE:
        side = _perpendicular(u)
        turn = t * angle
        return norm * (torch.cos(turn) * u + torch.sin(turn) * side)
    weight_a = torch.sin((1 - t) * angle) / torch.sin(angle)
    weight_b = torch.sin(t * angle) / torch.sin(angle)
    return norm * (weight_a * u + weight_b * v)


def _perpendicular(u: Tensor) -> Tensor:
    """Return a unit vector at a right angle to ``u``, the same one every time."""
    axis = torch.zeros_like(u)
    axis[int(u.abs().argmin())] = 1.0
    side = axis - (axis @ u) * u
    return side / _norm(side) if float(_norm(side)) > 0 else axis


def slerp_embeddings(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Interpolate prompt embeddings token by token. Shape (B, T, D).

    Only ever called on the prompt's own half: a negative prompt that both ends
    share is not touched.
    """
    return slerp(a, b, t, dims=1)
