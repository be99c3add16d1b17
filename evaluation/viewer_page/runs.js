// The list of runs of a served viewer.

const server = { folder: "", fork: null };
const chosenRuns = new Set(); // names, in the order of ticking

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
  const names = [...chosenRuns];
  const open = () => (location.hash = runAddress(names));
  return button("Compare the two ticked runs", open, { id: "compare-runs", disabled: names.length !== 2 });
}

function runTable(runs) {
  const titles = ["", "Run", "Kind", "Model", "Exact match", "State", "Changed", "Size"];
  const head = make("tr", {}, ...titles.map((title) => make("th", { scope: "col" }, title)));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...runs.map(runRow)));
}

function runRow(run, position) {
  const label = `Compare ${visible(run.name)}`;
  const tick = make("input", { type: "checkbox", id: `tick-${position}`, checked: chosenRuns.has(run.name), "aria-label": label });
  tick.onchange = () => {
    if (tick.checked) chosenRuns.add(run.name);
    else chosenRuns.delete(run.name);
    if (chosenRuns.size > 2) chosenRuns.delete(chosenRuns.values().next().value); // the last two count
    drawRuns();
  };
  const link = make("a", { href: runAddress([run.name]), id: `run-${position}` }, visible(run.name));
  const state = make("span", { className: run.state === "running" ? "badge good" : "" }, run.state);
  const cells = { "": tick, Run: link, Kind: run.kind, Model: visible(run.model), "Exact match": run.figures };
  Object.assign(cells, { State: state, Changed: ago(run.updated), Size: `${(run.bytes / 1e6).toFixed(1)} MB` });
  return make("tr", {}, ...Object.entries(cells).map(([title, value]) => make("td", { "data-title": title }, value)));
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
