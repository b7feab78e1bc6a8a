"""Figures: the same to the bit when drawn again, in the font asked for, with axes and legends that fit."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from neutreno.errors import InputError
from neutreno.reports import lines
from neutreno.reports.drawing import PALE, in_font, plain
from neutreno.reports.lines import FEW, Look, plot_panels
from neutreno.reports.panels import Line, Panel
from neutreno.reports.styles import BASELINE, NEUTRENO, style_of

NAMES = ["gfsa", "linear", "xsa", "laplacian", "centered", "reattention", "contranorm", "layerscale"]


def panel(methods, scale=0.3, **more):
    x, sd = np.arange(5), np.full(5, 0.02)
    means = (np.linspace(0.1, scale + 0.01 * place, 5) for place in range(len(methods)))
    lines = [Line(method, method, x, mean, sd) for method, mean in zip(methods, means, strict=True)]
    return Panel(lines, "layer", "cosine similarity", largest=1.0, **more)


@pytest.fixture
def drawn(monkeypatch):
    """``drawn(panels, look)``: the figure, which is not written."""
    monkeypatch.setattr(lines, "save_both", lambda figure, prefix: figure)
    return lambda panels, **look: plot_panels(panels, "", Look(**look))


def colour_of(line):
    return to_hex(line.get_color())


def test_a_figure_drawn_twice_is_the_same_to_the_bit(tmp_path):
    for name in ("one", "two"):
        plot_panels([panel([BASELINE, NEUTRENO, "gfsa"])], tmp_path / name, Look("λ̃"))
    pdf, again = ((tmp_path / f"{name}.pdf").read_bytes() for name in ("one", "two"))
    assert pdf == again and b"CreationDate" not in pdf and b"/Type3" not in pdf and b"/FontFile2" in pdf
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_the_font_is_the_one_asked_for(tmp_path):
    for font in (None, "serif", "DejaVu Sans Mono"):
        with in_font(font):
            plot_panels([panel([BASELINE, "gfsa"])], tmp_path / str(font))
    fonts = {font: (tmp_path / f"{font}.pdf").read_bytes() for font in ("None", "serif", "DejaVu Sans Mono")}
    assert b"STIX" in fonts["serif"] and b"STIX" not in fonts["None"] and b"DejaVuSans" not in fonts["serif"]
    assert b"DejaVuSansMono" in fonts["DejaVu Sans Mono"]


def test_a_font_that_is_not_there_is_refused():
    said = "--font DejaVu Sens: no such font is installed; did you mean DejaVu Sans"
    with pytest.raises(InputError, match=said), in_font("DejaVu Sens"):
        pass


def test_the_tilde_is_set_as_a_formula_and_no_other_sign_is():
    assert plain("neutreno λ̃=0.6 $x$") == r"neutreno $\tilde{\lambda}$=0.6 \$x\$"


def test_a_method_is_drawn_alike_in_panels_and_figures_that_lack_others(drawn):
    left, right = drawn([panel([BASELINE, "gfsa", NEUTRENO]), panel(["xsa", "gfsa"])]).axes
    alone = drawn([panel(["gfsa"])]).axes[0].lines[0]
    for line in (left.lines[1], right.lines[1], alone):
        assert (colour_of(line), line.get_marker()) == (style_of("gfsa").colour["light"], style_of("gfsa").marker)
    assert colour_of(left.lines[2]) == style_of(NEUTRENO).colour["light"] != colour_of(right.lines[0])


def test_axes_fit_the_data_unless_all_of_the_range_is_asked_for(drawn):
    low, high = drawn([panel([BASELINE])]).axes[0].get_ylim()
    assert 0 < low < 0.1 and 0.32 < high < 0.4
    assert drawn([panel([BASELINE])], full=True).axes[0].get_ylim() == (0, 1)
    assert drawn([panel([BASELINE], scale=0.999)]).axes[0].get_ylim()[1] <= 1.02  # which no cosine passes


@pytest.mark.parametrize("methods", [["gfsa"], NAMES], ids=["few", "many"])
def test_a_shared_axis_fits_what_each_of_its_panels_shows(drawn, methods):
    panels = [panel(methods, scale=scale) for scale in (0.3, 0.7)]
    for axis in drawn(panels).axes:
        low, high = axis.get_ylim()
        shown = np.concatenate([path.vertices[:, 1] for band in axis.collections for path in band.get_paths()])
        assert low < shown.min() and shown.max() < high


def test_bands_have_no_edge(drawn):
    (band,) = drawn([panel(["gfsa"])]).axes[0].collections
    assert band.get_linewidth() == [0]


def overlaps(figure):
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    return [axis for axis in figure.axes if legend.overlaps(axis.get_tightbbox())]


@pytest.mark.parametrize("methods", [[BASELINE, NEUTRENO], [BASELINE, *NAMES]], ids=["few", "many"])
@pytest.mark.parametrize("width", [3.25, 6.75])
def test_the_legend_covers_no_panel(drawn, methods, width):
    assert not overlaps(drawn([panel(methods)], width=width))


@pytest.mark.parametrize("width", [3.25, 6.75])
def test_many_rows_have_a_panel_each_with_the_baseline_and_the_others_behind(drawn, width):
    figure = drawn([panel([BASELINE, *NAMES])], width=width)
    assert figure.get_figwidth() == width and len(NAMES) > FEW
    assert [axis.get_title() for axis in figure.axes] == NAMES
    for axis, name in zip(figure.axes, NAMES, strict=True):
        colours = [colour_of(line) for line in axis.lines]
        assert colours.count(style_of(name).colour["light"]) == 1
        assert colours.count(PALE) == len(NAMES) - 1 and style_of(BASELINE).colour["light"] in colours
    assert [text.get_text() for text in figure.legends[0].texts] == [BASELINE, "all others"]


def test_what_is_highlighted_and_the_baseline_stand_on_the_others_in_grey(drawn):
    figure = drawn([panel([BASELINE, *NAMES])], highlight=["xsa", "gfsa"])
    colours = [colour_of(line) for line in figure.axes[0].lines]
    assert colours.count(PALE) == len(NAMES) - 2
    assert {style_of(name).colour["light"] for name in (BASELINE, "xsa", "gfsa")} <= {*colours}
    assert [text.get_text() for text in figure.legends[0].texts] == [BASELINE, "gfsa", "xsa", "6 others"]


@pytest.mark.parametrize("name, rows", [("linear", ["linear"]), ("attnscale", ["attnscale λ̃=1"])])
def test_a_method_is_highlighted_by_its_first_word_where_no_row_has_that_name(drawn, name, rows):
    given = panel([BASELINE, "linear", "linear λ̃", "attnscale λ̃"])
    given.lines[3].label = "attnscale λ̃=1"
    texts = [text.get_text() for text in drawn([given], highlight=[name]).legends[0].texts]
    assert texts == [BASELINE, *map(plain, rows), "2 others"]


def test_a_row_that_is_not_there_cannot_be_highlighted(drawn):
    with pytest.raises(InputError, match="--highlight gfsb: no such row; rows: gfsa, xsa"):
        drawn([panel(["gfsa", "xsa"])], highlight=["gfsb"])


def test_more_than_three_numbers_share_one_scale(drawn):
    numbers, x, sd = (0, 0.2, 0.4, 0.6), np.arange(3), np.full(3, np.nan)
    lines = [Line(f"λ̃={n}", NEUTRENO, x, np.full(3, 0.2 + n), sd, n) for n in numbers]
    figure = drawn([Panel(lines, "layer", "cosine")], numbers="λ̃")
    assert len({colour_of(line) for line in figure.axes[0].lines}) == 4 and not figure.legends
    assert figure.axes[1].get_ylabel() == r"$\tilde{\lambda}$"
