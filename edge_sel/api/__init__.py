"""Fine-tuning and measuring from Python: what the commands call, for those who want no command line."""
