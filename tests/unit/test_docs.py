"""What readers see first: README and docs, as files."""

import re
import unicodedata

import pytest
from support import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(page):
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text()), re.MULTILINE)
    kept = (
        "".join(c for c in heading.lower() if c in " -_" or unicodedata.category(c)[0] in "LNM") for heading in headings
    )
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_link_within_the_repository_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text()))
    for link in (link for link in links if "://" not in link):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_first_page_is_short_and_its_code_fits_a_screen():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) < 1500
    assert not [line for block in CODE.findall(text) for line in block.splitlines() if len(line) > 100]


def test_the_first_screen_has_a_command_that_runs_and_one_that_tests():
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:20]).replace(" \\\n ", "")
    installed = "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/python"
    assert f"{installed} train.py\n" in first and f"{installed} -m pytest" in first


def test_every_page_is_in_the_index_and_in_the_site():
    index, site = (ROOT / "docs/index.md").read_text(), (ROOT / "zensical.toml").read_text()
    for page in (page for page in PAGES if page.parent.name == "docs" and page.stem != "index"):
        assert f"]({page.name})" in index and f'"{page.name}"' in site
