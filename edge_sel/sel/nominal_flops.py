"""The papers' accounting of work. What really ran is counted from the graph, elsewhere."""

from __future__ import annotations

import math


def nominal_flops(parameters: int, samples: int, sparsity: float = 0.0) -> int:
    """Work as the papers count it: two operations per updated parameter and sample.

    Formula: ``2 floor(P (1 - sparsity)) samples``

    The published Lottery Ticket figure (6.704376 T) needs the floor: a parameter is either kept or not.

    Args:
        parameters: P.
        samples: seen in all, epochs included.
        sparsity: share of the parameters not updated, 0..1.

    Returns:
        Operations. A ResNet-18 at 32x32 really executes about 150 times as many, whatever the sparsity.

    Example:
        >>> nominal_flops(11_173_962, 50_000 * 30) / 1e12
        33.521886
        >>> nominal_flops(11_173_962, 50_000 * 30, sparsity=0.8) / 1e12
        6.704376

    Source: SEL benchmark README, "Results".
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity {sparsity} is not a share")
    # Rounded first: 10 * (1 - 0.8) is 1.9999999999999996, which is two parameters, not one.
    return 2 * math.floor(round(parameters * (1 - sparsity), 6)) * samples
