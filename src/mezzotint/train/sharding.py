"""Sharding: a frozen network cut over the processes of a run, by torch's FSDP2.

Every process holds a share of each weight, of its gradient and of what the optimiser and the
running means remember of it. A block of the network is put together while it computes and let
go afterwards; gradients are averaged on their way to whoever holds the share. What is written
is whole again, so checkpoints and models are those of a run in one process, and any number of
processes goes on with them.

A share is put together by all processes: :func:`whole` is called by each of them, or by none.
"""

import warnings
from typing import Any

from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mezzotint.plain import is_dict, is_list

__all__ = ["is_sharded", "local", "shard", "share_of", "whole"]


def shard(network: nn.Module) -> bool:
    """Cut a network over the processes of this run; its weights become shares in place.

    Cut apart are the blocks that diffusers names as those that stay on one device; what is
    outside of them stays together.

    Args:
        network: On the processor, the same in every process; what learns in it is of one type.

    Returns:
        Whether there was anybody to share with; alone nothing is changed.
    """
    here = PartialState()
    if here.num_processes == 1:
        return False
    # Blocks of FLUX answer views, and nothing after them writes into one.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
    device = here.device
    mesh = init_device_mesh(device.type, (here.num_processes,))
    names: set[str] = set(getattr(network, "_no_split_modules", None) or ())
    for module in reversed(list(network.modules())):  # the inner ones first
        if module is network or type(module).__name__ in names:
            # Kept together until the backward pass, the outermost would show a later
            # forward pass the weights of an earlier step.
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for module in network.modules():
        if isinstance(module, FSDPModule) and device.type == "cpu":
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no average
    return True


def is_sharded(module: nn.Module) -> bool:
    """Whether this process holds only a share of some weight."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def local(value: Tensor) -> Tensor:
    """Return the share of a tensor that this process holds; a whole tensor itself."""
    return value.to_local() if isinstance(value, DTensor) else value


def whole(tree: Any) -> Any:
    """Return a tree of dicts and lists with every tensor in it whole.

    Every process has to call this, with equal trees; what is not cut is given back as it is.
    """
    if isinstance(tree, DTensor):
        cut: Any = tree.detach()
        return cut.full_tensor()
    if is_dict(tree):
        return {key: whole(value) for key, value in tree.items()}
    if is_list(tree):
        return [whole(value) for value in tree]
    return tree


def share_of(value: Tensor, model: Tensor) -> Tensor:
    """Return this process's share of a whole tensor, cut as ``model`` is.

    Args:
        value: The same in every process.
        model: Of the same shape; where it is not cut, ``value`` is given back.
    """
    if not isinstance(model, DTensor) or value.shape != model.shape:
        return value
    there = value.to(device=model.device, dtype=model.dtype)
    return distribute_tensor(there, model.device_mesh, model.placements, src_data_rank=None)
