"""What flows into the layers of a network, found as a fast copy finds it."""

from mezzotint.models.backends.openvino_backend import OpenVINONetwork
from mezzotint.models.backends.quantized import WatchedNetwork

__all__ = ["find_ranges"]


def find_ranges(network: OpenVINONetwork, calls) -> dict[str, tuple[float, float]]:
    """Run calls of one row shape in float32 and note what flows into each layer."""
    watched = WatchedNetwork(network.source, **network.options)
    for call in calls:
        watched(**call)
    return watched.ranges
