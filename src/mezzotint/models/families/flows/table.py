"""Table: which family a pipeline over a flow transformer is of."""

from collections.abc import Mapping

from mezzotint.models.families.flows.chroma import CHROMA
from mezzotint.models.families.flows.flux2 import FLUX2_DEV, FLUX2_KLEIN
from mezzotint.models.families.flows.lumina2 import LUMINA2
from mezzotint.models.families.flows.model import FlowFamily
from mezzotint.models.families.flows.qwen_image import QWEN_IMAGE
from mezzotint.models.families.flows.qwen_image_2 import QWEN_IMAGE_2
from mezzotint.models.families.flows.sana import SANA
from mezzotint.models.families.flows.z_image import Z_IMAGE

__all__ = ["FLOW_FAMILIES"]

FLOW_FAMILIES: Mapping[str, FlowFamily] = {
    "ChromaImg2ImgPipeline": CHROMA,
    "ChromaInpaintPipeline": CHROMA,
    "ChromaPipeline": CHROMA,
    "Flux2KleinPipeline": FLUX2_KLEIN,
    "Flux2Pipeline": FLUX2_DEV,
    "Lumina2Pipeline": LUMINA2,
    "Lumina2Text2ImgPipeline": LUMINA2,
    "QwenImage21Pipeline": QWEN_IMAGE_2,
    "QwenImageImg2ImgPipeline": QWEN_IMAGE,
    "QwenImageInpaintPipeline": QWEN_IMAGE,
    "QwenImagePipeline": QWEN_IMAGE,
    "SanaPipeline": SANA,
    "ZImageImg2ImgPipeline": Z_IMAGE,
    "ZImageInpaintPipeline": Z_IMAGE,
    "ZImagePipeline": Z_IMAGE,
}
"""Families by the class name of their pipelines."""
