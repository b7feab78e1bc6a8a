"use strict";
// What the runs say: read, told apart, filtered, and as lines of the table, which are rows over seeds or single runs.

// Keys are anyone's: an object without a prototype has those that it was given, not "constructor" or "__proto__".
const bare = (...parts) => Object.assign(Object.create(null), ...parts);
const $ = (id) => document.getElementById(id);
const { runs, signs, reload_s } = JSON.parse($("data").textContent,
  (_, value) => (value !== null && typeof value === "object" && !Array.isArray(value) ? bare(value) : value));

const last = (list) => list[list.length - 1];
const head = (key) => key.split(".")[0];
const unique = (list) => [...new Set(list)];
const isNumber = (v) => typeof v === "number";
const text = (v) => (isNumber(v) && !Number.isInteger(v) ? String(Number(v.toPrecision(4)))
  : v === null || v === undefined ? "–" : typeof v === "object" ? JSON.stringify(v) : String(v));
const { compare } = new Intl.Collator("en", { numeric: true });
const order = (a, b) => (isNumber(a) && isNumber(b) ? a - b : compare(text(a), text(b)));
const mean = (v) => v.reduce((a, b) => a + b, 0) / v.length;
const variance = (v) => (v.length < 2 ? 0 : v.reduce((s, x) => s + (x - mean(v)) ** 2, 0) / (v.length - 1));
const sd = (v) => Math.sqrt(variance(v));

const finished = (run) => run.status === "finished";
for (const run of runs) run.title = runs.some((other) => other !== run && other.name === run.name) ? run.path : run.name;

// What follows from the view, see update(): the keys that runs are told apart by, with their titles, and the columns.
let titles = bare(), columns = [];
const ofTask = () => runs.filter((run) => run.task === view.task);

// The t beyond which, on both sides, Student's distribution with df degrees of freedom has this share: by bisection of an
// integral. With t = √df / tan(angle) the share beyond ±t is the integral of sin^(df − 1) up to that angle over the whole
// one; Simpson's rule, with angle = s⁴, since the integrand is not smooth at 0 where df is no whole number.
function student(df, beyond) {
  const n = 2 * Math.ceil(80 * Math.sqrt(df));
  const integral = (angle) => {
    const h = angle ** 0.25 / n;
    let sum = 0;
    for (let i = 1; i <= n; i++) {
      const s = i * h;
      sum += (i === n ? 1 : i % 2 ? 4 : 2) * Math.sin(s ** 4) ** (df - 1) * 4 * s ** 3;
    }
    return (sum * h) / 3;
  };
  const wanted = beyond * integral(Math.PI / 2);
  let [low, high] = [0, Math.PI / 2];
  for (let i = 0; i < 50; i++) {
    const middle = (low + high) / 2;
    if (integral(middle) < wanted) low = middle;
    else high = middle;
  }
  return Math.sqrt(df) / Math.tan(low);
}
const quantiles = new Map(); // they take a millisecond each

// The difference of two means with its 95 % interval by Welch's test, as `neutreno tables` has it: no interval where a
// side has fewer than two values, or none differs from another on either side.
function welch(a, b) {
  const difference = mean(a) - mean(b);
  const [va, vb] = [a, b].map((v) => variance(v) / v.length);
  if (Math.min(a.length, b.length) < 2 || Math.max(new Set(a).size, new Set(b).size) < 2) return { difference };
  const df = (va + vb) ** 2 / (va ** 2 / (a.length - 1) + vb ** 2 / (b.length - 1));
  if (!quantiles.has(df)) quantiles.set(df, student(df, 0.05));
  const half = quantiles.get(df) * Math.sqrt(va + vb);
  return { difference, low: difference - half, high: difference + half };
}

// The runs of a row as `neutreno tables` counts them: of several with one seed the first that is finished, if one is.
function counted(members) {
  const found = new Map();
  for (const run of [...members].sort((a, b) => finished(b) - finished(a))) {
    if (!found.has(run.about.seed)) found.set(run.about.seed, run);
  }
  return [...found.values()];
}

function by(key, list) {
  const found = new Map();
  for (const item of list) {
    if (!found.has(key(item))) found.set(key(item), []);
    found.get(key(item)).push(item);
  }
  return [...found.values()];
}

// A line of the table: a single run, or a row of those that differ in their seed alone. Its figures are of `judged`.
const lineOf = (run) => ({ id: run.link, run, members: [run], judged: [run] });
const rowOf = (members) => ({ id: members[0].row, run: null, members, judged: counted(members).filter(finished) });

// One value per run that is judged; none if a run lacks it.
function values(line, of) {
  const found = line.judged.map(of);
  return found.every(isNumber) ? found : [];
}
const isEvent = (line) => line.judged.some((run) => run.events.includes(view.metric));

// What a cell is sorted by, what it shows, and what it is in a CSV file, by what stands behind the column's title there.
const shownAs = (value, said = text(value), number = value) => ({ value, text: said, numbers: { "": number } });

// What a line shows of a number: mean ± sd, and both for a CSV file.
function spread(line, of, places) {
  const found = values(line, of);
  if (!found.length) return null;
  const [value, spread] = [mean(found), found.length > 1 ? sd(found) : null];
  return { value, text: value.toFixed(places) + (spread === null ? "" : ` ± ${spread.toFixed(places)}`),
    numbers: line.run ? { "": value } : { mean: value, sd: spread } };
}

// In how many runs an event came; a mean of censored times would be of made-up numbers.
function events(line) {
  const came = line.judged.filter((run) => isNumber(run.metrics[view.metric])).length;
  return { value: came, text: `${came} of ${line.judged.length}`, numbers: { came, runs: line.judged.length } };
}

// Marks a difference that may be due to settings of no axis, too, and the column that says to which.
const BEYOND = "†";

// A line's difference from its baseline; two columns ask for it.
function against(line, places) {
  if (line.against === undefined) line.against = difference(line, places);
  return line.against;
}

function difference(line, places) {
  const row = line.members[0].row;
  if (ofTask().some((run) => run.against === row)) return { value: 0, text: "baseline", numbers: { "": "baseline" } };
  if (line.members[0].against === null) return null;
  const base = rowOf(baselineRuns(line.members[0].against));
  const [a, b] = [line, base].map((side) => values(side, (run) => run.metrics[view.metric]));
  if (!a.length || !b.length || isEvent(line) || isEvent(base)) return null;
  const found = welch(a, b);
  const signed = (found.difference < 0 ? "" : "+") + found.difference.toFixed(places);
  const interval = "low" in found ? ` (${found.low.toFixed(places)} to ${found.high.toFixed(places)})` : "";
  const beyond = line.members[0].beyond.length > 0;
  return { beyond, value: found.difference, text: signed + interval + (beyond ? ` ${BEYOND}` : ""),
    title: `against ${base.members[0].label} (n = ${b.length})`,
    numbers: { "": found.difference, low: found.low, high: found.high } };
}

// The baseline's runs, whether they are listed or not: those parts of the filter hold for them that leave some, as seed<2.
function baselineRuns(row) {
  const all = ofTask().filter((run) => run.row === row);
  const tests = conditions().filter((test) => all.some(test));
  const found = all.filter((run) => tests.every((test) => test(run)));
  return found.length ? found : all;
}

const clock = (s) => {
  const parts = [Math.floor(s / 3600), Math.floor((s % 3600) / 60), Math.round(s) % 60];
  return (parts[0] ? parts : parts.slice(1)).map((v, i) => (i ? String(v).padStart(2, "0") : v)).join(":");
};

// Columns: `of` is what a run has there, for the filter; `cell` what a line shows.
function findColumns() {
  const some = ofTask();
  const keys = unique(some.flatMap((run) => Object.keys(run.about).filter((key) => run.about[key] !== null)));
  const heads = unique(keys.map(head)).filter((name) => name !== "seed").concat("seed");
  keys.sort((a, b) => heads.indexOf(head(a)) - heads.indexOf(head(b)));
  const further = unique(some.flatMap((run) => Object.keys(run.further))).filter((key) => !keys.includes(key));
  const labels = bare(...some.map((run) => run.labels));
  const short = (key) => labels[key] || last(key.split("."));
  const fixed = ["name", view.metric ?? "metric", "difference, 95 %", `${BEYOND} baseline differs in`, "n", "final similarity", "time", "status"];
  const titled = (list, taken) => Object.fromEntries(list.map((key) => {
    const count = (title) => taken.filter((other) => other === title).length;
    return [key, count(short(key)) === 1 ? short(key) : count(key) ? `setting ${key}` : key];
  }));
  const ofAxes = [...fixed, ...keys.map(short)]; // which come first: another setting of the same short name has its whole key
  titles = bare(titled(keys, ofAxes), titled(further, [...ofAxes, ...further.map(short)]));
  const judge = some.find((run) => last(run.validated.split("/")) === last((view.metric ?? "").split("/")));
  const metric = (run) => run.metrics[view.metric] ?? null;
  const places = Math.max(...some.map((run) => Math.abs(metric(run) ?? 0))) < 1 ? 4 : 2;
  const same = (of) => (line) => {
    const found = unique(line.members.map(of));
    return found.length > 1 || found[0] === null ? null : shownAs(found[0]);
  };
  const plain = (title, of, more) => ({ title, of, cell: same(of), varies: true, ...more });
  columns = [
    plain("name", (run) => run.title, { varies: false, cell: (line) => name(line) }),
    { title: view.metric ?? "metric", of: metric, figure: true, better: judge ? (judge.smaller ? "↓" : "↑") : "", number: true,
      cell: (line) => (isEvent(line) && !line.run ? events(line) : spread(line, metric, places)) },
    { title: "difference, 95 %", of: () => null, number: true, grouped: true,
      cell: (line) => (line.run ? null : against(line, places)),
      said: "to the baseline that is nearest in all other settings, and its 95 % interval (Welch)" },
    { title: `${BEYOND} baseline differs in`, of: () => null, grouped: true,
      cell: (line) => (!line.run && against(line, places)?.beyond ? shownAs(line.members[0].beyond.join(", ")) : null) },
    { title: "n", of: () => null, number: true, grouped: true,
      cell: (line) => (line.run ? shownAs(line.run.about.seed, `seed ${line.run.about.seed}`, "") : shownAs(line.judged.length)) },
    { title: "final similarity", names: ["final"], of: (run) => run.final, number: true, figure: true,
      cell: (line) => spread(line, (run) => run.final, 3) },
    { title: "time", of: (run) => run.seconds, number: true, said: "of training, on average", cell: (line) => {
      const found = spread(line, (run) => run.seconds, 0);
      return found && { ...found, text: clock(found.value) };
    } },
    plain("status", (run) => run.status, { cell: status, varies: some.every(finished) }),
    ...[...keys, ...further].map((key) => plain(titles[key], (run) => run.about[key] ?? run.further[key] ?? null,
      { grouped: key === "seed" ? false : undefined, setting: true, key, said: key, names: [key, last(key.split(".")), labels[key]] })),
  ];
  for (const column of columns) {
    column.names = [column.title, ...(column.names ?? [])].filter(Boolean).map((name) => name.toLowerCase());
  }
}

function status(line) {
  const done = line.members.filter(finished).length;
  const all = unique(line.members.map((run) => run.status));
  const far = unique(line.members.map(progress).filter(Boolean)).join("; ");
  return shownAs(all.join(", "), [all.length > 1 ? `${done} of ${line.members.length} finished` : all[0], far].filter(Boolean).join(", "));
}

// How far a run in progress is, and how long it will take at the speed that it had so far.
function progress(run) {
  const [steps, seconds] = run.clock ?? [[], []];
  const done = last(steps) - steps[0];
  if (run.status !== "running" || !run.planned || !(done > 0)) return "";
  const left = ((last(seconds) - seconds[0]) / done) * (run.planned - last(steps));
  return `${Math.round((100 * last(steps)) / run.planned)} %, ${clock(left)} left`;
}

function name(line) {
  const said = line.run ? line.run.title : label(line.members, listed);
  return { ...shownAs(said), title: line.members[0].label };
}

// Settings without a label in which some runs differ, first the one that tells most of them apart, since long names are
// cut; found once for a list of runs.
const tellings = new WeakMap();
function telling(among) {
  const alike = (key) => Math.max(...by((run) => text(run.further[key]), among).map((some) => some.length));
  if (!tellings.has(among)) {
    const keys = unique(among.flatMap((run) => Object.keys(run.further))).map((key) => ({ key, most: alike(key) }));
    tellings.set(among, keys.filter(({ most }) => most < among.length).sort((a, b) => a.most - b.most).map(({ key }) => key));
  }
  return tellings.get(among);
}

// What a row is called among others: by data, model and settings without a label only where these differ.
function label(members, among) {
  const [run] = members;
  const own = [(run) => run.about.data, (run) => run.network].filter((part) => new Set(among.map(part)).size > 1);
  const further = telling(among).filter((key) => (run.further[key] ?? null) !== null);
  const said = [...own.map((part) => part(run)), run.words, ...further.map((key) => `${titles[key]}=${text(run.further[key])}`)];
  return said.filter(Boolean).join(" ") || run.label;
}

// Settings that are numbers, where they vary: first the one that takes most values. Those of the axes with a label come
// before all others, but for the seed, over which means are taken.
function varying(of) {
  const taken = bare();
  for (const run of ofTask()) {
    for (const [key, value] of Object.entries(of(run))) if (isNumber(value)) (taken[key] ??= new Set()).add(value);
  }
  return Object.keys(taken).filter((key) => taken[key].size > 1).sort((a, b) => taken[b].size - taken[a].size);
}
const labelled = () => varying((run) => run.numbers);
const numbers = () => unique([...labelled(), ...varying((run) => ({ ...run.about, ...run.further, seed: null }))]);
const numberOf = (run, key) => [run.numbers[key], run.about[key], run.further[key]].find(isNumber);

const COMPARED = { "<": (a, b) => a < b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b };
const named = (word) => /^([^<>=]+)(<=|>=|<|>|=)(.*)$/.exec(word)?.slice(1);
const wordsTyped = () => view.filter.toLowerCase().split(/\s+/).filter(Boolean);

// What a run has at a key of the filter: of a column, a metric or a setting.
function found(run, key) {
  const own = columns.filter((column) => column.names.includes(key)).map((column) => column.of(run));
  return own.length ? own : [run.metrics[key] ?? run.settings[key]];
}

// The filter as functions of a run, one per word.
function conditions() {
  return wordsTyped().map((word) => {
    const [key, sign, wanted] = named(word) ?? [];
    if (key === undefined) return (run) => columns.some((column) => String(column.of(run) ?? "").toLowerCase().includes(word));
    if (sign !== "=") return (run) => wanted === "" || found(run, key).some((v) => isNumber(v) && COMPARED[sign](v, Number(wanted)));
    return (run) => found(run, key).some((v) => String(v ?? "").toLowerCase() === wanted || (wanted !== "" && v === Number(wanted)));
  });
}

// Keys of the filter that no run has, perhaps misspelt.
function unknownKeys() {
  const keys = wordsTyped().flatMap((word) => named(word)?.[0] ?? []);
  const known = (key) => columns.some((column) => column.names.includes(key));
  return keys.filter((key) => !known(key) && !ofTask().some((run) => key in run.metrics || key in run.settings));
}
