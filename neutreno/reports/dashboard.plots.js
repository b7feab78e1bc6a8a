// The plots, one by one: of the runs that the table lists, or of those that are chosen in it.

// Each with what its button says, whether the runs shown have anything for it, and what draws it.
const anyOf = (of) => shown.some((run) => Object.keys(of(run)).length);
const PLOTS = {
  layers: { said: "tokens by layer", any: () => anyOf((run) => run.byLayer), draw: drawLayers },
  training: { said: "training", any: () => anyOf((run) => run.curves), draw: drawTraining },
  against: { said: "metric against a setting", any: () => numbers().some((key) => judged().some((run) => isNumber(numberOf(run, key)))),
    draw: drawAgainst },
  scatter: { said: "metric against similarity", any: () => judged().some((run) => run.final !== null), draw: drawScatter },
  parallel: { said: "all settings that vary", any: () => variedLines().settings.length > 1, draw: drawParallel },
  settings: { said: "settings that differ", any: () => shown.length > 1, draw: drawSettings },
  pictures: { said: "pictures", any: () => anyOf((run) => run.pictures), draw: drawPictures },
};

// The layers of a run as they were at the time chosen, or the latest before it; and how far the run had come, if not there.
function layersAt(run) {
  const reached = last(taken(run))?.step;
  const planned = run.planned ?? (finished(run) ? reached : null);
  const until = view.when === 0 ? 0 : planned === null ? Infinity : (planned * view.when) / 100;
  const at = last(taken(run).filter(({ step }) => step <= until));
  if (at === undefined) return null;
  const there = finished(run) || view.when === 0 || (planned !== null && reached >= until);
  const far = planned === null ? ` at step ${reached}` : ` at ${Math.round((100 * reached) / planned)} %`;
  return { layers: at.layers, mark: there ? "" : far };
}

const taken = (run) => run.byLayer[view.layerMetric]?.[view.subset] ?? [];
const TIMES = 3; // measured less often, layers are no map
function drawLayers() {
  const kinds = shown.some((run) => taken(run).length >= TIMES) ? ["curves", "map"] : ["curves"];
  fill("layersAs", kinds);
  $("layersAs").hidden = kinds.length < 2;
  const map = $("layersAs").value !== "curves";
  $("slider").hidden = map;
  (map ? drawMap : drawLayerCurves)(view.layerMetric.replaceAll("_", " "));
}

function drawLayerCurves(metric) {
  const at = new Map(shown.map((run) => [run, layersAt(run)]));
  const series = curves((run) => at.get(run) !== null, (run) => at.get(run).mark).map((members) => {
    const { mark } = at.get(members[0]);
    const points = members.map((run) => [...at.get(run).layers.entries()]);
    return { members, name: called(members) + mark, early: mark !== "", points };
  });
  const found = series.flatMap(({ points }) => points.flat()).map(([, y]) => y);
  const cosine = view.layerMetric === "cosine";
  const range = cosine ? [Math.min(0, ...found) - 0.02, 1] : [0, 1.05 * Math.max(0, ...found)];
  draw("layers", lines("layers", series), { of: `${view.task} ${view.layerMetric} ${view.subset}`, x: "layer (0 = embedding)",
    xaxis: { dtick: series.some(({ points }) => points[0].length > 20) ? undefined : 1 },
    panels: [{ title: cosine ? "cosine similarity" : metric, range }], colourbar: true,
    legend: series.length <= MANY && innerWidth > 700 });
  $("share").textContent = view.when === 0 ? "at initialisation" : view.when === 100 ? "trained" : `${view.when} % of training`;
}

// Layers over steps: a map for each row, of means over seeds, or for each run.
const MOST_MAPS = 6;
function drawMap(metric) {
  const all = curves((run) => taken(run).length >= TIMES), some = all.slice(0, MOST_MAPS);
  const traces = some.map((members, panel) => {
    const layers = [...taken(members[0])[0].layers.keys()];
    const at = (layer) => (run) => taken(run).map(({ step, layers }) => [step, layers[layer] ?? null]);
    const rows = layers.map((layer) => averaged(members.map(at(layer))));
    const from = rows[0].x.findIndex((step) => step > 0 || !isLog("layers", "x"));
    return { type: "heatmap", x: rows[0].x.slice(from), y: layers, z: rows.map(({ y }) => y.slice(from)),
      coloraxis: "coloraxis", yaxis: axisAt("y", panel), meta: links(members), name: inert(called(members)),
      hovertemplate: "%{z:.4g} at step %{x}, layer %{y}<extra>%{fullData.name}</extra>" };
  });
  const left = all.length - some.length;
  const heading = (members, i) => called(members) + (left && i === some.length - 1 ? ` – ${left} more: choose in the table` : "");
  draw("layers", traces, { of: `${view.task} map ${view.subset}`, x: "step", legend: false,
    panels: some.map((members, i) => ({ title: "layer", above: heading(members, i), axis: { type: "linear" } })),
    layout: { coloraxis: { colorscale: colourscale(), colorbar: { title: { text: inert(metric) }, thickness: 12, outlinewidth: 0 } } } });
}

// What training curves may be drawn over: of a run, a function of the step; null where it does not say.
const OVER = {
  step: () => (step) => step,
  epoch: (run) => run.epoch && ((step) => step / run.epoch),
  time: (run) => run.clock && ((step) => between(run.clock, step)),
};
function between([steps, values], step) {
  const i = Math.max(1, steps.findIndex((other) => other >= step));
  if (steps.length < 2) return values[0];
  return values[i - 1] + ((values[i] - values[i - 1]) * (step - steps[i - 1])) / (steps[i] - steps[i - 1]);
}
const UNITS = [["h", 3600], ["min", 60], ["s", 1]];

function drawTraining() {
  const trained = shown.filter((run) => view.curves.some((name) => name in run.curves));
  fill("over", Object.keys(OVER).filter((name) => trained.every(OVER[name])));
  const over = $("over").value;
  const longest = Math.max(...trained.map((run) => last(run.clock?.[1] ?? [0])));
  const [unit, seconds] = over === "time" ? UNITS.find(([, s]) => longest > 2 * s) ?? last(UNITS) : ["", 1];
  const traces = view.curves.flatMap((name, panel) => lines("training", curves((run) => run.curves[name]).map((members) => ({
    members, name: called(members), points: members.map((run) => {
      const [steps, found] = run.curves[name];
      const x = OVER[over](run);
      return steps.map((step, i) => (over === "step" ? [step, found[i]] : [step, found[i], x(step) / seconds]));
    }),
  })), { panel, weight: view.smooth }));
  draw("training", traces, { of: `${view.task} ${view.curves} ${over}`, x: unit ? `${over} (${unit})` : over,
    panels: view.curves.map((title) => ({ title })), legend: false, colourbar: true });
}

// Curves over a number: of runs alike in all else that they are told apart by. Those whose axis is at the baseline, which
// equals one of its values, belong to every curve that is alike in all else, or is compared with them and alike in all
// that has a label; beside none, they stand alone only where all axes are at their baseline.
function families(key) {
  const part = (run, axis) => Object.entries(run.about).filter(([k, v]) => head(k) === axis && k !== key && v !== null)
    .map(([k, v]) => (run.labels[k] ? `${run.labels[k]}=` : "") + text(v)).join(" ");
  const further = (run) => Object.entries(run.further).filter(([k, v]) => k !== key && v !== null)
    .map(([k, v]) => `${titles[k]}=${text(v)}`);
  const heads = (run) => unique(Object.keys(run.about).map(head)).filter((name) => name !== "seed");
  const parts = (run) => bare(Object.fromEntries(heads(run).map((name) => [name, part(run, name)])), { further: further(run).join(" ") });
  const beside = (a, b, ...but) => Object.keys({ ...a, ...b })
    .every((name) => a[name] === b[name] || [head(key), ...but].includes(name));
  const joins = (run, { parts: own, members }) => beside(own, parts(run))
    || (beside(own, parts(run), "further") && members.some((member) => member.against === run.row));
  const found = new Map();
  const add = (name, parts, run) => found.set(name, { parts, members: [...(found.get(name)?.members ?? []), run] });
  const having = by((run) => run.row, judged().filter((run) => numberOf(run, key) !== undefined)).flatMap(counted);
  const equal = (run) => key in run.numbers && (run.about[key] ?? null) === null;
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
  const all = families(key);
  const traces = all.flatMap(({ name, members }) => {
    const { style } = members[0], color = style.colour[theme()];
    const { x, y, spread } = averaged([members.map((run) => [numberOf(run, key), run.metrics[view.metric]])]);
    const line = { x, y, name: inert(name), type: "scatter", mode: "lines+markers", line: { color, width: 2.2, dash: style.dash },
      marker: { size: 9, symbol: style.symbol }, error_y: { type: "data", array: spread, visible: true },
      hovertemplate: `mean %{y:.4g}<extra>${inert(titles[key])} = %{x}</extra>` };
    const each = { showlegend: false, opacity: 0.45, hovertemplate: "%{text}: %{y:.4g}<extra></extra>" };
    return [dots(members, (run) => numberOf(run, key), { color, size: 6 }, each), line];
  });
  const equal = ofTask().find((run) => (run.about[key] ?? null) === null && key in run.numbers);
  const title = titles[key] + (equal ? ` (${text(equal.numbers[key])}: ${equal.about[head(key)]})` : "");
  draw("against", traces, { of: `${view.task} ${view.metric} ${key}`, x: title, panels: [{ title: view.metric }],
    legend: all.length > 1 && all.length <= MANY });
}

function drawScatter() {
  const groups = by((run) => run.row, judged().filter((run) => run.final !== null));
  const traces = groups.map((members) => dots(members, (run) => run.final,
    { color: paint(members[0]), size: 10, symbol: symbol(members[0]) },
    { name: inert(label(members, shown)), opacity: 0.85, hovertemplate: "%{text}<br>%{y:.4g} at %{x:.3f}<extra></extra>" }));
  draw("scatter", traces, { of: `${view.task} ${view.metric}`, x: "similarity after the last layer", panels: [{ title: view.metric }],
    legend: groups.length > 1 && groups.length <= MANY, colourbar: true });
}

// Rows over seeds, or runs, with the settings in which they differ and their figures, from the columns of the table.
function variedLines() {
  const all = view.grouped ? by((run) => run.row, shown).map(rowOf) : shown.map(lineOf);
  const axis = ({ title, cell }) => ({ title, values: all.map((line) => cell(line)?.value ?? null) });
  const found = (which) => columns.filter(which).map(axis).filter(({ values }) => new Set(values.map(text)).size > 1);
  const settings = found((column) => column.setting && column.grouped !== !view.grouped);
  return { all, settings, figures: all.some(isEvent) ? [] : found((column) => column.figure) };
}

// Parallel coordinates: values of a setting at equal distances, as they were chosen; figures to scale.
const MOST_TICKS = 12, UNSET = "unset";
function drawParallel() {
  const { all, settings, figures } = variedLines();
  const places = (values) => {
    const some = unique(values.map((v) => v ?? UNSET)).sort(order);
    const every = Math.ceil(some.length / MOST_TICKS);
    return { at: (v) => some.indexOf(v ?? UNSET) / (some.length - 1), ticks: some.filter((_, i) => i % every === 0) };
  };
  const toScale = (values) => {
    const [low, high] = [Math.min, Math.max].map((most) => most(...values.filter(isNumber)));
    return { at: (v) => (v === null ? null : (v - low) / (high - low)), ticks: [low, high] };
  };
  const scaled = (list, how) => list.map((axis) => ({ ...axis, ...how(axis.values) }));
  const axes = [...scaled(settings, places), ...scaled(figures, toScale)], ends = axes.map((_, k) => k);
  const traces = all.map(({ members }, i) => ({ x: ends, y: axes.map(({ at, values }) => at(values[i])), type: "scatter",
    mode: "lines+markers", meta: links(members), name: inert(called(members)), hovertemplate: "<extra>%{fullData.name}</extra>",
    line: { color: paint(members[0], all.length > MANY ? 0.55 : 1), width: 2, dash: dash(members[0]) }, marker: { size: 6 } }));
  const ticks = axes.flatMap(({ at, ticks }, k) => ticks.map((v) => ({ x: k, y: at(v), said: inert(text(v)) })));
  traces.push({ x: ticks.map(({ x }) => x), y: ticks.map(({ y }) => y), text: ticks.map(({ said }) => ` ${said}`),
    type: "scatter", mode: "text", textposition: "top right", hoverinfo: "skip", meta: "ticks" });
  $("parallel").style.minWidth = `${6 * axes.length}rem`;
  draw("parallel", traces, { of: `${view.task} ${axes.map(({ title }) => title)}`, x: "", legend: false, colourbar: true,
    xaxis: { tickvals: ends, ticktext: axes.map(({ title }) => inert(title)), zeroline: false, range: [-0.1, ends.length - 0.4] },
    panels: [{ title: "", range: [-0.05, 1.1], axis: { showticklabels: false, showgrid: false, zeroline: false } }] });
}
