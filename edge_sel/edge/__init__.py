"""The fine-tuning session on the device."""
