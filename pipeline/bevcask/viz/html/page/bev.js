// The frame from above: rasters, points, queries, boxes, and a cross that reads them.
const TRUTH = "#3ddc84", TEACHER = "#ff9f1c", INK = "#e6edf3", QUERY = "#4cc9f0";
const CLASS_COLOURS = ["#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1",
  "#ff9da7", "#9c755f", "#bab0ac"];
const RAMP = [[0, 0, 4], [59, 15, 112], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]];
const FEW_METRES = 20;

function ramp(share) {
  const at = Math.min(share, 0.9999) * (RAMP.length - 1), low = Math.floor(at);
  return RAMP[low].map((own, i) => own + (at - low) * (RAMP[low + 1][i] - own));
}

const hexColour = (text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));

function extentOf() {
  const tiles = DATA.tiles.length ? DATA.tiles : [{ x_min: -51.2, y_min: -51.2, cell: 102.4, num_x: 1, num_y: 1 }];
  return {
    left: Math.min(...tiles.map((own) => own.x_min)),
    right: Math.max(...tiles.map((own) => own.x_min + own.cell * own.num_x)),
    bottom: Math.min(...tiles.map((own) => own.y_min)),
    top: Math.max(...tiles.map((own) => own.y_min + own.cell * own.num_y)),
  };
}
const EXTENT = extentOf();

function scaleOf(canvas) {
  const metres = EXTENT.right - EXTENT.left;
  return { times: canvas.width / metres };
}
const toPixel = (scale, [x, y]) => [(x - EXTENT.left) * scale.times, (EXTENT.top - y) * scale.times];

function rasterCanvas(tile, colour) {
  // `colour(row, column)` returns [red, green, blue, alpha]; row 0 is the nearest to y_min.
  const canvas = document.createElement("canvas");
  canvas.width = tile.num_x;
  canvas.height = tile.num_y;
  const context = canvas.getContext("2d");
  const image = context.createImageData(tile.num_x, tile.num_y);
  for (let row = 0; row < tile.num_y; row++) {
    for (let column = 0; column < tile.num_x; column++) {
      image.data.set(colour(row, column), 4 * ((tile.num_y - 1 - row) * tile.num_x + column));
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function paint(context, scale, tile, colour) {
  const [x, y] = toPixel(scale, [tile.x_min, tile.y_min + tile.cell * tile.num_y]);
  context.imageSmoothingEnabled = false;
  context.drawImage(rasterCanvas(tile, colour), x, y,
    tile.cell * tile.num_x * scale.times, tile.cell * tile.num_y * scale.times);
}

function colourOf(frame, tile) {
  const byte = (row, column) => byteAt(frame, tile, { row, column });
  if (tile.role === "energy") return (row, column) => [...ramp(byte(row, column) / 255), 255];
  if (tile.role === "heatmap") {
    return (row, column) => [...ramp(byte(row, column) / 255), Math.min(255, 4 * byte(row, column))];
  }
  if (tile.role === "class") {
    return (row, column) => byte(row, column)
      ? [...hexColour(CLASS_COLOURS[(byte(row, column) - 1) % CLASS_COLOURS.length]), 220] : [0, 0, 0, 0];
  }
  return (row, column) => (byte(row, column) ? [120, 200, 255, 110] : [0, 0, 0, 0]);
}

function paintComponents(context, scale, frame, first) {
  const tiles = DATA.tiles.filter((own) => own.role === "component").slice(first, first + 3);
  paint(context, scale, tiles[0], (row, column) =>
    [...tiles.map((tile) => byteAt(frame, tile, { row, column })), 255]);
}

function outline(context, scale, box, colour, dashed, faint) {
  const corners = footprint(box);
  const front = [(corners[0][0] + corners[3][0]) / 2, (corners[0][1] + corners[3][1]) / 2];
  context.strokeStyle = colour;
  context.globalAlpha = faint ? 0.4 : 1;
  context.setLineDash(dashed ? [6, 4] : []);
  context.beginPath();
  corners.forEach((own, i) => context[i ? "lineTo" : "moveTo"](...toPixel(scale, own)));
  context.closePath();
  context.moveTo(...toPixel(scale, box));
  context.lineTo(...toPixel(scale, front));
  context.stroke();
  context.globalAlpha = 1;
}

function dots(context, scale, places, colour, size) {
  context.fillStyle = colour;
  for (const own of places) {
    const [x, y] = toPixel(scale, own);
    context.fillRect(x - size / 2, y - size / 2, size, size);
  }
}

function drawEgo(context, scale) {
  context.fillStyle = INK;
  context.beginPath();
  [[0, 2.4], [0.95, 1.2], [0.95, -2.4], [-0.95, -2.4], [-0.95, 1.2]].forEach((own, i) =>
    context[i ? "lineTo" : "moveTo"](...toPixel(scale, own)));
  context.fill();
  context.font = `${Math.round(11 * devicePixelRatio)}px sans-serif`;
  for (let y = Math.ceil(EXTENT.bottom / FEW_METRES) * FEW_METRES; y <= EXTENT.top; y += FEW_METRES) {
    context.fillText(`${y} m`, 4, toPixel(scale, [0, y])[1]);
  }
}

function drawColourBars(context, canvas, shown) {
  // Nearest to the border what is painted last.
  const size = Math.round(11 * devicePixelRatio), wide = 14 * size, high = Math.round(2.6 * size);
  const tiles = LAYERS.filter((own) => own.tiles && shown(own.id)).flatMap((own) => own.tiles)
    .filter((own) => own.role === "energy" || own.role === "heatmap");
  context.font = `${size}px sans-serif`;
  tiles.reverse().forEach((tile, i) => {
    const x = canvas.width - wide - size, y = canvas.height - (i + 1) * high - size;
    context.fillStyle = "#101418d0";
    context.fillRect(x - size / 2, y, wide + size, high);
    const colours = context.createLinearGradient(x, 0, x + wide, 0);
    RAMP.forEach((own, at) => colours.addColorStop(at / (RAMP.length - 1), `rgb(${own.join(" ")})`));
    context.fillStyle = colours;
    context.fillRect(x, y + 1.4 * size, wide, size * 0.8);
    context.fillStyle = INK;
    [["left", x, tile.low.toPrecision(2)], ["center", x + wide / 2, tile.role],
      ["right", x + wide, tile.high.toPrecision(2)]].forEach(([align, at, text]) => {
      context.textAlign = align;
      context.fillText(text, at, y + 1.1 * size);
    });
  });
  context.textAlign = "start";
}

function drawBev(frame, shown, cross) {
  const canvas = byId("bev");
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
  canvas.height = Math.round(canvas.width * (EXTENT.top - EXTENT.bottom) / (EXTENT.right - EXTENT.left));
  const context = canvas.getContext("2d"), scale = scaleOf(canvas);
  context.fillStyle = "#101418";
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (!frame.values) return;
  context.lineWidth = 1.5 * devicePixelRatio;
  for (const layer of LAYERS) if (shown(layer.id)) layer.draw(context, scale, frame);
  drawEgo(context, scale);
  drawColourBars(context, canvas, shown);
  if (!cross) return;
  const [x, y] = toPixel(scale, cross), arm = 8 * devicePixelRatio;
  context.strokeStyle = INK;
  context.setLineDash([]);
  context.strokeRect(x - arm / 2, y - arm / 2, arm, arm);
}

function reading(frame, [x, y], shown) {
  // What the rasters that are shown say at a place, in words.
  const parts = [`x ${x.toFixed(1)} m (right), y ${y.toFixed(1)} m (forward)`];
  for (const layer of LAYERS.filter((own) => own.tiles && shown(own.id))) {
    for (const tile of layer.tiles) {
      const cell = frame.values ? cellOf(tile, x, y) : null;
      if (!cell) continue;
      const byte = byteAt(frame, tile, cell), where = `row ${cell.row}, column ${cell.column}`;
      if (tile.role === "class") {
        parts.push(`${tile.target}: ${byte ? DATA.classes[byte - 1] : "no class"} (${where})`);
      } else if (tile.role === "region") {
        parts.push(`${tile.target}: ${byte ? "stored" : "not stored"}`);
      } else {
        const of = tile.role === "component" ? `component ${tile.number + 1}` : titleOf(tile);
        parts.push(`${of} ≈ ${valueOf(tile, byte).toPrecision(3)} (${where})`);
      }
    }
  }
  return parts.join("; ");
}

function boxLayer(name, key, colour, dashed) {
  return { id: key, title: name, colour, on: true, boxes: true, draw(context, scale, frame) {
    for (const box of frame[key] || []) {
      outline(context, scale, box, colour, dashed, key === "truth" && !box[8]);
    }
  } };
}

function layersOf() {
  const layers = [], main = DATA.colours_of;
  for (const tile of DATA.tiles.filter((own) => own.role !== "component")) {
    layers.push({ id: `${tile.role}-${tile.target}`, title: titleOf(tile), tiles: [tile],
      on: tile.role === "energy" && tile.target === main,
      draw: (context, scale, frame) => paint(context, scale, tile, colourOf(frame, tile)) });
  }
  for (const first of DATA.colours_of ? [0, 3] : []) {
    layers.push({ id: `colours-${first}`, on: false,
      title: `${main} colours ${first + 1}–${first + 3}`,
      tiles: DATA.tiles.filter((own) => own.role === "component").slice(first, first + 3),
      draw: (context, scale, frame) => paintComponents(context, scale, frame, first) });
  }
  layers.sort((a, b) => paintOrder(a.id) - paintOrder(b.id));
  layers.push({ id: "points", title: "LiDAR points", colour: "#d0d7de", on: false,
    draw(context, scale, frame) {
      const places = [];
      for (let i = 0; i < frame.points.length; i += 3) places.push([frame.points[i], frame.points[i + 1]]);
      dots(context, scale, places, "#d0d7dea0", 1.5 * devicePixelRatio);
    } });
  layers.push({ id: "queries", title: "queries", colour: QUERY, on: true, draw: (context, scale, frame) =>
    dots(context, scale, frame.queries || [], QUERY, 3 * devicePixelRatio) });
  layers.push(boxLayer("ground truth", "truth", TRUTH, false));
  layers.push(boxLayer("teacher", "teacher", TEACHER, true));
  if (DATA.student) layers.push({ ...boxLayer("student", "student_boxes", STUDENT, true), tiles: [] });
  return layers.filter((own) => own.tiles || DATA.drawn.includes(own.id));
}

function paintOrder(id) {
  return ["energy", "colours", "region", "heatmap", "class"].findIndex((own) => id.startsWith(own));
}
const LAYERS = layersOf();
