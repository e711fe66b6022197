"""Meters and the energy recorder: joules with a source.

To add a meter: write a class that satisfies ``Meter`` and raises ``MeterError`` with a fix where it cannot
read; add how to open it to ``find.OPENERS`` and its name to ``METERS`` in ``config/profiles.py``.
"""

from edge_sel.power.figure import EnergyFigure, RecorderCost
from edge_sel.power.find import find_meter
from edge_sel.power.meter import Meter, MeterError, Probe, Reading, Source
from edge_sel.power.phases import PhaseFigure
from edge_sel.power.recorder import EnergyRecorder, Window
from edge_sel.power.temperature import hottest_c
from edge_sel.power.throttle import Throttle, new_throttling, read_throttling

__all__ = [
    "EnergyFigure",
    "EnergyRecorder",
    "Meter",
    "MeterError",
    "PhaseFigure",
    "Probe",
    "Reading",
    "RecorderCost",
    "Source",
    "Throttle",
    "Window",
    "find_meter",
    "hottest_c",
    "new_throttling",
    "read_throttling",
]
