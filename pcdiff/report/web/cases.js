// The table of a cohort: sorted by a click on a head, filtered by result, by failed check and by words.
"use strict";
(() => {
  const table = document.getElementById("cases");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const filter = document.getElementById("filter");
  const find = document.getElementById("find");
  const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));

  function fits(row) {
    const chosen = filter.value;
    if (chosen.startsWith("check:")) return row.dataset.checks.split("|").includes(chosen.slice(6));
    return chosen === "" || row.dataset.state === chosen;
  }

  function show() {
    const wanted = find.value.trim().toLowerCase();
    let count = 0;
    for (const row of rows) {
      row.hidden = !fits(row) || !words.get(row).includes(wanted);
      count += !row.hidden;
    }
    document.getElementById("shown").textContent = `${count} of ${rows.length} shown`;
  }

  function sortBy(button) {
    const head = button.closest("th");
    const column = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    const text = (row) => row.cells[column].textContent.trim();
    const compare = button.dataset.kind === "number"
      ? (one, other) => text(one) - text(other)
      : (one, other) => text(one).localeCompare(text(other), undefined, { numeric: true });
    for (const other of table.tHead.querySelectorAll("[aria-sort]")) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    // Cases without a value stay at the end, whichever way the others are sorted.
    const valued = rows.filter((row) => text(row) !== "").sort((one, other) => (down ? -1 : 1) * compare(one, other));
    body.append(...valued, ...rows.filter((row) => text(row) === ""));
  }

  filter.addEventListener("change", show);
  find.addEventListener("input", show);
  for (const button of table.tHead.querySelectorAll("button")) button.addEventListener("click", () => sortBy(button));
  show();
})();
