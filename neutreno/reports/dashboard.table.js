// What stands as text: the table of the runs, its copy, how settings differ, and pictures.

// The column that sorts the table: the one chosen, or the metric, best first, where it is known what is better.
function sorting() {
  const there = columns.filter((column) => column.grouped !== !view.grouped);
  const chosen = there.find(({ key, title }) => (key ?? title) === view.sort) ?? there.find(({ title }) => title === view.sort);
  if (chosen) return { column: chosen, down: view.down };
  const metric = columns[1];
  return metric.better ? { column: metric, down: metric.better === "↑" } : { column: columns[0], down: false };
}

function layOut() {
  const { column, down } = sorting();
  const sorted = (lines) => lines.map((line) => ({ line, at: column.cell(line)?.value ?? null })).sort(({ at: x }, { at: y }) => {
    if (x === null || y === null) return (x === null) - (y === null);
    return (down ? -1 : 1) * order(x, y);
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
    button.onclick = () => { view.down = column === by ? !down : false; view.sort = column.key ?? column.title; update(); };
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

// In what settings the runs drawn differ: a column for each row over seeds, or for each run.
const MOST_COLUMNS = 24;
function drawSettings() {
  const all = curves(() => true), some = all.slice(0, MOST_COLUMNS);
  const settings = some.map(([run]) => bare(run.settings, view.grouped ? {} : { seed: run.about.seed }));
  const differing = (key) => new Set(settings.map((own) => JSON.stringify(own[key]))).size > 1;
  const differ = unique(settings.flatMap(Object.keys)).filter(differing);
  const whole = (v) => (v === undefined ? "–" : typeof v === "object" ? JSON.stringify(v) : String(v));
  const line = (name, cells) => {
    const tr = element("tr", null);
    tr.append(...cells.map((said) => element(name, said, { title: said })));
    return tr;
  };
  $("columns").textContent = some.length < all.length ? `of ${some.length} out of ${all.length}; choose some in the table above` : "";
  $("diff").tHead.replaceChildren(line("th", ["setting", ...some.map(called)]));
  const lines = differ.sort().map((key) => line("td", [key, ...settings.map((own) => whole(own[key]))]));
  $("diff").tBodies[0].replaceChildren(...(lines.length ? lines : [line("td", ["no difference"])]));
}

// A picture of each run, from its folder: loaded when it is scrolled to.
function drawPictures() {
  const having = shown.filter((run) => run.pictures[view.picture]);
  $("pictures").replaceChildren(...having.map((run) => {
    const link = element("a", null, { href: run.pictures[view.picture] });
    link.append(element("img", null, { loading: "lazy", src: link.href, alt: `${view.picture} of ${run.title}` }), run.title);
    return link;
  }));
}
