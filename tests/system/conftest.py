import os

import pytest


@pytest.fixture(scope="module")
def cwd(tmp_path_factory):
    """A folder to train in, and the process afterwards where it was."""
    folder, before = tmp_path_factory.mktemp("cwd"), os.getcwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)
