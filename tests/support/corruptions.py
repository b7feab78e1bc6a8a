import os

from neutreno.evaluation.robustness import (
    ALEXNET,
    SEVERITIES,
)


def write(folder, images):
    """``folder/WNID/i.JPEG``."""
    for wnid, pictures in images.items():
        (folder / wnid).mkdir(parents=True)
        for i, picture in enumerate(pictures):
            picture.save(folder / wnid / f"{i}.JPEG")
    return folder


def link_corruptions(root, classes_of):
    for corruption in ALEXNET:
        (root / corruption).mkdir(parents=True)
        for severity in SEVERITIES:
            os.symlink(classes_of(corruption, severity), root / corruption / str(severity))
    return root
