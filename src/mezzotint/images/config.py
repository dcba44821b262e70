"""Config of the pictures room: limits on what is read. Torch-free."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from mezzotint.bounds import Range
from mezzotint.plain import Checked

__all__ = ["ImageConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig(Checked):
    """Limits on pictures that come from outside, and the keys that pictures are signed by.

    Args:
        max_pixels: Most pixels (width times height) of a picture that is read.
        max_side_px: Longest side of a picture that is read.
        max_bytes: Most bytes of an encoded picture.
        max_request_pixels: Most pixels of all pictures that come with one request.
        max_output_pixels: Most pixels of a picture that is enlarged, extended, or put back
            into the one that came; 0 is ``max_pixels``. The server takes
            ``serve.limits.pixels`` if that is less.
        signing_key: File of the private key that signs pictures with ``output.sign``, as
            ``mezzotint keys sign`` writes it; "" for none.
        trusted_keys: Files of public keys whose signatures ``verify`` calls known.
    """

    where: ClassVar[str] = "images"
    max_pixels: Annotated[int, Range(1, 170_000_000)] = 40_000_000
    max_side_px: Annotated[int, Range(1, 65_500)] = 16_384
    max_bytes: Annotated[int, Range(1, 1 << 30)] = 64 << 20
    max_request_pixels: Annotated[int, Range(1, 1 << 40)] = 64_000_000
    max_output_pixels: Annotated[int, Range(0, 1 << 40)] = 0
    signing_key: str = ""
    trusted_keys: tuple[str, ...] = ()

    @property
    def most_output_pixels(self) -> int:
        """The limit on what is answered, resolved."""
        return self.max_output_pixels or self.max_pixels
