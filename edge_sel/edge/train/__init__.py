"""Training on the device: the schedule of stages, a stage's steps, the gate before them."""
