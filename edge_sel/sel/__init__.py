"""The learning science: pure functions on arrays, explicit state; no I/O, no clock, no random numbers.

=============  =========================================================================================================
module         what it decides
=============  =========================================================================================================
embarrassment  how badly the model does on each class
curriculum     which part of each class, from easy to hard, a stage may train on, and how large its steps are
guilt          which parameters and output channels are worth an update, and what the papers say that costs
feature_sums   what ridge regression needs of many samples, and of a server's in a few rows
calibration    whether probabilities are as sure as they are right, and which labels look wrong
ridge          the head in closed form, of samples and of what the server knew, as leave-one-out says
design         what a head in closed form cannot tell yet, and which sample's label would teach it most
drift          whether samples still come from where the model learnt
federated      the head in closed form of many devices, from the sums that each sends
aggregation    what a server makes of changes that devices made, some of them wrong
sundew         how much a gradient on each sample is worth, and which get one, held at a target rate
selection      the same by chance, with losses rescaled so that the gradient stays unbiased, and nobody left out
hardness       which samples of the data set are worth visiting, remembered or scored anew
=============  =========================================================================================================

Use the modules by name (``from edge_sel.sel import sundew``). Every array may be NumPy or torch; the result
is of the same kind, on the same device. Where chance is needed the caller passes uniform numbers, so a run
can be replayed.
"""
