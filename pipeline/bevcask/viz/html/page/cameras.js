// Six cameras with wireframes of the boxes that are shown.
const CAMERA_ORDER = ["CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK",
  "CAM_BACK_RIGHT"];
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

function wireframe(context, view, box, colour, dashed, faint) {
  const corners = cornersOf(box).map((own) => apply(view.matrix, own));
  if (corners.every((own) => own[2] < NEAR)) return;
  context.strokeStyle = colour;
  context.globalAlpha = faint ? 0.4 : 1;
  context.setLineDash(dashed ? [5, 3] : []);
  context.beginPath();
  for (const [from, to] of EDGES) {
    const line = segment(corners[from], corners[to]);
    if (!line) continue;
    context.moveTo(...line[0]);
    context.lineTo(...line[1]);
  }
  context.stroke();
  context.globalAlpha = 1;
}

function drawCamera(canvas, picture, view, frame, shown) {
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  for (const layer of LAYERS.filter((own) => own.boxes && shown(own.id))) {
    for (const box of frame[layer.id] || []) {
      wireframe(context, view, box, layer.colour, layer.id !== "truth", layer.id === "truth" && !box[8]);
    }
  }
}

function drawCameras(frame, shown) {
  const place = byId("cameras");
  if (place.dataset.frame !== String(frame.number)) {
    place.dataset.frame = frame.number;
    place.replaceChildren();
    frame.pictures = {};
    for (const name of CAMERA_ORDER.filter((own) => frame.images && frame.images[own])) {
      const view = frame.images[name];
      const canvas = element("canvas", { role: "img", width: view.size[1], height: view.size[0],
        "data-camera": name, "aria-label": `${name}: the image with boxes projected into it` });
      place.append(element("div", {}, canvas, element("p", {}, name)));
      const picture = new Image();
      picture.onload = () => drawCamera(canvas, picture, view, frame, shown);
      picture.src = "data:image/jpeg;base64," + view.image;
      frame.pictures[name] = [canvas, picture];
    }
    if (!place.children.length) {
      place.append(element("p", { class: "without" }, DATA.cameras.length
        ? "Camera images of this frame are left out to keep the file small; the frame list says which have them."
        : "Camera images are not in this file: the dataset was not there, or there was no room."));
    }
    return;
  }
  for (const [name, [canvas, picture]] of Object.entries(frame.pictures || {})) {
    if (picture.complete) drawCamera(canvas, picture, frame.images[name], frame, shown);
  }
}
