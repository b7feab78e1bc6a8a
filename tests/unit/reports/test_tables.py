"""Tables: means, intervals, the paper's figures, and what is left out."""

from support import ROOT


def test_every_row_of_the_paper_carries_its_figures():
    import yaml

    for file in (ROOT / "configs/experiment").glob("table[123]/*.yaml"):
        paper = yaml.safe_load(file.read_text()).get("paper", {})
        assert paper or (file.stem.startswith("deit_small_") and "featscale" in file.stem) or "small" in file.stem, file
        for figure in paper.values():
            assert figure["value"] > 1 and figure["provenance"].split(",")[0] in ("from memory", "listed", "code")
