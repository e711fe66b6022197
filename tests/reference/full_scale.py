"""The systems as their sources ran them."""

from edge_sel.reference.policies import build_policy
from edge_sel.reference.systems import SYSTEMS, find_scale

FULL = find_scale("full")


def setup_of(name):
    return SYSTEMS[name].at(FULL)


def policy_of(name):
    return build_policy(SYSTEMS[name], setup_of(name))
