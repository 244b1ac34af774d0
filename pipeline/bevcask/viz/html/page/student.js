// A student beside its teacher: the same frame in small panels, on one basis of colours.
const STUDENT = "#ff5fa2";
const SHOWN_STUDENT = new Set(DATA.shown_student);
const STUDENT_TILES = DATA.student_tiles.map((own) => ({ ...own, strip: "student" }));

function panelsOf() {
  const tile = (role) => STUDENT_TILES.filter((own) => own.role === role);
  const about = DATA.student, colours = DATA.tiles.filter((own) => own.role === "component");
  return [
    { title: `teacher, ${about.target}, colours 1–3`, tiles: colours.slice(0, 3), boxes: ["truth", "teacher"] },
    { title: `what can be read of it in the student's ${about.tap}`, tiles: tile("component").slice(0, 3),
      boxes: ["truth", "student_boxes"] },
    { title: "difference: bright where no reading of the student finds what the teacher says",
      tiles: tile("difference"), boxes: ["truth"] },
    { title: `student's energy, ${about.augmentation}: before alignment`, tiles: tile("moved"), boxes: ["truth"] },
    { title: `student's energy, ${about.augmentation}: after alignment`, tiles: tile("aligned"), boxes: ["truth"] },
    { title: "student's energy, not augmented", tiles: tile("energy"), boxes: ["truth"] },
  ];
}

function fillStudent() {
  byId("student-figure").hidden = !DATA.student;
  if (!DATA.student) return;
  for (const panel of panelsOf()) {
    const canvas = element("canvas", { role: "img", "aria-label": panel.title });
    byId("student").append(element("div", {}, canvas, element("p", {}, panel.title)));
    canvas.panel = panel;
  }
  const about = DATA.student;
  byId("student-caption").textContent = `Run ${about.name}, shown ${DATA.shown_student.length} frames. Its ` +
    `channels are its own, so the teacher's map is read from them by the linear map that fits ` +
    `${Math.round(100 * about.read)} % of the teacher's variance here. Look for bright objects in the ` +
    "difference: what is not learned yet. After alignment the energy must lie where it lies without " +
    "augmentation; cells that left the grid stay dark. Pink: the student's boxes.";
}

function drawStudent(frame) {
  if (!DATA.student) return;
  byId("student").hidden = !frame.student;
  byId("student-without").hidden = Boolean(frame.student);
  if (!frame.student) return;
  for (const canvas of document.querySelectorAll("#student canvas")) {
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
    canvas.height = Math.round(canvas.width * (EXTENT.top - EXTENT.bottom) / (EXTENT.right - EXTENT.left));
    const context = canvas.getContext("2d"), scale = scaleOf(canvas), tiles = canvas.panel.tiles;
    context.lineWidth = devicePixelRatio;
    paint(context, scale, tiles[0], tiles.length === 3
      ? (row, column) => [...tiles.map((tile) => byteAt(frame, tile, { row, column })), 255]
      : (row, column) => [...ramp(byteAt(frame, tiles[0], { row, column }) / 255), 255]);
    for (const key of canvas.panel.boxes) {
      const colour = { truth: TRUTH, teacher: TEACHER, student_boxes: STUDENT }[key];
      for (const box of frame[key] || []) outline(context, scale, box, colour, key !== "truth", false);
    }
  }
}
