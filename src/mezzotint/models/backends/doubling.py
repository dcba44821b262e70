"""Doubling: the last layer of a generator, arranged for how processors compute convolutions.

Kernels compute many output channels at once, and a picture has three. Written as a
convolution to four times as many channels, one for each place in a 2x2 square, the same
sums take about half as long (on a CPU with OpenVINO: a quarter of a small generator).
"""

import copy

from torch import Tensor, nn

from mezzotint.models.networks import modules_by_name

__all__ = ["ShuffledDoubling", "rearranged"]

_FEW = 4  # output channels of a layer that is worth it

# Output 2i + phase sums input i + shift - 1 times element t of the kernel.
_TAPS = [(p, t, (p + 1 - t) // 2 + 1) for p in (0, 1) for t in range((p + 1) % 2, 4, 2)]


class ShuffledDoubling(nn.Module):
    """A 4x4 transposed convolution of stride 2 as a 3x3 convolution and a pixel shuffle.

    Args:
        layer: Kernel 4, stride 2, padding 1, one group.

    Raises:
        ValueError: If it is another kind of layer.
    """

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        super().__init__()
        if not _is_doubling(layer):
            raise ValueError(f"expected kernel 4, stride 2, padding 1, got {layer}")
        weight = layer.weight.detach()
        inputs, outputs = weight.shape[:2]
        kernel = weight.new_zeros(outputs, 2, 2, inputs, 3, 3)
        for row, t, y in _TAPS:
            for column, u, x in _TAPS:
                kernel[:, row, column, :, y, x] = weight[:, :, t, u].T
        self.convolution = nn.Conv2d(
            inputs, outputs * 4, 3, padding=1, bias=layer.bias is not None, device="meta"
        )
        self.convolution.weight = nn.Parameter(kernel.reshape(outputs * 4, inputs, 3, 3))
        if layer.bias is not None:
            self.convolution.bias = nn.Parameter(layer.bias.detach().repeat_interleave(4))

    def forward(self, x: Tensor) -> Tensor:
        """Double the sides. Shape (B, inputs, H, W) to (B, outputs, 2H, 2W)."""
        return nn.functional.pixel_shuffle(self.convolution(x), 2)


def rearranged(module: nn.Module) -> nn.Module:
    """Return a module with layers to few channels rearranged; itself where there are none.

    What it was made of stays as it is.
    """
    names = [
        name
        for name, layer in modules_by_name(module).items()
        if type(layer) is nn.ConvTranspose2d
        and not layer._forward_pre_hooks  # pyright: ignore - no public name
        and _is_doubling(layer)
        and layer.out_channels <= _FEW
    ]
    if not names:
        return module
    module = copy.deepcopy(module)
    for name in names:
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.ConvTranspose2d)  # noqa: S101 - looked at above
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, ShuffledDoubling(layer))
    return module


def _is_doubling(layer: nn.ConvTranspose2d) -> bool:
    shape = (layer.kernel_size, layer.stride, layer.padding, layer.output_padding)
    is_plain = layer.groups == 1 and layer.dilation == (1, 1)
    return is_plain and shape == ((4, 4), (2, 2), (1, 1), (0, 0))
