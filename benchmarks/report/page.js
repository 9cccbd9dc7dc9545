"use strict";
// Figures on hover and on focus.
const tip = document.getElementById("tip");
const show = (element) => {
  tip.textContent = element.dataset.tip;
  tip.hidden = false;
  const at = element.getBoundingClientRect(), size = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, at.left + at.width / 2 - size.width / 2), innerWidth - size.width - 8);
  const above = at.top - size.height - 8;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${above > 4 ? above : at.bottom + 8}px`;
};
const hide = () => { tip.hidden = true; };
for (const element of document.querySelectorAll("[data-tip]")) {
  element.setAttribute("aria-label", element.dataset.tip);
  element.addEventListener("mouseenter", () => show(element));
  element.addEventListener("focus", () => show(element));
  element.addEventListener("mouseleave", hide);
  element.addEventListener("blur", hide);
}
addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
addEventListener("scroll", hide, true);
// Tables sort by a click on a heading, or Enter on it.
for (const table of document.querySelectorAll("table")) {
  const headings = [...table.querySelectorAll("th")];
  headings.forEach((heading, column) => heading.firstElementChild.addEventListener("click", () => {
    const order = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of headings) other.setAttribute("aria-sort", other === heading ? order : "none");
    const sign = order === "ascending" ? 1 : -1, body = table.tBodies[0];
    const value = (row) => row.cells[column].dataset.sort;
    const rows = [...body.rows].sort((one, other) => {
      const a = value(one), b = value(other), difference = Number(a) - Number(b);
      return sign * (Number.isNaN(difference) ? a.localeCompare(b) : difference);
    });
    body.append(...rows);
  }));
}
