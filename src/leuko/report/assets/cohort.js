const KEY = "leuko:" + location.pathname; // verdicts survive when the page is closed
const list = find(".cards");
const cards = list ? all(".card", list) : []; // worst first
// By name: verdict, reasons, note, date and judged mask; verdicts on another mask are dropped.
const given = new Map(Object.entries(remembered()).filter(([name, { mask }]) => mask === data[name]?.mask_sha256));

function remembered() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    return {};
  }
}

function remember() {
  try {
    localStorage.setItem(KEY, JSON.stringify(Object.fromEntries(given)));
  } catch { /* the browser may forbid storage; the verdicts stay on the page */ }
}

function choose() {
  const wanted = find("#find").value.trim().toLowerCase();
  const show = find("#show").value;
  let count = 0;
  for (const card of cards) {
    const judged = card.dataset.judged === "1" || given.has(card.dataset.name);
    const fits = show === "all" || (show === "warned" ? card.dataset.warnings !== "0" : !judged);
    card.hidden = !(fits && card.dataset.name.toLowerCase().includes(wanted));
    count += !card.hidden;
  }
  find("#count").textContent = `${count} of ${cards.length}`;
}

function order() {
  const by = {
    worst: null,
    name: (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true }),
    volume: (a, b) => b.dataset.volume - a.dataset.volume,
  }[find("#order").value];
  list.append(...(by ? [...cards].sort(by) : cards));
}

// The fields for reason and note are added with a card's first verdict: thousands of fields would slow the page.
function more(card) {
  const fields = find("fieldset", card);
  if (!find(".note", card)) fields.append(find("#more").content.cloneNode(true));
  card.classList.add("done");
  return [find(".reasons", card), find(".note", card)];
}

// A report learns from its address where this page is and what it shows.
function address(card) {
  const link = find("a[data-report]", card);
  const up = "../".repeat(link.dataset.report.split("/").length - 1);
  const shown = { cohort: up + location.pathname.split("/").pop(), name: card.dataset.name, order: find("#order").value, show: find("#show").value };
  return `${link.dataset.report}#${new URLSearchParams(shown)}`;
}

// From a report to its neighbour in the order and the choice that this page had.
function lead() {
  const given = new URLSearchParams(location.hash.slice(1)), to = given.get("to");
  if (!to) return;
  for (const name of ["order", "show"]) {
    const select = find("#" + name);
    if ([...select.options].some((option) => option.value === given.get(name))) select.value = given.get(name);
  }
  order();
  choose();
  const shown = all(".card", list).filter((card) => find("a[data-report]", card) && (!card.hidden || card.dataset.name === given.get("name")));
  const now = shown.findIndex((card) => card.dataset.name === given.get("name"));
  const card = shown[now + { previous: -1, itself: 0, next: 1 }[to]] ?? shown[now];
  history.replaceState(null, "", location.pathname);
  if (!card) return;
  if (to === "itself" || card === shown[now]) card.scrollIntoView({ block: "center" });
  else location.replace(address(card));
}

function judge(card) {
  const [reasons, note] = more(card);
  const name = card.dataset.name;
  given.set(name, { verdict: find("input:checked", card).value, reasons: reasons.value, note: note.value, rated: today(), mask: data[name].mask_sha256 });
  remember();
}

function save(event) {
  event.preventDefault();
  const rater = find("#rater").value;
  const rows = cards.filter((card) => given.has(card.dataset.name)).map((card) => {
    const name = card.dataset.name;
    const { verdict, reasons, note, rated } = given.get(name);
    return { subject: name, verdict, reasons, note, rater, rated, ...data[name] };
  });
  if (!rows.length) {
    find("#saved").textContent = "Choose PASS, FAIL or flag first.";
    return;
  }
  const name = `verdicts${rater ? "_" + rater.replace(/[^\w.-]/g, "_") : ""}.csv`;
  saveCsv(rows, name);
  find("#saved").textContent = `Verdicts saved in ${name}: ${rows.length}. Move the file into the folder verdicts.`;
}

function setUp() {
  for (const card of cards) {
    const before = given.get(card.dataset.name);
    if (!before) continue;
    find(`input[value="${before.verdict}"]`, card).checked = true;
    const [reasons, note] = more(card);
    reasons.value = before.reasons;
    note.value = before.note;
  }
  list.addEventListener("input", (event) => judge(event.target.closest(".card")));
  find("#find").addEventListener("input", choose);
  find("#show").addEventListener("change", choose);
  find("#order").addEventListener("change", order);
  find("#verdicts").addEventListener("submit", save);
  for (const happens of ["pointerdown", "focusin"]) {
    list.addEventListener(happens, (event) => {
      const link = event.target.closest("a[data-report]");
      if (link) link.href = address(link.closest(".card"));
    });
  }
  choose();
  lead();
}

if (list) setUp();
