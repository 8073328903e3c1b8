// Tables of more than ten rows, each row a line of its own, are sorted by a click on a header; by a third one they are as they were.
"use strict";

const LEAST = 11;

function value(row, column) {
  const told = (row.cells[column]?.textContent ?? "").trim().replaceAll(",", "").replaceAll("\u2212", "-");
  const number = told.match(/^[^\p{L}\d-]*(-?[\d.]+(e[-+]?\d+)?)/iu);
  return number && !Number.isNaN(Number(number[1])) ? Number(number[1]) : told;
}

function compare(one, other) {
  if (typeof one === typeof other) return typeof one === "number" ? one - other : one.localeCompare(other);
  return typeof one === "number" ? -1 : 1; // numbers before words and dashes
}

function sort(table, header, column, written) {
  const order = { null: "ascending", ascending: "descending", descending: null }[header.getAttribute("aria-sort")];
  for (const other of table.tHead.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
  if (order !== null) header.setAttribute("aria-sort", order);
  const sign = order === "descending" ? -1 : 1;
  const key = new Map(written.map((row) => [row, value(row, column)]));
  const rows = order === null ? written : written.toSorted((a, b) => sign * compare(key.get(a), key.get(b)));
  table.tBodies[0].append(...rows);
}

function makeSortable(table) {
  const written = [...(table.tBodies[0]?.rows ?? [])];
  const spans = (cell) => cell.rowSpan > 1 || cell.colSpan > 1;
  if (!table.tHead || written.length < LEAST || written.some((row) => [...row.cells].some(spans))) return;
  for (const line of table.tHead.rows) {
    let column = 0;
    for (const header of line.cells) {
      if (header.colSpan === 1 && header.textContent.trim()) {
        const at = column;
        header.tabIndex = 0;
        header.classList.add("sortable");
        header.addEventListener("click", () => sort(table, header, at, written));
        header.addEventListener("keydown", (event) => event.key === "Enter" && sort(table, header, at, written));
      }
      column += header.colSpan;
    }
  }
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".scroll table").forEach(makeSortable));
