"""Pretraining, calibration and export. Needs torch."""
