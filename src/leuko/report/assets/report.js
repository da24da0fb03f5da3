// A view shows slices of one scan: on a canvas outlines, under it a picture that is moved and
// scaled by CSS. Positions in a slice are in voxels, (0, 0) at its top left.
const STEP_PX = 12; // of a swipe to the next slice
const JPEG = "data:image/jpeg;base64,";
const BARELY_PX = 4; // a shorter drag is a click
const LEAST_WINDOW = 0.05;
const PIXELS = window.devicePixelRatio || 1;
const panes = data.panes;
const count = panes[0].runs.length;
const slider = find("#slice");
const kept = { window: [0, 1 / 1.3], zoom: 1, place: [0.5, 0.5] }; // what `Reset` restores
const state = { ...kept, chosen: 0, cursor: [0, 0] };
let views = [];

const value = (name) => find(`input[name="${name}"]:checked`)?.value;
const at = () => Number(slider.value) - 1;
const within = (number, low, high) => Math.min(high, Math.max(low, number));

// Slices as they were acquired.
function acquired(pane, name) {
  return {
    pane, marks: pane.marks, width: pane.width, height: pane.height, aspect: pane.aspect, count,
    title: panes.length > 1 ? pane.title : name,
    number: at,
    picture: (k) => JPEG + pane.images[name][k],
    overlay: (k) => unpacked(pane, k),
    probability: (k) => pixels(JPEG + pane.probability[k], pane.width, pane.height),
    go: (x, y) => { state.cursor = [x, y]; },
    cursor: () => state.cursor,
    move: (steps) => { slider.value = Number(slider.value) + steps; },
  };
}

// Lesion numbers and kinds of the voxels of an acquired slice.
function unpacked(pane, k) {
  const ids = new Int32Array(pane.width * pane.height), kinds = new Uint8Array(ids.length);
  const runs = pane.runs[k];
  for (let n = 0; n < runs.length; n += 4) {
    ids.fill(runs[n + 2], runs[n], runs[n] + runs[n + 1]);
    kinds.fill(runs[n + 3], runs[n], runs[n] + runs[n + 1]);
  }
  return { ids, kinds };
}

// Grey values of a JPEG, scaled to so many pixels.
async function pixels(url, width, height) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0, width, height);
  const colours = context.getImageData(0, 0, width, height).data;
  return Uint8Array.from({ length: width * height }, (_, k) => colours[4 * k]);
}

// The planes across the acquired one, front and side, cut from all acquired slices.
function across(pane, name, plane) {
  const front = plane === "coronal";
  const width = front ? pane.width : pane.height, [lowest, highest] = pane.span;
  const height = highest - lowest + 1;
  const volume = solid(pane, "images", name);
  const cut = (grey, k) => {
    const out = new grey.constructor(width * height);
    for (let h = 0; h < height; h++) for (let x = 0; x < width; x++) {
      const [row, column] = front ? [k, x] : [x, k];
      out[h * width + x] = grey[((highest - h) * pane.height + row) * pane.width + column];
    }
    return out;
  };
  const [column_mm, row_mm, slice_mm] = pane.voxel_mm;
  return {
    pane, title: `${name}, ${plane}`, width, height, count: front ? pane.height : pane.width,
    marks: front ? ["R", "L", "S", "I"] : ["A", "P", "S", "I"],
    aspect: width * (front ? column_mm : row_mm) / (height * slice_mm),
    number: () => state.cursor[front ? 1 : 0],
    picture: async (k) => asPicture(cut(await volume, k), width, height),
    overlay: (k) => {
      const { ids, kinds } = labels(pane);
      return { ids: cut(ids, k), kinds: cut(kinds, k) };
    },
    probability: async (k) => cut(await solid(pane, "probability"), k),
    go: (x, y) => { state.cursor = front ? [x, state.cursor[1]] : [state.cursor[0], x]; slider.value = highest - y + 1; },
    cursor: () => [front ? state.cursor[0] : state.cursor[1], highest - at()],
    move: (steps) => {
      const [axis, size] = front ? [1, pane.height] : [0, pane.width];
      state.cursor[axis] = within(state.cursor[axis] + (front ? -steps : steps), 0, size - 1);
    },
  };
}

const solids = new Map();

function solid(pane, kind, name) {
  const key = `${kind} ${name}`;
  if (!solids.has(key)) solids.set(key, stacked(pane, name ? pane[kind][name] : pane[kind]));
  return solids.get(key);
}

async function stacked(pane, jpegs) {
  const size = pane.width * pane.height, whole = new Uint8Array(size * count);
  await Promise.all(jpegs.map(async (jpeg, k) => whole.set(await pixels(JPEG + jpeg, pane.width, pane.height), k * size)));
  return whole;
}

function labels(pane) {
  if (!pane.labels) {
    const size = pane.width * pane.height;
    pane.labels = { ids: new Int32Array(size * count), kinds: new Uint8Array(size * count) };
    for (let k = 0; k < count; k++) {
      const { ids, kinds } = unpacked(pane, k);
      pane.labels.ids.set(ids, k * size);
      pane.labels.kinds.set(kinds, k * size);
    }
  }
  return pane.labels;
}

function asPicture(grey, width, height) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const image = new ImageData(width, height);
  for (let k = 0; k < grey.length; k++) image.data.set([grey[k], grey[k], grey[k], 255], 4 * k);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas.toDataURL();
}

function arrange() {
  const scan = value("scan") ?? "both";
  if (value("planes") === "three") {
    const name = scan === "both" ? Object.keys(panes[0].images)[0] : scan;
    views = [acquired(panes[0], name), across(panes[0], name, "coronal"), across(panes[0], name, "sagittal")];
  } else {
    views = panes.flatMap((pane) => {
      const names = Object.keys(pane.images);
      return names.filter((name) => scan === "both" || scan === name || names.length === 1).map((name) => acquired(pane, name));
    });
  }
  const frame = find("#view").content.firstElementChild;
  find(".views").replaceChildren(...views.map((view) => {
    view.element = frame.cloneNode(true);
    view.stage = find(".stage", view.element);
    view.stage.setAttribute("aria-label", `${view.title}: slices; arrow keys move through them`);
    view.stage.style.aspectRatio = view.aspect;
    view.stage.style.setProperty("--aspect", view.aspect);
    find("figcaption", view.element).textContent = view.title;
    ["left", "right", "top", "bottom"].forEach((side, k) => { find(".mark." + side, view.stage).textContent = view.marks[k]; });
    listen(view);
    return view.element;
  }));
  show();
}

// Scale from voxels to CSS pixels, and the position of voxel (0, 0).
function fit(view) {
  const box = view.stage.getBoundingClientRect();
  const [width, height] = [box.width * state.zoom, box.height * state.zoom];
  // Three planes stay centred on their crosshair.
  const [u, v] = value("planes") === "three" ? view.cursor().map((n, k) => (n + 0.5) / [view.width, view.height][k]) : state.place;
  const left = within(box.width / 2 - u * width, box.width - width, 0);
  const top = within(box.height / 2 - v * height, box.height - height, 0);
  return { box, left, top, x: width / view.width, y: height / view.height };
}

function show() {
  find("#at").textContent = `${at() + 1} / ${count}`;
  const [low, high] = state.window, slope = 1 / (high - low);
  const contrast = 1 + 2 * low * slope;
  for (const view of views) {
    const k = view.number(), { left, top } = fit(view);
    const image = find("img", view.stage);
    image.style.filter = `brightness(${slope / contrast}) contrast(${contrast})`;
    image.style.transform = `translate(${left}px, ${top}px) scale(${state.zoom})`;
    view.shown = k;
    const picture = view.picture(k);
    if (typeof picture === "string") image.src = picture;
    else picture.then((url) => { if (view.shown === k) image.src = url; });
    const overlay = view.overlay(k);
    const ids = new Set(overlay.ids.filter((id) => id));
    image.alt = `${view.title}, slice ${k + 1} of ${view.count}, ${ids.size} ${ids.size === 1 ? "lesion" : "lesions"}`;
    draw(view, overlay, k);
  }
  for (const row of all("tr[data-slice]")) {
    row.classList.toggle("here", Number(row.dataset.slice) === at());
    row.classList.toggle("chosen", Number(row.dataset.id) === state.chosen);
  }
}

function draw(view, overlay, k) {
  const canvas = find("canvas", view.stage), { box, left, top, x, y } = fit(view);
  canvas.width = Math.round(box.width * PIXELS);
  canvas.height = Math.round(box.height * PIXELS);
  canvas.style.opacity = find("#opacity").value / 100;
  const context = canvas.getContext("2d");
  context.scale(PIXELS, PIXELS);
  const style = value("overlay");
  if (style === "probability") {
    view.probability(k).then((grey) => { if (view.shown === k && value("overlay") === style) heat(context, grey, view, { left, top, x, y }); });
  } else if (style !== "none") {
    const { ids, kinds } = overlay;
    if (style === "fill") {
      for (let voxel = 0; voxel < kinds.length; voxel++) {
        if (!kinds[voxel]) continue;
        const column = voxel % view.width, row = (voxel - column) / view.width;
        context.fillStyle = data.kinds[kinds[voxel]].colour;
        context.fillRect(left + column * x, top + row * y, x + 0.3, y + 0.3);
      }
    }
    const lines = outlines(view, ids, kinds, { left, top, x, y });
    const stroke = (paths, colour, width) => {
      context.strokeStyle = colour;
      context.lineWidth = width;
      for (const path of paths) context.stroke(path);
    };
    context.lineJoin = context.lineCap = "round";
    if (style === "contour") {
      stroke(lines.kinds.values(), "rgb(0 0 0 / .7)", 4);
      for (const [kind, path] of lines.kinds) stroke([path], data.kinds[kind].colour, 2);
    }
    stroke([lines.chosen], "#000", 6);
    stroke([lines.chosen], "#fff", 3);
  }
  if (value("planes") === "three") crosshair(context, view, { box, left, top, x, y });
}

// The edges between voxels of different lesions or kinds, by kind, and those of the chosen lesion.
function outlines(view, ids, kinds, { left, top, x, y }) {
  const found = { kinds: new Map(), chosen: new Path2D() };
  const same = (a, b) => kinds[a] === kinds[b] && ids[a] === ids[b];
  const add = (voxel, from, to) => {
    if (!kinds[voxel]) return;
    if (!found.kinds.has(kinds[voxel])) found.kinds.set(kinds[voxel], new Path2D());
    const chosen = state.chosen && ids[voxel] === state.chosen;
    const path = chosen ? found.chosen : found.kinds.get(kinds[voxel]);
    path.moveTo(left + from[0] * x, top + from[1] * y);
    path.lineTo(left + to[0] * x, top + to[1] * y);
  };
  for (let row = 0; row < view.height; row++) for (let column = 0; column < view.width; column++) {
    const here = row * view.width + column;
    if (!kinds[here] && !kinds[here + 1] && !kinds[here + view.width]) continue;
    if (!column) add(here, [0, row], [0, row + 1]);
    if (!row) add(here, [column, 0], [column + 1, 0]);
    for (const [next, from, inside] of [[here + 1, [column + 1, row], column + 1 < view.width], [here + view.width, [column, row + 1], row + 1 < view.height]]) {
      if (inside && same(here, next)) continue;
      add(here, from, [column + 1, row + 1]);
      if (inside) add(next, from, [column + 1, row + 1]);
    }
  }
  return found;
}

// From black over red and yellow to white, transparent below 5 %.
function heat(context, grey, view, { left, top, x, y }) {
  for (let voxel = 0; voxel < grey.length; voxel++) {
    const part = grey[voxel] / 255;
    if (part < 0.05) continue;
    const column = voxel % view.width, row = (voxel - column) / view.width;
    context.fillStyle = `rgb(${within(3 * part, 0, 1) * 255} ${within(3 * part - 1, 0, 1) * 255} ${within(3 * part - 2, 0, 1) * 255})`;
    context.fillRect(left + column * x, top + row * y, x + 0.3, y + 0.3);
  }
}

function crosshair(context, view, { box, left, top, x, y }) {
  const [column, row] = view.cursor();
  context.strokeStyle = "#36c9ff";
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(left + (column + 0.5) * x, 0);
  context.lineTo(left + (column + 0.5) * x, box.height);
  context.moveTo(0, top + (row + 0.5) * y);
  context.lineTo(box.width, top + (row + 0.5) * y);
  context.stroke();
}

function listen(view) {
  const { stage } = view;
  let rolled = 0;
  stage.addEventListener("wheel", (event) => {
    if (!event.deltaY) return; // scrolling sideways
    event.preventDefault();
    rolled += event.deltaMode ? 30 * event.deltaY : event.deltaY; // lines or pixels
    if (Math.abs(rolled) < 30) return; // a touchpad sends many small steps
    if (event.ctrlKey) zoom(rolled < 0 ? 1.25 : 0.8, view, event.clientX, event.clientY);
    else view.move(rolled < 0 ? 1 : -1);
    rolled = 0;
    show();
  }, { passive: false });
  stage.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5, Home: -view.count, End: view.count }[event.key];
    if (steps === undefined) return;
    event.preventDefault();
    view.move(steps);
    show();
  });
  stage.addEventListener("dblclick", () => { Object.assign(state, { zoom: 1, place: [0.5, 0.5] }); show(); });
  stage.addEventListener("contextmenu", (event) => event.preventDefault());
  const fingers = new Map();
  let start = null;
  stage.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, event);
    stage.setPointerCapture(event.pointerId);
    start = { x: event.clientX, y: event.clientY, window: state.window, place: state.place, moved: false };
  });
  stage.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    if (fingers.size === 2) pinch(view, fingers, event);
    fingers.set(event.pointerId, event);
    const [x, y] = [event.clientX - start.x, event.clientY - start.y];
    if (fingers.size > 1 || Math.hypot(x, y) > BARELY_PX) start.moved = true;
    if (fingers.size > 1 || !start.moved) return;
    const { box } = fit(view);
    if (event.pointerType === "touch" && state.zoom === 1) {
      const steps = Math.trunc(x / STEP_PX);
      if (steps) { view.move(steps); start.x += steps * STEP_PX; }
    } else if (event.pointerType === "touch" || event.shiftKey || event.buttons > 1) {
      state.place = [within(start.place[0] - x / box.width / state.zoom, 0, 1), within(start.place[1] - y / box.height / state.zoom, 0, 1)];
    } else {
      const [low, high] = start.window;
      const width = within((high - low) * 2 ** (x / 150), LEAST_WINDOW, 2), level = (low + high) / 2 + y / 400;
      const floor = within(level - width / 2, 0, 1 - LEAST_WINDOW);
      state.window = [floor, Math.max(floor + LEAST_WINDOW, level + width / 2)];
    }
    show();
  });
  const end = (event) => {
    const here = fingers.delete(event.pointerId);
    if (here && event.type === "pointerup" && !start.moved && !fingers.size && event.button === 0) choose(view, event);
  };
  stage.addEventListener("pointerup", end);
  stage.addEventListener("pointercancel", end);
}

// Two fingers: the position between them stays under them.
function pinch(view, fingers, event) {
  const [first, second] = [...fingers.values()];
  const other = first.pointerId === event.pointerId ? second : first, before = fingers.get(event.pointerId);
  const length = (one, two) => Math.hypot(one.clientX - two.clientX, one.clientY - two.clientY);
  zoom(length(event, other) / Math.max(1, length(before, other)), view, (event.clientX + other.clientX) / 2, (event.clientY + other.clientY) / 2);
}

function zoom(factor, view = views[0], x, y) {
  const { box, left, top } = fit(view), [u, v] = [(x ?? box.left + box.width / 2) - box.left, (y ?? box.top + box.height / 2) - box.top];
  const point = [(u - left) / box.width / state.zoom, (v - top) / box.height / state.zoom];
  state.zoom = within(state.zoom * factor, 1, 12);
  state.place = [point[0] - (u / box.width - 0.5) / state.zoom, point[1] - (v / box.height - 0.5) / state.zoom];
}

function choose(view, event) {
  const { box, left, top, x, y } = fit(view);
  const column = within(Math.floor((event.clientX - box.left - left) / x), 0, view.width - 1);
  const row = within(Math.floor((event.clientY - box.top - top) / y), 0, view.height - 1);
  state.chosen = view.overlay(view.number()).ids[row * view.width + column];
  view.go(column, row);
  show();
  const line = find(`tr[data-id="${state.chosen}"]`);
  if (line) scrollToRow(line);
}

// Show a lesion of the list: its fullest slice, with the lesion in the middle.
function reveal(row) {
  state.chosen = Number(row.dataset.id);
  slider.value = Number(row.dataset.slice) + 1;
  const pane = panes.find((one) => unpacked(one, at()).ids.includes(state.chosen)) ?? panes[0];
  const { ids } = unpacked(pane, at());
  const sum = [0, 0, 0];
  ids.forEach((id, k) => {
    if (id !== state.chosen) return;
    sum[0] += k % pane.width;
    sum[1] += Math.floor(k / pane.width);
    sum[2] += 1;
  });
  if (sum[2]) {
    state.cursor = [Math.round(sum[0] / sum[2]), Math.round(sum[1] / sum[2])];
    state.place = [(state.cursor[0] + 0.5) / pane.width, (state.cursor[1] + 0.5) / pane.height];
    state.zoom = Math.max(state.zoom, 2);
  }
  show();
}

function step(steps) {
  const rows = all(".list tr[data-slice]");
  if (!rows.length) return;
  const now = rows.findIndex((row) => Number(row.dataset.id) === state.chosen);
  const row = rows[now < 0 ? (steps > 0 ? 0 : rows.length - 1) : within(now + steps, 0, rows.length - 1)];
  reveal(row);
  scrollToRow(row);
}

// The list scrolls, the page stays.
function scrollToRow(row) {
  const list = row.closest(".wide");
  list.scrollTop = row.offsetTop - list.clientHeight / 2;
}

const KEYS = {
  n: () => step(1),
  p: () => step(-1),
  o: () => {
    const inputs = all('input[name="overlay"]'), now = inputs.findIndex((input) => input.checked);
    inputs[(now + 1) % inputs.length].checked = true;
  },
  "+": () => zoom(1.25),
  "-": () => zoom(0.8),
  0: reset,
};

function reset() {
  Object.assign(state, kept, { chosen: 0 });
  find("#opacity").value = find("#opacity").defaultValue;
}

function setUpTable(table) {
  for (const header of all("th", table)) {
    find("button", header).addEventListener("click", () => {
      const column = [...header.parentNode.children].indexOf(header);
      const before = header.getAttribute("aria-sort");
      const down = before ? before === "descending" : !header.classList.contains("number");
      for (const other of all("th", table)) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", down ? "ascending" : "descending");
      const body = find("tbody", table);
      const key = (row) => row.children[column].textContent;
      const rows = all("tr", body).sort((a, b) => {
        const [first, second] = [key(a), key(b)];
        const unknown = (first === "n/a") - (second === "n/a");
        const number = header.classList.contains("number");
        const order = number ? first - second : first.localeCompare(second);
        return unknown || (down ? order : -order);
      });
      body.append(...rows);
    });
  }
  table.addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-slice]");
    if (row) reveal(row);
  });
}

// Verdicts survive a reload, as long as the result is the same.
function setUpVerdict(form) {
  const key = `leuko:${location.pathname}:${data.verdict.mask_sha256}`;
  const remembered = () => {
    try {
      return JSON.parse(localStorage.getItem(key)) ?? {};
    } catch {
      return {};
    }
  };
  const before = remembered();
  for (const input of form.elements) {
    if (!(input.name in before)) continue;
    if (input.type === "radio" || input.type === "checkbox") input.checked = before[input.name].includes(input.value);
    else input.value = before[input.name][0];
  }
  form.addEventListener("input", () => {
    const given = new FormData(form);
    const now = Object.fromEntries([...form.elements].filter(({ name }) => name).map(({ name }) => [name, given.getAll(name)]));
    try {
      localStorage.setItem(key, JSON.stringify(now));
    } catch { /* the browser may forbid storage; the verdict stays on the page */ }
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const given = new FormData(form);
    if (!given.get("verdict")) {
      find("#saved").textContent = "Choose PASS, FAIL or flag first.";
      return;
    }
    const row = {
      subject: given.get("subject"),
      verdict: given.get("verdict"),
      reasons: given.getAll("reason").join("; "),
      note: given.get("note"),
      rater: given.get("rater"),
      rated: today(),
      ...data.verdict,
    };
    const name = `qc${row.subject ? "_" + row.subject.replace(/[^\w.-]/g, "_") : ""}.csv`;
    saveCsv([row], name);
    find("#saved").textContent = `Saved ${name}.`;
  });
}

// A cohort's page adds to the address where it is and what it showed; it leads on to the neighbours.
function setUpNeighbours() {
  const given = new URLSearchParams(location.hash.slice(1)), cohort = given.get("cohort");
  if (!cohort || !/^(\.\.\/)+[\w.%-]+$/.test(cohort)) return; // nothing but a page above this one
  given.delete("cohort");
  for (const link of all(".neighbours a")) {
    given.set("to", link.dataset.to);
    link.href = `${cohort}#${given}`;
    link.hidden = false;
  }
}

slider.max = count;
slider.value = panes[0].start + 1;
state.cursor = panes[0].cursor ?? [panes[0].width >> 1, panes[0].height >> 1];
all("table.sortable").forEach(setUpTable);
all("#verdict").forEach(setUpVerdict);
setUpNeighbours();
all(".controls input").forEach((input) => input.addEventListener("input", ["scan", "planes"].includes(input.name) ? arrange : show));
all("[data-show-slice]").forEach((button) => button.addEventListener("click", () => { slider.value = button.dataset.showSlice; show(); }));
find("#reset").addEventListener("click", () => { reset(); show(); });
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("form, input[type=text]")) return;
  const act = KEYS[event.key];
  if (!act) return;
  act();
  show();
});
const flair = find('input[name="scan"]:not([value="both"])');
if (flair && matchMedia("(max-width: 40rem)").matches) flair.checked = true; // two would be small
new ResizeObserver(show).observe(find(".views"));
arrange();
