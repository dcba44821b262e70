"""Finite: which rows of a tensor hold NaN or infinity."""

import numpy as np
import torch
from torch import Tensor

__all__ = ["rows_not_finite"]


def rows_not_finite(tensor: Tensor) -> list[int]:
    """Return the rows that hold a value which is not finite.

    NaN and infinity are passed on by a sum, and by a row's minimum and maximum, of which the
    latter do not overflow. On a CPU numpy finds them in this thread: torch would wake a pool
    of its own, beside the one that runs the networks.

    Args:
        tensor: Shape (B, ...), any float type.
    """
    if not tensor.numel():
        return []
    flat = tensor.detach().flatten(1)
    if tensor.device.type == "cpu" and tensor.dtype == torch.float32:
        array = flat.numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(array.sum()):
                return []
        good = np.isfinite(array.min(axis=1)) & np.isfinite(array.max(axis=1))
        return np.flatnonzero(~good).tolist()
    good = torch.isfinite(flat).all(dim=1)
    return np.flatnonzero(~good.cpu().numpy()).tolist()
