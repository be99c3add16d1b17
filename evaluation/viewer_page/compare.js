// Two runs, or two phases of one, question by question.

const OUTCOMES = ["neither right", "only B right", "only A right", "both right"]; // 2 · A + B
const compared = { a: "", b: "" }; // sides: file and phase

const isComparing = () => Boolean(compared.a && compared.b);
/** A side's name as short as it can be: in a page of one file, the phase. */
function sideTitle(row) {
  const isOneFile = state.rows.every(({ file }) => file === row.file);
  return (isOneFile && row.phase) || row.side;
}

function makeComparison() {
  for (const name of ["a", "b"]) {
    at(`side-${name}`).onchange = () => {
      compared[name] = at(`side-${name}`).value;
      pairUp();
      labelRows();
      applyFilters();
      writeAddress();
    };
  }
}

/** Fills both choices; `wanted` are sides from the address, or "" each. */
function showSides() {
  const known = new Map(state.rows.map((row) => [row.side, row]));
  const titles = [...known].map(([side, row]) => [side, sideTitle(row)]);
  at("comparison").hidden = known.size < 2;
  for (const name of ["a", "b"]) {
    const options = titles.map(([side, title]) => make("option", { value: side }, visible(title)));
    at(`side-${name}`).replaceChildren(make("option", { value: "" }, "nothing"), ...options);
    at(`side-${name}`).value = compared[name];
  }
}

/** Gives each row of side B its partner of side A, the n-th sample of a question that of the other's n-th. */
function pairUp() {
  for (const row of state.rows) Object.assign(row, { partner: null, outcome: "" });
  if (!isComparing()) return;
  const name = (row) => row.id || row.question;
  const waiting = Map.groupBy(state.rows.filter((row) => row.side === compared.a), name);
  for (const row of state.rows) {
    if (row.side !== compared.b) continue;
    row.partner = waiting.get(name(row))?.shift() ?? null;
    if (row.partner) row.outcome = OUTCOMES[2 * Boolean(row.partner.right) + Boolean(row.right)];
  }
}

/** Two trajectories beside each other; on a narrow screen below each other. */
function besides(left, right) {
  const column = ([title, row, record]) =>
    make("section", { className: "side", "aria-label": title }, make("h2", {}, said(title), badge(row)), ...body(row, record));
  return make("div", { className: "sides" }, column(left), column(right));
}
