"""The systems of the source documents on one fast trainer, with joules beside the claims. Needs torch, but for some.

===========  =============================================================================================
module       what it is
===========  =============================================================================================
setup        what a system trains with (model, optimizer, augmentation), and how it is scaled down
systems      the registry: a name, its setup, which policy, its source
options      what a suite of systems is run with
results      runs on disk, written so that a power cut loses one epoch at most
compare      claims beside results
data         data sets by name or folder
parallel     several GPUs through torchrun
images       images on the device, augmented there
optim        optimizers, their schedules, and one flat gradient for all parameters
speed        half precision and compiled steps, as far as the device can
torch_flops  operations that really ran
weights      what a model begins with
policy       what a policy decides, and what it may ask of the run
policies/    what each system does differently from plain training: one small class each
epoch        what one epoch was like, summed up on the device
trainer      the one training loop; everything stays on the device
rows         one row per epoch: the published columns and ours
environment  the machine that a run was made on
suite        systems x seeds, with the energy recorder
===========  =============================================================================================

Without torch: setup, systems, options, results, compare and data.
"""
