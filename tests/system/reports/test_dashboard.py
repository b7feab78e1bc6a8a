"""The dashboard: one file, in a real browser where there is one."""

import io
import json
import re
import shutil
import time
from pathlib import Path
from urllib.parse import quote, unquote

import pandas as pd
import pytest
import yaml
from scipy import stats
from support import TINY, Forked, assert_one_line_error, make_run, run_forked, runs_are_forks

from neutreno.callbacks.metrics_csv import MetricsCSV
from neutreno.reports.comparison import baseline_of, difference, group_runs
from neutreno.reports.dashboard import write_dashboard
from neutreno.reports.reading import read_runs
from neutreno.reports.styles import OWN
from neutreno.reports.tables import Row, table

PLOTS = ("layers", "training", "against", "scatter")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Three λ̃ × two seeds, a softmax run, an unfinished run and a text run, on one page."""
    folder = tmp_path_factory.mktemp("page")
    for lam in (0.2, 0.6, 1.0):
        for seed in (0, 1):
            name = f"digits-lam{lam:g}-seed{seed}"
            make_run(
                folder / "runs" / name, f"attention.lam={lam}", f"seed={seed}", value=90 + lam + seed, drift=lam / 5
            )
    make_run(folder / "runs/digits-softmax", "model=deit", value=92.0)
    make_run(folder / "runs/digits-running", "seed=7", status="running")
    make_run(folder / "runs/<b>scenes", "data=digit_scenes", value=40.0)
    done = run_forked("scripts/dashboard.py", "runs", "--output", "d.html", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "9 runs" in done.stdout and " MB" in done.stdout
    return folder / "d.html"


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs Chromium and its driver (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    options.add_argument("--window-size=1280,1400")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


def foreign(folder, norm, scale, seed=0, value=3.0, **more):
    """A run of somebody else's package: another axis, another task, a figure that falls."""
    run = make_run(folder, f"seed={seed}", drift=(scale or 0) / 20)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config = {key: part for key, part in config.items() if key not in config["variants"]}
    labels = {"norm.scale": "s", **{f"norm.{key}": "" for key in more}}
    config |= {"norm": {"_target_": f"theirs.{norm}", "scale": scale, **more}, "variants": {"norm": "none"}}
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"labels": labels}))
    result = json.loads((run / "result.json").read_text())
    numbers = {"norm.scale": scale, **{f"norm.{key}": number for key, number in more.items()}}
    result |= {
        "settings": {"data": "tides", "model": "mixer", "norm": norm, **numbers, "seed": seed},
        "axes": {"norm": {"class": f"theirs.{norm}", "arguments": {"scale": scale}, "baseline": norm == "none"}},
        "labels": labels,
        "baseline": {"norm": "none"},
        "baseline_values": {},
        "task": "theirs.tasks.TideRegression",
        "main_metric": "val/mae",
        "main_metric_mode": "min",
        "metrics": {"val/mae": value, "val/r2": 0.5},
    }
    (run / "result.json").write_text(json.dumps(result))
    curves = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(curves.replace("val/loss", "val/mae"))
    return run


def wait(browser, script):
    """Until a script gives something; what it gives. A busy browser may return before it has run those of the page."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 30).until(lambda b: b.execute_script(script))


def settle(browser):
    """Until all is drawn that follows from what was chosen."""
    wait(browser, "return document.getElementById('plots')?.ariaBusy === 'false'")


def until(there):
    end = time.monotonic() + 120
    while not there():
        assert time.monotonic() < end, "two minutes have passed"
        time.sleep(0.1)


def visit(browser, address, **view):
    """Open a page as the address of a ``view`` of it does."""
    browser.get("about:blank")  # a change of what follows # alone would load nothing
    browser.get(f"{address}#{quote(json.dumps(view))}")
    settle(browser)


def open_page(browser, folder, **view):
    write_dashboard(read_runs([folder])[0], folder.parent / "d.html")
    visit(browser, (folder.parent / "d.html").as_uri(), **view)


def change(run, **record):
    """Other values in a run's record."""
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | record))


def write_curve(run, values):
    """Another training curve: values by step."""
    lines = [f"{step},{value}" for step, value in values.items()]
    (run / "metrics.csv").write_text("\n".join(["step,val/loss", *lines]) + "\n")


def heads(browser):
    return browser.execute_script("return [...document.querySelectorAll('#runs th')].map(h => h.innerText)")[1:]


def cells(browser, column):
    """What the lines of the table show in a column."""
    script = "return [...document.querySelectorAll('#runs tbody tr')].map(r => r.cells[arguments[0]].innerText)"
    return browser.execute_script(script, heads(browser).index(column) + 1)


def choose(browser, menu, value):
    script = "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.onchange(); return s.value"
    assert browser.execute_script(script, menu, value) == value
    settle(browser)


def choose_curves(browser, *names):
    """Training curves, which are boxes to tick."""
    script = "return [...document.querySelectorAll('#curves input')].filter(b => b.checked !== arguments[0])"
    for wanted in (True, False):
        for box in browser.execute_script(f"{script}.map(b => b.id)", wanted):
            if (box.removeprefix("curve ") in names) is wanted:
                browser.execute_script("document.getElementById(arguments[0]).click()", box)
    settle(browser)


def click(browser, id):
    """As the keyboard does it: an element that has no focus is not reached."""
    script = "const e = document.getElementById(arguments[0]); e.focus(); document.activeElement.click()"
    browser.execute_script(script, id)
    settle(browser)


def slide(browser, share):
    script = "const w = document.getElementById('when'); w.value = arguments[0]; w.dispatchEvent(new Event('input'))"
    browser.execute_script(script, share)


def traces(browser, plot, value):
    """``value`` of every curve ``t`` of a plot by what the legend says."""
    script = (
        f"return document.getElementById(arguments[0]).data.filter(t => t.name && !t.fill).map(t => [t.name, {value}])"
    )
    return dict(browser.execute_script(script, plot))


def drawn(browser, plot):
    """Names of the runs behind the traces of a plot."""
    script = "return document.getElementById(arguments[0]).data.map(t => t.meta).filter(m => Array.isArray(m)).flat()"
    return {Path(unquote(link)).name for link in browser.execute_script(script, plot)}


def type_filter(browser, text):
    script = "const f = document.getElementById('filter'); f.value = arguments[0]; f.dispatchEvent(new Event('input'))"
    browser.execute_script(script, text)
    settle(browser)


def offered(browser):
    """What the buttons below the table offer."""
    return browser.execute_script("return [...document.querySelectorAll('#kinds button')].map(b => b.textContent)")


def visible(browser, plot):
    return browser.execute_script("return document.getElementById(arguments[0]).offsetParent !== null", plot)


def names(browser):
    return browser.execute_script("return [...document.querySelectorAll('#runs tbody a')].map(a => a.textContent)")


def test_every_plot_follows_the_table_and_no_request_leaves_the_page(browser, page):
    visit(browser, page.as_uri(), grouped=False)
    assert len(names(browser)) == 8  # the other task has a separate page
    for plot in PLOTS:
        assert {f"digits-lam{lam}-seed{seed}" for lam in ("0.2", "0.6", "1") for seed in (0, 1)} <= drawn(browser, plot)
    two = {"digits-lam0.6-seed0", "digits-lam0.6-seed1"}
    for key in ("λ̃", "lam", "attention.lam"):
        type_filter(browser, f"{key}=0.6 size=mini finished")
        assert set(names(browser)) == two and [drawn(browser, plot) for plot in PLOTS] == 4 * [two]
    diff = "return document.querySelector('#diff tbody').innerText"
    assert browser.execute_script(diff).split() == ["seed", "0", "1"]
    type_filter(browser, "")
    for name in ("lam1-seed0", "softmax"):
        script = "[...document.querySelectorAll('#runs tbody tr')].find(r => r.innerText.includes(arguments[0]))"
        browser.execute_script(f"{script}.querySelector('input').click()", name)
        settle(browser)
    chosen = {"digits-lam1-seed0", "digits-softmax"}
    assert all(drawn(browser, plot) == chosen for plot in PLOTS)
    assert "attention._target_" in browser.execute_script(diff)
    browser.refresh()  # the view survives
    settle(browser)
    assert all(drawn(browser, plot) == chosen for plot in PLOTS)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert urls and all(url.startswith(("file:", "data:", "blob:")) for url in urls), urls
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_the_slider_shows_the_curves_over_training(browser, page):
    visit(browser, page.as_uri(), filter="lam1-seed0")
    curve = "return document.getElementById('layers').data[0].y"
    found = []
    for share in (0, 50, 100):
        slide(browser, share)
        found.append(browser.execute_script(curve)[0])
    assert found == pytest.approx([0.1, 0.2, 0.3])


def test_another_layer_metric_is_a_choice_away(browser, page):
    visit(browser, page.as_uri(), filter="lam1-seed0", layerMetric="effective_rank")
    plot = "const p = document.getElementById('layers'); return [p.data[0].y, p.layout.yaxis.title.text]"
    assert browser.execute_script(plot) == [[9, 8, 7, 6, 5], "effective rank"]


def test_columns_sort_and_tasks_have_pages_of_their_own(browser, page):
    visit(browser, page.as_uri(), grouped=False)
    for arrow, order in (("▴", "ascending"), ("▾", "descending")):
        click(browser, "sort test/top1")
        found = [float(v) for v in cells(browser, f"test/top1 ↑ {arrow}") if v != "–"]
        assert found == sorted(found, reverse=order == "descending") and len(found) == 7
        sorts = "return [...document.querySelectorAll('#runs th')].map(h => h.ariaSort).filter(Boolean)"
        assert browser.execute_script(sorts) == [order]
        assert browser.execute_script("return document.activeElement.id") == "sort test/top1"  # and not lost
    choose(browser, "task", "segmentation")
    assert names(browser) == ["<b>scenes"]  # as text, no tag


def test_runs_are_told_apart_by_the_axes_and_numbers_of_their_record(browser, page):
    visit(browser, page.as_uri())
    figures = ["test/top1 ↑ ▾", "difference, 95 %", "n", "final similarity"]
    assert heads(browser) == ["name", *figures, "status", "attention", "λ̃"]  # neither data nor model vary
    rows = {f"neutreno λ̃={lam} (n = {n})": "solid" for lam, n in (("0.2", 2), ("0.6", 3), ("1", 2))}
    assert traces(browser, "layers", "t.line.dash") == {**rows, "softmax (n = 1)": "dash"}
    assert len(set(traces(browser, "layers", "t.line.color").values())) == 4
    title = "return document.getElementById('against').layout.xaxis.title.text"
    assert browser.execute_script(title) == "λ̃ (0: softmax)"
    script = "return document.getElementById('against').data.filter(t => t.mode.includes('lines')).map(t => t.x)"
    assert browser.execute_script(script) == [[0, 0.2, 0.6, 1]]


def test_a_run_at_an_axis_baseline_joins_the_curves_that_are_alike_in_all_else(browser, tmp_path):
    for block in ("plain", "featscale"):
        make_run(tmp_path / f"runs/s-{block}", "attention=softmax", f"block={block}", value=80.0)
        make_run(tmp_path / f"runs/n-{block}", "attention.lam=0.5", f"block={block}", value=82.0)
    make_run(tmp_path / "runs/gfsa", "attention=gfsa", value=81.0)
    open_page(browser, tmp_path / "runs")
    assert drawn(browser, "against") == {"s-plain", "n-plain", "s-featscale", "n-featscale"}
    assert traces(browser, "against", "t.x") == {"plain": [0, 0.5], "featscale": [0, 0.5]}
    styles = traces(browser, "scatter", "t.marker.color + t.marker.symbol")
    assert len(set(styles.values())) == 5  # no scale holds for all of them
    assert styles["neutreno λ̃=0.5"] == f"{OWN['light']}ffsquare"  # as in figures
    type_filter(browser, "plain neutreno")
    assert drawn(browser, "layers") == {"n-plain"}
    assert browser.execute_script("return document.getElementById('layers').data.at(-1).meta") == "colours"


def test_settings_that_a_run_has_not_are_no_part_of_its_curves_name(browser, tmp_path):
    make_run(tmp_path / "runs/softmax", "attention=softmax")
    make_run(tmp_path / "runs/neutreno", "attention.lam=0.5")
    for scaled in ("true", "false"):
        words = ["attention=linear", "attention.lam=0.5", f"attention.scale_output={scaled}"]
        make_run(tmp_path / f"runs/linear-{scaled}", *words)
    open_page(browser, tmp_path / "runs")
    names = {"neutreno", "linear scale_output=true", "linear scale_output=false"}
    assert traces(browser, "against", "t.x") == dict.fromkeys(names, [0, 0.5])


def test_axes_metrics_and_tasks_of_another_package(browser, tmp_path):
    for scale in (0.5, 1, 2):
        for seed in (0, 1):
            foreign(tmp_path / f"runs/s{scale}-{seed}", "centered", scale, seed, 3 - scale + seed / 10)
    foreign(tmp_path / "runs/none", "none", None)
    open_page(browser, tmp_path / "runs")
    assert heads(browser) == ["name", "val/mae ↓ ▴", "difference, 95 %", "n", "final similarity", "norm", "s"]
    rows = {f"centered s={scale} (n = 2)": "solid" for scale in (0.5, 1, 2)}
    assert traces(browser, "layers", "t.line.dash") == {**rows, "none (n = 1)": "dash"}
    bar = "return document.getElementById('layers').data.at(-1).marker"
    marker = browser.execute_script(bar)
    assert (marker["cmin"], marker["cmax"], marker["colorbar"]["title"]["text"]) == (0.5, 2, "s")
    shown = "return ['number', 'task'].map(id => document.getElementById(id).selectedOptions[0].textContent)"
    assert browser.execute_script(shown) == ["s", "tide regression"]
    assert browser.execute_script("return document.getElementById('curve').textContent") == "val/mae"
    assert "none" not in drawn(browser, "against")  # it equals no value of s, and is not drawn at 0
    choose(browser, "metric", "val/r2")
    assert "val/r2" in heads(browser)  # nobody said whether more of it is better
    click(browser, "grouped")
    type_filter(browser, "norm=none")
    assert names(browser) == ["none"]


def test_the_number_compared_is_a_choice_and_absent_where_none_varies(browser, tmp_path):
    for i, scale in enumerate((1, 2, 3)):
        foreign(tmp_path / f"runs/{i}", "centered", scale, value=i, width=(4, 4, 8)[i])
    make_run(tmp_path / "runs/softmax", "model=deit")
    make_run(tmp_path / "runs/timm", "model=timm", "model.name=vit_tiny_patch16_224")
    open_page(browser, tmp_path / "runs")
    options = "return [...document.getElementById('number').options].map(o => o.textContent)"
    assert browser.execute_script(options) == ["s", "width"]
    choose(browser, "number", "norm.width")
    assert traces(browser, "against", "t.x") == {f"centered s={s}": [x] for s, x in ((1, 4), (2, 4), (3, 8))}
    choose(browser, "task", "classification")
    click(browser, "grouped")
    assert "metric against a setting" not in offered(browser) and not visible(browser, "against")
    assert "model.name" in heads(browser) and sorted(names(browser)) == ["softmax", "timm"]


def test_names_that_mean_something_to_a_page_are_text_on_it(browser, tmp_path):
    names = ["constructor", "__proto__", "toString", "<a href='http://x.y/'>z</a>", "%{x}", "=1+1"]
    for number, name in enumerate(names):
        run = make_run(tmp_path / f"runs/r{number}", f"attention.lam=0.{number}", f"seed={number}")
        result = json.loads((run / "result.json").read_text())
        result["settings"] |= {"attention": name, f"{name}.x": number, name: name}
        result["labels"] |= {f"{name}.x": name, name: name}
        result["axes"] |= {name: {"class": name, "arguments": {}, "baseline": False}}
        result["baseline"] |= {name: "other"}
        result["metrics"] |= {name: number, f"test/{name}": 2 * number}
        (run / "result.json").write_text(json.dumps(result))
        (run / "metrics.csv").write_text(f"step,{','.join(names)},val/loss\n1,1,1,1,1,1,1,1\n2,2,2,2,2,2,2,2\n")
        rows = (run / "oversmoothing.csv").read_text()
        (run / "oversmoothing.csv").write_text(rows.replace("effective_rank", name))
    browser.get_log("browser")  # of other pages
    open_page(browser, tmp_path / "runs")
    for name in names:
        for menu in ("metric", "layerMetric"):
            choose(browser, menu, name)
        choose_curves(browser, name)
        assert len(drawn(browser, "training")) == 6
    links = "return document.querySelectorAll('.plot a[href], table a[href^=http]').length"
    assert browser.execute_script(links) == 0
    type_filter(browser, "constructor")
    click(browser, "grouped")
    assert "r0" in browser.execute_script("return document.querySelector('#runs tbody').innerText")
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_two_hundred_runs_are_usable_in_seconds_and_the_filter_answers_at_once(browser, tmp_path):
    first = make_run(tmp_path / "first", "attention.lam=0.125", "seed=77", value=90.0)
    for i in range(200):
        run = shutil.copytree(first, tmp_path / f"runs/r{i}")
        for file in ("config.yaml", "result.json"):
            text = (run / file).read_text().replace("0.125", f"{i // 5 / 40}")
            (run / file).write_text(
                text.replace("seed: 77", f"seed: {i % 5}").replace('"seed": 77', f'"seed": {i % 5}')
            )
        write_curve(run, {step: 1 / step for step in range(1, 201)})
    runs, problems = read_runs([tmp_path / "runs"])
    assert len(runs) == 200 and not problems
    write_dashboard(runs, tmp_path / "d.html")
    size = (tmp_path / "d.html").stat().st_size / 1e6
    assert size < 8
    visit(browser, (tmp_path / "d.html").as_uri())
    begun, drawn_at = browser.execute_script(
        "const [page] = performance.getEntriesByType('navigation'), [paint] = performance.getEntriesByType('paint');"
        "return [paint.startTime, page.domContentLoadedEventEnd]"
    )
    assert cells(browser, "n") == 40 * ["5"]
    click(browser, "grouped")
    assert len(names(browser)) == 200
    key = """const [done, f] = [arguments[0], document.getElementById('filter')], begun = performance.now();
        const rows = document.querySelector('#runs tbody');
        new MutationObserver(() => done(performance.now() - begun)).observe(rows, {childList: true});
        f.value = 'seed=3'; f.dispatchEvent(new Event('input'));"""
    answered = browser.execute_async_script(key)
    times = f"first paint {begun:.0f} ms, loaded {drawn_at:.0f} ms, an answer of the filter {answered:.0f} ms"
    print(f"200 runs, {size:.1f} MB: {times}")
    assert drawn_at < 4 * 2000 and answered < 4 * 300
    settle(browser)
    assert len(names(browser)) == 40 == len(drawn(browser, "scatter"))


def test_training_curves_stand_together_over_steps_epochs_or_time_smoothed_and_on_log_axes(browser, tmp_path):
    for seed in (0, 1):
        run = make_run(tmp_path / f"runs/{seed}", f"seed={seed}", "trainer.max_epochs=5")
        rows = [f"{step},{(1 + seed) * 6 * step},{4 + seed},{step}" for step in (10, 20, 40)]
        (run / "metrics.csv").write_text("\n".join(["step,seconds,val/loss,val/top1", *rows]) + "\n")
    open_page(browser, tmp_path / "runs", curves=["val/loss"])
    assert "seconds" not in browser.execute_script("return document.getElementById('curves').textContent")
    choose_curves(browser, "val/loss", "val/top1")
    curve = "const p = document.getElementById('training'), t = p.data.filter(t => t.name && !t.fill);"
    titles = "return [p.layout.yaxis.title.text, p.layout.yaxis2.title.text, t.map(t => [t.x, t.y, t.yaxis])]"
    steps = [10, 20, 40]
    assert browser.execute_script(curve + titles) == [
        "val/loss",
        "val/top1",
        [[steps, [4.5, 4.5, 4.5], "y"], [steps, steps, "y2"]],
    ]
    axis = "const p = document.getElementById('training'); return [p.data[0].x, p.layout.xaxis.title.text]"
    for over, x, title in (("epoch", [0.5, 1, 2], "epoch"), ("time", [1.5, 3, 6], "time (min)")):
        choose(browser, "over", over)
        assert browser.execute_script(axis) == [x, title]  # of time the mean over the runs
    smooth = "const s = document.getElementById('smooth'); s.value = 0.5; s.oninput();"
    shown = "return p.data.filter(t => t.yaxis === 'y2' && !t.fill).map(t => [t.y, t.line.width])"
    (y, thick), (raw, thin) = browser.execute_script(smooth + curve + shown)
    assert y == pytest.approx([10, (10 / 4 + 20 / 2) / 0.75, (10 / 8 + 20 / 4 + 40 / 2) / 0.875])  # weights add up to 1
    assert raw == steps and thin < thick
    choose(browser, "axes training", "log x, y")
    kinds = "const l = document.getElementById('training').layout; return [l.xaxis.type, l.yaxis.type, l.yaxis2.type]"
    assert browser.execute_script(kinds) == 3 * ["log"]
    band = "return document.getElementById('training').data.filter(t => t.fill).flatMap(t => t.y)"
    assert min(browser.execute_script(band)) > 0


def test_layers_over_training_are_a_map_for_each_row(browser, tmp_path):
    for lam, drift in ((0.2, 0.1), (0.4, 0.3)):
        for seed in (0, 1):
            words = (f"attention.lam={lam}", f"seed={seed}")
            make_run(tmp_path / f"runs/{lam}-{seed}", *words, drift=drift + seed / 10)
    open_page(browser, tmp_path / "runs")
    choose(browser, "layersAs", "map")
    maps = "return document.getElementById('layers').data.map(t => [t.type, t.x, t.y, t.z[2]])"
    expected = [[0.12, 0.12 + d / 2, 0.12 + d] for d in (0.15, 0.35)]  # of the third layer, means over seeds
    found = browser.execute_script(maps)
    assert [m[:3] for m in found] == 2 * [["heatmap", [0, 50, 100], [0, 1, 2, 3, 4]]]
    assert [m[3] for m in found] == [pytest.approx(z) for z in expected]
    said = "return document.getElementById('layers').layout.annotations.map(a => a.text)"
    assert browser.execute_script(said) == ["neutreno λ̃=0.2 (n = 2)", "neutreno λ̃=0.4 (n = 2)"]
    assert not visible(browser, "when")
    choose(browser, "axes layers", "log x")
    assert browser.execute_script(maps)[0][1] == [50, 100]  # a logarithm has no 0


def test_any_setting_that_is_a_number_is_compared_by_mean_and_spread_a_line_for_each_group(browser, tmp_path):
    for lam in (0.2, 0.4):
        for rate in (0.001, 0.002):
            for seed in (0, 1):
                words = (f"attention.lam={lam}", f"task.lr={rate}", f"seed={seed}")
                make_run(tmp_path / f"runs/{lam}-{rate}-{seed}", *words, value=80 + 10 * lam + 1000 * rate + 2 * seed)
    open_page(browser, tmp_path / "runs")
    choose(browser, "number", "task.lr")
    wanted = {"λ̃=0.2": [[0.001, 0.002], [84, 85]], "λ̃=0.4": [[0.001, 0.002], [86, 87]]}
    found = traces(browser, "against", "[t.x, t.y]")
    assert {name.split()[-1]: points for name, points in found.items()} == wanted
    spread = traces(browser, "against", "t.error_y.array")
    assert [*spread.values()] == 2 * [pytest.approx([2**0.5, 2**0.5])]
    assert "seed" not in browser.execute_script("return document.getElementById('number').textContent")


def test_all_settings_that_vary_are_axes_beside_the_figures(browser, tmp_path):
    for lam, rate in ((0.2, 0.001), (0.4, 0.002), (0.6, 0.002)):
        words = (f"attention.lam={lam}", f"task.lr={rate}")
        make_run(tmp_path / f"runs/{lam}", *words, value=80 + 10 * lam, drift=lam)
    make_run(tmp_path / "runs/softmax", "model=deit", "task.lr=0.001", value=81.0)
    open_page(browser, tmp_path / "runs")
    click(browser, "show parallel")
    plot = "const p = document.getElementById('parallel'); return "
    assert browser.execute_script(f"{plot} p.layout.xaxis.ticktext") == [
        "attention",
        "λ̃",
        "lr",
        "test/top1",
        "final similarity",
    ]
    lines = traces(browser, "parallel", "t.y")
    (least,) = [y for name, y in lines.items() if "λ̃=0.2" in name]
    (most,) = [y for name, y in lines.items() if "λ̃=0.6" in name]
    assert least[2:4] == [0, 0.2] and most[2:] == [1, 1, 1] and len(lines) == 4
    assert drawn(browser, "parallel") == {"0.2", "0.4", "0.6", "softmax"}
    type_filter(browser, "lam=0.2")
    assert "all settings that vary" not in offered(browser) and not visible(browser, "parallel")


def test_settings_that_differ_have_a_column_for_each_run(browser, tmp_path):
    for name, words in {"a": [], "b": ["task.lr=0.5"], "c": ["task.lr=0.5", "attention.lam=0.2"]}.items():
        make_run(tmp_path / f"runs/{name}", "attention.lam=0.1", *words)
    open_page(browser, tmp_path / "runs", grouped=False)
    script = "return [...document.querySelectorAll('#diff tr')].map(r => [...r.cells].map(c => c.innerText))"
    head, *rows = browser.execute_script(script)
    assert head == ["setting", "a", "b", "c"]
    assert {row[0]: row[1:] for row in rows if row[0] in ("attention.lam", "task.lr")} == {
        "attention.lam": ["0.1", "0.1", "0.2"],
        "task.lr": [rows[-1][1], "0.5", "0.5"],
    }
    assert not [row for row in rows if len(set(row[1:])) == 1]


def test_pictures_of_a_run_stand_on_the_page_and_a_link_that_leads_out_of_its_folder_does_not(browser, tmp_path):
    from PIL import Image

    for name in ("a", "b <i>"):
        run = make_run(tmp_path / "runs" / name)
        Image.new("RGB", (7, 5)).save(run / "maps #1.png")
        (run / "out.png").symlink_to("/etc/hostname")
        (run / "script.svg").write_text("<svg/>")
    open_page(browser, tmp_path / "runs", plots=["pictures"])
    size = "return [...document.querySelectorAll('#pictures img')].map(i => i.complete && i.naturalWidth).join()"
    wait(browser, f"{size} === '7,7'")
    assert browser.execute_script("return [...document.getElementById('picture').options].map(o => o.value)") == [
        "maps #1.png"
    ]
    assert browser.execute_script("return document.getElementById('pictures').innerText").split("\n") == ["a", "b <i>"]


def test_a_copied_link_shows_exactly_the_same_view(browser, compared):
    visit(browser, compared.as_uri())
    browser.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"]})
    click(browser, "show scatter")
    click(browser, "show parallel")
    choose(browser, "axes training", "log y")
    choose_curves(browser, "train/loss", "val/loss")
    type_filter(browser, "lam>0.3")
    click(browser, browser.execute_script("return document.querySelector('#runs [aria-expanded]').id"))
    click(browser, "choose runs/lam0.5-1/")
    browser.execute_script("Plotly.relayout('training', {'xaxis.range[0]': 20, 'xaxis.range[1]': 60})")
    click(browser, "link")
    wait(browser, "return document.getElementById('copied').textContent")
    link = browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    seen = """const {data, layout} = document.getElementById('training'), rows = document.querySelector('#runs tbody');
        return [view.zoom.training, layout.yaxis.type, data.map(t => [t.y, t.yaxis]), rows.innerText,
            shown.map(r => r.name), document.getElementById('filter').value,
            [...document.querySelectorAll('#kinds button')].map(b => [b.textContent, b.ariaPressed])]"""
    before = browser.execute_script(seen)
    assert before[0]["xaxis"] == [20, 60] and before[1] == "log"
    browser.get("about:blank")
    browser.get(link)
    settle(browser)
    assert browser.execute_script(seen) == before


def test_an_address_that_somebody_made_up_breaks_nothing(browser, compared):
    browser.get_log("browser")  # of other pages
    odd = {"filter": 3, "chosen": "x", "plots": {}, "zoom": {"layers": 3, "training": {"of": 1}}, "curves": [1, None]}
    odd |= {"smooth": "much", "over": "<b>", "axes": {"layers": []}, "sort": "__proto__", "back": {"focus": 1}, "x": 1}
    visit(browser, compared.as_uri(), **odd)
    assert len(cells(browser, "name")) == 3 and all(visible(browser, plot) for plot in PLOTS)
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_what_cannot_be_read_is_named_and_left_out(tmp_path):
    make_run(tmp_path / "runs/good", value=90.0)
    half = make_run(tmp_path / "runs/half")
    (half / "result.json").write_text('{"status": "fini')
    (make_run(tmp_path / "runs/none") / "result.json").unlink()
    (tmp_path / "runs/good/metrics.csv").write_text("step,epoch,val/top1\n1,1,50\n2,")  # half written
    (tmp_path / "runs/good/oversmoothing.csv").write_text("nonsense")
    done = run_forked("scripts/dashboard.py", "runs", cwd=tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "1 runs" in done.stdout
    assert "half" in done.stderr and "none" in done.stderr and done.stderr.count("warning: ") == 2
    assert_one_line_error(run_forked("scripts/dashboard.py", "nowhere", cwd=tmp_path), "nowhere: no such folder")
    assert_one_line_error(
        run_forked("scripts/dashboard.py", "runs", "--every", "0", cwd=tmp_path),
        "--every=0.0 is not a finite number ≥ 1",
    )


def test_the_slider_counts_planned_steps_and_a_run_that_is_not_there_yet_says_how_far_it_is(browser, tmp_path):
    for name, planned in (("done", 100), ("begun", 250)):
        change(make_run(tmp_path / f"runs/{name}", f"name={name}"), planned_steps=planned)
    change(tmp_path / "runs/begun", status="running")
    record = json.loads((tmp_path / "runs/done/result.json").read_text())
    del record["planned_steps"]  # as in older records, where the steps taken stand for them
    (tmp_path / "runs/done/result.json").write_text(json.dumps(record))
    open_page(browser, tmp_path / "runs", grouped=False)
    curves = {0: {"done": 11, "begun": 11}, 20: {"done": 11, "begun": 10}, 40: {"done": 11, "begun": 9}}
    curves |= {60: {"done": 10, "begun at 40 %": 9}, 100: {"done": 9, "begun at 40 %": 9}}
    choose(browser, "layerMetric", "effective_rank")
    for share, wanted in curves.items():
        slide(browser, share)
        assert traces(browser, "layers", "t.y[0]") == wanted, share
    click(browser, "grouped")  # nor is it in the mean of those that are there
    (early, _), (name, y) = traces(browser, "layers", "t.y[0]").items()
    assert (y, "n = 1" in name, early.endswith("(n = 1) at 40 %")) == (9, True, True)


def test_curves_are_averaged_at_each_step_over_the_runs_that_have_it(browser, tmp_path):
    for seed, values in enumerate(({10: 1, 20: 2, 30: 3}, {20: 4, 30: 5}, {10: 3, 20: 6, 30: 7, 35: 9})):
        write_curve(make_run(tmp_path / f"runs/{seed}", f"seed={seed}"), values)
    open_page(browser, tmp_path / "runs", curves=["val/loss"])
    found = "return document.getElementById('training').data.filter(t => !t.fill).map(t => [t.x, t.y, t.customdata])"
    assert browser.execute_script(found) == [[[10, 20, 30, 35], [2, 4, 5, 9], [2, 3, 3, 1]]]
    hover = "return document.getElementById('training').data[0].hovertemplate"
    assert "(n = %{customdata})" in browser.execute_script(hover)
    type_filter(browser, "seed<1")
    assert "customdata" not in browser.execute_script(hover)  # one run all along


def test_long_runs_of_unequal_length_are_thinned_to_the_same_steps(browser, tmp_path):
    for seed, length in enumerate((3000, 2001)):
        write_curve(make_run(tmp_path / f"runs/{seed}", f"seed={seed}"), {step: step for step in range(1, length + 1)})
    open_page(browser, tmp_path / "runs", curves=["val/loss"])
    x, y, n = browser.execute_script(
        "const t = document.getElementById('training').data[0]; return [t.x, t.y, t.customdata]"
    )
    assert len(x) <= 201 and x == y and x[-1] == 3000
    assert n == [2 if step <= 2001 else 1 for step in x] and 2001 in x


def test_two_runs_of_one_name_in_two_folders_stay_apart(browser, tmp_path):
    for folder, value in (("a", 90.0), ("b", 95.0)):
        make_run(tmp_path / f"{folder}/same", f"attention.lam=0.{value:.0f}", value=value)
    write_dashboard(read_runs([tmp_path / "a", tmp_path / "b"])[0], tmp_path / "d.html")
    visit(browser, (tmp_path / "d.html").as_uri(), grouped=False)
    assert sorted(names(browser)) == ["a/same", "b/same"] == sorted(traces(browser, "layers", "1"))
    assert len(set(traces(browser, "layers", "t.line.color").values())) == 2
    assert [*traces(browser, "scatter", "t.text[0]").values()] == ["a/same", "b/same"]
    click(browser, "choose b/same/")
    assert list(traces(browser, "layers", "1")) == ["b/same"]
    click(browser, "choose a/same/")
    assert "0.95" in browser.execute_script("return document.querySelector('#diff tbody').innerText")


def test_a_method_without_the_number_is_not_drawn_where_the_baseline_stands(browser, tmp_path):
    for name, words in {"softmax": [], "gfsa": ["attention=gfsa"], "featscale": ["block=featscale"]}.items():
        make_run(tmp_path / f"runs/{name}", "model=deit", *words)
    for lam in (0, 0.5):
        make_run(tmp_path / f"runs/{lam}", f"attention.lam={lam}")
    open_page(browser, tmp_path / "runs")
    assert drawn(browser, "against") == {"softmax", "0", "0.5"}


def test_token_subsets_are_a_choice(browser, tmp_path):
    run = make_run(tmp_path / "runs/x")
    rows = pd.read_csv(run / "oversmoothing.csv")
    rows.loc[rows["subset"] == "patch", "mean"] += 0.5
    rows.to_csv(run / "oversmoothing.csv", index=False)
    open_page(browser, tmp_path / "runs")
    assert browser.execute_script("return document.getElementById('subset').innerText").split("\n") == [
        "all tokens",
        "patch tokens",
    ]
    first = "return document.getElementById('layers').data[0].y[0]"
    before = browser.execute_script(first)
    choose(browser, "subset", "patch")
    assert browser.execute_script(first) == pytest.approx(before + 0.5)


def test_zoom_and_focus_survive_an_update_and_a_page_that_loads_itself_anew(browser, tmp_path):
    make_run(tmp_path / "runs/a", "seed=1")
    make_run(tmp_path / "runs/b", "attention.lam=0.1", "seed=2")
    write_dashboard(read_runs([tmp_path / "runs"])[0], tmp_path / "d.html", reload_s=3)
    visit(browser, (tmp_path / "d.html").as_uri(), grouped=False)
    zoomed = "return document.getElementById('training').layout.xaxis.range"
    browser.execute_script("Plotly.relayout('training', {'xaxis.range[0]': 20, 'xaxis.range[1]': 60})")
    type_filter(browser, "seed<3")
    assert browser.execute_script(zoomed) == [20, 60]
    place = "return document.activeElement.id"
    click(browser, "choose runs/a/")  # which makes the rows anew
    assert browser.execute_script(place) == "choose runs/a/"
    browser.execute_script("window.before = true")
    wait(browser, "return !window.before && document.activeElement?.id")  # it has loaded itself
    settle(browser)
    assert browser.execute_script(place) == "choose runs/a/" and browser.execute_script(zoomed) == [20, 60]
    browser.execute_script("Plotly.relayout('training', {'xaxis.autorange': true})")  # as a double click does
    low, high = browser.execute_script(zoomed)
    assert low < 20 and high > 60
    choose_curves(browser, "val/loss")
    assert browser.execute_script(zoomed) != [20, 60]


def test_a_sweep_is_followed_to_its_end_and_the_page_stays_where_the_reader_was(browser, tmp_path):
    go_on = tmp_path / "go on"

    def runs_wait_at_step_6() -> None:
        runs_are_forks()
        log = MetricsCSV.log_metrics

        def log_and_wait(self, metrics, step=None):
            log(self, metrics, step)
            self.save()
            if step == 6:
                until(go_on.exists)

        MetricsCSV.log_metrics = log_and_wait

    sweep = Forked("train.py", "-m", *TINY, "attention.lam=0.2,0.4", cwd=tmp_path, setup=runs_wait_at_step_6)
    until(lambda: [*tmp_path.glob("outputs/.sweeps/*/manifest.json")])
    watch = Forked(
        "scripts/dashboard.py", "outputs", "--watch", "--every", "3", cwd=tmp_path
    )  # no run has begun, perhaps
    page = tmp_path / "outputs/dashboard.html"
    until(page.exists)
    browser.set_window_size(800, 700)  # there is something to scroll
    visit(browser, page.as_uri(), plots=["layers", "training"], sort="λ̃")
    said = "return document.querySelector('#runs tbody')?.innerText ?? ''"
    until(lambda: re.search(r"running, 50 %, \d+:\d+ left", browser.execute_script(said)))
    settle(browser)
    row = browser.execute_script("return document.querySelector('#runs [aria-expanded]').id")
    click(browser, row)
    click(browser, row.replace("unfold", "choose"))
    slide(browser, 50)
    type_filter(browser, "lam>0.1")
    browser.execute_script("Plotly.relayout('training', {'xaxis.range[0]': 2, 'xaxis.range[1]': 6}); scrollTo(0, 150)")
    seen = """return [document.getElementById('training').layout.xaxis.range, document.getElementById('filter').value,
        document.getElementById('when').value, scrollY, shown.map(r => r.name),
        [...document.querySelectorAll('[aria-expanded]')].map(b => b.ariaExpanded)[0]]"""
    before = browser.execute_script(seen)
    assert before[:4] == [[2, 6], "lam>0.1", "50", 150] and before[5] == "true"
    go_on.touch()
    assert sweep.finish().returncode == 0
    done = watch.finish()
    assert done.returncode == 0 and "dashboard.html: 2 runs" in done.stdout, done.stderr
    wait(browser, "return typeof reload_s !== 'undefined' && reload_s === null")
    settle(browser)
    assert cells(browser, "n") == ["1", "seed 0", "1"] and "status" not in heads(browser)  # all are finished
    assert browser.execute_script(seen) == before
    browser.set_window_size(1280, 1400)


def test_no_plot_can_be_sent_anywhere(browser, page):
    visit(browser, page.as_uri())
    titles = browser.execute_script("return [...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)")
    assert titles and not [
        title for title in titles if re.search("cloud|studio|edit|upload|share", title, re.IGNORECASE)
    ]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Softmax and two methods over seeds, and the first of these again in another folder."""
    folder = tmp_path_factory.mktemp("compared")
    rows = {"softmax": ["model=deit"], "lam0.5": ["attention.lam=0.5"], "lam0.25": ["attention.lam=0.25"]}
    for name, values in {"softmax": (91, 92.5, 91.7), "lam0.5": (93, 93.4, 92.1, 94.1), "lam0.25": (92, 92.2)}.items():
        for seed, value in enumerate(values):
            run = make_run(folder / f"runs/{name}-{seed}", *rows[name], f"seed={seed}", value=value, drift=value / 300)
            change(run, wall_clock_s=100.0 * seed)
    shutil.copytree(folder / "runs/lam0.5-0", folder / "runs/the-same")
    write_dashboard(read_runs([folder / "runs"])[0], folder / "d.html")
    return folder / "d.html"


FIGURES = ("test/top1 ↑ ▾", "difference, 95 %", "n", "final similarity")


def lines(browser):
    """The lines of the table by name: their figures."""
    columns = [cells(browser, column) for column in FIGURES]
    return dict(zip(cells(browser, "name"), zip(*columns, strict=True), strict=True))


def expected(runs):
    """The same as tables have them."""
    groups, _ = group_runs(runs)
    found = {}
    for group in groups:
        (figures,) = table([Row("", group, [], {})], ["test/top1"]).to_dict("records")
        other = baseline_of(group, groups)
        of = None if other is None else difference(group, other, "test/top1")
        compared = "baseline" if of is None else f"{of.mean:+.2f} ({of.low:.2f} to {of.high:.2f})"
        name = group.label.removeprefix("digits deit-mini ")
        found[name] = (figures["test/top1"].text, compared, str(len(group.runs)), figures["similarity, trained"].text)
    return found


def test_the_table_shows_the_numbers_that_tables_print_the_best_first(browser, compared):
    visit(browser, compared.as_uri())
    runs, _ = read_runs([compared.parent / "runs"])
    assert lines(browser) == expected(runs)  # the same run counts once
    assert list(lines(browser)) == ["neutreno λ̃=0.5", "neutreno λ̃=0.25", "softmax"]
    assert heads(browser) == ["name", *FIGURES, "time", "attention", "λ̃"]  # what all have alike is not shown
    assert cells(browser, "time") == ["2:30", "0:50", "1:40"]
    type_filter(browser, "seed<2")
    assert lines(browser) == expected([run for run in runs if run.seed < 2])
    type_filter(browser, "lam>=0.3 seed<2")  # the baseline is not listed, and still compared with
    few = expected([run for run in runs if run.seed < 2])
    assert lines(browser) == {"neutreno λ̃=0.5": few["neutreno λ̃=0.5"]}
    type_filter(browser, "lamm>=0.3")
    assert browser.execute_script("return document.getElementById('count').innerText").endswith("is called lamm")


def test_rows_that_differ_in_a_setting_without_a_label_say_so(browser, tmp_path):
    make_run(tmp_path / "runs/softmax", "model=deit", value=90.0)
    for lr in (0.001, 0.002):
        for lam in (0.2, 0.4):
            make_run(tmp_path / f"runs/{lam}-{lr}", f"attention.lam={lam}", f"task.lr={lr}", value=91.0)
    open_page(browser, tmp_path / "runs")
    assert sorted(cells(browser, "lr"))[:4] == ["0.001", "0.001", "0.002", "0.002"]
    assert "neutreno λ̃=0.2 lr=0.001" in cells(browser, "name")
    curves = traces(browser, "against", "t.x")  # means are over seeds, not rates; the baseline is in both
    assert len(curves) == 2 and list(curves.values()) == 2 * [[0, 0.2, 0.4]]
    differences = dict(zip(cells(browser, "name"), cells(browser, "difference, 95 %"), strict=True))
    assert differences == {
        "softmax lr=0.002": "baseline",
        **{f"neutreno λ̃={lam} lr=0.002": "+1.00" for lam in (0.2, 0.4)},
        **{f"neutreno λ̃={lam} lr=0.001": "+1.00 †" for lam in (0.2, 0.4)},  # softmax was not run at this rate
    }
    assert sorted(set(cells(browser, "† baseline differs in"))) == ["task.lr=0.002", "–"]
    assert "† baseline differs in" in browser.execute_script("return AS_TEXT.CSV()").splitlines()[0]
    type_filter(browser, "lr<0.002 lam>0")
    assert len(cells(browser, "name")) == 2
    make_run(tmp_path / "runs/another", "attention.lam=0.2", "task.lr=0.001", "data.batch_size=7", value=91.0)
    open_page(browser, tmp_path / "runs")  # what tells most rows apart comes first: a long name is cut
    assert "neutreno λ̃=0.2 lr=0.001 batch_size=7" in cells(browser, "name")


def test_a_setting_with_a_label_in_some_runs_alone_has_one_column_and_sorts_by_its_key(browser, tmp_path):
    for depth in (3, 2, 4):
        run = make_run(tmp_path / f"runs/{depth}", f"model.depth={depth}", f"task.lr=0.00{depth}")
        result = json.loads((run / "result.json").read_text())
        result["labels"] |= {"model.depth": "depth"} if depth == 3 else {}
        result["settings"] |= {"model.depth": 3} if depth == 3 else {}
        (run / "result.json").write_text(json.dumps(result))
    open_page(browser, tmp_path / "runs")
    assert len(heads(browser)) == len(set(heads(browser)))
    assert sorted(cells(browser, "depth")) == ["2", "3", "4"]
    click(browser, "sort depth")
    assert cells(browser, "depth ▴") == ["2", "3", "4"]
    assert browser.execute_script("return view.sort") == "model.depth"


def test_seeds_unfold_below_their_row(browser, compared):
    visit(browser, compared.as_uri())
    row = browser.execute_script("return document.querySelector('#runs [aria-expanded=false]').id")
    click(browser, row)
    shown = "const b = document.getElementById(arguments[0]); return [b.ariaExpanded, document.activeElement === b]"
    assert browser.execute_script(shown, row) == ["true", True]
    assert cells(browser, "n")[:6] == ["4", "seed 3", "seed 1", "seed 0", "seed 0", "seed 2"]
    assert names(browser) == ["lam0.5-3", "lam0.5-1", "lam0.5-0", "the-same", "lam0.5-2"]
    box = "return document.getElementById(arguments[0].replace('unfold', 'choose'))"
    browser.execute_script(f"{box}.click()", row)
    assert drawn(browser, "scatter") == set(names(browser))
    click(browser, "choose runs/the-same/")
    assert browser.execute_script(f"{box}.indeterminate", row)


def test_times_to_an_event_are_counted_and_not_averaged(browser, tmp_path):
    for seed, metrics in enumerate(({"escape": 100.0}, {})):
        change(make_run(tmp_path / f"runs/{seed}", f"seed={seed}"), within={"escape": 600.0}, metrics=metrics)
    open_page(browser, tmp_path / "runs", metric="escape")
    assert cells(browser, "escape") == ["1 of 2"]


def test_quantiles_of_students_distribution_are_those_of_scipy(browser, page):
    visit(browser, page.as_uri())
    freedom = [1, 1.03, 1.5, 2, 2.71, 3, 4.4, 7.9, 12, 30.5, 99, 400]
    found = browser.execute_script("return arguments[0].map(df => student(df, 0.05))", freedom)
    assert found == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-6)


def test_the_table_is_copied_as_it_stands_and_names_do_nothing_in_it(browser, compared):
    visit(browser, compared.as_uri())
    browser.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"]})
    copied = {}
    for style in ("CSV", "Markdown", "LaTeX"):
        choose(browser, "format", style)
        browser.execute_script("document.getElementById('copied').textContent = ''")
        click(browser, "copy")
        assert wait(browser, "return document.getElementById('copied').textContent") == "copied 3 lines"
        copied[style] = browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    numbers = pd.read_csv(io.StringIO(copied["CSV"]))
    best, _, softmax = numbers.to_dict("records")
    assert (
        best["test/top1 mean"] == pytest.approx(93.15) and best["n"] == 4 and softmax["difference, 95 %"] == "baseline"
    )
    assert float(best["difference, 95 %"]) - best["difference, 95 % low"] > 0
    figures = lines(browser)
    assert (
        copied["Markdown"].splitlines()[2].startswith(f"| neutreno λ̃=0.5 | {' | '.join(figures['neutreno λ̃=0.5'])} |")
    )
    assert r"neutreno $\tilde\lambda$=0.5 & 93.15 $\pm$ 0.83 &" in copied["LaTeX"] and r"95 \% &" in copied["LaTeX"]
    names = ["=1+1", "a|b`](x)<b>", "\\input{x}_&", 'say "a", b']
    written = {
        "Markdown": ["=1+1", "a&#124;b&#96;]&#40;x)&lt;b>", "\\input{x}_&", 'say "a", b'],
        "LaTeX": ["=1+1", r"a|b`](x)\ensuremath{<}b\ensuremath{>}", r"\textbackslash{}input\{x\}\_\&", 'say "a", b'],
        "CSV": ["'=1+1", "a|b`](x)<b>", "\\input{x}_&", '"say ""a"", b"'],
    }
    script = "table.lines[0].cells[0].text = arguments[0]; table.lines[0].cells[0].numbers = {'': arguments[0]}; "
    for style, wanted in written.items():
        for name, text in zip(names, wanted, strict=True):
            assert text in browser.execute_script(f"{script} return AS_TEXT[arguments[1]]()", name, style)


def test_rows_and_curves_light_up_together(browser, compared):
    visit(browser, compared.as_uri())
    over = "document.querySelectorAll('#runs tbody tr')[0].dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))"
    browser.execute_script(over)
    wait(browser, "return document.getElementById('scatter').data[0].marker.opacity")  # the last that is lit
    for plot in ("layers", "training"):
        lit = traces(browser, plot, "t.opacity")
        assert {name for name, opacity in lit.items() if opacity == 1} == {"neutreno λ̃=0.5 (n = 4)"} and len(lit) == 3
    points = "return document.getElementById('scatter').data.filter(t => Array.isArray(t.meta))"
    points += ".flatMap(t => t.meta.filter((_, i) => t.marker.opacity[i] == 1))"
    lit = {Path(link).name for link in browser.execute_script(points)}
    assert lit == {"the-same", *(f"lam0.5-{seed}" for seed in range(4))}
    hover = """const plot = document.getElementById('layers'), data = plot.data.find(t => t.name.startsWith('softmax'));
        plot.emit('plotly_hover', {points: [{data, pointIndex: 0}]})"""
    browser.execute_script(hover)
    rows = "return [...document.querySelectorAll('#runs tbody tr.lit')].map(r => r.cells[1].innerText)"
    assert browser.execute_script(rows) == ["softmax"]
    browser.execute_script("document.getElementById('layers').emit('plotly_unhover')")
    wait(browser, "return document.getElementById('layers').data.every(t => (t.opacity ?? 1) === 1)")
    assert not browser.execute_script(rows)
