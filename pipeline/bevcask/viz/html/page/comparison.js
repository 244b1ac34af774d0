const data = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#1f77d0", "#d1495b", "#2e9e5b", "#b07d00", "#8a5cd1", "#4b8f8c", "#c2547d", "#6b7785"];
const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [360, 208, 52, 10, 36, 24];
const colour = index => COLOURS[index % COLOURS.length];
const dash = index => DASHES[Math.floor(index / COLOURS.length) % DASHES.length];

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function shape(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const known = value => value !== null && value !== undefined;
const shown = (value, digits = 4) => known(value) ? Number(value).toPrecision(digits) : "";
const fixed = (value, digits) => known(value) ? Number(value).toFixed(digits) : "";

function fill(id, head, rows, kind = "number") {
  const table = document.getElementById(id);
  const line = element("tr");
  head.forEach((word, index) => line.append(element("th", word, {scope: "col", class: index ? kind : ""})));
  table.append(line);
  for (const row of rows) {
    const own = element("tr");
    row.forEach((cell, index) =>
      own.append(index ? element("td", cell, {class: kind}) : element("th", cell, {scope: "row"})));
    table.append(own);
  }
}

function overview() {
  const best = Math.max(...data.runs.map(run => run.scores.NDS ?? -1));
  const rows = data.runs.map(run => [
    run.name, run.ended ? "ended" : "not ended", run.step, known(run.best_step) ? run.best_step : "",
    fixed(run.scores.mAP, 4), fixed(run.scores.NDS, 4),
    known(run.scores.NDS) ? fixed(best - run.scores.NDS, 4) : "",
    shown(run.result.seconds_per_step, 3), fixed(100 * run.result.loader_share || null, 1),
    fixed(run.result.peak_memory_gb, 2),
  ]);
  fill("runs", ["run", "state", "step", "best at", "mAP", "NDS", "behind the best (NDS)", "s a step",
    "loader wait %", "peak GB"], rows);
  const classes = [...new Set(data.runs.flatMap(run => Object.keys(run.scores.per_class ?? {})))];
  fill("classes", ["class", ...data.runs.map(run => run.name)], classes.map(name =>
    [name, ...data.runs.map(run => fixed(run.scores.per_class?.[name]?.AP, 4))]));
  if (!classes.length) document.getElementById("classes").append(element("caption", "No run was validated."));
  fill("differences", ["key", ...data.runs.map(run => run.name)], data.differences.map(row =>
    [row.key, ...row.values.map(value => known(value) ? JSON.stringify(value) : "")]), "wide");
  document.getElementById("subtitle").textContent = data.runs.map(run => run.name).join(" · ");
}

function scores(name) {
  return Object.fromEntries(data.runs.map((run, index) => [index, run.validations.map(one => [one.step, one[name]])]));
}

function ticks(low, high) {
  return low === high ? [low] : [low, (low + high) / 2, high];
}

function chart(title, curves, logarithmic) {
  const points = Object.values(curves).flat().filter(([, value]) => Number.isFinite(value));
  const log = logarithmic && points.every(([, value]) => value > 0);
  const place = log ? Math.log10 : value => value;
  const back = log ? value => 10 ** value : value => value;
  const [steps, values] = [points.map(point => point[0]), points.map(point => place(point[1]))];
  const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  const first = Math.min(0, steps[0]), last = steps.reduce((a, b) => Math.max(a, b));
  const x = step => LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / Math.max(1, last - first);
  const y = value => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / Math.max(1e-12, high - low);
  const picture = shape("svg", {class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": describe(title, curves)});
  picture.append(shape("text", {x: 8, y: 16, "font-weight": "600"}, title + (log ? " (log)" : "")));
  for (const value of ticks(low, high)) {
    picture.append(shape("line", {class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value)}));
    picture.append(shape("text", {x: LEFT - 4, y: y(value) + 4, "text-anchor": "end"}, shown(back(value), 3)));
  }
  picture.append(shape("text", {x: LEFT, y: HEIGHT - 8}, first));
  picture.append(shape("text", {x: WIDTH - RIGHT, y: HEIGHT - 8, "text-anchor": "end"}, `step ${last}`));
  for (const [index, curve] of Object.entries(curves)) {
    const line = curve.filter(([, value]) => Number.isFinite(value)).map(([step, value]) => `${x(step).toFixed(1)},${y(place(value)).toFixed(1)}`);
    if (line.length === 1) {
      const [cx, cy] = line[0].split(",");
      picture.append(shape("circle", {cx, cy, r: 4, fill: colour(index)}));
    } else if (line.length) {
      picture.append(shape("path", {d: `M${line.join("L")}`, stroke: colour(index), "stroke-dasharray": dash(index)}));
    }
  }
  return picture;
}

function describe(title, curves) {
  const ends = Object.entries(curves).filter(([, curve]) => curve.length).map(([index, curve]) =>
    `${data.runs[index].name} from ${shown(curve[0][1], 3)} to ${shown(curve.at(-1)[1], 3)}`);
  return `${title}: ${ends.join("; ")}`;
}

function drawCharts() {
  const log = document.getElementById("logarithmic").checked;
  const terms = [...new Set(data.runs.flatMap(run => Object.keys(run.curves)))].sort((a, b) =>
    (b === "loss") - (a === "loss") || a.localeCompare(b));
  const all = [["validation NDS", scores("NDS"), false], ["validation mAP", scores("mAP"), false],
    ...terms.map(term => [term, Object.fromEntries(data.runs.map((run, index) => [index, run.curves[term] ?? []])), log])];
  const drawn = all.filter(([, curves]) => Object.values(curves).some(curve => curve.length));
  document.getElementById("charts").replaceChildren(...drawn.map(one => chart(...one)));
}

function keys() {
  data.runs.forEach((run, index) => {
    const entry = element("li");
    const sample = shape("svg", {width: 34, height: 10, "aria-hidden": "true"});
    sample.append(shape("line", {x1: 0, x2: 34, y1: 5, y2: 5, stroke: colour(index), "stroke-width": 3, "stroke-dasharray": dash(index)}));
    entry.append(sample, element("span", run.name));
    document.getElementById("keys").append(entry);
  });
}

function theme() {
  const button = document.getElementById("theme");
  const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const show = () => {
    button.setAttribute("aria-pressed", dark());
    button.textContent = dark() ? "Light" : "Dark";
  };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    show();
  });
  show();
}

overview();
keys();
drawCharts();
theme();
document.getElementById("logarithmic").addEventListener("change", drawCharts);
