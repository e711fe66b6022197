"""Which samples an epoch visits when each is scored anew: the comparators of dynamic instance hardness.

Both need a forward pass over the whole data set before every epoch, which is what hardness memory saves.
"""

from __future__ import annotations

from edge_sel.sel._array import Array, array_namespace, as_float, class_members, stable_order


def easiest(losses: Array, k: int) -> Array:
    """Self-paced learning: the ``k`` samples of the smallest loss; of equals the lower index comes first.

    Args:
        losses: float[N]; NaN counts as hardest.
        k: how many; more than N means all.

    Returns:
        int64[min(k, N)], easiest first.

    Source: SPL (Kumar et al. 2010), in the hard form with a sample count instead of a loss threshold.
    """
    if k < 0:
        raise ValueError(f"cannot choose {k} samples")
    xp = array_namespace(losses)
    return xp.astype(stable_order(losses)[:k], xp.int64)


def diverse_hardest(losses: Array, groups: Array, n_groups: int, k: int, diversity: float) -> Array:
    """Minimax curriculum: ``k`` samples that are hard, and spread over the groups.

    Formula: maximises ``sum_{i in S} loss_i + diversity sum_g sqrt(|S ∩ g|)``, exactly: within a group the hardest come
    first, and the j-th of them gains ``loss + diversity (sqrt(j) - sqrt(j - 1))``, which falls with j, so the k largest
    gains are the best set.

    Args:
        losses: float[N], finite.
        groups: int[N] in ``0..n_groups-1``, such as the labels.
        n_groups: how many groups.
        k: how many; more than N means all.
        diversity: what spreading is worth, in nats; 0 is the k hardest.

    Returns:
        int64[min(k, N)], by falling gain.

    Source: MCL (Zhou & Bilmes 2018), with a square root per group for its facility location, which needs features.
    """
    if k < 0:
        raise ValueError(f"cannot choose {k} samples")
    xp = array_namespace(losses, groups)
    losses = as_float(losses)
    order = stable_order(losses, descending=True)
    # How many of its own group stand before each sample, itself included: its j.
    members = xp.astype(class_members(xp.take(groups, order), n_groups), xp.int64)
    j = xp.astype(xp.sum(xp.where(members > 0, xp.cumulative_sum(members, axis=0), 0), axis=1), losses.dtype)
    gain = xp.take(losses, order) + diversity * (xp.sqrt(j) - xp.sqrt(j - 1))
    return xp.astype(xp.take(order, stable_order(gain, descending=True)[:k]), xp.int64)
