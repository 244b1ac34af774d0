// Which frame, which layers, which place: everything a user can change.
const ORDERS = {
  time: { title: "by scene and time", key: null },
  worst: { title: "worst first: misses and false alarms", key: (row) => (row.misses || 0) + (row.alarms || 0), of: "misses" },
  misses: { title: "worst first: misses", key: (row) => row.misses || 0, of: "misses" },
  gap: { title: "worst first: what the student lacks", key: (row) => row.gap || 0, of: "gap" },
  codec: { title: "worst first: rounding by the codec", key: (row) => row.codec || 0, of: "codec" },
  alarms: { title: "worst first: false alarms", key: (row) => row.alarms || 0, of: "alarms" },
};
const state = { number: 0, list: DATA.frames.map((_, i) => i), cross: null, frame: null, large: null };
const isShown = (id) => byId("layer-" + id).checked;

function labelOf(i) {
  const row = DATA.frames[i];
  const told = row.misses === undefined ? "" : `, ${row.misses} missed, ${row.alarms} false`;
  const marks = (row.damaged ? ", damaged" : "") + (WITH_CAMERAS.has(i) ? ", with cameras" : "") +
    (SHOWN_STUDENT.has(i) ? ", with student" : "");
  return `${i + 1}. ${row.scene} ${row.token.slice(0, 8)}${told}${marks}`;
}

function fillFrames() {
  const key = ORDERS[byId("order").value].key;
  state.list = DATA.frames.map((_, i) => i);
  if (key) state.list.sort((a, b) => key(DATA.frames[b]) - key(DATA.frames[a]));
  byId("frame").replaceChildren(...state.list.map((i) => element("option", { value: i }, labelOf(i))));
}

function redraw() {
  if (!state.frame) return;
  drawBev(state.frame, isShown, state.cross);
  drawCameras(state.frame, isShown);
  drawStudent(state.frame);
  byId("reading").textContent = state.cross
    ? reading(state.frame, state.cross, isShown)
    : "Point at the map, or focus it and use the arrow keys, to read metres, cells and values.";
}

function fillBoxes(frame) {
  const rows = [];
  (frame.truth || []).forEach((box, i) => rows.push(["ground truth", DATA.classes[box[7]], "",
    box[0].toFixed(1), box[1].toFixed(1),
    !box[8] ? "no sensor point" : frame.found ? (frame.found[i] ? "found" : "missed") : ""]));
  (frame.teacher || []).forEach((box, i) => rows.push(["teacher", DATA.classes[box[8]],
    box[7].toFixed(2), box[0].toFixed(1), box[1].toFixed(1),
    frame.alarms ? (frame.alarms[i] ? "false alarm" : "right") : ""]));
  fillTable("boxes", [["of"], ["class"], ["score", "number"], ["x m", "number"], ["y m", "number"], ["is"]],
    rows);
}

async function show(number) {
  state.number = number;
  const row = DATA.frames[number], frame = await frameOf(number);
  if (state.number !== number) return;
  state.frame = frame;
  byId("frame").value = number;
  const place = state.list.indexOf(number);
  byId("previous").disabled = place <= 0;
  byId("next").disabled = place >= state.list.length - 1;
  byId("frame-note").textContent = row.damaged
    ? `Frame ${row.token} cannot be read: ${row.damaged}`
    : `Sample ${row.token} of ${row.scene}` + (row.misses === undefined ? "" :
      `: ${row.misses} of ${row.truth} true boxes missed, ${row.alarms} of ${row.boxes} false alarms`) +
      (row.codec ? `; rounding by the codec: up to ${(100 * row.codec).toFixed(2)} % of a map` : "") +
      (row.gap === undefined ? "" : `; the student lacks ${(100 * row.gap).toFixed(0)} % of the teacher's map`);
  if (location.hash !== "#frame=" + row.token) history.replaceState(null, "", "#frame=" + row.token);
  fillBoxes(frame);
  redraw();
  document.body.dataset.shown = row.token;
}

function step(by) {
  const next = state.list[state.list.indexOf(state.number) + by];
  if (next !== undefined) show(next);
}

function fillLayers() {
  for (const layer of LAYERS) {
    const box = element("input", { type: "checkbox", id: "layer-" + layer.id });
    box.checked = layer.on;
    box.addEventListener("change", redraw);
    const swatch = layer.colour
      ? element("span", { class: "swatch", style: `background:${layer.colour}`, "aria-hidden": "true" }) : null;
    byId("layers").append(element("label", { for: box.id }, box, swatch, layer.title));
  }
}

function fillCaptions() {
  byId("bev-caption").textContent = "From above, the car in the middle looks up. Look for energy and " +
    "heat inside the boxes: an offset or a mirror image means wrong axes or grid. Energy is the mean " +
    "|value| over channels, one robust range for all frames; colours are principal components, one " +
    "basis for all frames. Values are read from 8-bit rasters, good to about 1 % of the range. Solid: " +
    `ground truth, faint without a sensor point; dashed: teacher, score ≥ ${DATA.min_score}. A box is ` +
    `missed or a false alarm by the ${DATA.distance} m rule, within its class. At most ${DATA.points} ` +
    "LiDAR points are drawn.";
  byId("cameras-caption").textContent = "The same boxes in the images; click one, or press Enter on it, " +
    "to enlarge it. Look for solid boxes that do not " +
    "sit on objects: calibration or time is off. Dashed boxes beside objects: the teacher is wrong here.";
}

function pointAt(event) {
  const canvas = byId("bev"), box = canvas.getBoundingClientRect();
  const times = (EXTENT.right - EXTENT.left) / box.width;
  state.cross = [EXTENT.left + (event.clientX - box.left) * times, EXTENT.top - (event.clientY - box.top) * times];
  redraw();
}

function moveCross(event) {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  const move = moves[event.key];
  if (!move) return;
  event.preventDefault();
  const cell = Math.min(...DATA.tiles.map((own) => own.cell), 1);
  const [x, y] = state.cross || [0, 0];
  state.cross = [Math.min(EXTENT.right, Math.max(EXTENT.left, x + cell * move[0])),
    Math.min(EXTENT.top, Math.max(EXTENT.bottom, y + cell * move[1]))];
  redraw();
}

const systemDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme || (systemDark.matches ? "dark" : "light")) === "dark";
const tellTheme = () => byId("theme").setAttribute("aria-pressed", String(isDark()));

function switchTheme() {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  tellTheme();
}

function fromHash() {
  const token = location.hash.replace("#frame=", "");
  const found = DATA.frames.findIndex((own) => own.token === token);
  if (found >= 0 && found !== state.number) show(found);
  return found;
}

function start() {
  fillOverview();
  fillLayers();
  fillCaptions();
  fillStudent();
  for (const [name, own] of Object.entries(ORDERS)) {
    if (!own.key || DATA.frames.some((row) => row[own.of])) byId("order").append(element("option", { value: name }, own.title));
  }
  fillFrames();
  byId("order").addEventListener("change", () => { fillFrames(); if (state.list.length) show(state.list[0]); });
  byId("frame").addEventListener("change", (event) => show(Number(event.target.value)));
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("bev").addEventListener("mousemove", pointAt);
  byId("bev").addEventListener("keydown", moveCross);
  byId("close").addEventListener("click", () => byId("large").close());
  byId("theme").addEventListener("click", switchTheme);
  systemDark.addEventListener("change", tellTheme);
  tellTheme();
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    if (event.key === "n") step(1);
    if (event.key === "p") step(-1);
  });
  addEventListener("hashchange", fromHash);
  addEventListener("resize", redraw);
  if (DATA.frames.length && fromHash() < 0) show(0);
  else if (DATA.frames.length && state.number === 0) show(0);
}
start();
