"""Image sources, transforms and field shifts."""
