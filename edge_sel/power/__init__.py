"""Meters and the energy recorder: joules with a source.

To add a meter: write a class that satisfies ``Meter`` and ``MeterKind`` (``meter.py``) and raises ``MeterError`` with
a fix where it cannot read; add it to ``find.METER_KINDS`` and its name to ``METERS`` in ``config/profiles.py``.
"""
