"""The paper's figures, which tables show, stand in the experiments' files."""

from support import ROOT

WITHOUT = {"deit_small_featscale", "deit_small_neutreno_featscale", "deit_small_neutreno_adaptation"}


def test_every_row_of_the_paper_carries_its_figures():
    import yaml

    papers = {
        file.stem: yaml.safe_load(file.read_text()).get("paper", {})
        for file in (ROOT / "configs/experiment").glob("table[123]/*.yaml")
    }
    assert {name for name, paper in papers.items() if not paper} == WITHOUT
    tables = [yaml.safe_load(file.read_text()).get("paper", {}) for file in (ROOT / "configs/table").glob("*.yaml")]
    every = [*papers.values(), *(row for paper in tables for row in paper.values())]
    for figure in (figure for paper in every for figure in paper.values()):
        assert figure["value"] > 1
        assert figure["provenance"].startswith(("listed, row ", "from memory, unverified"))
