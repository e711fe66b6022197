"""What ``tools/torture.py`` does to runs: kill them, take their disk away, and count what is left."""
