// The keyboard.

const KEYS = {
  j: () => move(1),
  k: () => move(-1),
  m: () => colourBy("mask"),
  l: () => colourBy("prob"),
  o: foldAll,
  "[": () => moveInGroup(-1),
  "]": () => moveInGroup(1),
  x: clearFilters,
  "/": () => at("search").focus(),
  "?": () => at("help").showModal(),
  Escape: backToList,
};
const LIST_KEYS = {
  ArrowDown: () => move(1),
  ArrowUp: () => move(-1),
  PageDown: () => move(10),
  PageUp: () => move(-10),
  Home: () => move(-Infinity),
  End: () => move(Infinity),
  Enter: () => {
    if (state.open >= 0) readRow(state.open);
    at("detail").focus();
  },
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]") || !at("runs").hidden) return;
  if (event.target.closest("input, select, textarea")) {
    if (event.key === "Escape") at("list").focus();
    return;
  }
  const inList = !event.target.closest("main, button, summary, a");
  const action = KEYS[event.key] ?? (inList ? LIST_KEYS[event.key] : undefined);
  if (!action) return;
  event.preventDefault();
  action();
}

function moveInGroup(steps) {
  const row = state.rows[state.open];
  if (!row || row.group === null) return;
  const rows = groupOf(row);
  const target = rows[Math.max(0, Math.min(rows.length - 1, rows.indexOf(row) + steps))];
  openRow(target.number, { link: true });
}

/** Leaves the trajectory as the browser's Back does; on a narrow screen that shows the list again. */
function backToList() {
  if (document.body.classList.contains("reading") && history.state?.fromList) history.back();
  else showList();
}

function showList() {
  document.body.classList.remove("reading");
  at("list").focus();
  scrollToRow(state.open); // on a narrow screen the list was hidden meanwhile
  drawRows();
}
