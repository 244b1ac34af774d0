// The data of the page, and how a frame's rasters are decoded. Nothing here draws.
const byId = (id) => document.getElementById(id);
const DATA = JSON.parse(byId("data").textContent);
const WITH_CAMERAS = new Set(DATA.cameras);
const KEPT_FRAMES = 6;
const decoded = new Map();

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (value !== null) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null).map((child) =>
    typeof child === "number" ? String(child) : child));
  return made;
}

function embedded(name) {
  const found = byId(name);
  return found ? JSON.parse(found.textContent) : null;
}

function pixelsOf(base64) {
  // One byte a pixel: rasters are grey.
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => {
      const canvas = document.createElement("canvas");
      canvas.width = image.width;
      canvas.height = image.height;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      const rgba = context.getImageData(0, 0, image.width, image.height).data;
      const grey = new Uint8Array(image.width * image.height);
      for (let i = 0; i < grey.length; i++) grey[i] = rgba[4 * i];
      resolve({ width: image.width, height: image.height, grey });
    };
    image.onerror = () => reject(new Error("a raster cannot be decoded"));
    image.src = "data:image/webp;base64," + base64;
  });
}

function pointsOf(base64) {
  if (!base64) return new Float32Array(0);
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return Float32Array.from(new Int16Array(bytes.buffer), (step) => step * DATA.point_step);
}

async function frameOf(number) {
  if (decoded.has(number)) return decoded.get(number);
  const raw = embedded("frame-" + number);
  const frame = { number, ...raw, points: pointsOf(raw.points) };
  if (raw.values) {
    [frame.values, frame.labels] = await Promise.all([pixelsOf(raw.values), pixelsOf(raw.labels)]);
  }
  const student = DATA.shown_student.includes(number) ? embedded("student-" + number) : null;
  frame.student = student ? await pixelsOf(student.strip) : null;
  frame.student_boxes = student ? student.boxes : null;
  frame.images = WITH_CAMERAS.has(number) ? embedded("images-" + number) : null;
  decoded.set(number, frame);
  if (decoded.size > KEPT_FRAMES) decoded.delete(decoded.keys().next().value);
  return frame;
}

const isLabel = (tile) => tile.role === "class" || tile.role === "region";

function cellOf(tile, x, y) {
  // The column and row of a raster at a place in metres; null beside it.
  const column = Math.floor((x - tile.x_min) / tile.cell);
  const row = Math.floor((y - tile.y_min) / tile.cell);
  const inside = column >= 0 && row >= 0 && column < tile.num_x && row < tile.num_y;
  return inside ? { column, row } : null;
}

function byteAt(frame, tile, cell) {
  const strip = tile.strip ? frame[tile.strip] : isLabel(tile) ? frame.labels : frame.values;
  return strip.grey[cell.row * strip.width + tile.x + cell.column];
}

function valueOf(tile, byte) {
  return tile.low + (byte / 255) * (tile.high - tile.low);
}

function titleOf(tile) {
  if (tile.role === "energy") return tile.target + " energy";
  if (tile.role === "heatmap") return tile.target + " maximum";
  if (tile.role === "class") return tile.target + " classes";
  return tile.target + " stored region";
}

// ground truth: [x, y, z, l, w, h, yaw, class, seen]; teacher, student: [..., score, class]
function footprint(box) {
  const [x, y, , l, w, , yaw] = box;
  const c = Math.cos(yaw), s = Math.sin(yaw);
  return [[1, 1], [-1, 1], [-1, -1], [1, -1]].map(([a, b]) =>
    [x + (a * l * c - b * w * s) / 2, y + (a * l * s + b * w * c) / 2]);
}
