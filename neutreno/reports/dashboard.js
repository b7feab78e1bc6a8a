// The page: what the reader chose, the table, and what happens when something is chosen.

// Kept in the address, so that loading the page anew keeps it.
const view = { filter: "", chosen: [], unfolded: [], sort: "", down: false, grouped: true, when: 100, zoom: {}, format: "Markdown" };
try { Object.assign(view, JSON.parse(decodeURIComponent(location.hash.slice(1)))); } catch { /* an address of another page */ }
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

// The column that sorts the table: the one chosen, or the metric, best first, where it is known what is better.
function sorting() {
  const chosen = columns.find((column) => column.title === view.sort && column.grouped !== !view.grouped);
  if (chosen) return { column: chosen, down: view.down };
  const metric = columns[1];
  return metric.better ? { column: metric, down: metric.better === "↑" } : { column: columns[0], down: false };
}

function layOut() {
  const { column, down } = sorting();
  const sorted = (lines) => lines.map((line) => ({ line, at: column.cell(line)?.value ?? null })).sort(({ at: x }, { at: y }) => {
    if (x === null || y === null) return (x === null) - (y === null);
    return (down ? -1 : 1) * (isNumber(x) && isNumber(y) ? x - y : text(x).localeCompare(text(y), "en", { numeric: true }));
  }).map(({ line }) => line);
  const single = sorted(listed.map(lineOf));
  const lines = !view.grouped ? single : sorted(by((run) => run.row, listed).map(rowOf)).flatMap((row) =>
    [row, ...(view.unfolded.includes(row.id) ? single.filter(({ run }) => run.row === row.id) : [])]);
  const places = columns.map((_, i) => i).filter((i) => columns[i].grouped === undefined || columns[i].grouped === view.grouped);
  for (const line of lines) line.cells = columns.map((column) => column.cell(line));
  const varies = (i) => new Set(lines.map((line) => line.cells[i]?.text)).size > 1;
  const any = (i) => lines.some((line) => line.cells[i] !== null);
  const kept = places.filter((i) => (columns[i].varies ? varies(i) : i < 2 || any(i)));
  for (const line of lines) line.cells = kept.map((i) => line.cells[i]);
  table = { lines, columns: kept.map((i) => columns[i]) };
}

function element(name, text, more = {}) {
  const made = Object.assign(document.createElement(name), more);
  if (text !== null) made.textContent = text;
  return made;
}

function drawTable() {
  layOut();
  const { column: by, down } = sorting();
  const top = element("tr", null);
  top.append(element("th", "✓"));
  for (const column of table.columns) {
    const th = element("th", null, { scope: "col", className: column.number ? "number" : "", title: column.said ?? "" });
    if (column === by) th.ariaSort = down ? "descending" : "ascending";
    const said = [column.title, column.better, column === by ? (down ? "▾" : "▴") : ""].filter(Boolean).join(" ");
    const button = element("button", said, { type: "button", id: `sort ${column.title}` });
    if (column.better) button.title = column.better === "↓" ? "smaller is better" : "larger is better";
    button.onclick = () => { view.down = column === by ? !down : false; view.sort = column.title; update(); };
    th.append(button);
    top.append(th);
  }
  keepFocus(() => {
    $("runs").tHead.replaceChildren(top);
    $("runs").tBodies[0].replaceChildren(...table.lines.map(drawLine));
  });
  const unfinished = shown.filter((run) => !finished(run)).length;
  const rows = view.grouped ? ` in ${new Set(listed.map((run) => run.row)).size} rows` : "";
  $("count").textContent = `${listed.length} of ${runs.length} runs listed${rows}, ${shown.length} drawn` +
    (unfinished ? `, ${unfinished} unfinished` : "") +
    unknownKeys().map((key) => `; no column or setting is called ${key}`).join("");
}

function drawLine(line) {
  const tr = element("tr", null, { links: links(line.members), className: line.run && view.grouped ? "seed" : "" });
  const ticked = tr.links.filter((link) => view.chosen.includes(link)).length;
  const [checked, some] = [ticked === tr.links.length, ticked > 0];
  const box = element("input", null, { type: "checkbox", id: `choose ${line.id}`, checked, indeterminate: some && !checked });
  box.ariaLabel = `choose ${line.cells[0].text}`;
  box.onchange = () => {
    view.chosen = view.chosen.filter((link) => !tr.links.includes(link)).concat(box.checked ? tr.links : []);
    update();
  };
  tr.append(element("td", null));
  tr.firstChild.style.boxShadow = `inset 5px 0 ${paint(line.members[0])}`; // its colour in the plots
  tr.firstChild.append(box);
  line.cells.forEach((cell, i) => {
    const td = element("td", cell?.text ?? (line.run && view.grouped ? "" : "–"), { title: cell?.title ?? "" });
    td.className = table.columns[i].number ? "number" : "";
    if (i === 0) td.replaceChildren(line.run ? element("a", cell.text, { href: line.run.link, id: `open ${line.id}` }) : unfolding(line, cell.text));
    tr.append(td);
  });
  return tr;
}

function unfolding(line, text) {
  const open = view.unfolded.includes(line.id);
  const button = element("button", text, { type: "button", id: `unfold ${line.id}`, ariaExpanded: String(open) });
  button.onclick = () => {
    view.unfolded = view.unfolded.filter((id) => id !== line.id).concat(open ? [] : [line.id]);
    drawTable();
    keep();
  };
  return button;
}

// The focus stays where it was, on the element of the same id, when elements are made anew.
function keepFocus(remake) {
  const { id } = document.activeElement;
  remake();
  if (id && document.activeElement.id !== id) $(id)?.focus({ preventScroll: true });
}

// The table as it stands, as text: cells as they are shown, or for CSV a column for each number. Names are anyone's: they
// do nothing in Markdown, in LaTeX or in a spreadsheet.
const AS_TEXT = {
  CSV() {
    const records = table.lines.map(({ cells }) => bare(...cells.map((cell, i) => Object.fromEntries(
      Object.entries(cell?.numbers ?? {}).map(([name, value]) => [`${table.columns[i].title} ${name}`.trim(), value])))));
    const names = unique(records.flatMap(Object.keys));
    const safe = (v) => (typeof v === "string" && /^\s*[=+\-@]/.test(v) ? `'${v}` : String(v ?? ""));
    const quoted = (v) => (/[",\n]/.test(safe(v)) ? `"${safe(v).replaceAll('"', '""')}"` : safe(v));
    const lines = [names, ...records.map((record) => names.map((name) => record[name]))];
    return lines.map((line) => line.map(quoted).join(",")).join("\n");
  },
  Markdown() {
    const [heads, ...body] = texts(signs.Markdown).map((line) => `| ${line.join(" | ")} |`);
    const rule = table.columns.map((column) => (column.number ? "---:" : "---"));
    return [heads, `| ${rule.join(" | ")} |`, ...body].join("\n");
  },
  LaTeX() {
    const [heads, ...body] = texts(signs.LaTeX).map((line) => `${line.join(" & ")} \\\\`);
    const kinds = table.columns.map((column) => (column.number ? "r" : "l")).join("");
    return [`\\begin{tabular}{${kinds}}`, "\\toprule", heads, "\\midrule", ...body, "\\bottomrule", "\\end{tabular}"].join("\n");
  },
};
// Headings and cells, with each sign written as that kind of text writes it.
function texts(written) {
  const any = new RegExp(Object.keys(written).map((sign) => sign.replaceAll(/[\\^$|(){}\]]/g, "\\$&")).join("|"), "g");
  const lines = [table.columns.map(({ title }) => title), ...table.lines.map(({ cells }) => cells.map((cell) => cell?.text ?? ""))];
  return lines.map((line) => line.map((v) => v.replaceAll(/\s+/g, " ").replaceAll(any, (sign) => written[sign])));
}

function drawDiff() {
  for (const [id, position] of [["left", 0], ["right", 1]]) {
    const before = shown.find((run) => run.link === view[id]) ?? shown[Math.min(position, shown.length - 1)];
    $(id).replaceChildren(...shown.map((run) => element("option", run.title, { value: run.link, selected: run === before })));
  }
  const [a, b] = ["left", "right"].map((id) => byLink.get($(id).value));
  const found = [];
  if (a && b) {
    const [x, y] = [a, b].map((run) => bare(run.settings, { seed: run.about.seed }));
    for (const key of unique([...Object.keys(x), ...Object.keys(y)]).sort()) {
      if (JSON.stringify(x[key]) === JSON.stringify(y[key])) continue;
      const tr = element("tr", null);
      const whole = (v) => (v === undefined ? "–" : typeof v === "object" ? JSON.stringify(v) : String(v));
      tr.append(...[key, x[key], y[key]].map((v) => element("td", whole(v))));
      found.push(tr);
    }
  }
  const top = element("tr", null);
  top.append(...["setting", a?.title ?? "", b?.title ?? ""].map((text) => element("th", text)));
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
  const tasks = unique(runs.map((run) => run.task)).sort((a, b) => count(b) - count(a));
  if (!tasks.includes(view.task)) view.task = tasks[0];
  const some = ofTask();
  const metrics = unique(some.flatMap((run) => Object.keys(run.metrics))).sort();
  if (!metrics.includes(view.metric)) view.metric = some.map((run) => run.main).find(Boolean) ?? metrics[0];
  const curves = unique(some.flatMap((run) => Object.keys(run.curves))).sort();
  if (!curves.includes(view.curve)) view.curve = some.map((run) => run.validated).find((name) => curves.includes(name)) ?? curves[0];
  const layerMetrics = unique(some.flatMap((run) => Object.keys(run.byLayer))).sort();
  if (!layerMetrics.includes(view.layerMetric)) view.layerMetric = "cosine";
  const subsets = unique(some.flatMap((run) => Object.keys(run.byLayer[view.layerMetric] ?? {}))).sort();
  if (!subsets.includes(view.subset)) view.subset = subsets.includes("all") ? "all" : subsets[0];
  const compared = numbers();
  if (!compared.includes(view.number)) view.number = compared[0];
  findColumns();
  fill("number", compared, view.number, titles);
  fill("layerMetric", layerMetrics, view.layerMetric);
  fill("subset", subsets, view.subset, bare(Object.fromEntries(subsets.map((subset) => [subset, `${subset} tokens`]))));
  fill("task", tasks, view.task);
  fill("metric", metrics, view.metric);
  fill("curve", curves, view.curve);
  fill("format", Object.keys(AS_TEXT), view.format);
}

function update() {
  choices();
  list();
  findScale();
  drawTable();
  for (const plot of Object.values(PLOTS)) plot();
  drawDiff();
  keep();
}

function setTheme() {
  document.documentElement.dataset.theme = view.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

for (const id of ["task", "metric", "layerMetric", "subset", "curve", "number", "format", "left", "right"]) {
  $(id).onchange = () => { view[id] = $(id).value; update(); };
}
$("filter").value = view.filter;
$("filter").oninput = () => { view.filter = $("filter").value; update(); };
$("clear").onclick = () => { view.chosen = []; update(); };
$("grouped").checked = view.grouped;
$("grouped").onchange = () => { view.grouped = $("grouped").checked; update(); };
$("copy").onclick = () => navigator.clipboard.writeText(AS_TEXT[view.format]()).then(
  () => { $("copied").textContent = `copied ${table.lines.length} lines`; },
  () => { $("copied").textContent = "the browser does not let the page copy"; });
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
for (const [begins, ends] of [["mouseover", "mouseleave"], ["focusin", "focusout"]]) {
  $("runs").tBodies[0].addEventListener(begins, ({ target }) => light(target.closest("tr").links));
  $("runs").tBodies[0].addEventListener(ends, () => light(null));
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { setTheme(); update(); });
setTheme();
update();
$(view.focus)?.focus();
delete view.focus;
if (reload_s) setTimeout(() => { view.focus = document.activeElement.id; keep(); location.reload(); }, reload_s * 1000);
