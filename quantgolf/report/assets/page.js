"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.value;
      const number = head.classList.contains("number");
      const order = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === ""); // what was not measured comes last either way
        return (up ? 1 : -1) * (number ? Number(x) - Number(y) : x.localeCompare(y));
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
    });
  });
}

const box = document.getElementById("tip");
const hide = () => {
  box.hidden = true;
  document.querySelectorAll("svg .here").forEach((part) => part.classList.remove("here"));
};
const show = (part, x, y) => {
  hide();
  box.textContent = part.dataset.tip;
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 4))}px`;
  box.style.top = `${y + 18 + height > innerHeight ? Math.max(4, y - height - 12) : y + 18}px`;
};
for (const svg of document.querySelectorAll("figure svg")) {
  const parts = [...svg.querySelectorAll(".tip")];
  for (const part of parts) {
    const title = part.querySelector("title");
    part.dataset.tip = title.textContent;
    title.remove(); // the browser's own hover text would lie over ours
    part.addEventListener("mousemove", (event) => show(part, event.clientX, event.clientY));
    part.addEventListener("mouseleave", hide);
  }
  let at = -1;
  svg.tabIndex = 0;
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step || !parts.length) return;
    event.preventDefault();
    at = at < 0 && step < 0 ? parts.length - 1 : (at + step + parts.length) % parts.length;
    parts[at].scrollIntoView({ block: "nearest", inline: "nearest" });
    const place = parts[at].getBoundingClientRect();
    show(parts[at], place.right, place.bottom);
    parts[at].classList.add("here");
  });
}
