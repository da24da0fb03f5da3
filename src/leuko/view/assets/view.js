"use strict";
// All images are on one grid whose axes run R, A, S, so that NiiVue's voxels are those of the server.
const find = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];
const NAMES = { flair: "FLAIR", t1: "T1", probability: "probability", tissue: "tissues", regions: "regions", lesions: "lesions", rims: "caps and rims" };
const SCANS = ["flair", "t1"];
const MAP_COLOURS = { probability: "hot", tissue: "nih", regions: "nih", lesions: "random", rims: "violet" };
const MOST_UNDO = 50;
const { Niivue, NVImage, SHOW_RENDER, SLICE_TYPE } = window.niivue;
// The slice to draw on is large; on a narrow screen NiiVue puts the planes below each other.
const WIDE = [[SLICE_TYPE.AXIAL, [0, 0, 0.6, 1]], [SLICE_TYPE.CORONAL, [0.6, 0, 0.4, 0.5]], [SLICE_TYPE.SAGITTAL, [0.6, 0.5, 0.4, 0.5]]].map(([sliceType, position]) => ({ sliceType, position }));
const viewer = new Niivue({ backColor: [0, 0, 0, 1], crosshairColor: [0.2, 0.8, 1, 0.7], crosshairWidth: 0.4, isRadiologicalConvention: true, sagittalNoseLeft: true, drawingEnabled: false, loadingText: "", maxDrawUndoBitmaps: MOST_UNDO + 1 });
viewer.drawRimOpacity = 1; // outlined, so that the scan is seen through the mask
const state = { name: new URLSearchParams(location.search).get("name") ?? "", shape: [], version: "", saved: null, undoable: 0, lesions: [], isSaving: false, arranged: Promise.resolve() };

const query = (given = {}) => "?" + new URLSearchParams({ name: state.name, ...given });
const tool = () => find('input[name="tool"]:checked').value;
const index = ([x, y, z]) => x + state.shape[0] * (y + state.shape[1] * z);

async function answer(address, options) {
  const reply = await fetch(address, options);
  if (!reply.ok) throw Object.assign(new Error(await reply.text()), { status: reply.status });
  return reply;
}

function say(text, isBad = false) {
  find("#said").textContent = text;
  find("#said").classList.toggle("bad", isBad);
}

async function start() {
  // The server ends with its last page.
  new EventSource("open").onerror = () => {
    if (state.saved && changed()) say("leuko view does not answer; if the command has ended, this page can no longer save", true);
  };
  const [about, flair, mask] = await Promise.all([
    answer("about" + query()).then((reply) => reply.json()),
    fetched("flair"),
    answer("mask" + query()),
    viewer.attachToCanvas(find("#canvas")),
  ]);
  state.name = about.name;
  state.version = mask.headers.get("X-Version");
  state.saved = new Uint8Array(await mask.arrayBuffer());
  showPlanes();
  viewer.setDrawOpacity(find("#opacity").value / 100);
  viewer.addVolume(flair);
  state.shape = flair.dims.slice(1, 4);
  viewer.createEmptyDrawing();
  viewer.drawBitmap.set(state.saved);
  viewer.drawClearAllUndoBitmaps();
  viewer.drawAddUndoBitmap();
  describe(about);
  for (const label of all(".grows")) label.hidden = !about.images.includes("probability");
  options("#scan", about.images.filter((name) => SCANS.includes(name)));
  options("#map", ["", ...about.images.filter((name) => !SCANS.includes(name))]);
  redraw();
  if (state.lesions.length) go(state.lesions[0]);
  document.body.dataset.ready = "1";
}

const images = new Map(); // those that were asked for, by name

async function fetched(name) {
  if (!images.has(name)) {
    const bytes = await (await answer("image" + query({ image: name }))).arrayBuffer();
    const image = await NVImage.loadFromUrl({ url: bytes, name: `${name}.nii`, colormap: MAP_COLOURS[name] ?? "gray", opacity: SCANS.includes(name) ? 1 : 0.6 });
    if (SCANS.includes(name)) brighten(image);
    images.set(name, image);
  }
  return images.get(name);
}

// Lesions are the brightest tissue of a FLAIR: they must not be white like all others.
function brighten(image) {
  const sample = image.img.filter((value, k) => k % 97 === 0 && value > 0).sort();
  if (sample.length) [image.cal_min, image.cal_max] = [0, sample[Math.floor(0.997 * sample.length)]];
}

function options(selector, names) {
  find(selector).replaceChildren(...names.map((name) => new Option(name ? NAMES[name] : "none", name)));
}

function describe(about) {
  document.title = `${about.label ?? about.name}: leuko view`;
  find("#name").textContent = about.label ?? about.name;
  const edited = about.edited ? `, corrected by ${about.edited.editor || "a reader"}` : "";
  find("#numbers").textContent = about.problem ?? `${about.volume_ml.toFixed(2)} mL in ${about.lesions} ${about.lesions === 1 ? "lesion" : "lesions"}${edited}${about.is_current ? "" : "; being measured ..."}${about.note ? `; ${about.note}` : ""}`;
  find("#report").href = "report" + query();
  const now = about.names.indexOf(about.name);
  for (const [id, step] of [["#previous", -1], ["#next", 1]]) {
    const name = about.names[now + step];
    find(id).hidden = !name;
    if (name) find(id).href = "?" + new URLSearchParams({ name });
  }
  find("#neighbours").hidden = about.names.length < 2;
  state.lesions = about.lesions_table;
  find("#lesions").replaceChildren(...state.lesions.map((lesion) => {
    const row = document.createElement("tr"), button = document.createElement("button");
    button.type = "button";
    button.textContent = lesion.id;
    button.addEventListener("click", () => go(lesion));
    row.dataset.id = lesion.id;
    for (const content of [button, Number(lesion.volume_ml).toFixed(3), lesion.region]) {
      const cell = document.createElement("td");
      cell.append(content);
      row.append(cell);
    }
    return row;
  }));
}

function go(lesion) {
  viewer.scene.crosshairPos = viewer.mm2frac([Number(lesion.x_mm), Number(lesion.y_mm), Number(lesion.z_mm)]);
  for (const row of all("#lesions tr")) row.classList.toggle("chosen", row.dataset.id === lesion.id);
  viewer.drawScene();
}

// NiiVue keeps the drawing after each change, compressed.
function remember() {
  state.undoable = Math.min(state.undoable + 1, MOST_UNDO);
  changed();
}

function undo() {
  if (!state.undoable) return;
  state.undoable -= 1;
  viewer.drawUndo();
  changed();
}

// Without a graphics card a picture in 3-D takes seconds: it is shown when it is asked for.
function showPlanes() {
  const chosen = find("#planes").selectedOptions[0];
  viewer.opts.multiplanarShowRender = chosen.dataset.render ? SHOW_RENDER.ALWAYS : SHOW_RENDER.NEVER;
  const { width, height } = find("#canvas").getBoundingClientRect();
  if (chosen.value === "3" && !chosen.dataset.render && width > height) viewer.setCustomLayout(WIDE);
  else viewer.clearCustomLayout();
  viewer.setSliceType(Number(chosen.value));
}

function redraw() {
  viewer.refreshDrawing(true);
}

function changed() {
  const isChanged = viewer.drawBitmap.some((value, k) => (value > 0) !== (state.saved[k] > 0));
  find("#save").disabled = !isChanged || state.isSaving;
  find("#undo").disabled = !state.undoable;
  return isChanged;
}

// Voxels connected by a face, an edge or a corner to a seed, for which `holds` is true.
function connected(seed, holds) {
  const [nx, ny, nz] = state.shape, found = new Set(), todo = [seed];
  if (!holds(index(seed))) return found;
  found.add(index(seed));
  while (todo.length) {
    const [x, y, z] = todo.pop();
    for (let c = Math.max(0, z - 1); c <= Math.min(nz - 1, z + 1); c++) {
      for (let b = Math.max(0, y - 1); b <= Math.min(ny - 1, y + 1); b++) {
        for (let a = Math.max(0, x - 1); a <= Math.min(nx - 1, x + 1); a++) {
          const k = index([a, b, c]);
          if (found.has(k) || !holds(k)) continue;
          found.add(k);
          todo.push([a, b, c]);
        }
      }
    }
  }
  return found;
}

async function act(voxel) {
  let found;
  if (tool() === "grow") {
    const values = (await fetched("probability")).img, least = find("#least").value / 100;
    found = connected(voxel, (k) => values[k] >= least);
    if (!found.size) say(`the probability here is below ${find("#least").value} %`, true);
  } else {
    found = connected(voxel, (k) => viewer.drawBitmap[k] > 0);
    if (!found.size) say("there is no lesion here", true);
  }
  if (!found.size) return;
  for (const k of found) viewer.drawBitmap[k] = tool() === "grow" ? 1 : 0;
  viewer.drawAddUndoBitmap();
  redraw();
  remember();
}

async function save() {
  if (state.isSaving || !changed()) return;
  state.isSaving = true;
  find("#save").disabled = true;
  const mask = viewer.drawBitmap.map((value) => (value > 0 ? 1 : 0));
  try {
    const editor = find("#editor").value;
    const reply = await (await answer("mask" + query({ based_on: state.version, editor }), { method: "POST", body: mask })).json();
    state.version = reply.version;
    state.saved = mask;
    say("saved");
    follow();
  } catch (error) {
    say(error.status ? error.message : "not saved: leuko view does not answer; try again. If the command has ended, this page can no longer save", true);
  }
  state.isSaving = false;
  changed();
}

async function judge(verdict) {
  try {
    await answer("verdict" + query({ verdict, rater: find("#editor").value }), { method: "POST" });
    for (const button of all("[data-verdict]")) button.classList.toggle("chosen", button.dataset.verdict === verdict);
    say(`verdict ${verdict} saved`);
  } catch (error) {
    say(error.message, true);
  }
}

// Numbers follow some seconds after a mask is saved.
async function follow() {
  for (;;) {
    const about = await (await answer("about" + query())).json();
    describe(about);
    if (about.is_current) for (const name of ["lesions", "regions"]) images.delete(name);
    if (about.is_current || about.problem) return;
    await new Promise((done) => setTimeout(done, 500));
  }
}

function choose(name) {
  if (find(`input[name="tool"][value="${name}"]`).closest("label").hidden) return;
  find(`input[name="tool"][value="${name}"]`).checked = true;
  const draws = name === "brush" || name === "eraser";
  viewer.setDrawingEnabled(draws);
  if (draws) viewer.setPenValue(name === "brush" ? 1 : 0, false);
  viewer.opts.penSize = Number(find("#pen").value);
}

const KEYS = { v: () => choose("look"), b: () => choose("brush"), e: () => choose("eraser"), g: () => choose("grow"), d: () => choose("delete"), u: undo, s: save, n: () => step(1), p: () => step(-1), 1: () => judge("PASS"), 2: () => judge("FAIL"), 3: () => judge("flag") };

function step(steps) {
  const now = state.lesions.findIndex((lesion) => find(`#lesions tr[data-id="${lesion.id}"].chosen`));
  const lesion = state.lesions[Math.min(Math.max(now + steps, 0), state.lesions.length - 1)];
  if (lesion) go(lesion);
}

function listen() {
  const canvas = find("#canvas");
  viewer.onDrawingChanged = (action) => { if (action === "draw") remember(); };
  canvas.addEventListener("pointerup", (event) => {
    if (!["grow", "delete"].includes(tool()) || event.button !== 0) return;
    setTimeout(() => { // NiiVue moves its crosshair first
      act([...viewer.frac2vox(viewer.scene.crosshairPos)]).catch((error) => say(error.message, true));
    });
  });
  all('input[name="tool"]').forEach((input) => input.addEventListener("change", () => choose(input.value)));
  find("#pen").addEventListener("input", (event) => {
    find("#pen-size").textContent = event.target.value;
    viewer.opts.penSize = Number(event.target.value);
  });
  find("#least").addEventListener("input", (event) => { find("#least-size").textContent = `${event.target.value} %`; });
  find("#opacity").addEventListener("input", (event) => { viewer.setDrawOpacity(event.target.value / 100); });
  find("#planes").addEventListener("change", showPlanes);
  for (const name of ["#scan", "#map"]) {
    find(name).addEventListener("change", () => {
      state.arranged = state.arranged.then(arrange).catch((error) => say(error.message, true));
    });
  }
  find("#undo").addEventListener("click", undo);
  all("[data-verdict]").forEach((button) => button.addEventListener("click", () => judge(button.dataset.verdict)));
  find("#save").addEventListener("click", save);
  find("#editor").value = localStorage.getItem("leuko:editor") ?? "";
  find("#editor").addEventListener("input", (event) => localStorage.setItem("leuko:editor", event.target.value));
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input[type=text], select") || event.altKey || event.ctrlKey || event.metaKey) return;
    const act = KEYS[event.key];
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  }, true);
  window.addEventListener("beforeunload", (event) => { if (state.saved && changed()) event.preventDefault(); });
}

// Show another scan, or another map over it; the mask stays.
async function arrange() {
  const wanted = [find("#scan").value, find("#map").value].filter((name) => name);
  const shown = await Promise.all(wanted.map(fetched));
  const drawn = viewer.drawBitmap, place = [...viewer.scene.crosshairPos];
  const kept = viewer.volumes[0] === shown[0] ? 1 : 0;
  while (viewer.volumes.length > kept) viewer.removeVolumeByIndex(viewer.volumes.length - 1);
  for (const image of shown.slice(kept)) viewer.addVolume(image);
  viewer.drawBitmap = drawn;
  viewer.scene.crosshairPos = place;
  viewer.updateGLVolume(); // also forgets the colours of a map that was removed
  redraw();
}

listen();
start().catch((error) => say(error.message, true));
