// The page: what the reader chose, and what happens when something is chosen.

// Kept in the address, so that loading the page anew keeps it, and a link shows it to others.
const view = { task: "", metric: "", filter: "", chosen: [], unfolded: [], sort: "", down: false, grouped: true, theme: "",
  plots: ["layers", "training", "against", "scatter", "settings"], layerMetric: "", subset: "", layersAs: "curves", when: 100,
  curves: [], over: "step", smooth: 0, number: "", picture: "", axes: {}, zoom: {}, format: "Markdown", back: {} };
const kind = (v) => (v === null ? "nothing" : Array.isArray(v) ? "list" : typeof v);
try { // an address may be of another page, or anyone's
  const given = JSON.parse(decodeURIComponent(location.hash.slice(1)));
  for (const key of Object.keys(view)) if (kind(given[key]) === kind(view[key])) view[key] = given[key];
} catch { /* there is no view in it */ }
const keep = () => history.replaceState(null, "", "#" + encodeURIComponent(JSON.stringify(view)));

// What follows from the view: the runs listed and those drawn; the table as it stands, a list of lines and its columns.
let listed = [], shown = [], table = { lines: [], columns: [] };

function list() {
  const tests = conditions();
  listed = ofTask().filter((run) => tests.every((test) => test(run)));
  const chosen = new Set(view.chosen);
  shown = listed.filter((run) => chosen.has(run.link));
  if (!shown.length) shown = listed;
}

function fill(id, options, said = bare()) {
  $(id).replaceChildren(...options.map((o) => element("option", said[o] ?? o, { value: o, selected: o === view[id] })));
}

// Fill a menu with what there is; what was chosen stays if it is still there, else the first of `wanted` that is.
function offer(id, options, wanted, said) {
  if (!options.includes(view[id])) view[id] = [...wanted, ...options].find((o) => options.includes(o));
  fill(id, options, said);
}

function choices() {
  const count = (task) => runs.filter((run) => run.task === task).length;
  offer("task", unique(runs.map((run) => run.task)).sort((a, b) => count(b) - count(a)), []);
  const some = ofTask();
  const all = (of) => unique(some.flatMap((run) => Object.keys(of(run) ?? {}))).sort();
  offer("metric", all((run) => run.metrics), some.map((run) => run.main));
  offerCurves(all((run) => run.curves), some.map((run) => run.validated));
  offer("layerMetric", all((run) => run.byLayer), ["cosine"]);
  const subsets = all((run) => run.byLayer[view.layerMetric]);
  offer("subset", subsets, ["all"], bare(Object.fromEntries(subsets.map((subset) => [subset, `${subset} tokens`]))));
  findColumns();
  offer("number", numbers(), [], titles);
  offer("picture", all((run) => run.pictures), []);
  fill("format", Object.keys(AS_TEXT));
}

// The training curves: several may be chosen. Made anew only where there are others, so that the list stays open.
function offerCurves(options, wanted) {
  view.curves = options.filter((name) => view.curves.includes(name));
  if (!view.curves.length) view.curves = [[...wanted, ...options].find((name) => options.includes(name))].filter(Boolean);
  $("curve").textContent = view.curves.join(", ");
  if (String([...$("curves").children].map(({ textContent }) => textContent)) !== String(options)) {
    $("curves").replaceChildren(...options.map((name) => {
      const label = element("label", null);
      const box = element("input", null, { type: "checkbox", id: `curve ${name}`, value: name });
      box.onchange = () => {
        view.curves = view.curves.filter((other) => other !== name).concat(box.checked ? name : []);
        update();
      };
      label.append(box, name);
      return label;
    }));
  }
  for (const box of $("curves").querySelectorAll("input")) box.checked = view.curves.includes(box.value);
}

// What there is below the table, and of it what the reader wants to see.
const figureOf = (id) => document.querySelector(`[data-plot="${id}"]`);
function offerPlots() {
  const there = Object.keys(PLOTS).filter((id) => PLOTS[id].any());
  keepFocus(() => $("kinds").replaceChildren(...there.map((id) => {
    const on = view.plots.includes(id);
    const button = element("button", PLOTS[id].said, { type: "button", id: `show ${id}`, ariaPressed: String(on) });
    button.onclick = () => {
      view.plots = view.plots.filter((other) => other !== id).concat(on ? [] : [id]);
      update();
    };
    return button;
  })));
  const wanted = there.filter((id) => view.plots.includes(id));
  for (const id of Object.keys(PLOTS)) figureOf(id).hidden = !wanted.includes(id);
  return wanted;
}

// One plot after the other, so that the page answers in between; what is chosen meanwhile begins anew.
let drawing = 0;
const busy = (is) => { $("plots").ariaBusy = String(is); };
function drawPlots() {
  const [mine, left] = [++drawing, offerPlots()];
  const next = () => {
    if (mine !== drawing) return;
    if (left.length) {
      PLOTS[left.shift()].draw();
      setTimeout(next);
    } else {
      busy(false);
      comeBack();
      leaveLater();
    }
  };
  setTimeout(next);
}

function update() {
  busy(true);
  choices();
  list();
  findScale();
  drawTable();
  if (window.Plotly) drawPlots(); // else it follows this script, see the end
  keep();
}

function setTheme() {
  document.documentElement.dataset.theme = view.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

// A page that watches loads itself anew some time after all is drawn, but not while the reader is at it: a menu would
// close, and a zoom would be lost. Where the reader was, the page comes back to.
let touched = 0, leaving = null;
const leaveLater = () => { leaving ??= reload_s && setTimeout(leave, 1000 * reload_s); };
function leave() {
  if (Date.now() - touched < 1000) {
    setTimeout(leave, 500);
    return;
  }
  const { scrollTop, scrollLeft } = $("runs").parentElement;
  view.back = { focus: document.activeElement.id, page: scrollY, scrollTop, scrollLeft, open: $("curve").parentElement.open };
  keep();
  location.reload();
}
function comeBack() {
  const { focus, page, open, ...table } = view.back;
  if (page === undefined) return;
  Object.assign($("runs").parentElement, table);
  $("curve").parentElement.open = open;
  $(focus)?.focus({ preventScroll: true });
  scrollTo(0, page);
  view.back = {};
  keep();
}

const copy = (text, said) => navigator.clipboard.writeText(text).then(
  () => { $("copied").textContent = said; },
  () => { $("copied").textContent = "the browser does not let the page copy"; });

for (const id of ["layers", "training", "against", "scatter"]) {
  const select = element("select", null, { id: `axes ${id}`, ariaLabel: "axes" });
  const option = (said) => element("option", said, { value: said, selected: said === view.axes[id] });
  select.append(...["linear", "log x", "log y", "log x, y"].map(option));
  select.onchange = () => { view.axes[id] = select.value; PLOTS[id].draw(); keep(); };
  figureOf(id).firstElementChild.append(select);
}
for (const id of ["task", "metric", "layerMetric", "subset", "layersAs", "over", "number", "picture", "format"]) {
  $(id).onchange = () => { view[id] = $(id).value; update(); };
}
let typed = null;
$("filter").value = view.filter;
$("filter").oninput = () => {
  view.filter = $("filter").value;
  busy(true);
  clearTimeout(typed);
  typed = setTimeout(update, 120);
};
$("clear").onclick = () => { view.chosen = []; update(); };
$("grouped").checked = view.grouped;
$("grouped").onchange = () => { view.grouped = $("grouped").checked; update(); };
$("copy").onclick = () => copy(AS_TEXT[view.format](), `copied ${table.lines.length} lines`);
$("link").onclick = () => copy(location.href, "copied the address of this view");
$("when").value = view.when;
$("when").oninput = () => { view.when = Number($("when").value); drawLayers(); keep(); };
$("smooth").value = view.smooth;
$("smooth").oninput = () => { view.smooth = Number($("smooth").value); drawTraining(); keep(); };
$("theme").onclick = () => { view.theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark"; setTheme(); update(); };
let playing = null;
$("play").onclick = () => {
  clearInterval(playing);
  playing = playing === null ? setInterval(() => {
    view.when = view.when >= 100 ? 0 : view.when + 5;
    $("when").value = view.when;
    drawLayers();
  }, 250) : null;
  $("play").textContent = playing === null ? "play" : "stop";
};
for (const [begins, ends] of [["mouseover", "mouseleave"], ["focusin", "focusout"]]) {
  $("runs").tBodies[0].addEventListener(begins, ({ target }) => light(target.closest("tr").links));
  $("runs").tBodies[0].addEventListener(ends, () => light(null));
}
document.addEventListener("click", ({ target }) => {
  const menu = $("curve").parentElement;
  if (!menu.contains(target)) menu.open = false;
});
for (const event of ["pointerdown", "pointermove", "keydown", "wheel"]) {
  addEventListener(event, () => { touched = Date.now(); }, { passive: true });
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { setTheme(); update(); });
addEventListener("hashchange", () => location.reload()); // another view was pasted
setTheme();
update();
document.addEventListener("DOMContentLoaded", drawPlots);
