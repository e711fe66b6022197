"""Training on the device: the ladder of stages, a stage's steps, the gate before them."""
