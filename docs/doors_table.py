"""What each door takes of its clients' fields: one example of each, as a test tries them.

``python -m docs.generate`` writes the table of docs/doors/index.md from this, and
tests/house/test_doors_table.py holds every entry against the door: what is honoured changes
the request, what is ignored does not (and is told, where the door can tell), what is refused
is named in the error.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["DOORS", "Claims"]


@dataclass(frozen=True, kw_only=True)
class Claims:
    """One door.

    Args:
        door: Its name in the table.
        client: Who calls it in the tests.
        pin: The client's line in constraints.txt, whose version the table shows; empty where
            no package calls it.
        honoured: Field -> a value that changes the request.
        warned: Field -> a value that has no effect, which the answer says.
        ignored: The same, where the door has no place to say it.
        refused: Field -> a value that is refused by the field's name.
        takes_ours: Whether every field of our request is taken beside its own.
    """

    door: str
    client: str
    pin: str = ""
    honoured: Mapping[str, Any] = field(default_factory=dict)
    warned: Mapping[str, Any] = field(default_factory=dict)
    ignored: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, Any] = field(default_factory=dict)
    takes_ours: bool = True


_UNKNOWN = {"promt": "a"}

DOORS = (
    Claims(
        door="native, jobs",
        client="httpx; mz.Client on httpx2",
        pin="httpx2",
        honoured={"prompt": "a plum", "seed": 8, "num_images": 2},
        refused=_UNKNOWN,
    ),
    Claims(
        door="OpenAI",
        client="openai",
        pin="openai",
        honoured={"prompt": "a plum", "n": 2, "size": "64x32", "output_format": "webp"},
        ignored={
            "quality": "low",
            "background": "opaque",
            "moderation": "low",
            "style": "vivid",
            "user": "me",
            "input_fidelity": "high",
        },
        refused={**_UNKNOWN, "num_images": 2, "background": "transparent", "size": "big"},
    ),
    Claims(
        door="A1111",
        client="webuiapi",
        pin="webuiapi",
        honoured={
            "prompt": "a plum",
            "negative_prompt": "fog",
            "steps": 3,
            "cfg_scale": 4,
            "width": 64,
            "batch_size": 2,
            "sampler_name": "Euler a",
            "scheduler": "Karras",
            "tiling": True,
            "enable_hr": True,
        },
        warned={
            "restore_faces": True,
            "s_churn": 1,
            "refiner_checkpoint": "x",
            "hr_scheduler": "x",
        },
        ignored={"do_not_save_samples": True, "anything": 1},
        refused={"steps": 0, "width": -8, "batch_size": 0},
        takes_ours=False,
    ),
    Claims(
        door="Hugging Face",
        client="huggingface_hub",
        pin="huggingface_hub",
        honoured={"guidance_scale": 4, "target_size": {"width": 64, "height": 32}},
        refused={**_UNKNOWN, "num_images": 2, "model": "x"},
    ),
    Claims(
        door="TorchServe, KServe",
        client="tritonclient",
        pin="tritonclient",
        honoured={"data": "a plum", "number_of_images": 2},
        ignored={"input_gender": "Men", "input_category": "x", "input_pose": "x", "model": "x"},
        refused=_UNKNOWN,
    ),
    Claims(
        door="Replicate",
        client="replicate",
        pin="replicate",
        honoured={
            "prompt": "a plum",
            "num_outputs": 2,
            "guidance": 4,
            "steps": 3,
            "scheduler": "K_EULER_ANCESTRAL",
            "output_format": "jpg",
        },
        warned={"disable_safety_checker": True, "go_fast": True, "apply_watermark": False},
        refused={**_UNKNOWN, "image": "https://example.org/a.png", "scheduler": "K_NOPE"},
    ),
    Claims(
        door="fal",
        client="fal-client",
        pin="fal_client",
        honoured={
            "prompt": "a plum",
            "image_size": "square",
            "steps": 3,
            "loras": [{"path": "ink", "scale": 0.5}],
            "output_format": "jpeg",
        },
        ignored={"enable_safety_checker": False, "acceleration": "high"},
        refused={**_UNKNOWN, "image_url": "https://example.org/a.png", "image_size": "huge"},
    ),
    Claims(
        door="ComfyUI",
        client="graphs in API format",
        honoured={
            "KSampler.seed": 8,
            "KSampler.steps": 3,
            "KSampler.cfg": 4,
            "KSampler.sampler_name": "euler_ancestral",
            "KSampler.scheduler": "karras",
            "EmptyLatentImage.batch_size": 1,
            "CLIPTextEncode.text": "a plum",
        },
        warned={"KSampler.sampler_name": "dpmpp_2m_sde_heun"},
        ignored={"SaveImage.filename_prefix": "mine"},
        refused={"UpscaleModelLoader.model_name": "x", "KSampler.sampler_name": "nope"},
        takes_ours=False,
    ),
    Claims(
        door="MCP",
        client="mcp",
        pin="mcp",
        honoured={"prompt": "a plum", "seed": 8, "num_images": 2},
        refused=_UNKNOWN,
    ),
)
