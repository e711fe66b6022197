"""Where a classifier comes from before it becomes a pack."""
