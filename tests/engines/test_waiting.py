"""How the threads of the default engine wait for one another."""

from __future__ import annotations

import pytest

from edge_sel.engines.by_name import choose_engine
from edge_sel.engines.ort import OrtEngine


@pytest.mark.parametrize(
    ("engine", "threads", "spins"),
    [
        (OrtEngine(2), 2, "0"),
        (OrtEngine(2, spinning=True), 2, "1"),
        (choose_engine("auto", 3), 3, "0"),
        (choose_engine("ort", 3, spinning=True), 3, "1"),
    ],
)
def test_threads_sleep_unless_told_to_spin(engine, threads, spins, digits_pack):
    options = engine.session(digits_pack.eval_graph, weights(digits_pack)).get_session_options()
    assert options.intra_op_num_threads == threads
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == spins


def weights(pack):
    """All but the head, which is an input."""
    return {n: v for n, v in pack.weights().items() if n not in pack.manifest.model.head}
