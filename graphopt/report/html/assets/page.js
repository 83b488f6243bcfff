"use strict";
// Theme, sortable and filterable tables, printing. Nothing here is needed to read the page.
const root = document.documentElement;
const listeners = { theme: [] };

(() => {
  const order = ["auto", "light", "dark"];
  const button = document.getElementById("theme");
  let theme = "auto";
  try { theme = localStorage.getItem("graphopt-theme") || "auto"; } catch { /* not allowed here */ }
  const apply = () => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    button.textContent = "Theme: " + theme;
    for (const tell of listeners.theme) tell();
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = order[(order.indexOf(theme) + 1) % order.length];
    try { localStorage.setItem("graphopt-theme", theme); } catch { /* not allowed here */ }
    apply();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
  if (!order.includes(theme)) theme = "auto";
  apply();
})();

// A table with data-filter gets a search field, and one choice among the values of data-kind on its rows.
for (const table of document.querySelectorAll("table[data-filter]")) {
  const rows = [...table.tBodies[0].rows];
  const bar = document.createElement("div");
  bar.className = "controls";
  const field = document.createElement("input");
  field.type = "search";
  field.placeholder = "filter";
  field.setAttribute("aria-label", "Filter: " + table.dataset.filter);
  const shown = document.createElement("span");
  shown.className = "shown";
  shown.setAttribute("role", "status");
  bar.append(field);
  const kinds = new Map();
  for (const row of rows)
    for (const kind of (row.dataset.kind || "").split("|").filter(Boolean)) kinds.set(kind, (kinds.get(kind) || 0) + 1);
  let choice = null;
  if (kinds.size > 1) {
    choice = document.createElement("select");
    choice.setAttribute("aria-label", "Show: " + table.dataset.filter);
    choice.add(new Option(`all (${rows.length})`, ""));
    for (const [kind, n] of kinds) choice.add(new Option(`${kind} (${n})`, kind));
    if (table.dataset.start && kinds.has(table.dataset.start)) choice.value = table.dataset.start;
    bar.append(choice);
  }
  bar.append(shown);
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const apply = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let n = 0;
    rows.forEach((row, i) => {
      const there = words.every((w) => texts[i].includes(w)) &&
        (!choice || !choice.value || (row.dataset.kind || "").split("|").includes(choice.value));
      row.hidden = !there;
      n += there;
    });
    shown.textContent = n === rows.length ? "" : `${n.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
  };
  field.addEventListener("input", apply);
  choice?.addEventListener("change", apply);
  (table.closest(".scroll") || table).before(bar);
  apply();
}

for (const table of document.querySelectorAll("table[data-sort]")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[column];
        const value = cell.dataset.value ?? cell.textContent.trim();
        return value;
      };
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [key(row), row]);
      const numeric = head.classList.contains("num");
      const number = (v) => (v === "" || Number.isNaN(Number(v)) ? -Infinity : Number(v));
      rows.sort(([a], [b]) => numeric ? number(a) - number(b) : a.localeCompare(b, "en", { numeric: true }));
      if (down) rows.reverse();
      body.append(...rows.map(([, row]) => row));
    });
  });
}

// On paper everything is open, in the light colours.
(() => {
  let opened = [];
  let theme;
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const d of opened) d.open = true;
    theme = root.dataset.theme;
    root.dataset.theme = "light";
    for (const tell of listeners.theme) tell("print");
  });
  addEventListener("afterprint", () => {
    for (const d of opened) d.open = false;
    if (theme === undefined) delete root.dataset.theme; else root.dataset.theme = theme;
    for (const tell of listeners.theme) tell();
  });
})();
