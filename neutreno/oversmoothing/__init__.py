"""Over-smoothing, measured: what the tokens of a network are like after every layer.

:mod:`~neutreno.oversmoothing.metrics` holds the layer-wise metrics, :mod:`~neutreno.oversmoothing.recorder` is the one
place that hooks a network and hands them its tokens, layer by layer; the probe of a run, ``neutreno.profile``, the
energies of trained networks and evaluation all measure through it. :mod:`~neutreno.oversmoothing.convert` adds
NeuTRENO's term to a network that somebody else wrote.
"""
