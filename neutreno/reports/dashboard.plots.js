// The plots, which show the runs that the table lists, or those that are chosen in it.

const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]; // Okabe & Ito
const MANY = 8; // beyond so many lines a legend hides more than it says
const PLOTS = { layers: drawLayers, training: drawTraining, against: drawAgainst, scatter: drawScatter };

// What follows from the view, see update(): the rows, which have a colour each, and the scale of colours, if there is one.
let rows = [], scale = null;

// Text as Plotly shows it: no tag of its own, no link, no field of a template.
const inert = (v) => String(v ?? "").replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("%{", "%&#123;");
const links = (members) => members.map((run) => run.link);
const judged = () => shown.filter((run) => finished(run) && isNumber(run.metrics[view.metric]));

// One scale of colours over the number compared, where runs beside the baseline have made the same choice on every axis.
// Else every row has its own colour.
function findScale() {
  rows = unique(ofTask().map((run) => run.row));
  const key = numbers()[0];
  const others = shown.filter((run) => !run.baseline);
  const made = new Set(others.map((run) => JSON.stringify(run.axes.map((axis) => [axis, run.about[axis]]))));
  scale = null;
  if (key === undefined || made.size > 1 || others.some((run) => !(key in run.numbers))) return;
  const all = ofTask().flatMap((run) => run.numbers[key] ?? []);
  scale = { key, low: Math.min(...all), high: Math.max(...all) };
}
const STOPS = { light: [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [220, 210, 50]],
  dark: [[150, 105, 215], [96, 130, 205], [60, 165, 165], [105, 205, 105], [240, 230, 70]] };
const stops = () => STOPS[document.documentElement.dataset.theme];
const colourscale = () => stops().map((c, i) => [i / (stops().length - 1), `rgb(${c.join(",")})`]);
function paint(run, opacity = 1) {
  if (scale === null) {
    const alpha = Math.round(255 * opacity).toString(16).padStart(2, "0");
    return COLOURS[rows.indexOf(run.row) % COLOURS.length] + alpha;
  }
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
  return scale === null ? ["solid", "dot", "dashdot", "longdash"][Math.floor(rows.indexOf(run.row) / COLOURS.length) % 4] : "solid";
}

// The runs drawn, in lists that are a curve each: rows over seeds, or single runs; apart where `mark` says so of a run.
const curves = (of, mark = () => "") => by((run) => (view.grouped ? run.row : run.link) + mark(run), shown.filter(of))
  .map((members) => (view.grouped ? counted(members) : members));
const called = (members) => (view.grouped ? `${label(members, shown)} (n = ${members.length})` : members[0].title);

// Mean, spread and number of runs at each x, over the runs that have a value there.
function averaged(points) {
  const at = new Map();
  for (const [x, y] of points.flat()) {
    if (!at.has(x)) at.set(x, []);
    if (y !== null) at.get(x).push(y);
  }
  const x = [...at.keys()].filter((v) => at.get(v).length).sort((a, b) => a - b);
  const found = x.map((v) => at.get(v));
  return { x, y: found.map(mean), spread: found.map(sd), n: found.map((v) => v.length) };
}

// series: {members, name, points (of each run a list of [x, y]), early (not there yet)}
function lines(series) {
  const crowded = series.length > MANY;
  return series.flatMap(({ members, name, points, early }) => {
    const { x, y, spread, n } = averaged(points);
    const colour = (opacity) => paint(members[0], opacity);
    const differs = new Set(n).size > 1;
    const uid = name.replaceAll(/\W/g, (sign) => `_${sign.charCodeAt(0)}`); // Plotly makes a selector of it
    const base = { x, name: inert(name), uid, legendgroup: name, type: "scatter", mode: "lines", meta: links(members) };
    const line = { color: colour(crowded ? 0.55 : 1), width: crowded ? 1.2 : 2.2, dash: early ? "dot" : dash(members[0]) };
    const drawn = [{ ...base, y, customdata: n, line,
      hovertemplate: `%{y:.4g} at %{x}${differs ? " (n = %{customdata})" : ""}<extra>%{fullData.name}</extra>` }];
    if (members.length > 1) {
      const [above, below] = [1, -1].map((sign) => y.map((v, i) => v + sign * spread[i]));
      drawn.push({ ...base, uid: `${uid}_sd`, x: [...x, ...x.slice().reverse()], y: [...above, ...below.reverse()],
        showlegend: false, hoverinfo: "skip", line: { width: 0 }, fill: "toself", fillcolor: colour(crowded ? 0.05 : 0.13) });
    }
    return drawn;
  });
}

// Draw a plot. `of` is what its axes show: where the reader has zoomed in stays while that does.
function draw(id, traces, { of, x, y, range, dtick, legend = true, colourbar = false, above = {} }) {
  const style = getComputedStyle(document.documentElement);
  const [ink, grid, back] = ["--text", "--grid", "--back"].map((name) => style.getPropertyValue(name).trim());
  const data = traces.slice();
  if (colourbar && scale !== null) {
    data.push({ x: [null], y: [null], type: "scatter", mode: "markers", showlegend: false, hoverinfo: "skip", meta: "colours",
      marker: { color: [scale.low], cmin: scale.low, cmax: scale.high, colorscale: colourscale(), showscale: true,
        colorbar: { title: { text: inert(titles[scale.key]) }, thickness: 12, outlinewidth: 0 } } });
  }
  if (view.zoom[id]?.of !== of) view.zoom[id] = { of };
  const axis = (name, title, range) => {
    const zoomed = view.zoom[id][name];
    return { gridcolor: grid, linecolor: grid, zerolinecolor: grid, automargin: true, title: { text: inert(title) },
      uirevision: String(zoomed), ...(zoomed ? { range: zoomed } : range ? { range } : {}) };
  };
  const size = innerWidth >= 1800 ? 16 : 13;
  const begun = "on" in $(id);
  Plotly.react(id, data, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size }, margin: { l: 55, r: 15, t: 46, b: 45 },
    xaxis: { ...axis("xaxis", x), dtick }, yaxis: axis("yaxis", y, range), showlegend: legend, uirevision: of,
    legend: { x: 0.01, y: 0.99, ...above, bgcolor: back + "b0", font: { size: size - 2 } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: ink + "60", activecolor: ink }, hovermode: "closest",
  }, { responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "", doubleClick: "autosize",
    modeBarButtonsToRemove: ["lasso2d", "select2d", "resetScale2d"] });
  if (begun) return;
  $(id).on("plotly_relayout", (change) => keepZoom(id, change));
  $(id).on("plotly_hover", ({ points: [{ data, pointIndex }] }) => light(onPoints(data) ? [data.meta[pointIndex]] : data.meta));
  $(id).on("plotly_unhover", () => light(null));
}

function keepZoom(id, change) {
  for (const name of ["xaxis", "yaxis"]) {
    if (Object.keys(change).some((key) => key.startsWith(`${name}.range`))) view.zoom[id][name] = $(id).layout[name].range.slice();
    if (change[`${name}.autorange`]) delete view.zoom[id][name];
  }
  keep();
  if (change["xaxis.autorange"] || change["yaxis.autorange"]) PLOTS[id]();
}

// Show some runs, by their links, in the table and in every plot more clearly than the others; null: all alike.
let lit = null, soon = null;
const onPoints = (trace) => trace.mode === "markers" && Array.isArray(trace.meta);
function light(some) {
  if (String(some) === String(lit)) return;
  lit = some;
  const has = (own) => lit === null || own.some((link) => lit.includes(link));
  for (const tr of $("runs").tBodies[0].rows) tr.classList.toggle("lit", lit !== null && has(tr.links));
  clearTimeout(soon); // many lines take a while, and the pointer may only be passing
  soon = setTimeout(() => lightPlots(has), 80);
}
function lightPlots(has) {
  for (const id of Object.keys(PLOTS)) {
    const all = [...($(id).data ?? []).entries()];
    const curves = all.filter(([, trace]) => Array.isArray(trace.meta) && !onPoints(trace));
    const points = all.filter(([, trace]) => onPoints(trace));
    const restyle = (key, traces, value) => traces.length
      && Plotly.restyle(id, { [key]: traces.map(([, { meta }]) => value(meta)) }, traces.map(([i]) => i));
    restyle("opacity", curves, (meta) => (has(meta) ? 1 : 0.12));
    restyle("marker.opacity", points, (meta) => meta.map((link) => (has([link]) ? 1 : 0.12)));
  }
}

// The layers of a run as they were at the time chosen, or the latest before it; and how far the run had come, if not there.
function layersAt(run) {
  const taken = run.byLayer[view.layerMetric]?.[view.subset] ?? [];
  const reached = last(taken)?.step;
  const planned = run.planned ?? (finished(run) ? reached : null);
  const until = view.when === 0 ? 0 : planned === null ? Infinity : (planned * view.when) / 100;
  const at = last(taken.filter(({ step }) => step <= until));
  if (at === undefined) return null;
  const there = finished(run) || view.when === 0 || (planned !== null && reached >= until);
  const far = planned === null ? ` at step ${reached}` : ` at ${Math.round((100 * reached) / planned)} %`;
  return { layers: at.layers, mark: there ? "" : far };
}

function drawLayers() {
  const at = new Map(shown.map((run) => [run, layersAt(run)]));
  const series = curves((run) => at.get(run) !== null, (run) => at.get(run).mark).map((members) => {
    const { mark } = at.get(members[0]);
    const points = members.map((run) => [...at.get(run).layers.entries()]);
    return { members, name: called(members) + mark, early: mark !== "", points };
  });
  const found = series.flatMap(({ points }) => points.flat()).map(([, y]) => y);
  const cosine = view.layerMetric === "cosine";
  const title = cosine ? "cosine similarity" : view.layerMetric.replaceAll("_", " ");
  draw("layers", lines(series), { of: `${view.task} ${view.layerMetric} ${view.subset}`, x: "layer (0 = embedding)", y: title,
    dtick: series.some(({ points }) => points[0].length > 20) ? undefined : 1,
    range: cosine ? [Math.min(0, ...found) - 0.02, 1] : [0, 1.05 * Math.max(0, ...found)],
    legend: series.length <= MANY && innerWidth > 700, colourbar: true });
  $("share").textContent = view.when === 0 ? "at initialisation" : view.when === 100 ? "trained" : `${view.when} % of training`;
}

function drawTraining() {
  const series = curves((run) => run.curves[view.curve]).map((members) => ({
    members, name: called(members), points: members.map((run) => {
      const [steps, found] = run.curves[view.curve];
      return steps.map((step, i) => [step, found[i]]);
    }),
  }));
  draw("training", lines(series), { of: `${view.task} ${view.curve}`, x: "step", y: view.curve, legend: false, colourbar: true });
}

// Curves over a number: of runs alike in all else that they are told apart by. Those whose axis is at the baseline, which
// equals one of its values, belong to every curve that is alike in all else, or is compared with them and alike in all
// that has a label; beside none, they stand alone only where all axes are at their baseline.
function families(key) {
  const part = (run, axis) => Object.entries(run.about).filter(([k, v]) => head(k) === axis && k !== key && v !== null)
    .map(([k, v]) => (run.labels[k] ? `${run.labels[k]}=` : "") + text(v)).join(" ");
  const further = (run) => Object.keys(run.further).filter((k) => k !== key).map((k) => `${k}=${text(run.further[k])}`);
  const parts = (run) => bare({ data: run.about.data, model: run.network, further: further(run).join(" ") },
    Object.fromEntries(run.axes.map((axis) => [axis, part(run, axis)])));
  const beside = (a, b, ...but) => Object.keys({ ...a, ...b })
    .every((name) => a[name] === b[name] || [head(key), ...but].includes(name));
  const joins = (run, { parts: own, members }) => beside(own, parts(run))
    || (beside(own, parts(run), "further") && members.some((member) => member.against === run.row));
  const found = new Map();
  const add = (name, parts, run) => found.set(name, { parts, members: [...(found.get(name)?.members ?? []), run] });
  const having = by((run) => run.row, judged().filter((run) => key in run.numbers)).flatMap(counted);
  const equal = (run) => (run.about[key] ?? null) === null;
  for (const run of having.filter((run) => !equal(run))) add(JSON.stringify(parts(run)), parts(run), run);
  const curves = [...found];
  for (const run of having.filter(equal)) {
    const own = curves.filter(([, curve]) => joins(run, curve));
    if (!own.length && run.baseline) add(JSON.stringify(parts(run)), parts(run), run);
    for (const [name, curve] of own) add(name, curve.parts, run);
  }
  const all = [...found.values()];
  const names = unique(all.flatMap((curve) => Object.keys(curve.parts)))
    .filter((name) => new Set(all.map((curve) => curve.parts[name])).size > 1);
  return all.map(({ parts, members }) => ({ name: names.map((name) => parts[name]).filter(Boolean).join(" "), members }));
}

// A marker for each run, see onPoints().
const dots = (members, x, marker, more) => ({ x: members.map(x), y: members.map((run) => run.metrics[view.metric]),
  text: members.map((run) => inert(run.title)), meta: links(members), type: "scatter", mode: "markers", marker, ...more });

function drawAgainst() {
  const key = view.number;
  $("compared").hidden = key === undefined;
  if (key === undefined) return;
  const all = families(key);
  const traces = all.flatMap(({ name, members }, i) => {
    const color = COLOURS[i % COLOURS.length];
    const { x, y, spread } = averaged([members.map((run) => [run.numbers[key], run.metrics[view.metric]])]);
    const line = { x, y, name: inert(name), type: "scatter", mode: "lines+markers", line: { color, width: 2.2 }, marker: { size: 9 },
      error_y: { type: "data", array: spread, visible: true }, hovertemplate: `mean %{y:.4g}<extra>${inert(titles[key])} = %{x}</extra>` };
    const each = { showlegend: false, opacity: 0.45, hovertemplate: "%{text}: %{y:.4g}<extra></extra>" };
    return [dots(members, (run) => run.numbers[key], { color, size: 6 }, each), line];
  });
  const equal = ofTask().find((run) => (run.about[key] ?? null) === null && key in run.numbers);
  const title = titles[key] + (equal ? ` (${text(equal.numbers[key])}: ${equal.about[head(key)]})` : "");
  draw("against", traces, { of: `${view.task} ${view.metric} ${key}`, x: title, y: view.metric,
    legend: all.length > 1 && all.length <= MANY, above: { orientation: "h", y: 1, yanchor: "bottom" } });
}

function drawScatter() {
  const found = judged().filter((run) => run.final !== null);
  const symbol = found.map((run) => (run.baseline ? "diamond" : "circle"));
  const each = { opacity: 0.85, hovertemplate: "%{text}<br>%{y:.4g} at %{x:.3f}<extra></extra>" };
  draw("scatter", [dots(found, (run) => run.final, { color: found.map((run) => paint(run)), size: 10, symbol }, each)],
    { of: `${view.task} ${view.metric}`, x: "similarity after the last layer", y: view.metric, legend: false, colourbar: true });
}
