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
    for figure in (figure for paper in papers.values() for figure in paper.values()):
        assert figure["value"] > 1 and figure["provenance"].split(",")[0] in ("from memory", "listed", "code")
