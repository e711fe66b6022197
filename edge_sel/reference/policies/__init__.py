"""One small class for each thing that a system does differently from plain training; ``build`` makes them."""
