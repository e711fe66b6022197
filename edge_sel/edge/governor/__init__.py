"""The governor: limits, what it reads and forecasts, and when it waits or stops."""
