"""In which floating point the scripts here compute: bfloat16 only where the processor has it.

Measured on one thread with the U-Net of `plate`, batches of 32: a processor with AVX-512 but
no AMX trains 35 samples a second in float32 and 22 in bfloat16.
"""

import torch


def fast_floats(kind: str = "auto") -> torch.autocast:
    """Return the context in which networks compute.

    Args:
        kind: "float32", "bfloat16", or "auto": bfloat16 where the processor multiplies it in
            tiles (AMX), float32 elsewhere.
    """
    if kind == "auto":
        tiles = bool(torch.cpu.get_capabilities().get("amx_bf16"))
        kind = "bfloat16" if tiles else "float32"
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "bfloat16")
