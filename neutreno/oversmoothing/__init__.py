"""Over-smoothing, measured: what the tokens of a network are like after every layer.

:mod:`~neutreno.oversmoothing.metrics` holds the layer-wise metrics, :mod:`~neutreno.oversmoothing.layers` finds the
layers of a network, and :mod:`~neutreno.oversmoothing.recorder` is the one place that hooks them and hands on their
tokens. The probe of a run, ``neutreno.profile``, the energies of trained networks and evaluation all measure through
:mod:`~neutreno.oversmoothing.measure`, which makes the table. :mod:`~neutreno.oversmoothing.convert` adds
NeuTRENO's term to a network that somebody else wrote.
"""
