"""A small registry of torch image classifiers. Needs torch."""
