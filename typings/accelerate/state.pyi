from typing import Any

class AcceleratorState:
    # No public name tells or forgets the state that all instances share.
    _shared_state: dict[str, Any]
    @staticmethod
    def _reset_state(reset_partial_state: bool = False) -> None: ...
