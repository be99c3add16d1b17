// The clickable overview, search, sort order, and export to a file.

const MAX_CHOICES = 8; // more distinct rewards than this are shown as ranges

const FACETS = [
  { title: "Outcome", of: (row) => (row.outcome ? [row.outcome] : []) },
  { title: "Reward", of: (row) => [row.rewardLabel] },
  { title: "Stop reason", of: (row) => [words(row.stop)] },
  { title: "Searches", of: (row) => [String(row.searches)] },
  { title: "Set", of: (row) => [row.set] },
  { title: "Phase", of: (row) => [row.phase || "none"] },
  { title: "File", of: (row) => [row.file] },
  { title: "Notes", of: (row) => (row.notes.length ? row.notes : ["none"]) },
].map((facet) => ({ ...facet, chosen: "", labels: [], values: [] }));

const SORTS = {
  "file order": (row) => row.number,
  reward: (row) => row.reward,
  searches: (row) => row.searches,
  tokens: (row) => row.tokens,
  "mean log-probability": (row) => row.log_prob,
  question: (row) => row.question.toLowerCase(),
};
const EXPORTED = [
  "id", "question", "gold", "answer", "reward", "right", "stop", "searches", "tokens", "trained", "log_prob",
  "set", "phase", "file", "notes", "outcome",
];

const byName = new Intl.Collator("en", { numeric: true }).compare;
const leading = (label) => parseFloat(label.replace("\u2212", "-"));
const byNumberOrName = (a, b) => leading(a) - leading(b) || byName(a, b);

function labelRewards() {
  const values = [...new Set(state.rows.map((row) => row.reward))];
  const known = values.filter((value) => value !== null);
  const low = known.reduce((a, b) => Math.min(a, b), Infinity);
  const width = (known.reduce((a, b) => Math.max(a, b), -Infinity) - low) / MAX_CHOICES;
  for (const row of state.rows) {
    row.rewardLabel = rewardText(row.reward);
    if (values.length > MAX_CHOICES && row.reward !== null && width > 0) {
      const bin = Math.min(MAX_CHOICES - 1, Math.floor((row.reward - low) / width));
      row.rewardLabel = `${rewardText(low + bin * width)} to ${rewardText(low + (bin + 1) * width)}`;
    }
  }
}

/** Labels every row; called when there are new rows, or other pairs. */
function labelRows() {
  labelRewards();
  for (const facet of FACETS) {
    facet.labels = state.rows.map(facet.of);
    facet.values = [...new Set(facet.labels.flat())].sort(byNumberOrName);
    if (!facet.values.includes(facet.chosen)) facet.chosen = "";
  }
}

function makeFilters() {
  at("sort").append(...Object.keys(SORTS).map((name) => make("option", {}, name)));
  at("sort").onchange = applyFilters;
  at("direction").onclick = () => {
    at("direction").textContent = at("direction").textContent === "↑" ? "↓" : "↑";
    applyFilters();
  };
  at("search").oninput = applyFilters;
  at("whole-text").onchange = searchWholeText;
  at("filters").onsubmit = (event) => event.preventDefault();
  at("clear").onclick = clearFilters;
  at("export").onclick = exportRows;
}

async function searchWholeText() {
  if (at("whole-text").checked) {
    await readAllTexts((share) => (at("count").textContent = `reading all text: ${Math.round(100 * share)} %`));
  }
  applyFilters();
}

function clearFilters() {
  for (const facet of FACETS) facet.chosen = "";
  at("search").value = "";
  at("whole-text").checked = false;
  applyFilters();
  at("list").focus();
}

/** Which rows are shown, in which order; beside each choice stands how many it would show. */
function applyFilters() {
  const wanted = at("search").value.toLowerCase();
  const wholeText = at("whole-text").checked;
  const counts = FACETS.map(() => new Map());
  const count = (facet, row) => {
    for (const label of FACETS[facet].labels[row]) counts[facet].set(label, (counts[facet].get(label) ?? 0) + 1);
  };
  state.shown = [];
  state.rows.forEach((row, index) => {
    if (isComparing() && !row.outcome) return;
    if (wanted && !row.text.includes(wanted) && !(wholeText && state.texts.get(index)?.includes(wanted))) return;
    const misses = FACETS.flatMap(({ chosen, labels }, facet) => (chosen && !labels[index].includes(chosen) ? [facet] : []));
    if (misses.length === 0) {
      state.shown.push(index);
      FACETS.forEach((_, facet) => count(facet, index));
    } else if (misses.length === 1) count(misses[0], index);
  });
  drawStrip(counts);
  sortShown();
  showCount();
  at("clear").hidden = !wanted && !FACETS.some((facet) => facet.chosen);
  at("list").scrollTop = 0;
  showSomeRow();
}

/** The overview: a bar for each value of each facet, as long as its share; a click filters, another one clears. */
function drawStrip(counts) {
  const focused = document.activeElement?.dataset?.choice;
  const shown = FACETS.map((facet, index) => [facet, counts[index]]).filter(([facet]) => facet.values.length > 1);
  at("strip").replaceChildren(...shown.map(([facet, count]) => drawFacet(facet, count)));
  at("overview").hidden = shown.length === 0;
  if (focused) [...at("strip").querySelectorAll("button")].find((choice) => choice.dataset.choice === focused)?.focus();
}

function drawFacet(facet, counts) {
  const most = Math.max(1, ...counts.values());
  const bars = facet.values.map((value) => {
    const count = counts.get(value) ?? 0;
    const choose = () => {
      facet.chosen = facet.chosen === value ? "" : value;
      applyFilters();
    };
    const properties = { "data-choice": `${facet.title}: ${value}`, "aria-pressed": facet.chosen === value };
    if (!count) properties["data-empty"] = "";
    const bar = make("i", { style: `width: ${(100 * count) / most}%` });
    return button(bar, choose, properties, make("span", {}, said(value)), make("small", {}, count.toLocaleString("en")));
  });
  return make("div", { role: "group", "aria-label": facet.title }, make("h2", {}, facet.title), ...bars);
}

function sortShown() {
  const key = SORTS[at("sort").value];
  const sign = at("direction").textContent === "↑" ? 1 : -1;
  const sortKeys = state.rows.map(key);
  state.shown.sort((left, right) => {
    const [a, b] = [sortKeys[left], sortKeys[right]];
    if (a === b) return left - right;
    if (a === null || b === null) return a === null ? 1 : -1; // unknown values come last
    return a < b ? -sign : sign;
  });
}

function showCount() {
  const rewards = state.shown.map((index) => state.rows[index].reward).filter((reward) => reward !== null);
  const mean = rewards.reduce((sum, reward) => sum + reward, 0) / rewards.length;
  const share = `${state.shown.length.toLocaleString("en")} of ${state.rows.length.toLocaleString("en")}`;
  const reading = state.sources.some((source) => source.more) ? ", reading on …" : "";
  at("count").textContent = share + (rewards.length ? ` · mean reward ${number(mean, 3)}` : "") + reading;
}

/** The rows behind the filters, a JSON object a line. */
function exportRows() {
  const lines = state.shown.map((index) => `${JSON.stringify(state.rows[index], EXPORTED)}\n`);
  const address = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
  make("a", { href: address, download: "trajectories-filtered.jsonl" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
