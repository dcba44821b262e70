"""Fitting: whether a model's weights have room in memory, told before any is read.

The kernel kills who takes more than there is, minutes after the first weight was read and
without a word. So what cannot fit is refused at once, with what would make it fit. That
weights fit is not all: a call needs memory of its own, which its plan is charged for.
"""

from collections.abc import Iterable
from typing import Any

import torch

from mezzotint.errors import WeightsError

__all__ = ["check_fits"]

_HALF = 2  # float32 to bfloat16


def check_fits(
    name: str,
    networks: Iterable[Any],
    room: int,
    *,
    can_offload: bool = False,
    can_map: bool = False,
) -> None:
    """Refuse a model whose weights alone are more than there is.

    Args:
        name: The model's name.
        networks: Its networks; those of one digest share their weights.
        room: Bytes that this process, or its device, may have.
        can_offload: Whether networks could take turns on the device.
        can_map: Whether weights could stay on disk, where there is no such device.

    Raises:
        WeightsError: If it does not fit: what it needs, what there is, and what would help.
    """
    sizes: dict[object, int] = {}
    wide = 0
    for network in networks:
        num_bytes = int(getattr(network, "num_bytes", 0))
        key = getattr(network, "digest", "") or id(network)
        if sizes.get(key, 0) >= num_bytes:
            continue
        fresh = num_bytes - sizes.get(key, 0)
        sizes[key] = num_bytes
        if getattr(network, "dtype", None) == torch.float32:
            wide += fresh
    needed = sum(sizes.values())
    if needed <= room:
        return
    halved = needed - wide + wide // _HALF
    advice: list[str] = []
    if halved <= room:
        advice.append(
            f"in bfloat16 it takes {_told(halved)} (mezzotint models add ... --dtype bfloat16, "
            "or models.placement.dtype)"
        )
    if can_offload:
        largest = max(sizes.values())
        how = "model" if largest <= room else "sequential"
        advice.append(f"with models.placement.offload = {how} its parts take turns")
    elif can_map:
        advice.append(
            "with offload disk its weights stay on disk, and it draws slowly (mezzotint models "
            "add ... --offload disk, or models.placement.offload)"
        )
    if not advice:
        advice.append("it needs a machine, or a control group, with more memory")
    raise WeightsError(
        f"model {name} does not fit into memory: its weights take {_told(needed)}, and there are "
        f"{_told(room)}; {'; or '.join(advice)}"
    )


def _told(num_bytes: int) -> str:
    """Return bytes for people."""
    if num_bytes < 10**9:
        return f"{num_bytes / 1e6:.1f} MB"
    return f"{num_bytes / 1e9:.1f} GB"
