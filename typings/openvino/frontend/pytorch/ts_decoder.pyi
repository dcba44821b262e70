from typing import Any

from torch import Tensor, nn

class TorchScriptPythonDecoder:
    def __init__(
        self,
        pt_module: nn.Module,
        *,
        example_input: tuple[Tensor, ...],
        trace_kwargs: dict[str, Any] | None = None,
    ) -> None: ...
