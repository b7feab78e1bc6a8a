"""Everything from outside passes here before anything is built: keys, values, classes, other people's run folders.

:mod:`~neutreno.config.options` says what an option of a constructor is, :mod:`~neutreno.config.settings` which settings
the project owns; :mod:`~neutreno.config.composing` makes a config of files and words, :mod:`~neutreno.config.gate`
checks it, :mod:`~neutreno.config.words` says what was probably meant, :mod:`~neutreno.config.building` turns parts of
it into objects, :mod:`~neutreno.config.trust` those of a run folder. None of them imports torch.
"""
