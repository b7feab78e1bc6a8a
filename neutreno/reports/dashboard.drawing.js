// What all plots share: the runs that they show, colours, curves with a spread, axes, zoom, and what lights up together.

const MANY = 8; // beyond so many lines a legend hides more than it says

// What follows from the view, see update(): the scale of colours, if there is one.
let scale = null;

// Text as Plotly shows it: no tag of its own, no link, no field of a template.
const inert = (v) => String(v ?? "").replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("%{", "%&#123;");
const links = (members) => members.map((run) => run.link);
const judged = () => shown.filter((run) => finished(run) && isNumber(run.metrics[view.metric]));

// One scale of colours over the number compared, where runs beside the baseline have made the same choice on every axis and
// their rows differ in that number. Else every run has the style of its method.
function findScale() {
  const key = labelled()[0];
  const others = shown.filter((run) => !run.baseline);
  const made = new Set(others.map((run) => JSON.stringify(run.axes.map((axis) => [axis, run.about[axis]]))));
  const alike = new Set(others.map((run) => run.row)).size > new Set(others.map((run) => run.numbers[key])).size;
  scale = null;
  if (alike || key === undefined || made.size > 1 || others.some((run) => !(key in run.numbers))) return;
  const all = ofTask().flatMap((run) => run.numbers[key] ?? []);
  scale = { key, low: Math.min(...all), high: Math.max(...all) };
}
const STOPS = { light: [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [220, 210, 50]],
  dark: [[150, 105, 215], [96, 130, 205], [60, 165, 165], [105, 205, 105], [240, 230, 70]] };
const theme = () => document.documentElement.dataset.theme;
const stops = () => STOPS[theme()];
const colourscale = () => stops().map((c, i) => [i / (stops().length - 1), `rgb(${c.join(",")})`]);
function paint(run, opacity = 1) {
  if (scale === null) {
    const alpha = Math.round(255 * opacity).toString(16).padStart(2, "0");
    return run.style.colour[theme()] + alpha;
  }
  const value = run.numbers[scale.key];
  if (value === undefined) return `rgba(128,128,128,${opacity})`; // a baseline that equals none
  const all = stops();
  const x = ((value - scale.low) / (scale.high - scale.low)) * (all.length - 1);
  const i = Math.min(Math.floor(x), all.length - 2);
  const rgb = all[i].map((c, k) => Math.round(c + (x - i) * (all[i + 1][k] - c)));
  return `rgba(${rgb.join(",")},${opacity})`;
}
const dash = (run) => (scale === null ? run.style.dash : run.baseline ? "dash" : "solid");
const symbol = (run) => (scale === null ? run.style.symbol : run.baseline ? "diamond" : "circle");

// The runs drawn, in lists that are a curve each: rows over seeds, or single runs; apart where `mark` says so of a run.
const curves = (of, mark = () => "") => by((run) => (view.grouped ? run.row : run.link) + mark(run), shown.filter(of))
  .map((members) => (view.grouped ? counted(members) : members));
const called = (members) => (view.grouped ? `${label(members, shown)} (n = ${members.length})` : members[0].title);

// Mean, spread and number of runs at each of the keys (steps, layers, …), over the runs that have a value there; points are
// [key, value], or [key, value, x] where runs come to a key at another x each.
function averaged(points) {
  const at = new Map();
  for (const [key, y, x] of points.flat()) {
    if (!at.has(key)) at.set(key, []);
    if (y !== null) at.get(key).push({ x, y });
  }
  const keys = [...at.keys()].filter((key) => at.get(key).length).sort((a, b) => a - b);
  const found = keys.map((key) => at.get(key));
  const ys = found.map((own) => own.map(({ y }) => y));
  const x = found.map((own, i) => (own[0].x === undefined ? keys[i] : mean(own.map(({ x }) => x))));
  return { x, y: ys.map(mean), spread: ys.map(sd), n: ys.map((v) => v.length) };
}

// Exponential smoothing, unbiased: the weights of the values so far add up to 1 from the first on.
function smoothed(values, weight) {
  let [sum, weights] = [0, 0];
  return values.map((v) => {
    [sum, weights] = [weight * sum + (1 - weight) * v, weight * weights + (1 - weight)];
    return sum / weights;
  });
}

// series: {members, name, points (of each run, see averaged()), early (not there yet)}; panel: which of several, see draw().
function lines(id, series, { panel = 0, weight = 0 } = {}) {
  const crowded = series.length > MANY;
  return series.flatMap(({ members, name, points, early }) => {
    const { x, y: raw, spread: apart, n } = averaged(points);
    const [y, spread] = [raw, apart].map((values) => smoothed(values, weight));
    const colour = (opacity) => paint(members[0], opacity);
    const differs = new Set(n).size > 1;
    const uid = name.replaceAll(/\W/g, (sign) => `_${sign.charCodeAt(0)}`) + panel; // Plotly makes a selector of it
    const base = { x, name: inert(name), uid, legendgroup: name, type: "scatter", mode: "lines", meta: links(members),
      yaxis: axisAt("y", panel) };
    const line = { color: colour(crowded ? 0.55 : 1), width: crowded ? 1.2 : 2.2, dash: early ? "dot" : dash(members[0]) };
    const drawn = [{ ...base, y, customdata: n, line,
      hovertemplate: `%{y:.4g} at %{x}${differs ? " (n = %{customdata})" : ""}<extra>%{fullData.name}</extra>` }];
    const behind = { ...base, name: "", showlegend: false, hoverinfo: "skip" };
    if (weight) drawn.push({ ...behind, uid: `${uid}_raw`, y: raw, line: { color: colour(crowded ? 0.1 : 0.3), width: 1 } });
    if (members.length > 1) {
      const least = isLog(id, "y") ? Math.min(...y.filter((v) => v > 0)) : -Infinity; // below it a band has no end
      const [above, below] = [1, -1].map((sign) => y.map((v, i) => Math.max(v + sign * spread[i], least)));
      drawn.push({ ...behind, uid: `${uid}_sd`, x: [...x, ...x.slice().reverse()], y: [...above, ...below.reverse()],
        line: { width: 0 }, fill: "toself", fillcolor: colour(crowded ? 0.05 : 0.13) });
    }
    return drawn;
  });
}

const axisAt = (letter, panel) => letter + (panel ? panel + 1 : "");
const isLog = (id, letter) => new RegExp(`^log .*${letter}`).test(view.axes[id]);

// Draw a plot. `of` is what its axes show: where the reader has zoomed in stays while that does. `panels`, one above the
// other over one x: {title, above (a heading), range, axis (more of Plotly's)}.
function draw(id, traces, { of, x, xaxis = {}, panels, legend = true, colourbar = false, layout = {} }) {
  const style = getComputedStyle(document.documentElement);
  const [ink, grid, back] = ["--text", "--grid", "--back"].map((name) => style.getPropertyValue(name).trim());
  const data = traces.slice();
  if (colourbar && scale !== null) {
    data.push({ x: [null], y: [null], type: "scatter", mode: "markers", showlegend: false, hoverinfo: "skip", meta: "colours",
      marker: { color: [scale.low], cmin: scale.low, cmax: scale.high, colorscale: colourscale(), showscale: true,
        colorbar: { title: { text: inert(titles[scale.key]) }, thickness: 12, outlinewidth: 0 } } });
  }
  const seen = `${of} ${view.axes[id]}`;
  if (view.zoom[id]?.of !== seen) view.zoom[id] = { of: seen };
  const axis = (name, title, range, more) => {
    const zoomed = view.zoom[id][name], log = isLog(id, name[0]);
    return { gridcolor: grid, linecolor: grid, zerolinecolor: grid, automargin: true, title: { text: inert(title) },
      type: log ? "log" : "linear", uirevision: String(zoomed), ...(zoomed ? { range: zoomed } : range && !log ? { range } : {}), ...more };
  };
  const gap = panels.length > 1 ? (panels.some(({ above }) => above) ? 0.36 : 0.2) / panels.length : 0;
  const size = innerWidth >= 1800 ? 16 : 13, high = (1 + gap) / panels.length - gap;
  const top = (i) => 1 - i * (high + gap);
  const yaxes = Object.fromEntries(panels.map(({ title, range, axis: more }, i) => {
    const name = axisAt("yaxis", i);
    return [name, axis(name, title, range, { domain: [Math.max(0, top(i) - high), top(i)], ...more })];
  }));
  const headings = panels.flatMap(({ above }, i) => (above ? [{ text: inert(above), x: 0, y: top(i), xref: "paper", yref: "paper",
    xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: size - 1 } }] : []));
  $(id).style.height = panels.length > 1 ? `${6 + 10 * panels.length}rem` : "";
  const begun = "on" in $(id);
  Plotly.react(id, data, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size }, margin: { l: 55, r: 15, t: 64, b: 45 },
    xaxis: axis("xaxis", x, null, { anchor: axisAt("y", panels.length - 1), ...xaxis }), ...yaxes, annotations: headings,
    showlegend: legend, uirevision: seen, hovermode: "closest", ...layout,
    legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", bgcolor: back + "b0", font: { size: size - 2 } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: ink + "60", activecolor: ink },
  }, { responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "", doubleClick: "autosize",
    modeBarButtonsToRemove: ["lasso2d", "select2d", "resetScale2d"] });
  if (begun) return;
  $(id).on("plotly_relayout", (change) => keepZoom(id, change));
  $(id).on("plotly_hover", ({ points: [{ data, pointIndex }] }) => light(onPoints(data) ? [data.meta[pointIndex]] : data.meta));
  $(id).on("plotly_unhover", () => light(null));
}

function keepZoom(id, change) {
  const changed = Object.keys(change).map((key) => /^([xy]axis\d*)\.(range|autorange)/.exec(key)).filter(Boolean);
  for (const [, name, what] of changed) {
    if (what === "range") view.zoom[id][name] = $(id).layout[name].range.slice();
    else delete view.zoom[id][name];
  }
  keep();
  if (changed.some(([, , what]) => what === "autorange")) PLOTS[id].draw();
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
  for (const { id } of document.querySelectorAll(".plot")) {
    const all = [...($(id).data ?? []).entries()];
    const curves = all.filter(([, trace]) => Array.isArray(trace.meta) && !onPoints(trace));
    const points = all.filter(([, trace]) => onPoints(trace));
    const restyle = (key, traces, value) => traces.length
      && Plotly.restyle(id, { [key]: traces.map(([, { meta }]) => value(meta)) }, traces.map(([i]) => i));
    restyle("opacity", curves, (meta) => (has(meta) ? 1 : 0.12));
    restyle("marker.opacity", points, (meta) => meta.map((link) => (has([link]) ? 1 : 0.12)));
  }
}

