"""Small copies to the device that nothing waits for.

The host side is pinned. PyTorch's allocator gives such memory out again only when its copies are over, so
none has to be kept track of here.
"""

import numpy as np
import numpy.typing as npt
import torch


def upload(values: npt.NDArray[np.int32], target: torch.Tensor) -> torch.Tensor:
    """Start a copy to the device, in order with the work that is queued there.

    Args:
        values: int32, any shape.
        target: int32, flat, at least as long.

    Returns:
        The part of the target that holds the values, in their shape.
    """
    host = torch.from_numpy(values)
    if target.device.type == "cuda":
        host = host.pin_memory()
    part = target[: values.size].view(values.shape)
    part.copy_(host, non_blocking=True)
    return part
