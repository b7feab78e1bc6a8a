"""The dashboard: one file, in a real browser where there is one."""

import json
import shutil

import pytest
import yaml
from support import assert_one_line_error, make_run, run_forked

from neutreno.reports.dashboard import write_dashboard
from neutreno.reports.reading import read_runs

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


def visit(browser, address):
    """Open a page and wait for its table: a busy browser may return before it has run the scripts."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(address)
    WebDriverWait(browser, 30).until(lambda b: b.execute_script("return document.querySelectorAll('#runs th').length"))


def open_page(browser, folder):
    write_dashboard(read_runs([folder])[0], folder.parent / "d.html")
    visit(browser, (folder.parent / "d.html").as_uri())


def heads(browser):
    return browser.execute_script("return [...document.querySelectorAll('#runs th')].map(h => h.innerText)")[1:]


def traces(browser, plot, value):
    """``value`` of every curve ``t`` of a plot by what the legend says."""
    script = (
        f"return document.getElementById(arguments[0]).data.filter(t => t.name && !t.fill).map(t => [t.name, {value}])"
    )
    return dict(browser.execute_script(script, plot))


def drawn(browser, plot):
    """Names of the runs behind the traces of a plot."""
    script = (
        "return document.getElementById(arguments[0]).data.map(t => t.meta).filter(m => m && m !== 'colours').flat()"
    )
    return set(browser.execute_script(script, plot))


def type_filter(browser, text):
    script = "const f = document.getElementById('filter'); f.value = arguments[0]; f.dispatchEvent(new Event('input'))"
    browser.execute_script(script, text)


def names(browser):
    return browser.execute_script("return [...document.querySelectorAll('#runs tbody a')].map(a => a.textContent)")


def test_every_plot_follows_the_table_and_no_request_leaves_the_page(browser, page):
    visit(browser, page.as_uri())
    assert len(names(browser)) == 8  # the other task has a separate page
    for plot in PLOTS:
        assert {f"digits-lam{lam}-seed{seed}" for lam in ("0.2", "0.6", "1") for seed in (0, 1)} <= drawn(browser, plot)
    two = {"digits-lam0.6-seed0", "digits-lam0.6-seed1"}
    for key in ("λ̃", "lam", "attention.lam"):
        type_filter(browser, f"{key}=0.6 size=mini finished")
        assert set(names(browser)) == two and all(drawn(browser, plot) == two for plot in PLOTS)
    diff = "return document.querySelector('#diff tbody').innerText"
    assert browser.execute_script(diff).split() == ["seed", "0", "1"]
    type_filter(browser, "")
    for name in ("lam1-seed0", "softmax"):
        script = "[...document.querySelectorAll('#runs tbody tr')].find(r => r.innerText.includes(arguments[0]))"
        browser.execute_script(f"{script}.querySelector('input').click()", name)
    chosen = {"digits-lam1-seed0", "digits-softmax"}
    assert all(drawn(browser, plot) == chosen for plot in PLOTS)
    assert "attention._target_" in browser.execute_script(diff)
    browser.refresh()  # the view survives
    assert all(drawn(browser, plot) == chosen for plot in PLOTS)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert urls and all(url.startswith(("file:", "data:", "blob:")) for url in urls), urls
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_the_slider_shows_the_curves_over_training(browser, page):
    visit(browser, page.as_uri() + "#" + json.dumps({"filter": "lam1-seed0"}))
    browser.refresh()
    curve = "return document.getElementById('layers').data[0].y"
    move = "const w = document.getElementById('when'); w.value = arguments[0]; w.dispatchEvent(new Event('input'))"
    found = []
    for share in (0, 50, 100):
        browser.execute_script(move, share)
        found.append(browser.execute_script(curve)[0])
    assert found == pytest.approx([0.1, 0.2, 0.3])


def test_another_layer_metric_is_a_choice_away(browser, page):
    visit(browser, page.as_uri() + "#" + json.dumps({"filter": "lam1-seed0", "layerMetric": "effective_rank"}))
    browser.refresh()
    plot = "const p = document.getElementById('layers'); return [p.data[0].y, p.layout.yaxis.title.text]"
    assert browser.execute_script(plot) == [[9, 8, 7, 6, 5], "effective rank"]


def test_columns_sort_and_tasks_have_pages_of_their_own(browser, page):
    visit(browser, page.as_uri())
    browser.execute_script("[...document.querySelectorAll('#runs th')].find(h => h.innerText == 'test/top1 ↑').click()")
    values = "return [...document.querySelectorAll('#runs tbody tr')].map(r => r.children[10].innerText)"
    found = [float(v) for v in browser.execute_script(values) if v != "–"]
    assert len(found) == 7 and found == sorted(found)
    browser.execute_script("const t = document.getElementById('task'); t.value = 'segmentation'; t.onchange()")
    assert names(browser) == ["<b>scenes"]  # as text, no tag


def test_runs_are_told_apart_by_the_axes_and_numbers_of_their_record(browser, page):
    visit(browser, page.as_uri())
    told = ["data", "model", "size", "attention", "λ̃", "block", "seed"]
    assert heads(browser) == ["name ▴", "status", *told, "test/top1 ↑", "final similarity"]
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
    colours = "return document.getElementById('scatter').data[0].marker.color"
    assert len(set(browser.execute_script(colours))) == 5  # no scale holds for all of them
    type_filter(browser, "plain neutreno")
    assert drawn(browser, "layers") == {"n-plain"}
    assert browser.execute_script("return document.getElementById('layers').data.at(-1).meta") == "colours"


def test_axes_metrics_and_tasks_of_another_package(browser, tmp_path):
    for scale in (0.5, 1, 2):
        for seed in (0, 1):
            foreign(tmp_path / f"runs/s{scale}-{seed}", "centered", scale, seed, 3 - scale + seed / 10)
    foreign(tmp_path / "runs/none", "none", None)
    open_page(browser, tmp_path / "runs")
    told = ["data", "model", "norm", "s", "seed"]
    assert heads(browser) == ["name ▴", "status", *told, "val/mae ↓", "final similarity"]
    rows = {f"centered s={scale} (n = 2)": "solid" for scale in (0.5, 1, 2)}
    assert traces(browser, "layers", "t.line.dash") == {**rows, "none (n = 1)": "dash"}
    bar = "return document.getElementById('layers').data.at(-1).marker"
    marker = browser.execute_script(bar)
    assert (marker["cmin"], marker["cmax"], marker["colorbar"]["title"]["text"]) == (0.5, 2, "s")
    shown = "return ['number', 'curve', 'task'].map(id => document.getElementById(id).selectedOptions[0].textContent)"
    assert browser.execute_script(shown) == ["s", "val/mae", "tide regression"]
    assert "none" not in drawn(browser, "against")  # it equals no value of s, and is not drawn at 0
    browser.execute_script("const m = document.getElementById('metric'); m.value = 'val/r2'; m.onchange()")
    assert "val/r2" in heads(browser)  # nobody said whether more of it is better
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
    browser.execute_script("const n = document.getElementById('number'); n.value = 'norm.width'; n.onchange()")
    assert traces(browser, "against", "t.x") == {f"centered s={s}": [x] for s, x in ((1, 4), (2, 4), (3, 8))}
    browser.execute_script("const t = document.getElementById('task'); t.value = 'classification'; t.onchange()")
    assert browser.execute_script("return document.getElementById('compared').hidden")
    assert "model.name" in heads(browser) and sorted(names(browser)) == ["softmax", "timm"]
    assert any(text.startswith("digits timm") or text.startswith("timm") for text in traces(browser, "layers", "1"))


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
    choose = "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.onchange(); return s.value"
    for name in names:
        for menu in ("metric", "curve", "layerMetric"):
            assert browser.execute_script(choose, menu, name) == name
            assert len(drawn(browser, "training")) == 6
    links = "return document.querySelectorAll('.plot a[href], table a[href^=http]').length"
    assert browser.execute_script(links) == 0
    type_filter(browser, "constructor")
    assert "r0" in browser.execute_script("return document.querySelector('#runs tbody').innerText")
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_two_hundred_runs_build_and_stay_usable(browser, tmp_path):
    first = make_run(tmp_path / "runs/r0", "attention.lam=0.1", value=90.0)
    for i in range(1, 200):
        shutil.copytree(first, tmp_path / f"runs/r{i}")
        result = json.loads((first / "result.json").read_text())
        result["settings"] |= {"seed": i % 5, "attention.lam": i // 5 / 40}
        (tmp_path / f"runs/r{i}/result.json").write_text(json.dumps(result))
    runs, problems = read_runs([tmp_path / "runs"])
    assert len(runs) == 200 and not problems
    write_dashboard(runs, tmp_path / "d.html")
    assert (tmp_path / "d.html").stat().st_size < 8e6
    visit(browser, (tmp_path / "d.html").as_uri())
    assert len(names(browser)) == 200
    type_filter(browser, "seed=3")
    assert len(names(browser)) == 40 == len(drawn(browser, "scatter"))


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
