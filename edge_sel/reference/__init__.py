"""The systems of the source documents on one fast trainer, with joules beside the claims. Needs torch, but for some.

=========  ===============================================================================================
module     what it is
=========  ===============================================================================================
systems    the registry: a name, what it trains with and how that is scaled down, which policy, its source
results    runs on disk, written so that a power cut loses one epoch at most; claims beside them
data       data sets by name or folder
parallel   several GPUs through torchrun
images     images on the device, augmented there
optim      optimizers, their schedules, and one flat gradient for all parameters
model      what a model begins with, how fast the device computes its steps, operations that really ran
policy     what a policy decides, and what it may ask of the run
curricula  policies that choose images by how hard they are: one small class for each system
policies   the other policies; ``build_policy``
epoch      what one epoch was like, summed up on the device; its row: the published columns and ours
trainer    the one training loop; everything stays on the device
suite      systems x seeds, with the energy recorder
=========  ===============================================================================================

Without torch: systems, results and data.
"""
