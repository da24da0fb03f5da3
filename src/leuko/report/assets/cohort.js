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
  choose();
}

if (list) setUp();
