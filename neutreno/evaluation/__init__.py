"""The figures of a trained model.

An evaluator (:mod:`~neutreno.evaluation.base`) finds one kind of them; a task names those that suit it. What is
evaluated, a run folder, one of its checkpoints or weights of another origin, is opened by
:mod:`~neutreno.evaluation.opening`. Training ends with the same function that the evaluator of metrics calls.
"""
