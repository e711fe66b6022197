"""Ask one limit for its decision, with readings given by hand."""

from edge_sel.edge.limits import Forecast, Readings

STEP = Forecast(step_s=1.0, step_j=10.0, closing_s=0.0, closing_j=0.0, ahead_s=0.0, ahead_j=0.0)


def ask(limit, now_s=0.0, look=STEP, *, paused=False, ending=False, **readings):
    return limit.check(Readings(now_s, **readings), look, paused=paused, ending=ending)
