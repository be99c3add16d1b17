// The list; only visible rows are in the document.

const ROW_HEIGHT = 78; // pixels, as in the style sheet
const SPARE_ROWS = 6; // drawn above and below the visible ones

function drawRows() {
  const list = at("list");
  at("rows").style.height = `${state.shown.length * ROW_HEIGHT}px`;
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - SPARE_ROWS);
  const last = Math.min(state.shown.length, first + Math.ceil(list.clientHeight / ROW_HEIGHT) + 2 * SPARE_ROWS);
  at("rows").replaceChildren(...state.shown.slice(first, last).map((index, offset) => drawRow(index, first + offset)));
  if (!state.shown.length) at("rows").append(make("p", { className: "muted none" }, emptyText()));
  list.setAttribute("aria-activedescendant", state.shown.includes(state.open) ? `row-${state.open}` : "");
}

function emptyText() {
  if (state.rows.length) return "No trajectory matches these filters.";
  return state.sources.some((source) => source.more) ? "Reading …" : "This run has no trajectories yet.";
}

function drawRow(index, position) {
  const row = state.rows[index];
  const facts = [words(row.stop), plural(row.searches, "search", "searches"), plural(row.tokens, "token"), row.id, row.set];
  if (row.answer) facts.unshift(`“${row.answer}”`);
  const marks = row.notes.length ? make("span", { className: "mark", title: row.notes.join(", ") }, "⚠") : null;
  const where = { "aria-selected": index === state.open, "aria-posinset": position + 1, "aria-setsize": state.shown.length };
  const style = `top: ${position * ROW_HEIGHT}px`;
  return make(
    "div",
    { className: "row", id: `row-${index}`, role: "option", onclick: () => readRow(index), style, ...where },
    badge(row),
    make("div", { className: "question" }, said(row.question || "(no question)")),
    make("div", { className: "facts" }, marks, said(facts.filter((text) => text && text !== "none").join(" · "))),
  );
}

function badge(row) {
  const known = { true: ["good", "right", "✓ "], false: ["bad", "wrong", "✗ "] };
  const [kind, title, sign] = known[row.right] ?? ["", "not graded", ""];
  return make("span", { className: `badge ${kind}`, title }, sign + rewardText(row.reward));
}

/** Moves by some rows of the list, to a row that is shown. */
function move(steps) {
  const position = state.shown.indexOf(state.open);
  const target = position < 0 ? 0 : Math.max(0, Math.min(state.shown.length - 1, position + steps));
  if (state.shown.length) openRow(state.shown[target], { link: true });
}

function scrollToRow(index) {
  const list = at("list");
  const top = state.shown.indexOf(index) * ROW_HEIGHT;
  if (top < 0) return;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + ROW_HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW_HEIGHT - list.clientHeight;
}

/** Keeps the open trajectory if the list still has it; else opens the first, or says that there is none. */
function showSomeRow() {
  if (state.shown.includes(state.open)) {
    scrollToRow(state.open);
    drawRows();
  } else if (state.shown.length) openRow(state.shown[0]);
  else {
    state.open = -1;
    at("detail").replaceChildren(make("p", { className: "muted none" }, emptyText()));
    drawRows();
  }
}
