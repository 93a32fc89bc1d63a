"use strict";
// A click on a column's head sorts by it, a second one the other way round; what is empty stays last.
const FIGURE = /^(-?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s?([kM]?)(?: s)?(?: (?:±|to) .*)?$/;

function number(text) {
  if (/^\d+(:\d\d){1,2}$/.test(text)) return text.split(":").reduce((sum, part) => 60 * sum + Number(part), 0);
  const found = FIGURE.exec(text);
  return found ? Number(found[1].replaceAll(",", "")) * { "": 1, k: 1e3, M: 1e6 }[found[2]] : NaN;
}

function compared(a, b) {
  const x = number(a), y = number(b);
  if (isNaN(x) && isNaN(y)) return a.localeCompare(b, "en", { numeric: true });
  return isNaN(x) ? 1 : isNaN(y) ? -1 : x - y;
}

function sort(head) {
  const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
  const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const rows = [...body.rows].map((row) => [row.cells[column].textContent.trim(), row]);
  rows.sort(([a], [b]) => (a === "") - (b === "") || sign * compared(a, b));
  body.append(...rows.map(([, row]) => row));
  for (const other of table.tHead.rows[0].cells) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
}

for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => sort(button.parentElement));
