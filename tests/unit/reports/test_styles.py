"""A method is drawn alike everywhere, and can be told from others and from what it is drawn on."""

import functools
from itertools import combinations

import pytest
from support import make_run

from neutreno.reports.reading import read_run
from neutreno.reports.styles import (
    BASELINE,
    FIXED,
    GROUNDS,
    HUES,
    MARKERS,
    NEUTRENO,
    Style,
    method_of,
    style_of,
    styles_of,
)
from neutreno.tablefiles import read_table
from neutreno.variants import describe


@functools.cache
def methods_of(table):
    """Of its rows, as they are composed: who adds one adds no line here."""
    table = read_table(table)
    return list(dict.fromkeys(method_of(describe(table.compose(label))) for label in table.rows))


def luminance(colour):
    """WCAG 2.2's relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def contrast(one, other):
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", GROUNDS)
def test_every_colour_stands_out_from_what_it_is_drawn_on(theme):
    colours = [*HUES, *(style.colour for style in FIXED.values())]
    assert len(HUES) + 1 <= 6  # hues, beside the grey
    assert all(contrast(colour[theme], GROUNDS[theme]) >= 3 for colour in colours)
    assert contrast("#ffffff", "#000000") == pytest.approx(21)


@pytest.mark.parametrize("table", ["lab", "graph_depth", "graph_fidelity", "digits_fidelity"])
def test_no_two_methods_of_a_table_are_drawn_alike(table):
    methods = methods_of(table)
    assert len(methods) > 5
    styles = [style_of(method) for method in methods]
    assert not [(a, b) for (a, s), (b, t) in combinations(zip(methods, styles, strict=True), 2) if s == t]


def test_a_method_keeps_its_style_whichever_others_are_beside_it():
    lab = methods_of("lab")
    whole = dict(zip(lab, styles_of(lab), strict=True))
    for left_out in lab:
        rest = [method for method in lab if method != left_out]
        assert styles_of(rest) == [whole[method] for method in rest]
    assert styles_of(["mine", *lab, "of another package"])[1:-1] == [whole[method] for method in lab]


def test_a_style_is_the_same_in_every_process_and_version():
    assert style_of("gfsa") == Style(HUES[1], [*MARKERS][1], (6, 1.5, 1.2, 1.5))


def test_rows_of_one_method_share_its_colour_and_differ_in_their_dash():
    one, two, three = styles_of([NEUTRENO] * 3)
    assert one == style_of(NEUTRENO) and one.colour == two.colour == three.colour
    assert len({one.dash, two.dash, three.dash}) == len({one.marker, two.marker, three.marker}) == 3
    assert len(set(map(str, styles_of([NEUTRENO] * 20)))) == 20


CALLED = {
    BASELINE: ["data=digits", "model=deit"],
    NEUTRENO: ["data=digits", "attention.lam=0.3"],
    "neutreno λ̃ V_0=none": ["data=digits", "attention.anchor=none"],
    "neutreno λ̃ + featscale": ["data=digits", "block=featscale"],
    "group λ": ["data=cora", "data.root=x", "norm=group"],
    "gcnii": ["data=cora", "data.root=x", "model=gcnii"],
}


@pytest.mark.parametrize("method, words", CALLED.items(), ids=CALLED)
def test_a_runs_method_is_what_it_chose_without_its_numbers(method, words, tmp_path):
    assert method_of(read_run(make_run(tmp_path / "run", *words)).result) == method


def test_a_term_of_no_strength_is_the_baseline(tmp_path):
    run = make_run(tmp_path / "run", "data=digits", "attention.lam=0")
    assert method_of(read_run(run).result) == BASELINE
