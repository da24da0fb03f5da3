"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const find = (selector, from = document) => from.querySelector(selector);
const all = (selector, from = document) => [...from.querySelectorAll(selector)];

function csvCell(content) {
  const safe = /^[=+\-@\t\r]/.test(content) && !/^-?[\d.]+$/.test(content) ? "'" + content : content;
  return /[",\r\n]/.test(safe) ? '"' + safe.replaceAll('"', '""') + '"' : safe;
}

// All rows have the same keys, which become the header.
function saveCsv(rows, name) {
  const lines = [Object.keys(rows[0]), ...rows.map(Object.values)].map((cells) => cells.map((cell) => csvCell(String(cell ?? ""))).join(","));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\r\n") + "\r\n"], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const today = () => new Date().toISOString().slice(0, 10);
