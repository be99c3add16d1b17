// Startup and the page's address: #run=NAME&run=NAME&a=SIDE&b=SIDE&q=KEY holds the runs, the comparison, the open row.

const parameters = () => new URLSearchParams(location.hash.slice(1));

/** Names what is shown; with `push`, as a new entry of the history behind one for the list. */
function writeAddress({ push = false } = {}) {
  state.pending = "";
  const address = new URLSearchParams(state.sources.filter(({ run }) => run).map(({ run }) => ["run", run]));
  for (const name of ["a", "b"]) if (compared[name]) address.set(name, compared[name]);
  if (push) history.replaceState(null, "", `#${address}`);
  if (state.rows[state.open]) address.set("q", state.rows[state.open].key);
  const fromList = push || Boolean(history.state?.fromList);
  history[push ? "pushState" : "replaceState"]({ fromList }, "", `#${address}`);
}

/** Shows what the address names; also after Back and Forward. */
async function followAddress() {
  const wanted = parameters();
  const runs = wanted.getAll("run");
  if (isServed && !runs.length) return showRuns();
  if (isServed && String(runs) !== String(state.sources.map(({ run }) => run))) return openRuns(runs);
  const row = keys.get(wanted.get("q"));
  if (row !== undefined) return openRow(row, { read: true });
  showList();
}

async function openRuns(names) {
  clearTimeout(readFurther.timer);
  Object.assign(state, { sources: names.map((name) => new Source(name)), rows: [], shown: [], open: -1, forked: null });
  state.texts.clear();
  keys.clear();
  const wanted = parameters();
  state.pending = wanted.get("q") ?? "";
  Object.assign(compared, { a: wanted.get("a") ?? "", b: wanted.get("b") ?? "", wanted: names.length === 2 && !wanted.has("a") });
  document.body.classList.remove("choosing", "reading");
  at("runs").hidden = true;
  at("title").textContent = names.map(visible).join(" and ") || "Trajectories";
  at("detail").replaceChildren();
  at("runs-link").hidden = !isServed;
  if (isServed && !server.fork) ask("/api/runs").then((found) => Object.assign(server, found), () => {}); // for forks
  await readFurther();
}

/** Reads what is new of every run, and shows it without moving what is looked at. */
async function readFurther() {
  clearTimeout(readFurther.timer);
  const sources = state.sources;
  const reopen = () => openRuns(sources.map(({ run }) => run));
  const isFirst = state.rows.length === 0;
  let error = "";
  let isNew = false;
  for (const source of sources) {
    try {
      isNew = (await source.read(reopen)) || isNew;
      if (sources !== state.sources) return; // other runs were opened, or these were reloaded
      error ||= source.error;
    } catch (failure) {
      error ||= failure.message;
    }
  }
  Object.assign(at("trouble"), { hidden: !error, textContent: error });
  if (isNew || isFirst) showNewRows(isFirst);
  else showCount();
  if (isServed) readFurther.timer = setTimeout(readFurther, sources.some((source) => source.more) ? 0 : POLL_MS);
}

function showNewRows(isFirst) {
  if (compared.wanted) compareBoth();
  if (!isServed) at("title").textContent = [...new Set(state.rows.map((row) => row.file))].map(visible).join(" and ");
  showSides();
  at("model").textContent = [...new Set(state.sources.map(({ model }) => model))].filter(Boolean).map(visible).join(", ");
  pairUp();
  labelRows();
  const place = at("list").scrollTop;
  applyFilters();
  const wanted = keys.get(state.pending);
  if (wanted !== undefined) {
    state.pending = "";
    openRow(wanted, { read: true });
  }
  if (!isFirst) at("list").scrollTop = place;
}

/** Two runs that were opened together are compared: their last phases. */
function compareBoth() {
  const last = state.sources.map((source) => state.rows.findLast((row) => row.source === source)?.side ?? "");
  if (last.every(Boolean) && state.sources.every((source) => !source.more)) {
    Object.assign(compared, { a: last[0], b: last[1], wanted: false });
    writeAddress();
  }
}

async function start() {
  makeFilters();
  makeComparison();
  colourBy(state.colour);
  at("list").addEventListener("scroll", () => requestAnimationFrame(drawRows));
  addEventListener("resize", drawRows);
  addEventListener("keydown", onKey);
  addEventListener("popstate", followAddress);
  at("detail").addEventListener("pointerover", showTip);
  at("detail").addEventListener("scroll", () => (at("tip").hidden = true));
  at("help-button").onclick = KEYS["?"];
  at("overview").open = !isNarrow();
  if (isServed) await followAddress();
  else await openRuns([""]);
  at("list").focus();
}

start();
