// One trajectory, or two beside each other.

/** Shows a trajectory. `link`: the address names it from now on; `read`: on a narrow screen it replaces the list. */
async function openRow(index, { link = false, read = false } = {}) {
  const row = state.rows[index];
  Object.assign(state, { open: index, forked: null });
  if (read) document.body.classList.add("reading");
  scrollToRow(index);
  drawRows();
  if (link) writeAddress();
  await drawDetail(row);
}

const isNarrow = () => matchMedia("(max-width: 760px)").matches; // as in the style sheet

/** Opens a row as a page of its own in the browser's history, so that Back returns to the list. */
function readRow(index) {
  const push = isNarrow() && !document.body.classList.contains("reading");
  openRow(index, { read: true });
  writeAddress({ push });
}

async function drawDetail(row) {
  const partner = isComparing() ? row.partner : null;
  let parts;
  try {
    const [record, other] = await Promise.all([recordOf(row), partner && recordOf(partner)]);
    if (state.open !== row.number) return; // another one was asked for meanwhile
    if (state.forked) parts = [besides(["Recorded", ...state.forked.origin], state.forked.result)];
    else if (other) parts = [besides([`A: ${sideTitle(partner)}`, partner, other], [`B: ${sideTitle(row)}`, row, record])];
    else parts = body(row, record);
  } catch (error) {
    parts = [make("p", { className: "notice" }, error.message)];
  }
  at("detail").replaceChildren(heading(row), ...parts);
  at("detail").scrollTop = 0;
  at("tip").hidden = true;
  document.title = [row.id || row.question.slice(0, 40), row.side, row.source.model].filter(Boolean).map(visible).join(" · ");
}

function heading(row) {
  return make(
    "header",
    {},
    button("← List", backToList, { className: "back" }),
    make("h2", { dir: "auto" }, said(row.question || "(no question)")),
    make("p", { className: "muted" }, "Gold answer: ", said(row.gold.join(" / ") || "—")),
    toolbar(),
  );
}

/** Everything below the question. */
function body(row, record) {
  const notes = row.notes.map((note) => make("p", { className: "notice" }, `${note[0].toUpperCase()}${note.slice(1)}.`));
  return [
    make("p", { className: "chips" }, ...chips(row)),
    ...notes,
    facts(row, record),
    group(row),
    ...Object.entries(record.texts).map(([name, text]) => difference(name, text, record)),
    record.start ? folded("prompt", "Prompt", record, 0, record.start) : null,
    ...blocks(row, record),
  ].filter(Boolean);
}

function chips(row) {
  const texts = [words(row.stop), row.status !== row.stop && row.status, plural(row.searches, "search", "searches")];
  texts.push(row.set !== "none" && row.set, row.side, row.id, row.index != null && `sample ${row.index}`);
  const shown = texts.filter(Boolean).map((text) => make("span", { className: "chip" }, said(text)));
  return [badge(row), ...shown];
}

function facts(row, record) {
  const main = {
    answer: row.answer ?? "none",
    reward: row.reward,
    tokens: `${row.trained.toLocaleString("en")} trained, ${(row.tokens - row.trained).toLocaleString("en")} not`,
    "mean logprob": number(row.log_prob, 3),
  };
  const without = (values, ...names) => Object.entries(values).filter(([name]) => !names.includes(name));
  const command = row.source?.rescore[row.file];
  return make(
    "div",
    { className: "card" },
    tiles("", Object.entries(main)),
    tiles("Reward parts", without(record.parts, "answer", "reward")),
    make(
      "div",
      { className: "folds" },
      fold("Evaluation figures", tiles("", without(record.counts, "answer"))),
      fold("More of the rollout", tiles("", Object.entries(record.facts))),
      command ? fold(
        "Reward under another preset",
        make("p", {}, "Without an engine: rescores the whole file, then shows this trajectory's old and new reward."),
        make("pre", { className: "command", tabIndex: 0 }, `${visible(command)}\ngrep ', ${row.where}"' rescored.jsonl`),
      ) : null,
    ),
  );
}

function fold(title, ...children) {
  const filled = children.filter(Boolean);
  return filled.length ? make("details", {}, make("summary", {}, title), ...filled) : null;
}

function tiles(title, entries) {
  if (!entries.length) return null;
  const value = (item) =>
    item === true ? "yes" : item === false ? "no" : typeof item === "number" ? rewardText(item) : (item ?? "none");
  const tile = ([name, item]) => make("div", {}, make("dt", {}, visible(words(name))), make("dd", {}, said(value(item))));
  const list = make("dl", { className: "tiles" }, ...entries.map(tile));
  return make("section", {}, title ? make("h3", {}, title) : null, list);
}

// ---- the group ------------------------------------------------------------------------------------------------------

const groupOf = (row) => state.rows.filter((other) => row.group !== null && other.group === row.group && other.source === row.source);

/** Advantages as GRPO has them: (r - mean) / (std + 1e-6) with n - 1; 0 for what is not trained. */
function advantages(rows) {
  const kept = rows.filter((row) => row.reward !== null && !row.notes.includes("discarded: not trained"));
  const mean = kept.reduce((sum, row) => sum + row.reward, 0) / kept.length;
  const deviation = Math.sqrt(kept.reduce((sum, row) => sum + (row.reward - mean) ** 2, 0) / (kept.length - 1));
  const of = (row) => (kept.length > 1 && kept.includes(row) ? (row.reward - mean) / (deviation + 1e-6) : 0);
  return { mean, of };
}

/** The samples that this one was compared with. */
function group(row) {
  const rows = row.source ? groupOf(row) : [];
  if (rows.length < 2) return null;
  const { mean, of } = advantages(rows);
  const links = rows.map((other) => {
    const advantage = make("small", {}, `${of(other) > 0 ? "+" : ""}${number(of(other), 2)}`);
    const current = other === row ? { "aria-current": "true" } : {};
    const open = () => openRow(other.number, { link: true });
    return button(badge(other), open, { title: "reward, advantage", ...current }, advantage);
  });
  const title = `Group of ${rows.length}, mean reward ${number(mean, 3)}; each with its advantage:`;
  return make("nav", { className: "group", "aria-label": "Group" }, title, ...links);
}

// ---- differing texts ------------------------------------------------------------------------------------------------

/** The Sample's text beside what its ids decode to, with the part that differs marked. */
function difference(name, text, record) {
  const decoded = name === "prompt" ? textOf(record, 0, record.start) : textOf(record, record.start, record.ids.length);
  const [left, right] = [Array.from(text), Array.from(decoded)];
  let head = 0;
  while (head < left.length && head < right.length && left[head] === right[head]) head++;
  let tail = 0;
  const most = Math.min(left.length, right.length) - head;
  while (tail < most && left.at(-1 - tail) === right.at(-1 - tail)) tail++;
  const column = (title, letters) => {
    const cut = [letters.slice(0, head), letters.slice(head, letters.length - tail), letters.slice(letters.length - tail)];
    const [before, other, after] = cut.map((part) => visible(part.join("")));
    return make("div", {}, make("h4", {}, title), make("pre", {}, before, make("mark", {}, other), after));
  };
  return make(
    "section",
    { className: "difference" },
    make("h3", {}, `The ${name} is not what its ids decode to`),
    make("div", {}, column(`sample.${name}`, left), column("decode(ids)", right)),
  );
}

// ---- blocks ---------------------------------------------------------------------------------------------------------

/** The response, turn by turn: the model's turns, what it read, and the searches, at the end if it is unclear where. */
function blocks(row, record) {
  const parts = partsOf(record);
  const inline = parts.filter(({ kind }) => kind === "observation").length === record.searches.length;
  let [turn, search] = [0, 0];
  const shown = parts.map(({ kind, begin, end }) => {
    if (kind === "turn") {
      const title = make("h3", {}, `Model, turn ${++turn}`, make("small", {}, plural(end - begin, "token")));
      return make("section", { className: "block model" }, title, tokenText(record, begin, end));
    }
    if (kind !== "observation" || !inline) return folded("env", words(kind), record, begin, end);
    return searchBlock(row, record, search++, folded("read", "What the model read", record, begin, end));
  });
  return inline ? shown : [...shown, ...record.searches.map((_, index) => searchBlock(row, record, index, null))];
}

/** The recorded segments; without any, or if they do not cover the response, stretches of equal mask. */
function partsOf({ ids, start, mask, segments }) {
  const parts = [];
  let end = start;
  for (const [kind, count] of segments) parts.push({ kind, begin: end, end: (end += count) });
  if (segments.length && end === ids.length) return parts;
  parts.length = 0;
  for (let begin = start; begin < ids.length; begin = end) {
    const on = maskAt(mask, begin - start);
    for (end = begin; end < ids.length && maskAt(mask, end - start) === on; ) end++;
    parts.push({ kind: on ? "turn" : "not trained", begin, end });
  }
  return parts;
}

/** A search, its passages as cards, the tokens that the model read, and the way to go on from there otherwise. */
function searchBlock(row, record, index, read) {
  const { query, error, documents, scores } = record.searches[index];
  const outcome = error ? ` failed: ${visible(error)}` : ` → ${plural(documents.length, "document")}`;
  const title = make("summary", {}, `Search ${index + 1}: “`, said(query), `”${outcome}`);
  const cards = documents.map((document, rank) => passageCard(document, scores[rank], rank + 1, row.gold));
  const none = error ? null : make("p", { className: "muted" }, "No document came back.");
  const list = cards.length ? make("ol", { className: "passages" }, ...cards) : none;
  const properties = { className: "block env search-block", open: true };
  return make("details", properties, title, list, read, forkButton(row, record, index));
}

/** A passage with its rank and score; what may be the gold answer is marked. */
function passageCard([title, text], score, rank, gold) {
  const pattern = goldPattern(gold);
  const found = pattern !== null && text.search(pattern) >= 0;
  const head = make("h4", {}, make("span", { className: "rank" }, String(rank)), said(title || "(no title)"));
  if (found) head.append(make("span", { className: "badge good" }, "gold answer"));
  if (score !== null) head.append(make("small", { className: "muted" }, ` score ${score}`));
  return make("li", { dir: "auto" }, head, make("p", {}, ...markedText(text, pattern)));
}

/** The gold answers as a pattern: whole words in any case, with anything but letters and digits between them. */
function goldPattern(gold) {
  const wordsOf = (answer) => answer.split(/[^\p{L}\p{N}]+/u).filter(Boolean);
  const answers = gold.map((answer) => wordsOf(answer).join("[^\\p{L}\\p{N}]+")).filter(Boolean);
  return answers.length ? new RegExp(`(?<![\\p{L}\\p{N}])(?:${answers.join("|")})(?![\\p{L}\\p{N}])`, "giu") : null;
}

function markedText(text, pattern) {
  const nodes = [];
  let end = 0;
  for (const match of pattern ? text.matchAll(pattern) : []) {
    nodes.push(visible(text.slice(end, match.index)), make("mark", { className: "gold" }, visible(match[0])));
    end = match.index + match[0].length;
  }
  return [...nodes, visible(text.slice(end))];
}

/** A block of tokens that is closed at first and filled when it is opened. */
function folded(kind, title, record, begin, end) {
  const size = make("small", {}, plural(end - begin, "token"));
  const block = make("details", { className: `block ${kind}` }, make("summary", {}, title, size));
  block.addEventListener("toggle", () => block.append(tokenText(record, begin, end)), { once: true });
  block.open = state.unfolded;
  return block;
}

/** Opens or closes every block, of the trajectories to come as well. */
function foldAll() {
  state.unfolded = !state.unfolded;
  at("fold").textContent = foldTitle();
  for (const block of at("detail").querySelectorAll(".block")) block.open = state.unfolded;
}

const foldTitle = () => (state.unfolded ? "Close all" : "Open all");
