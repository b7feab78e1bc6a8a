"use strict";
// Keys are anyone's: an object without a prototype has those that it was given, not "constructor" or "__proto__".
const bare = (...parts) => Object.assign(Object.create(null), ...parts);
const { runs, reload_s } = JSON.parse(document.getElementById("data").textContent,
  (_, value) => (value !== null && typeof value === "object" && !Array.isArray(value) ? bare(value) : value));
const $ = (id) => document.getElementById(id);
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]; // Okabe & Ito
const MANY = 8; // beyond so many lines a legend hides more than it says

// What the reader chose; kept in the address, so that loading the page anew keeps it.
const view = { filter: "", chosen: [], sort: "name", down: false, average: true, when: 100 };
try { Object.assign(view, JSON.parse(decodeURIComponent(location.hash.slice(1)))); } catch { /* an address of another page */ }
const keep = () => history.replaceState(null, "", "#" + encodeURIComponent(JSON.stringify(view)));

const last = (list) => list[list.length - 1];
const head = (key) => key.split(".")[0];
const text = (v) => (typeof v === "number" && !Number.isInteger(v) ? String(Number(v.toPrecision(4)))
  : v === null || v === undefined ? "–" : typeof v === "object" ? JSON.stringify(v) : String(v));
// Text as Plotly shows it: no tag of its own, no link, no field of a template.
const inert = (v) => String(v ?? "").replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("%{", "%&#123;");
const mean = (v) => v.reduce((a, b) => a + b, 0) / v.length;
const sd = (v) => (v.length < 2 ? 0 : Math.sqrt(v.reduce((s, x) => s + (x - mean(v)) ** 2, 0) / (v.length - 1)));
for (const run of runs) {
  const similarity = run.byLayer.cosine ?? [];
  run.final = run.status === "finished" && similarity.length ? last(last(similarity).layers) : null;
  run.key = JSON.stringify([{ ...run.about, seed: null }, run.settings]);
}

// What follows from the view, see update(): titles by key of what runs are told apart by, the table's columns, the runs
// listed in it and those drawn, the keys of its rows over seeds, and the scale of colours, if there is one.
let titles = bare(), columns = [], listed = [], shown = [], rows = [], scale = null;
const ofTask = () => runs.filter((run) => run.task === view.task);

function findColumns() {
  const some = ofTask();
  const keys = [...new Set(some.flatMap((run) => Object.keys(run.about).filter((key) => run.about[key] !== null)))];
  const heads = [...new Set(keys.map(head))].filter((name) => name !== "seed").concat("seed");
  keys.sort((a, b) => heads.indexOf(head(a)) - heads.indexOf(head(b)));
  const labels = bare(...some.map((run) => run.labels));
  const short = (key) => labels[key] || last(key.split("."));
  const all = ["name", "status", "final similarity", ...keys.map(short)];
  titles = bare(Object.fromEntries(keys.map((key) => [key, all.filter((t) => t === short(key)).length > 1 ? key : short(key)])));
  const judge = some.find((run) => last(run.validated.split("/")) === last((view.metric ?? "").split("/")));
  const better = judge ? (judge.smaller ? " ↓" : " ↑") : "";
  columns = [
    { title: "name", value: (run) => run.name },
    { title: "status", value: (run) => run.status },
    ...keys.map((key) => ({ title: titles[key], names: [key, last(key.split(".")), labels[key]], value: (run) => run.about[key] ?? null })),
    { title: view.metric ?? "metric", better, value: (run) => run.metrics[view.metric] ?? null },
    { title: "final similarity", names: ["final"], value: (run) => run.final },
  ];
  for (const column of columns) column.names = [column.title, ...(column.names ?? [])].filter(Boolean).map((name) => name.toLowerCase());
}

// Labelled settings that are numbers, where they vary: first the one that takes most values.
function numbers() {
  const taken = bare();
  for (const run of ofTask()) for (const [key, value] of Object.entries(run.numbers)) (taken[key] ??= new Set()).add(value);
  return Object.keys(taken).filter((key) => taken[key].size > 1).sort((a, b) => taken[b].size - taken[a].size);
}

function matches(run) {
  return view.filter.toLowerCase().split(/\s+/).filter(Boolean).every((word) => {
    const [key, value] = word.split(/=(.*)/);
    if (value === undefined) return columns.some((column) => String(column.value(run) ?? "").toLowerCase().includes(word));
    const named = columns.filter((column) => column.names.includes(key)).map((column) => column.value(run));
    const found = named.length ? named : [run.metrics[key] ?? run.settings[key]];
    return found.some((v) => String(v ?? "").toLowerCase() === value || (value !== "" && v === Number(value)));
  });
}

function list() {
  const sign = view.down ? -1 : 1;
  const { value } = columns.find((column) => column.title === view.sort) ?? columns[0];
  listed = ofTask().filter(matches).sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (typeof x === "number" && typeof y === "number" ? x - y : text(x).localeCompare(text(y), "en", { numeric: true }));
  });
  const chosen = listed.filter((run) => view.chosen.includes(run.name));
  shown = chosen.length ? chosen : listed;
}

function element(name, text, more = {}) {
  const made = Object.assign(document.createElement(name), more);
  if (text !== null) made.textContent = text;
  return made;
}

function drawTable() {
  const top = element("tr", null);
  top.append(element("th", "✓"));
  const kind = new Map(columns.map((column) => [column, listed.some((run) => typeof column.value(run) === "number") ? "number" : ""]));
  for (const column of columns) {
    const { title, better } = column;
    const arrow = title === view.sort ? (view.down ? " ▾" : " ▴") : "";
    const th = element("th", title + (better ?? "") + arrow, { className: kind.get(column) });
    if (better) th.title = better === " ↓" ? "smaller is better" : "larger is better";
    th.onclick = () => { view.down = view.sort === title && !view.down; view.sort = title; update(); };
    top.append(th);
  }
  $("runs").tHead.replaceChildren(top);
  const body = listed.map((run) => {
    const tr = element("tr", null);
    const box = element("input", null, { type: "checkbox", checked: view.chosen.includes(run.name) });
    box.setAttribute("aria-label", "choose " + run.name);
    box.onchange = () => {
      view.chosen = view.chosen.filter((name) => name !== run.name).concat(box.checked ? [run.name] : []);
      update();
    };
    tr.append(element("td", null));
    tr.firstChild.style.boxShadow = `inset 5px 0 ${paint(run)}`; // its colour in the plots
    tr.firstChild.append(box);
    for (const column of columns) {
      const td = element("td", column === columns[0] ? null : text(column.value(run)), { className: kind.get(column) });
      if (column === columns[0]) td.append(element("a", run.name, { href: run.link, title: run.label }));
      tr.append(td);
    }
    return tr;
  });
  $("runs").tBodies[0].replaceChildren(...body);
  const unfinished = shown.filter((run) => run.status !== "finished").length;
  $("count").textContent = `${listed.length} of ${runs.length} runs listed, ${shown.length} drawn` +
    (unfinished ? `, ${unfinished} unfinished` : "");
}

const groups = () => {
  const found = new Map();
  for (const run of shown) {
    const key = view.average ? run.key : run.name;
    found.set(key, [...(found.get(key) ?? []), run]);
  }
  return [...found.values()];
};
const label = (group) => {
  if (!view.average) return group[0].name;
  const own = [(run) => run.about.data, (run) => run.network].filter((part) => new Set(shown.map(part)).size > 1);
  const said = [...own.map((part) => part(group[0])), group[0].words].filter(Boolean).join(" ");
  return `${said || group[0].label} (n = ${group.length})`;
};

// One scale of colours over the number compared, where runs beside the baseline have made the same choice on every axis.
// Else every row has its own colour.
function findScale() {
  const key = numbers()[0];
  const others = shown.filter((run) => !run.baseline);
  const choices = new Set(others.map((run) => JSON.stringify(run.axes.map((axis) => [axis, run.about[axis]]))));
  scale = null;
  if (key === undefined || choices.size > 1 || others.some((run) => !(key in run.numbers))) return;
  const all = ofTask().flatMap((run) => run.numbers[key] ?? []);
  scale = { key, low: Math.min(...all), high: Math.max(...all) };
}
const STOPS = { light: [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [220, 210, 50]],
  dark: [[150, 105, 215], [96, 130, 205], [60, 165, 165], [105, 205, 105], [240, 230, 70]] };
const stops = () => STOPS[document.documentElement.dataset.theme];
const colourscale = () => stops().map((c, i) => [i / (stops().length - 1), `rgb(${c.join(",")})`]);
function paint(run, opacity = 1) {
  if (scale === null) return COLOURS[rows.indexOf(run.key) % COLOURS.length] + Math.round(255 * opacity).toString(16).padStart(2, "0");
  const value = run.numbers[scale.key];
  if (value === undefined) return `rgba(128,128,128,${opacity})`; // a baseline that equals none
  const all = stops();
  const x = ((value - scale.low) / (scale.high - scale.low)) * (all.length - 1);
  const i = Math.min(Math.floor(x), all.length - 2);
  const rgb = all[i].map((c, k) => Math.round(c + (x - i) * (all[i + 1][k] - c)));
  return `rgba(${rgb.join(",")},${opacity})`;
}
function dash(run) {
  if (run.baseline) return "dash";
  return scale === null ? ["solid", "dot", "dashdot", "longdash"][Math.floor(rows.indexOf(run.key) / COLOURS.length) % 4] : "solid";
}

function lines(series, crowded) {
  // series: {group, x, ys (one list of values per run), name}
  return series.flatMap(({ group, x, ys, name }) => {
    const y = x.map((_, i) => mean(ys.map((v) => v[i])));
    const spread = x.map((_, i) => sd(ys.map((v) => v[i])));
    const base = { x, name: inert(name), legendgroup: name, type: "scatter", mode: "lines" };
    const line = { color: paint(group[0], crowded ? 0.55 : 1), width: crowded ? 1.2 : 2.2, dash: dash(group[0]) };
    const drawn = [{ ...base, y, line, meta: group.map((r) => r.name), hovertemplate: "%{y:.4g} at %{x}<extra>%{fullData.name}</extra>" }];
    if (ys.length > 1) {
      const edge = { ...base, x: [...x, ...x.slice().reverse()], showlegend: false, hoverinfo: "skip", line: { width: 0 } };
      drawn.push({ ...edge, y: [...y.map((v, i) => v + spread[i]), ...y.map((v, i) => v - spread[i]).reverse()],
        fill: "toself", fillcolor: paint(group[0], crowded ? 0.05 : 0.13) });
    }
    return drawn;
  });
}

function draw(id, traces, xaxis, yaxis, legend = true, colourbar = false, above = {}) {
  const style = getComputedStyle(document.documentElement);
  const [ink, grid] = ["--text", "--grid"].map((name) => style.getPropertyValue(name).trim());
  const axis = { gridcolor: grid, linecolor: grid, zerolinecolor: grid, automargin: true };
  const data = traces.slice();
  if (colourbar && scale !== null) {
    data.push({ x: [null], y: [null], type: "scatter", mode: "markers", showlegend: false, hoverinfo: "skip", meta: "colours",
      marker: { color: [scale.low], cmin: scale.low, cmax: scale.high, colorscale: colourscale(), showscale: true,
        colorbar: { title: { text: inert(titles[scale.key]) }, thickness: 12, outlinewidth: 0 } } });
  }
  const size = innerWidth >= 1800 ? 16 : 13;
  Plotly.react(id, data, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size }, margin: { l: 55, r: 15, t: 46, b: 45 },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, showlegend: legend,
    modebar: { bgcolor: "rgba(0,0,0,0)", color: ink + "60", activecolor: ink }, legend: { x: 0.01, y: 0.99, ...above, bgcolor: "rgba(0,0,0,0)", font: { size: size - 2 } }, hovermode: "closest",
  }, { responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "", modeBarButtonsToRemove: ["lasso2d", "select2d"] });
}

function drawLayers() {
  const series = groups().flatMap((group) => {
    const ys = group.map((run) => run.byLayer[view.layerMetric] ?? []).filter((taken) => taken.length).map((taken) => {
      const until = (last(taken).step * view.when) / 100;
      return last(taken.filter((m, i) => i === 0 || m.step <= until)).layers;
    });
    const depth = Math.min(...ys.map((y) => y.length));
    return ys.length ? [{ group, x: [...Array(depth).keys()], ys, name: label(group) }] : [];
  });
  const crowded = series.length > MANY;
  const values = series.flatMap((s) => s.ys.flat());
  const cosine = view.layerMetric === "cosine";
  const range = cosine ? [Math.min(0, ...values) - 0.02, 1] : [0, 1.05 * Math.max(0, ...values)];
  const title = cosine ? "cosine similarity" : view.layerMetric.replaceAll("_", " ");
  draw("layers", lines(series, crowded), { title: { text: "layer (0 = embedding)" } },
    { title: { text: inert(title) }, range }, !crowded && innerWidth > 700, true);
  $("share").textContent = view.when === 0 ? "at initialisation" : view.when === 100 ? "trained" : `${view.when} % of training`;
}

function drawTraining() {
  const series = groups().flatMap((group) => {
    const having = group.filter((run) => run.curves[view.curve]);
    if (!having.length) return [];
    const length = Math.min(...having.map((run) => run.curves[view.curve][0].length));
    return [{ group: having, x: having[0].curves[view.curve][0].slice(0, length), ys: having.map((run) => run.curves[view.curve][1].slice(0, length)), name: label(group) }];
  });
  const crowded = series.length > MANY;
  draw("training", lines(series, crowded), { title: { text: "step" } }, { title: { text: inert(view.curve) } }, false, true);
}

const judged = () => shown.filter((run) => run.status === "finished" && typeof run.metrics[view.metric] === "number");

// Curves over a number: of runs alike in all else that they are told apart by. Those whose axis is at the baseline, which
// equals one of its values, belong to every curve that is alike in all other axes.
function families(key) {
  const part = (run, axis) => Object.entries(run.about).filter(([k, v]) => head(k) === axis && k !== key && v !== null)
    .map(([k, v]) => (run.labels[k] ? `${run.labels[k]}=` : "") + text(v)).join(" ");
  const parts = (run) => bare({ data: run.about.data, model: run.network }, Object.fromEntries(run.axes.map((axis) => [axis, part(run, axis)])));
  const beside = (parts) => JSON.stringify({ ...parts, [head(key)]: null });
  const found = new Map();
  const add = (name, parts, run) => found.set(name, { parts, members: [...(found.get(name)?.members ?? []), run] });
  const having = judged().filter((run) => key in run.numbers);
  const equal = (run) => run.about[key] === null;
  for (const run of having.filter((run) => !equal(run))) add(JSON.stringify(parts(run)), parts(run), run);
  const curves = [...found];
  for (const run of having.filter(equal)) {
    const own = curves.filter(([, curve]) => beside(curve.parts) === beside(parts(run)));
    if (!own.length) add(JSON.stringify(parts(run)), parts(run), run);
    for (const [name, curve] of own) add(name, curve.parts, run);
  }
  const all = [...found.values()];
  const names = [...new Set(all.flatMap((curve) => Object.keys(curve.parts)))].filter((name) => new Set(all.map((curve) => curve.parts[name])).size > 1);
  return all.map(({ parts, members }) => ({ name: names.map((name) => parts[name]).filter(Boolean).join(" "), members }));
}

function drawAgainst() {
  const key = view.number;
  $("compared").hidden = key === undefined;
  if (key === undefined) return;
  const all = families(key);
  const traces = all.flatMap(({ name, members }, i) => {
    const taken = [...new Set(members.map((run) => run.numbers[key]))].sort((a, b) => a - b);
    const at = taken.map((v) => members.filter((run) => run.numbers[key] === v).map((run) => run.metrics[view.metric]));
    const dots = { x: members.map((run) => run.numbers[key]), y: members.map((run) => run.metrics[view.metric]), meta: members.map((r) => r.name), text: members.map((r) => inert(r.name)),
      type: "scatter", mode: "markers", showlegend: false, marker: { color: COLOURS[i % 6], opacity: 0.45, size: 6 }, hovertemplate: "%{text}: %{y:.4g}<extra></extra>" };
    const line = { x: taken, y: at.map(mean), name: inert(name), type: "scatter", mode: "lines+markers", line: { color: COLOURS[i % 6], width: 2.2 }, marker: { size: 9 },
      error_y: { type: "data", array: at.map(sd), visible: true }, hovertemplate: `mean %{y:.4g}<extra>${inert(titles[key])} = %{x}</extra>` };
    return [dots, line];
  });
  const equal = ofTask().find((run) => run.about[key] === null && key in run.numbers);
  const title = titles[key] + (equal ? ` (${text(equal.numbers[key])}: ${equal.about[head(key)]})` : "");
  draw("against", traces, { title: { text: inert(title) } }, { title: { text: inert(view.metric) } }, all.length > 1 && all.length <= MANY,
    false, { orientation: "h", y: 1, yanchor: "bottom" });
}

function drawScatter() {
  const found = judged().filter((run) => run.final !== null);
  const marker = { color: found.map((run) => paint(run)), size: 10, opacity: 0.85, symbol: found.map((run) => (run.baseline ? "diamond" : "circle")) };
  draw("scatter", [{ x: found.map((r) => r.final), y: found.map((r) => r.metrics[view.metric]), text: found.map((r) => inert(r.name)), meta: found.map((r) => r.name),
    type: "scatter", mode: "markers", marker, hovertemplate: "%{text}<br>%{y:.4g} at %{x:.3f}<extra></extra>" }],
  { title: { text: "similarity after the last layer" } }, { title: { text: inert(view.metric) } }, false, true);
}

function drawDiff() {
  for (const [id, position] of [["left", 0], ["right", 1]]) {
    const before = shown.some((run) => run.name === view[id]) ? view[id] : shown[Math.min(position, shown.length - 1)]?.name;
    $(id).replaceChildren(...shown.map((run) => element("option", run.name, { value: run.name, selected: run.name === before })));
  }
  const [a, b] = ["left", "right"].map((id) => runs.find((run) => run.name === $(id).value));
  const found = [];
  if (a && b) {
    const [x, y] = [a, b].map((run) => bare(run.settings, { seed: run.about.seed }));
    for (const key of [...new Set([...Object.keys(x), ...Object.keys(y)])].sort()) {
      if (JSON.stringify(x[key]) === JSON.stringify(y[key])) continue;
      const tr = element("tr", null);
      tr.append(...[key, x[key], y[key]].map((v) => element("td", v === undefined ? "–" : typeof v === "object" ? JSON.stringify(v) : String(v))));
      found.push(tr);
    }
  }
  const top = element("tr", null);
  top.append(...["setting", a?.name ?? "", b?.name ?? ""].map((text) => element("th", text)));
  $("diff").tHead.replaceChildren(top);
  const same = element("tr", null);
  same.append(element("td", "no difference", { colSpan: 3 }));
  $("diff").tBodies[0].replaceChildren(...(found.length ? found : [same]));
}

function fill(id, options, value, said = bare()) {
  $(id).replaceChildren(...options.map((o) => element("option", said[o] ?? o, { value: o, selected: o === value })));
}

function choices() {
  const count = (task) => runs.filter((run) => run.task === task).length;
  const tasks = [...new Set(runs.map((run) => run.task))].sort((a, b) => count(b) - count(a));
  if (!tasks.includes(view.task)) view.task = tasks[0];
  const some = ofTask();
  const metrics = [...new Set(some.flatMap((run) => Object.keys(run.metrics)))].sort();
  if (!metrics.includes(view.metric)) view.metric = some.map((run) => run.main).find(Boolean) ?? metrics[0];
  const curves = [...new Set(some.flatMap((run) => Object.keys(run.curves)))].sort();
  if (!curves.includes(view.curve)) view.curve = some.map((run) => run.validated).find((name) => curves.includes(name)) ?? curves[0];
  const layerMetrics = [...new Set(some.flatMap((run) => Object.keys(run.byLayer)))].sort();
  if (!layerMetrics.includes(view.layerMetric)) view.layerMetric = "cosine";
  const compared = numbers();
  if (!compared.includes(view.number)) view.number = compared[0];
  findColumns();
  fill("number", compared, view.number, titles);
  fill("layerMetric", layerMetrics, view.layerMetric);
  fill("task", tasks, view.task);
  fill("metric", metrics, view.metric);
  fill("curve", curves, view.curve);
}

function update() {
  choices();
  list();
  rows = [...new Set(ofTask().map((run) => run.key))];
  findScale();
  drawTable();
  drawLayers();
  drawTraining();
  drawAgainst();
  drawScatter();
  drawDiff();
  keep();
}

function setTheme() {
  document.documentElement.dataset.theme = view.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

for (const id of ["task", "metric", "layerMetric", "curve", "number", "left", "right"]) $(id).onchange = () => { view[id] = $(id).value; update(); };
$("filter").value = view.filter;
$("filter").oninput = () => { view.filter = $("filter").value; update(); };
$("clear").onclick = () => { view.chosen = []; update(); };
$("average").checked = view.average;
$("average").onchange = () => { view.average = $("average").checked; update(); };
$("when").value = view.when;
$("when").oninput = () => { view.when = Number($("when").value); drawLayers(); keep(); };
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
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { setTheme(); update(); });
setTheme();
update();
if (reload_s) setTimeout(() => location.reload(), reload_s * 1000);
