"""The systems of the source documents on one fast trainer, with joules beside the claims. Needs torch.

===========  =============================================================================================
module       what it is
===========  =============================================================================================
systems      the registry: name -> setup, recipe, source
setup        what a system trains with (model, optimizer, augmentation), and how it is scaled down
recipes/     what each system does differently from plain training: one small class each
trainer      the one training loop; everything stays on the device
speed        half precision and compiled steps, as far as the device can
images       images on the device, augmented there
optim        optimizers, their schedules, and one flat gradient for all parameters
flops        operations that really ran
parallel     several GPUs through torchrun
data         data sets by name or folder
record       one row per epoch: the published columns and ours
store        results and checkpoints on disk, written so that a power cut loses one epoch at most
results      finished runs read from disk; without torch, as compare
environment  the machine that a run was made on
suite        systems x seeds, with the energy recorder
compare      claims beside results
===========  =============================================================================================
"""
