// The first screen: what is wrong, what this is, sizes, scores, coverage.
const number = (value, digits = 3) =>
  value === null || value === undefined ? "–" : value.toFixed(digits);
const megabytes = (bytes) => (bytes / 1e6).toFixed(2);

function fillTable(id, head, rows) {
  const table = byId(id);
  table.replaceChildren();
  if (!rows.length) {
    table.append(element("tbody", {}, element("tr", {}, element("td", {}, "nothing"))));
    return;
  }
  const cell = (name, value, column) => element(name, {
    class: head[column][1] || "", scope: name === "th" ? "col" : null }, value);
  table.append(
    element("thead", {}, element("tr", {}, ...head.map(([title], i) => cell("th", title, i)))),
    element("tbody", {}, ...rows.map((row) =>
      element("tr", {}, ...row.map((value, i) => cell("td", String(value), i))))),
  );
}

function fillWarnings() {
  const list = byId("warnings");
  for (const own of DATA.warnings) {
    list.append(element("li", { class: own.severity },
      element("strong", { class: own.severity }, own.severity + ": " + own.what),
      element("p", {}, own.where), element("p", { class: "todo" }, "What to do: " + own.todo)));
  }
  if (!DATA.warnings.length) {
    list.append(element("li", { class: "ok" }, element("strong", {}, "No warning."),
      element("p", {}, "Bytes, values, readings, calibration and weights were looked at.")));
  }
  for (const lack of DATA.lacks) {
    list.append(element("li", { class: "note" }, element("strong", {}, "left out: "), lack));
  }
}

function fillAbout() {
  const about = DATA.about, made = about.provenance, teacher = about.teacher;
  const rows = {
    "teacher": teacher.type + ", checkpoint " + (teacher.checkpoint || "not recorded"),
    "weights": teacher.weights,
    "dataset": `${about.dataset.version} in ${about.dataset.root}, split ${about.dataset.split}`,
    "frames": `${about.committed_frames} of ${about.frames} cached, ${DATA.frames.length} in ` +
      `this page, ${DATA.cameras.length} of them with camera images`,
    "sealed": about.sealed ? "yes" : "no",
    "made by": [made.command, made.git && "commit " + made.git, made.host, made.time]
      .filter(Boolean).join("; ") || "not recorded",
    "cache id": about.id,
  };
  for (const [key, value] of Object.entries(rows)) {
    byId("about").append(element("dt", {}, key), element("dd", {}, value));
  }
  byId("title").textContent = "Cache " + about.cache.split("/").pop();
  byId("subtitle").textContent = about.cache;
  document.title = "bevcask report: " + about.cache.split("/").pop();
}

function fillTargets() {
  const right = "number";
  const ratio = (raw, stored) => (stored ? (raw / stored).toFixed(1) : "–");
  const rows = DATA.about.targets.map((own) => [own.name, own.kind, own.sizes, own.dtype, own.region,
    own.alignment, megabytes(own.raw_bytes), megabytes(own.stored_bytes),
    ratio(own.raw_bytes, own.stored_bytes)]);
  const about = DATA.about;
  rows.push(["all", "", "", "", "", "", megabytes(about.raw_bytes), megabytes(about.stored_bytes),
    ratio(about.raw_bytes, about.stored_bytes)]);
  fillTable("targets", [["target"], ["kind"], ["shape"], ["stored as"], ["region"], ["alignment"],
    ["float32 MB", right], ["stored MB", right], ["ratio", right]], rows);
}

function fillScores() {
  const scores = DATA.scores, right = "number";
  byId("scores-note").textContent = scores
    ? `mAP ${number(scores.mAP)}, NDS ${number(scores.NDS)}; translation error ` +
      `${number(scores.mATE)} m, scale ${number(scores.mASE)}, heading ${number(scores.mAOE)}, ` +
      `velocity ${number(scores.mAVE)} m/s, on ${scores.coverage}. An mAP far from the one you ` +
      "know of this teacher means wrong weights, class order or data." + absentOf(scores)
    : "Not scored: no boxes are cached, or there is no ground truth of these frames.";
  if (!scores) return;
  const errors = ["AP", "ATE", "ASE", "AOE", "AVE", "AAE"];
  fillTable("scores", [["class"], ...errors.map((own) => [own, right]), ["boxes", right]],
    Object.entries(scores.per_class).map(([name, own]) =>
      [name, ...errors.map((key) => (own.boxes ? number(own[key]) : "–")), own.boxes]));
}

function absentOf(scores) {
  const absent = scores.absent_classes;
  return absent.length ? ` No box of these frames is a ${absent.join(" or a ")}: nothing was measured of ` +
    "them, yet the means count an AP of 0 and errors of 1." : "";
}

function fillOverview() {
  fillAbout();
  fillWarnings();
  fillTargets();
  fillScores();
  fillTable("findings", [["target"], ["what"], ["verdict"], ["fits best", "wide"],
    ["boxes", "number"], ["note", "wide"]],
  DATA.findings.map((own) => [own.target, own.what, own.verdict, own.best, own.boxes, own.note]));
  const scenes = [...DATA.about.coverage].sort((a, b) =>
    a.committed / a.frames - b.committed / b.frames);
  fillTable("coverage", [["scene"], ["cached", "number"], ["frames", "number"], ["share", "number"]],
    scenes.map((own) => [own.scene, own.committed, own.frames,
      (100 * own.committed / own.frames).toFixed(0) + " %"]));
}
