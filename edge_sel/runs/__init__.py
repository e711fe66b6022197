"""What a run leaves on disk, for the device's runs and for the reference systems."""
