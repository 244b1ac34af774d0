// Six cameras with wireframes of the boxes that are shown, and one of them enlarged.
const CAMERA_ORDER = ["CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_FRONT", "CAM_BACK", "CAM_BACK_LEFT",
  "CAM_BACK_RIGHT"]; // two columns
const NEAR = 0.3;
const EDGES = [[0, 1], [1, 2], [2, 3], [3, 0], [4, 5], [5, 6], [6, 7], [7, 4], [0, 4], [1, 5], [2, 6],
  [3, 7]];

function cornersOf(box) {
  const plane = footprint(box);
  return [-1, 1].flatMap((side) => plane.map(([x, y]) => [x, y, box[2] + side * box[5] / 2]));
}

const apply = (matrix, [x, y, z]) => matrix.map((row) => row[0] * x + row[1] * y + row[2] * z + row[3]);

function segment(a, b) {
  // Two points [u depth, v depth, depth], cut at the near plane; null if both are behind it.
  if (a[2] < NEAR && b[2] < NEAR) return null;
  const cut = (from, to) => {
    if (from[2] >= NEAR) return from;
    const share = (NEAR - from[2]) / (to[2] - from[2]);
    return from.map((own, i) => own + share * (to[i] - own));
  };
  return [cut(a, b), cut(b, a)].map(([u, v, depth]) => [u / depth, v / depth]);
}

function wireframe(context, scale, view, box, colour, dashed, faint) {
  const corners = cornersOf(box).map((own) => apply(view.matrix, own));
  if (corners.every((own) => own[2] < NEAR)) return;
  context.strokeStyle = colour;
  context.globalAlpha = faint ? 0.4 : 1;
  context.setLineDash(dashed ? [5, 3] : []);
  context.beginPath();
  for (const [from, to] of EDGES) {
    const line = segment(corners[from], corners[to]);
    if (!line) continue;
    context.moveTo(...line[0].map((own) => scale * own));
    context.lineTo(...line[1].map((own) => scale * own));
  }
  context.stroke();
  context.globalAlpha = 1;
}

function drawCamera(canvas, picture, view, frame, shown) {
  // Lines are as thin as the screen allows, however many pixels the image has.
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
  canvas.height = Math.round(canvas.width * view.size[0] / view.size[1]);
  const context = canvas.getContext("2d"), scale = canvas.width / view.size[1];
  context.lineWidth = 1.25 * devicePixelRatio;
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  for (const layer of LAYERS.filter((own) => own.boxes && shown(own.id))) {
    for (const box of frame[layer.id] || []) {
      wireframe(context, scale, view, box, layer.colour, layer.id !== "truth", layer.id === "truth" && !box[8]);
    }
  }
}

function drawLarge(frame, shown) {
  const own = (frame.pictures || {})[state.large];
  if (byId("large").open && own && own[1].complete) {
    drawCamera(document.querySelector("#large canvas"), own[1], frame.images[state.large], frame, shown);
  }
}

function enlarge(name) {
  state.large = name;
  byId("large-name").textContent = `${name}: solid ground truth, dashed teacher; n and p walk through the frames`;
  byId("large").showModal();
  drawLarge(state.frame, isShown);
}

function addCamera(place, frame, name, shown) {
  const view = frame.images[name];
  const canvas = element("canvas", { role: "img", width: view.size[1], height: view.size[0],
    "data-camera": name, "aria-label": `${name}: the image with boxes projected into it` });
  const button = element("button", { type: "button", title: "Enlarge" }, canvas, element("span", {}, name));
  button.addEventListener("click", () => enlarge(name));
  place.append(button);
  const picture = new Image();
  frame.pictures[name] = [canvas, picture];
  picture.onload = () => {
    drawCamera(canvas, picture, view, frame, shown);
    if (name === state.large) drawLarge(frame, shown);
  };
  picture.src = "data:image/jpeg;base64," + view.image;
}

function drawCameras(frame, shown) {
  const place = byId("cameras");
  if (place.dataset.frame !== String(frame.number)) {
    place.dataset.frame = frame.number;
    place.replaceChildren();
    frame.pictures = {};
    for (const name of CAMERA_ORDER.filter((own) => frame.images && frame.images[own])) {
      addCamera(place, frame, name, shown);
    }
    if (!place.children.length) {
      byId("large").close();
      place.append(element("p", { class: "without" }, DATA.cameras.length
        ? "Camera images of this frame are left out to keep the file small; the frame list says which have them."
        : "Camera images are not in this file: the dataset was not there, or there was no room."));
    }
    return;
  }
  for (const [name, [canvas, picture]] of Object.entries(frame.pictures || {})) {
    if (picture.complete) drawCamera(canvas, picture, frame.images[name], frame, shown);
  }
  drawLarge(frame, shown);
}
