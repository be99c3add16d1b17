// The list of runs of a served viewer.

const server = { folder: "", fork: null };
let tickedRuns = []; // names, in the order of ticking

async function showRuns() {
  document.body.classList.add("choosing");
  at("runs").hidden = false;
  at("title").textContent = "Runs";
  at("model").textContent = "";
  at("trouble").hidden = true;
  clearTimeout(readFurther.timer);
  document.title = "Runs";
  await drawRuns();
}

/** Draws the runs, and again while the list is looked at. */
async function drawRuns() {
  clearTimeout(drawRuns.timer);
  if (at("runs").hidden) return;
  try {
    const { folder, runs, fork } = await ask("/api/runs");
    Object.assign(server, { folder, fork });
    if (at("runs").hidden) return; // a run was opened meanwhile
    at("count").textContent = `${plural(runs.length, "run")} in ${folder}`;
    const focused = document.activeElement?.id;
    at("runs").replaceChildren(...(runs.length ? [compareButton(), runTable(runs)] : [noRuns(folder)]));
    if (focused) at(focused)?.focus();
  } catch (error) {
    at("count").textContent = error.message;
  }
  drawRuns.timer = setTimeout(drawRuns, POLL_MS);
}

const noRuns = (folder) =>
  make("p", { className: "muted" }, `There is no run in ${folder} yet: \`search-r1 demo\` and \`search-r1 evaluate\` make some.`);

function compareButton() {
  const open = () => (location.hash = runAddress(tickedRuns));
  return button("Compare the two ticked runs", open, { id: "compare-runs", disabled: tickedRuns.length !== 2 });
}

function runTable(runs) {
  const rows = runs.map(runCells);
  const head = Object.keys(rows[0]).map((title) => make("th", { scope: "col" }, title));
  const cells = (row) => Object.entries(row).map(([title, value]) => make("td", { "data-title": title }, value));
  const body = rows.map((row) => make("tr", {}, ...cells(row)));
  return make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
}

/** The cells of a run's row by the titles of their columns. */
function runCells(run, position) {
  const label = `Compare ${visible(run.name)}`;
  const tick = make("input", { type: "checkbox", id: `tick-${position}`, checked: tickedRuns.includes(run.name), "aria-label": label });
  tick.onchange = () => {
    const others = tickedRuns.filter((name) => name !== run.name);
    tickedRuns = tick.checked ? [...others, run.name].slice(-2) : others; // the last two count
    drawRuns();
  };
  const link = make("a", { href: runAddress([run.name]), id: `run-${position}` }, visible(run.name));
  const state = make("span", { className: run.state === "running" ? "badge good" : "" }, run.state);
  const figures = { Kind: run.kind, Model: visible(run.model), "Exact match": run.figures, State: state };
  return { "": tick, Run: link, ...figures, Changed: ago(run.updated), Size: `${(run.bytes / 1e6).toFixed(1)} MB` };
}

const runAddress = (names) => `#${new URLSearchParams(names.map((name) => ["run", name]))}`;

/** How long ago a Unix time was. */
function ago(seconds) {
  const past = Math.max(0, Date.now() / 1000 - seconds);
  for (const [unit, size] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    if (past >= size) return `${plural(Math.floor(past / size), unit)} ago`;
  }
  return "just now";
}
