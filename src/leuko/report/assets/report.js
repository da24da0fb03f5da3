const SCALE = 4; // canvas pixels per voxel, so that contours are thin

const slider = find("#slice");
const panes = all(".pane").map((element, k) => ({ ...data.panes[k], element, stage: find(".stage", element) }));
const slices = panes[0].runs.length;
let chosen = 0; // the lesion chosen in the table or on a slice, 0 for none

function value(name) {
  return find(`input[name="${name}"]:checked`).value;
}

function show() {
  const at = Number(slider.value) - 1;
  find("#at").textContent = `${at + 1} / ${slices}`;
  for (const pane of panes) {
    const image = find("img", pane.stage);
    const name = pane.images[value("image")] ? value("image") : Object.keys(pane.images)[0];
    if (panes.length === 1) find("figcaption", pane.element).textContent = name;
    image.src = "data:image/jpeg;base64," + pane.images[name][at];
    const ids = new Set(pane.runs[at].filter((id, k) => k % 4 === 2 && id)); // rims have no id
    image.alt = `${name}, slice ${at + 1} of ${slices}, ${ids.size} ${ids.size === 1 ? "lesion" : "lesions"}`;
    image.style.filter = `brightness(${find("#brightness").value}%) contrast(${find("#contrast").value}%)`;
    draw(pane, at);
  }
  for (const row of all("tr[data-slice]")) {
    row.classList.toggle("here", Number(row.dataset.slice) === at);
    row.classList.toggle("chosen", Number(row.dataset.id) === chosen);
  }
}

function draw(pane, at) {
  const canvas = find("canvas", pane.stage);
  canvas.width = pane.width * SCALE;
  canvas.height = pane.height * SCALE;
  canvas.style.opacity = find("#opacity").value / 100;
  const context = canvas.getContext("2d");
  const style = value("overlay");
  if (style === "none") return;
  const ids = new Int32Array(pane.width * pane.height);
  const kinds = new Uint8Array(pane.width * pane.height);
  const runs = pane.runs[at];
  for (let k = 0; k < runs.length; k += 4) {
    ids.fill(runs[k + 2], runs[k], runs[k] + runs[k + 1]);
    kinds.fill(runs[k + 3], runs[k], runs[k] + runs[k + 1]);
  }
  for (let voxel = 0; voxel < kinds.length; voxel++) {
    if (!kinds[voxel]) continue;
    const x = voxel % pane.width, y = (voxel - x) / pane.width;
    const own = chosen && ids[voxel] === chosen;
    context.fillStyle = data.kinds[kinds[voxel]].colour;
    if (style === "fill") {
      context.fillRect(x * SCALE, y * SCALE, SCALE, SCALE);
      if (!own) continue;
      context.fillStyle = "#fff";
    }
    const line = own ? 3 : 2;
    const outside = (dx, dy) => {
      const [u, v] = [x + dx, y + dy];
      return u < 0 || v < 0 || u >= pane.width || v >= pane.height || !kinds[v * pane.width + u] || ids[v * pane.width + u] !== ids[voxel];
    };
    if (outside(-1, 0)) context.fillRect(x * SCALE, y * SCALE, line, SCALE);
    if (outside(1, 0)) context.fillRect((x + 1) * SCALE - line, y * SCALE, line, SCALE);
    if (outside(0, -1)) context.fillRect(x * SCALE, y * SCALE, SCALE, line);
    if (outside(0, 1)) context.fillRect(x * SCALE, (y + 1) * SCALE - line, SCALE, line);
  }
}

function move(steps) {
  slider.value = Number(slider.value) + steps;
  show();
}

function setUpPane(pane) {
  const [left, right, top, bottom] = pane.marks;
  for (const [side, mark] of Object.entries({ left, right, top, bottom })) {
    find(".mark." + side, pane.stage).textContent = mark;
  }
  pane.stage.style.aspectRatio = pane.aspect;
  let rolled = 0;
  pane.stage.addEventListener("wheel", (event) => {
    if (event.ctrlKey || !event.deltaY) return; // zooming, or scrolling sideways
    event.preventDefault();
    rolled += event.deltaMode ? 30 * event.deltaY : event.deltaY; // lines or pixels
    if (Math.abs(rolled) < 30) return; // a touchpad sends many small steps
    move(rolled < 0 ? 1 : -1);
    rolled = 0;
  }, { passive: false });
  pane.stage.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5, Home: -slices, End: slices }[event.key];
    if (steps === undefined) return;
    event.preventDefault();
    move(steps);
  });
  let touched = null;
  pane.stage.addEventListener("touchstart", (event) => { touched = event.touches[0].clientX; }, { passive: true });
  pane.stage.addEventListener("touchmove", (event) => {
    const steps = Math.trunc((event.touches[0].clientX - touched) / 12);
    if (!steps) return;
    touched += 12 * steps;
    move(steps);
  }, { passive: true });
  find("canvas", pane.stage).addEventListener("click", (event) => {
    const box = event.target.getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left) / box.width * pane.width);
    const y = Math.floor((event.clientY - box.top) / box.height * pane.height);
    const place = y * pane.width + x;
    const runs = pane.runs[Number(slider.value) - 1];
    chosen = 0;
    for (let k = 0; k < runs.length; k += 4) {
      if (place >= runs[k] && place < runs[k] + runs[k + 1]) chosen = runs[k + 2];
    }
    show();
    const row = find(`tr[data-id="${chosen}"]`);
    if (row) {
      const region = row.closest(".wide");
      region.scrollTop = row.offsetTop - region.clientHeight / 2;
    }
  });
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
    if (!row) return;
    chosen = Number(row.dataset.id);
    slider.value = Number(row.dataset.slice) + 1;
    show();
    if (event.target.closest(".go")) find(".viewer").scrollIntoView({ block: "start" });
  });
}

function setUpVerdict(form) {
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

slider.max = slices;
slider.value = panes[0].start + 1;
panes.forEach(setUpPane);
all("table.sortable").forEach(setUpTable);
all("#verdict").forEach(setUpVerdict);
all(".controls input").forEach((input) => input.addEventListener("input", show));
find("#reset").addEventListener("click", () => {
  for (const input of all(".controls input[type=range]:not(#slice)")) input.value = input.defaultValue;
  chosen = 0;
  show();
});
show();
