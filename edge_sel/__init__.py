"""edge-sel: on-device fine-tuning of image classifiers, with joules that have a source."""

__version__ = "0.1.0"
