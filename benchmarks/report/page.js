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
  const words = element.classList.contains("token") ? `${element.textContent}: ` : "";
  element.setAttribute("aria-label", words + element.dataset.tip);
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
// A piece of text opens its figure: by a click, or by the arrow keys (left and right by piece, up and down by figure).
const openers = [...document.querySelectorAll("[data-opens]")];
const figureOf = (piece) => document.getElementById(`figure-${piece.dataset.opens}`);
const choose = (chosen) => {
  for (const piece of openers) {
    const same = piece.dataset.opens === chosen.dataset.opens;
    figureOf(piece).hidden = !same;
    piece.classList.toggle("chosen", same);
    piece.setAttribute("aria-selected", String(piece === chosen));
    piece.tabIndex = piece === chosen ? 0 : -1;
  }
};
const step = (at, by, same) => {
  let to = at + by;
  while (same && openers[to]?.dataset.opens === openers[at].dataset.opens) to += by;
  if (same && by < 0) while (openers[to - 1]?.dataset.opens === openers[to]?.dataset.opens && to > 0) to -= 1;
  return openers[to];
};
openers.forEach((piece, at) => {
  piece.setAttribute("role", "option");
  piece.parentElement.setAttribute("role", "listbox");
  piece.parentElement.setAttribute("aria-label", "tokens");
  piece.addEventListener("click", () => { choose(piece); piece.focus(); });
  piece.addEventListener("keydown", (event) => {
    const to = { ArrowRight: () => step(at, 1), ArrowLeft: () => step(at, -1), ArrowDown: () => step(at, 1, true),
      ArrowUp: () => step(at, -1, true), Home: () => openers[0], End: () => openers.at(-1) }[event.key]?.();
    if (!to) return;
    event.preventDefault();
    choose(to);
    to.focus();
  });
});
if (openers.length) choose(openers.find((piece) => `#figure-${piece.dataset.opens}` === location.hash)
  ?? openers.find((piece) => piece.classList.contains("accepted")) ?? openers[0]);
