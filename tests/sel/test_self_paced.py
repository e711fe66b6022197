from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.sel.self_paced import diverse_hardest, easiest

losses = st.lists(st.floats(0, 5), min_size=1, max_size=7).map(np.array)


def worth(chosen, loss, groups, diversity):
    spread = sum(np.sqrt(np.sum(groups[chosen] == g)) for g in np.unique(groups))
    return loss[chosen].sum() + diversity * spread


def test_the_easiest_come_first_and_nan_last():
    assert easiest(np.array([0.3, np.nan, 0.1, 0.3]), 3).tolist() == [2, 0, 3]
    assert len(easiest(np.array([0.3, 0.1]), 9)) == 2


@given(loss=losses, data=st.data(), diversity=st.floats(0, 3))
def test_no_other_subset_is_worth_more(loss, data, diversity):
    n = len(loss)
    groups = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    k = data.draw(st.integers(1, n))
    chosen = diverse_hardest(loss, groups, 3, k, diversity)
    assert len(set(chosen.tolist())) == k
    best = max(worth(list(subset), loss, groups, diversity) for subset in combinations(range(n), k))
    assert worth(chosen, loss, groups, diversity) == pytest.approx(best, abs=1e-9)


def test_without_diversity_the_hardest_win():
    loss, groups = np.array([1.0, 3.0, 2.9, 0.5]), np.array([0, 1, 1, 0])
    assert diverse_hardest(loss, groups, 2, 2, 0.0).tolist() == [1, 2]
    assert sorted(diverse_hardest(loss, groups, 2, 2, 9.0).tolist()) == [0, 1]


@pytest.mark.parametrize(
    "call", [lambda: easiest(np.zeros(2), -1), lambda: diverse_hardest(np.zeros(2), np.zeros(2, int), 1, -1, 0.0)]
)
def test_a_negative_number_is_refused(call):
    with pytest.raises(ValueError, match="-1"):
        call()
