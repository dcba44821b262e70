"""Assets: what the decoded pictures of a request are called on their way to the executor."""

from mezzotint.planning.plan import Resolved
from mezzotint.request import Control
from mezzotint.types import Size

__all__ = ["control_asset", "mask_asset", "prompt_asset", "reference_asset"]


def control_asset(control: Resolved[Control], size: Size) -> str:
    """Return the name of a prepared control picture among the assets of a request.

    The same file may be the start image, come with another preprocessor, and serve
    passes of several sizes.
    """
    (picture,) = control.pictures
    return f"control {control.part.preprocess or 'none'} {size} {picture}"


def mask_asset(mask: str) -> str:
    """Return the name of a region's or a member's mask among the assets of a request.

    The same file may be the mask of the part to repaint, blurred and turned round.
    """
    return f"mask {mask}"


def prompt_asset(place: int, image: str) -> str:
    """Return the name of a picture of an image prompt among the assets of a request.

    Args:
        place: Which of the request's image prompts: each looks at its own size.
        image: Digest of the picture.
    """
    return f"prompt {place} {image}"


def reference_asset(image: str) -> str:
    """Return the name of a picture of ``image_references`` among the assets of a request.

    Args:
        image: Digest of the picture.
    """
    return f"reference {image}"
