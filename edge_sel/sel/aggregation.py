"""How a server combines what its devices changed: means, and rules that a few wrong devices cannot lead astray.

Every rule takes the changes of K devices as one array and gives one change.

Source: McMahan et al. 2017 (FedAvg); Hsu, Qi and Brown 2019 (FedAvgM); Yin et al. 2018, Byzantine-Robust Distributed
Learning (median, trimmed mean); Blanchard et al. 2017, Machine Learning with Adversaries (Krum).
"""

from __future__ import annotations

from edge_sel.sel._array import Array, array_namespace


def weighted_mean(changes: Array, images: Array) -> Array:
    """FedAvg: the mean of float[K, N], weighted by the images float[K] of each device.

    >>> import numpy as np
    >>> weighted_mean(np.array([[0.0, 4.0], [4.0, 0.0]]), np.array([3.0, 1.0])).tolist()
    [1.0, 3.0]
    """
    xp = array_namespace(changes)
    made: Array = xp.sum(changes * (images / xp.sum(images))[:, None], axis=0)
    return made


def trimmed_mean(changes: Array, share: float) -> Array:
    """Of every number the mean without the largest and the smallest ``share`` of the devices, 0 <= share < 0.5.

    >>> import numpy as np
    >>> trimmed_mean(np.array([[1.0], [2.0], [3.0], [1000.0], [-9.0]]), 0.2).tolist()
    [2.0]
    """
    xp = array_namespace(changes)
    count = changes.shape[0]
    cut = int(share * count)
    made: Array = xp.mean(xp.sort(changes, axis=0)[cut : count - cut], axis=0)
    return made


def median(changes: Array) -> Array:
    """Of every number; of an even count of devices the mean of the middle two.

    >>> import numpy as np
    >>> median(np.array([[1.0], [2.0], [1000.0], [4.0]])).tolist()
    [3.0]
    """
    xp = array_namespace(changes)
    count = changes.shape[0]
    made: Array = xp.mean(xp.sort(changes, axis=0)[(count - 1) // 2 : count // 2 + 1], axis=0)
    return made


def mean_of_moments(means: Array, variances: Array, shares: Array) -> tuple[Array, Array]:
    """Mean and variance float[N] of all devices' samples together, from those of each, float[K, N].

    >>> import numpy as np
    >>> mean, variance = mean_of_moments(np.array([[0.0], [2.0]]), np.array([[1.0], [1.0]]), np.array([1.0, 1.0]))
    >>> mean.tolist(), variance.tolist()
    ([1.0], [2.0])

    Formula: ``m = sum p_k m_k``, ``v = sum p_k (v_k + (m_k - m)²)``, ``p_k`` the shares float[K] divided by their sum
    """
    xp = array_namespace(means)
    mean = weighted_mean(means, shares)
    spread = weighted_mean(variances + (means - mean[None, :]) ** 2, shares)
    return mean, xp.where(spread > 0, spread, xp.zeros_like(spread))


def distances(changes: Array) -> Array:
    """Squared distances float64[K, K] between devices; those of parts of the numbers add up.

    >>> import numpy as np
    >>> distances(np.array([[0.0, 0.0], [3.0, 4.0]])).tolist()
    [[0.0, 25.0], [25.0, 0.0]]
    """
    xp = array_namespace(changes)
    rows = [xp.sum((changes - changes[at]) ** 2, axis=1) for at in range(changes.shape[0])]
    return xp.astype(xp.stack(rows), xp.float64)


def krum(between: Array, wrong: int) -> int:
    """Which device is nearest to the others, by the distances float64[K, K], where up to ``wrong`` of them are wrong.

    >>> import numpy as np
    >>> krum(distances(np.array([[0.0], [1.0], [1.2], [1000.0]])), 1)
    1

    Formula: ``argmin_i sum of the K - wrong - 2 least ‖d_i - d_j‖², j != i``; at least one other device counts.
    """
    xp = array_namespace(between)
    count = between.shape[0]
    nearest = xp.sort(between, axis=1)[:, 1 : 1 + max(count - wrong - 2, 1)]
    return int(xp.argmin(xp.sum(nearest, axis=1)))
