"use strict";
const { runs, reload_s } = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]; // Okabe & Ito
const MANY = 8; // beyond so many lines a legend hides more than it says

// What the reader chose; kept in the address, so that loading the page anew keeps it.
const view = { filter: "", chosen: [], sort: "name", down: false, average: true, when: 100 };
try { Object.assign(view, JSON.parse(decodeURIComponent(location.hash.slice(1)))); } catch { /* an address of another page */ }
const keep = () => history.replaceState(null, "", "#" + encodeURIComponent(JSON.stringify(view)));

const last = (list) => list[list.length - 1];
const number = (v) => (typeof v === "number" ? String(Number(v.toPrecision(4))) : v ?? "–");
const mean = (v) => v.reduce((a, b) => a + b, 0) / v.length;
const sd = (v) => (v.length < 2 ? 0 : Math.sqrt(v.reduce((s, x) => s + (x - mean(v)) ** 2, 0) / (v.length - 1)));
const lam = (run) => run.lam ?? 0;
for (const run of runs) {
  const similarity = run.measured.cosine ?? [];
  run.final = run.status === "finished" && similarity.length ? last(last(similarity).layers) : null;
  run.key = JSON.stringify([run.data, run.model, run.size, run.attention, run.block, run.lam, run.settings]);
}

const columns = () => ["name", "status", "data", "model", "size", "attention", "lam", "block", "seed", view.metric, "final"];
const titles = { lam: "λ̃", final: "final similarity" };
const cell = (run, column) => (column in run ? run[column] : run.metrics[column]) ?? null;
const ofTask = () => runs.filter((run) => run.task === view.task);

function matches(run) {
  return view.filter.toLowerCase().split(/\s+/).filter(Boolean).every((word) => {
    const [key, value] = word.split("=");
    if (value !== undefined) {
      const found = cell(run, key === "λ̃" ? "lam" : key) ?? run.settings[key];
      return String(found ?? "").toLowerCase() === value;
    }
    return columns().some((column) => String(cell(run, column) ?? "").toLowerCase().includes(word));
  });
}

function listed() {
  const sign = view.down ? -1 : 1;
  return ofTask().filter(matches).sort((a, b) => {
    const [x, y] = [cell(a, view.sort), cell(b, view.sort)];
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true }));
  });
}

function shown() {
  const all = listed();
  const chosen = all.filter((run) => view.chosen.includes(run.name));
  return chosen.length ? chosen : all;
}

function element(name, text, more = {}) {
  const made = Object.assign(document.createElement(name), more);
  if (text !== null) made.textContent = text;
  return made;
}

function drawTable() {
  const head = element("tr", null);
  head.append(element("th", "✓"));
  for (const column of columns()) {
    const arrow = column === view.sort ? (view.down ? " ▾" : " ▴") : "";
    const numeric = ["lam", "seed", "final", view.metric].includes(column);
    const th = element("th", (titles[column] ?? column ?? "metric") + arrow, { className: numeric ? "number" : "" });
    th.onclick = () => { view.down = view.sort === column && !view.down; view.sort = column; update(); };
    head.append(th);
  }
  $("runs").tHead.replaceChildren(head);
  const many = mixed();
  const rows = listed().map((run) => {
    const tr = element("tr", null);
    const mark = many ? own(order().indexOf(run.key)) : colour(lam(run));
    const box = element("input", null, { type: "checkbox", checked: view.chosen.includes(run.name) });
    box.setAttribute("aria-label", "choose " + run.name);
    box.onchange = () => {
      view.chosen = view.chosen.filter((name) => name !== run.name).concat(box.checked ? [run.name] : []);
      update();
    };
    tr.append(element("td", null));
    tr.firstChild.style.boxShadow = `inset 5px 0 ${mark}`; // its colour in the plots
    tr.firstChild.append(box);
    for (const column of columns()) {
      const value = cell(run, column);
      const td = element("td", column === "name" ? null : number(value), { className: typeof value === "number" ? "number" : "" });
      if (column === "name") td.append(element("a", run.name, { href: run.link }));
      tr.append(td);
    }
    return tr;
  });
  $("runs").tBodies[0].replaceChildren(...rows);
  const some = shown();
  $("count").textContent = `${rows.length} of ${runs.length} runs listed, ${some.length} drawn` +
    (some.some((run) => run.status !== "finished") ? `, ${some.filter((run) => run.status !== "finished").length} unfinished` : "");
}

const groups = () => {
  const found = new Map();
  for (const run of shown()) {
    const key = view.average ? run.key : run.name;
    found.set(key, [...(found.get(key) ?? []), run]);
  }
  return [...found.values()];
};
const label = (group) => {
  if (!view.average) return group[0].name;
  const r = group[0];
  const block = r.block === "plain" ? "" : ` + ${r.block}`;
  const strength = r.lam === null ? "" : ` λ̃=${r.lam}`;
  const network = (run) => `${run.data} ${run.model}-${run.size} `;
  const common = shown().every((run) => network(run) === network(r));
  return `${common ? "" : network(r)}${r.attention}${strength}${block} (n = ${group.length})`;
};

// Where attention or block differ beyond λ̃, every row has a colour of its own.
const cure = (run) => [["softmax", "neutreno"].includes(run.attention) ? "" : run.attention, run.block === "plain" ? "" : run.block].filter(Boolean).join(" + ");
const mixed = () => new Set(shown().map(cure)).size > 1;
const order = () => [...new Set(ofTask().map((run) => run.key))];
const own = (i, opacity = 1) => COLOURS[i % COLOURS.length] + Math.round(255 * opacity).toString(16).padStart(2, "0");

// Else one scale of colours over λ̃; softmax is λ̃ = 0 and dashed.
function scale() {
  const all = ofTask().map(lam);
  return [Math.min(...all), Math.max(...all)];
}
const STOPS = { light: [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [220, 210, 50]],
  dark: [[150, 105, 215], [96, 130, 205], [60, 165, 165], [105, 205, 105], [240, 230, 70]] };
const stops = () => STOPS[document.documentElement.dataset.theme];
function colour(value, opacity = 1) {
  const [low, high] = scale();
  const all = stops();
  const x = high > low ? ((value - low) / (high - low)) * (all.length - 1) : 1;
  const i = Math.min(Math.floor(x), all.length - 2);
  const rgb = all[i].map((c, k) => Math.round(c + (x - i) * (all[i + 1][k] - c)));
  return `rgba(${rgb.join(",")},${opacity})`;
}
const colourscale = () => stops().map((c, i) => [i / (stops().length - 1), `rgb(${c.join(",")})`]);

function lines(series, crowded) {
  // series: {group, x, ys (one list of values per run), name}
  const many = mixed();
  return series.flatMap(({ group, x, ys, name }) => {
    const i = order().indexOf(many ? group[0].key : null);
    const paint = (opacity) => (many ? own(i, opacity) : colour(lam(group[0]), opacity));
    const y = x.map((_, i) => mean(ys.map((v) => v[i])));
    const spread = x.map((_, i) => sd(ys.map((v) => v[i])));
    const base = { x, name, legendgroup: name, type: "scatter", mode: "lines" };
    const dashes = ["solid", "dash", "dot", "dashdot"];
    const line = { color: paint(crowded ? 0.55 : 1), width: crowded ? 1.2 : 2.2,
      dash: many ? dashes[Math.floor(i / COLOURS.length) % 4] : group[0].attention === "softmax" ? "dash" : "solid" };
    const drawn = [{ ...base, y, line, meta: group.map((r) => r.name), hovertemplate: "%{y:.4g} at %{x}<extra>%{fullData.name}</extra>" }];
    if (ys.length > 1) {
      const edge = { ...base, x: [...x, ...x.slice().reverse()], showlegend: false, hoverinfo: "skip", line: { width: 0 } };
      drawn.push({ ...edge, y: [...y.map((v, i) => v + spread[i]), ...y.map((v, i) => v - spread[i]).reverse()],
        fill: "toself", fillcolor: paint(crowded ? 0.05 : 0.13) });
    }
    return drawn;
  });
}

function draw(id, traces, xaxis, yaxis, legend = true, colourbar = false) {
  const style = getComputedStyle(document.documentElement);
  const [text, grid] = ["--text", "--grid"].map((name) => style.getPropertyValue(name).trim());
  const axis = { gridcolor: grid, linecolor: grid, zerolinecolor: grid, automargin: true };
  const data = traces.slice();
  if (colourbar && !mixed() && scale()[1] > scale()[0]) {
    data.push({ x: [null], y: [null], type: "scatter", mode: "markers", showlegend: false, hoverinfo: "skip", meta: "colours",
      marker: { color: [scale()[0]], cmin: scale()[0], cmax: scale()[1], colorscale: colourscale(), showscale: true,
        colorbar: { title: { text: "λ̃" }, thickness: 12, outlinewidth: 0 } } });
  }
  const size = innerWidth >= 1800 ? 16 : 13;
  Plotly.react(id, data, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: text, size }, margin: { l: 55, r: 15, t: 10, b: 45 },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, showlegend: legend,
    modebar: { bgcolor: "rgba(0,0,0,0)" }, legend: { x: 0.01, y: 0.99, bgcolor: "rgba(0,0,0,0)", font: { size: size - 2 } }, hovermode: "closest",
  }, { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] });
}

function drawLayers() {
  const series = groups().flatMap((group) => {
    const ys = group.map((run) => run.measured[view.measure] ?? []).filter((taken) => taken.length).map((taken) => {
      const until = (last(taken).step * view.when) / 100;
      return last(taken.filter((m, i) => i === 0 || m.step <= until)).layers;
    });
    const depth = Math.min(...ys.map((y) => y.length));
    return ys.length ? [{ group, x: [...Array(depth).keys()], ys, name: label(group) }] : [];
  });
  const crowded = series.length > MANY;
  const values = series.flatMap((s) => s.ys.flat());
  const cosine = view.measure === "cosine";
  const range = cosine ? [Math.min(0, ...values) - 0.02, 1] : [0, 1.05 * Math.max(0, ...values)];
  const title = cosine ? "cosine similarity" : view.measure.replaceAll("_", " ");
  draw("layers", lines(series, crowded), { title: { text: "layer (0 = embedding)" } },
    { title: { text: title }, range }, !crowded && innerWidth > 700, true);
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
  draw("training", lines(series, crowded), { title: { text: "step" } }, { title: { text: view.curve } }, false, true);
}

const rowName = (run) => [run.data, `${run.model}-${run.size}`, cure(run)].filter(Boolean).join(" ");
function judged() {
  return shown().filter((run) => run.status === "finished" && typeof run.metrics[view.metric] === "number");
}

function drawLambda() {
  const families = [...new Set(judged().map(rowName))];
  const traces = families.flatMap((name, i) => {
    const members = judged().filter((run) => rowName(run) === name);
    const lams = [...new Set(members.map(lam))].sort((a, b) => a - b);
    const at = lams.map((l) => members.filter((run) => lam(run) === l).map((run) => run.metrics[view.metric]));
    const dots = { x: members.map(lam), y: members.map((run) => run.metrics[view.metric]), meta: members.map((r) => r.name), text: members.map((r) => r.name),
      type: "scatter", mode: "markers", showlegend: false, marker: { color: COLOURS[i % 6], opacity: 0.45, size: 6 }, hovertemplate: "%{text}: %{y:.4g}<extra></extra>" };
    const line = { x: lams, y: at.map(mean), name, type: "scatter", mode: "lines+markers", line: { color: COLOURS[i % 6], width: 2.2 }, marker: { size: 9 },
      error_y: { type: "data", array: at.map(sd), visible: true }, hovertemplate: "mean %{y:.4g}<extra>λ̃ = %{x}</extra>" };
    return [dots, line];
  });
  draw("lambda", traces, { title: { text: "λ̃" } }, { title: { text: view.metric } }, families.length > 1 && families.length <= MANY);
}

function drawScatter() {
  const found = judged().filter((run) => run.final !== null);
  const [cmin, cmax] = scale();
  const many = mixed();
  const marker = { color: found.map((run) => (many ? own(order().indexOf(run.key)) : lam(run))), cmin, cmax, colorscale: colourscale(), size: 10, opacity: 0.85, showscale: !many && cmax > cmin,
    colorbar: { title: { text: "λ̃" }, thickness: 12, outlinewidth: 0 }, symbol: found.map((run) => (run.attention === "softmax" ? "diamond" : "circle")) };
  draw("scatter", [{ x: found.map((r) => r.final), y: found.map((r) => r.metrics[view.metric]), text: found.map((r) => r.name), meta: found.map((r) => r.name),
    type: "scatter", mode: "markers", marker, hovertemplate: "%{text}<br>%{y:.4g} at %{x:.3f}<extra></extra>" }],
  { title: { text: "similarity after the last layer" } }, { title: { text: view.metric } }, false);
}

function drawDiff() {
  const some = shown();
  for (const [id, position] of [["left", 0], ["right", 1]]) {
    const before = some.some((run) => run.name === view[id]) ? view[id] : some[Math.min(position, some.length - 1)]?.name;
    $(id).replaceChildren(...some.map((run) => element("option", run.name, { value: run.name, selected: run.name === before })));
  }
  const [a, b] = ["left", "right"].map((id) => runs.find((run) => run.name === $(id).value));
  const rows = [];
  if (a && b) {
    const [x, y] = [a, b].map((run) => ({ ...run.settings, seed: run.seed }));
    for (const key of [...new Set([...Object.keys(x), ...Object.keys(y)])].sort()) {
      if (JSON.stringify(x[key]) === JSON.stringify(y[key])) continue;
      const tr = element("tr", null);
      tr.append(...[key, x[key], y[key]].map((v) => element("td", v === undefined ? "–" : typeof v === "object" ? JSON.stringify(v) : String(v))));
      rows.push(tr);
    }
  }
  const head = element("tr", null);
  head.append(...["setting", a?.name ?? "", b?.name ?? ""].map((text) => element("th", text)));
  $("diff").tHead.replaceChildren(head);
  const same = element("tr", null);
  same.append(element("td", "no difference", { colSpan: 3 }));
  $("diff").tBodies[0].replaceChildren(...(rows.length ? rows : [same]));
}

function fill(id, options, value) {
  $(id).replaceChildren(...options.map((o) => element("option", o, { value: o, selected: o === value })));
}

function choices() {
  const count = (task) => runs.filter((run) => run.task === task).length;
  const tasks = [...new Set(runs.map((run) => run.task))].sort((a, b) => count(b) - count(a));
  if (!tasks.includes(view.task)) view.task = tasks[0];
  const some = ofTask();
  const metrics = [...new Set(some.flatMap((run) => Object.keys(run.metrics)))].sort();
  if (!metrics.includes(view.metric)) view.metric = some.map((run) => run.main).find(Boolean) ?? metrics[0];
  const curves = [...new Set(some.flatMap((run) => Object.keys(run.curves)))].sort();
  if (!curves.includes(view.curve)) view.curve = curves.find((c) => /^val\/(top1|miou|ppl)$/.test(c)) ?? curves[0];
  const measures = [...new Set(some.flatMap((run) => Object.keys(run.measured)))].sort();
  if (!measures.includes(view.measure)) view.measure = "cosine";
  fill("measure", measures, view.measure);
  fill("task", tasks, view.task);
  fill("metric", metrics, view.metric);
  fill("curve", curves, view.curve);
}

function update() {
  choices();
  drawTable();
  drawLayers();
  drawTraining();
  drawLambda();
  drawScatter();
  drawDiff();
  keep();
}

function setTheme() {
  document.documentElement.dataset.theme = view.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

for (const id of ["task", "metric", "measure", "curve", "left", "right"]) $(id).onchange = () => { view[id] = $(id).value; update(); };
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
