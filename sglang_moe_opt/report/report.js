"use strict";
// Hover or tap: the point nearest to the pointer tells what it is and marks its rows in the tables.
const tip = document.getElementById("tip");
const REACH = 26; // pixels

function leave() {
  tip.hidden = true;
  for (const element of document.querySelectorAll(".on")) element.classList.remove("on");
}

function enter(point, x, y) {
  leave();
  point.classList.add("on");
  let text = point.dataset.tip;
  for (const row of document.querySelectorAll("tbody tr[data-row]")) {
    if (row.dataset.row !== point.dataset.row) continue;
    row.classList.add("on");
    text ??= row.dataset.tip; // many plots show the same point: its text stands once, at its row
  }
  tip.textContent = text;
  tip.hidden = false;
  tip.style.left = Math.max(8, Math.min(x + 14, innerWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = (y + 18 + tip.offsetHeight > innerHeight ? y - 14 - tip.offsetHeight : y + 18) + "px";
}

for (const plot of document.querySelectorAll(".plot")) {
  const points = [...plot.querySelectorAll(".point")];
  const look = (event) => {
    const box = plot.getBoundingClientRect();
    const scale = box.width / plot.viewBox.baseVal.width;
    let nearest = null;
    let best = REACH;
    for (const point of points) {
      if (point.closest(".gone")) continue;
      const dx = event.clientX - box.left - point.dataset.x * scale;
      const dy = event.clientY - box.top - point.dataset.y * scale;
      const distance = Math.hypot(dx, dy);
      if (distance < best) [nearest, best] = [point, distance];
    }
    if (nearest) enter(nearest, event.clientX, event.clientY);
    else leave();
  };
  plot.addEventListener("pointermove", look);
  plot.addEventListener("pointerdown", look);
  plot.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") leave(); // a finger that lifts has not finished reading
  });
}
document.addEventListener("pointerdown", (event) => {
  if (!event.target.closest(".plot")) leave();
});

// Legend: a click on an entry hides its curve and its rows, or shows them again.
for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(shown));
    const own = `[data-series="${button.dataset.series}"]`;
    for (const element of document.querySelectorAll(`g${own}, tr${own}`)) element.classList.toggle("gone", !shown);
  });
}

// Sorting: a click on a column's head; numbers by value, from large to small first; again for the other way.
function key(row, column) {
  const value = row.cells[column].dataset.value;
  return value === undefined ? row.cells[column].textContent : value === "" ? -Infinity : Number(value);
}

function sort(head) {
  const table = head.closest("table");
  const isNumber = table.tBodies[0].rows[0].cells[head.cellIndex].dataset.value !== undefined;
  const first = isNumber ? "descending" : "ascending";
  const second = isNumber ? "ascending" : "descending";
  const order = head.getAttribute("aria-sort") === first ? second : first;
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => {
    const [x, y] = [key(a, head.cellIndex), key(b, head.cellIndex)];
    return sign * (typeof x === "number" ? (x === y ? 0 : x < y ? -1 : 1) : x.localeCompare(y, undefined, { numeric: true }));
  });
  table.tBodies[0].append(...rows);
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sort(button.closest("th")));
}
