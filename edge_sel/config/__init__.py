"""What a run may be told: the schema of keys, the settings, the device profiles."""
