"""Watch a camera, keep what teaches, learn from a few labels, serve the model that is better."""
