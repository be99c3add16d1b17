"use strict";
// The page of `search-r1 view`. Text of trajectories enters the document by text nodes only.

const ROW_HEIGHT = 78; // pixels, as in the style sheet
const SPARE_ROWS = 6; // drawn above and below what is seen
const CHUNKS_KEPT = 4; // unpacked chunks of records
const MAX_CHOICES = 8; // more distinct rewards than this are shown as ranges
const PROBABILITIES = [0.9, 0.7, 0.5, 0.25, 0.1]; // between the six colours of log-probabilities

const at = (id) => document.getElementById(id);
const state = { rows: [], starts: [], tokens: {}, shown: [], open: -1, colour: "mask", unfolded: false, texts: null };

// ---- data -----------------------------------------------------------------------------------------------------------

async function unpack(id) {
  const packed = Uint8Array.from(atob(at(id).textContent), (letter) => letter.charCodeAt(0));
  const json = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(json).json();
}

const chunks = new Map(); // number: promise of a chunk; the oldest first

function chunkAt(number) {
  const chunk = chunks.get(number) ?? unpack(`chunk-${number}`);
  chunks.delete(number);
  chunks.set(number, chunk);
  if (chunks.size > CHUNKS_KEPT) chunks.delete(chunks.keys().next().value);
  return chunk;
}

async function recordAt(index) {
  const number = state.starts.findLastIndex((start) => start <= index);
  const chunk = await chunkAt(number);
  const record = chunk.records[index - state.starts[number]];
  const searches = record.searches.map((search) => ({
    ...search,
    documents: search.documents.map((document) => chunk.documents[document]),
  }));
  return { ...record, searches };
}

// ---- text -----------------------------------------------------------------------------------------------------------

/** A node of one of our elements; children are nodes, or strings of ours or of a trajectory. */
function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** Text of a trajectory, kept apart from the writing direction around it. */
const said = (text) => make("bdi", {}, visible(text));

/** Control, format and direction characters by name, so that none acts on the page. */
function visible(text) {
  return String(text).replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (letter) => {
    if (letter === "\n" || letter === "\t") return letter;
    return `⟨U+${letter.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

const number = (value, digits) => (value == null ? "—" : value.toFixed(digits).replace("-", "\u2212"));
const rewardText = (reward) => (reward == null ? "—" : String(Number(reward.toFixed(3))).replace("-", "\u2212"));
const words = (name) => name.replaceAll("_", " ");
const plural = (count, noun, nouns = `${noun}s`) => `${count.toLocaleString("en")} ${count === 1 ? noun : nouns}`;

/** [text, begin, end] of ids[from:to]: a token each, but for tokens that are one character only together. */
function pieces(ids, from, to) {
  const found = [];
  for (let begin = from, end; begin < to; begin = end) {
    let text = state.tokens[ids[begin]];
    end = begin + 1;
    if (typeof text !== "string") {
      let bytes = [...text];
      while ((text = utf8(bytes, true)) === null && end < Math.min(to, begin + 8)) {
        const more = state.tokens[ids[end]];
        if (typeof more === "string") break;
        bytes = [...bytes, ...more];
        end += 1;
      }
      text ??= utf8(bytes, false);
    }
    found.push([text, begin, end]);
  }
  return found;
}

function utf8(bytes, strict) {
  try {
    return new TextDecoder("utf-8", { fatal: strict, ignoreBOM: true }).decode(new Uint8Array(bytes));
  } catch {
    return null; // not whole characters
  }
}

const textOf = (ids, from, to) => pieces(ids, from, to).map(([text]) => text).join("");

// ---- filters --------------------------------------------------------------------------------------------------------

const FACETS = [
  { title: "Reward", of: (row) => [row.rewardLabel] },
  { title: "Stop reason", of: (row) => [words(row.stop)] },
  { title: "Searches", of: (row) => [String(row.searches)] },
  { title: "Data source", of: (row) => [row.source || "none"] },
  { title: "File", of: (row) => [row.file] },
  { title: "Notes", of: (row) => (row.notes.length ? row.notes : ["none"]) },
];

const SORTS = {
  "file order": (row) => row.number,
  reward: (row) => row.reward,
  searches: (row) => row.searches,
  tokens: (row) => row.tokens,
  "mean log-probability": (row) => row.log_prob,
  question: (row) => row.question.toLowerCase(),
};

const byName = new Intl.Collator("en", { numeric: true }).compare;
const leading = (label) => parseFloat(label.replace("\u2212", "-"));
const byNumberOrName = (a, b) => leading(a) - leading(b) || byName(a, b);

function labelRewards() {
  const values = [...new Set(state.rows.map((row) => row.reward))];
  const known = values.filter((value) => value !== null);
  const low = Math.min(...known);
  const width = (Math.max(...known) - low) / MAX_CHOICES;
  for (const row of state.rows) {
    row.rewardLabel = rewardText(row.reward);
    if (values.length > MAX_CHOICES && row.reward !== null && width > 0) {
      const bin = Math.min(MAX_CHOICES - 1, Math.floor((row.reward - low) / width));
      row.rewardLabel = `${rewardText(low + bin * width)} to ${rewardText(low + (bin + 1) * width)}`;
    }
  }
}

function makeFilters() {
  const before = at("filters").lastElementChild;
  for (const facet of FACETS) {
    facet.labels = state.rows.map(facet.of);
    facet.values = [...new Set(facet.labels.flat())].sort(byNumberOrName);
    facet.select = make("select", { onchange: applyFilters });
    const label = make("label", { hidden: facet.values.length < 2 }, facet.title, facet.select);
    before.before(label);
  }
  at("sort").append(...Object.keys(SORTS).map((name) => make("option", {}, name)));
  at("sort").onchange = applyFilters;
  at("direction").onclick = () => {
    at("direction").textContent = at("direction").textContent === "↑" ? "↓" : "↑";
    applyFilters();
  };
  at("search").oninput = applyFilters;
  at("whole-text").onchange = async () => {
    if (at("whole-text").checked) await readAllTexts();
    applyFilters();
  };
  at("filters").onsubmit = (event) => event.preventDefault();
}

/** Which rows are shown, in which order; beside each choice stands how many it would show. */
function applyFilters() {
  const wanted = at("search").value.toLowerCase();
  const texts = at("whole-text").checked ? state.texts : null;
  const counts = FACETS.map(() => new Map());
  const count = (facet, row) => {
    for (const label of FACETS[facet].labels[row]) counts[facet].set(label, (counts[facet].get(label) ?? 0) + 1);
  };
  state.shown = [];
  state.rows.forEach((row, index) => {
    if (wanted && !row.text.includes(wanted) && !texts?.[index].includes(wanted)) return;
    const misses = FACETS.flatMap(({ select, labels }, facet) =>
      select.value && !labels[index].includes(select.value) ? [facet] : [],
    );
    if (misses.length === 0) {
      state.shown.push(index);
      FACETS.forEach((_, facet) => count(facet, index));
    } else if (misses.length === 1) count(misses[0], index);
  });
  FACETS.forEach((facet, index) => showChoices(facet, counts[index]));
  sortShown();
  showCount();
  at("list").scrollTop = 0;
  drawRows();
}

function showChoices({ select, values }, counts) {
  const chosen = select.value;
  const all = make("option", { value: "" }, "any");
  const options = values.map((value) =>
    make("option", { value }, `${visible(value)}  (${(counts.get(value) ?? 0).toLocaleString("en")})`),
  );
  select.replaceChildren(all, ...options);
  select.value = chosen;
  select.classList.toggle("chosen", chosen !== "");
}

function sortShown() {
  const key = SORTS[at("sort").value];
  const sign = at("direction").textContent === "↑" ? 1 : -1;
  const keys = state.rows.map(key);
  state.shown.sort((left, right) => {
    const [a, b] = [keys[left], keys[right]];
    if (a === b) return left - right;
    if (a === null || b === null) return a === null ? 1 : -1; // what is not known comes last
    return a < b ? -sign : sign;
  });
}

function showCount() {
  const rewards = state.shown.map((index) => state.rows[index].reward).filter((reward) => reward !== null);
  const mean = rewards.reduce((sum, reward) => sum + reward, 0) / rewards.length;
  const share = `${state.shown.length.toLocaleString("en")} of ${state.rows.length.toLocaleString("en")}`;
  at("count").textContent = share + (rewards.length ? ` · mean reward ${number(mean, 3)}` : "");
}

/** The text of every response and document, in lower case; chunk by chunk, so that the page stays alive. */
async function readAllTexts() {
  if (state.texts) return;
  const texts = [];
  for (let chunk = 0; chunk < state.starts.length; chunk++) {
    at("count").textContent = `reading all of the text: ${Math.round((100 * chunk) / state.starts.length)} %`;
    const { documents, records } = await unpack(`chunk-${chunk}`);
    for (const { ids, start, searches } of records) {
      const found = searches.flatMap((search) => [search.query, ...search.documents.flatMap((n) => documents[n])]);
      texts.push([textOf(ids, start, ids.length), ...found].join("\n").toLowerCase());
    }
  }
  state.texts = texts;
}

// ---- list -----------------------------------------------------------------------------------------------------------

/** Draws the rows that are seen, and a few around them. */
function drawRows() {
  const list = at("list");
  at("rows").style.height = `${state.shown.length * ROW_HEIGHT}px`;
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - SPARE_ROWS);
  const last = Math.min(state.shown.length, first + Math.ceil(list.clientHeight / ROW_HEIGHT) + 2 * SPARE_ROWS);
  at("rows").replaceChildren(...state.shown.slice(first, last).map((index, offset) => drawRow(index, first + offset)));
  if (!state.shown.length) at("rows").append(make("p", { className: "muted none" }, "Nothing fits these filters."));
  list.setAttribute("aria-activedescendant", state.shown.includes(state.open) ? `row-${state.open}` : "");
}

function drawRow(index, position) {
  const row = state.rows[index];
  const facts = [words(row.stop), plural(row.searches, "search", "searches"), plural(row.tokens, "token"), row.source];
  if (row.answer) facts.unshift(`“${row.answer}”`);
  const marks = row.notes.length ? make("span", { className: "mark", title: row.notes.join(", ") }, "⚠") : null;
  const node = make(
    "div",
    { className: "row", id: `row-${index}`, role: "option", onclick: () => openRow(index, true) },
    badge(row),
    make("div", { className: "question" }, said(row.question || "(no question)")),
    make("div", { className: "facts" }, marks, said(facts.filter(Boolean).join(" · "))),
  );
  node.style.top = `${position * ROW_HEIGHT}px`;
  node.setAttribute("aria-selected", index === state.open);
  node.setAttribute("aria-posinset", position + 1);
  node.setAttribute("aria-setsize", state.shown.length);
  return node;
}

function badge(row) {
  const kind = row.right === true ? "good" : row.right === false ? "bad" : "";
  const title = row.right === true ? "right" : row.right === false ? "wrong" : "not graded";
  const sign = row.right === true ? "✓ " : row.right === false ? "✗ " : "";
  return make("span", { className: `badge ${kind}`, title }, sign + rewardText(row.reward));
}

/** Moves by some rows of the list, to a row that is shown. */
function move(steps) {
  const position = state.shown.indexOf(state.open);
  const target = position < 0 ? 0 : Math.max(0, Math.min(state.shown.length - 1, position + steps));
  if (state.shown.length) openRow(state.shown[target]);
}

function scrollToRow(index) {
  const list = at("list");
  const top = state.shown.indexOf(index) * ROW_HEIGHT;
  if (top < 0) return;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + ROW_HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW_HEIGHT - list.clientHeight;
}

// ---- one trajectory -------------------------------------------------------------------------------------------------

/** Shows a trajectory; on a narrow screen it replaces the list if it is to be read. */
async function openRow(index, read = false) {
  state.open = index;
  if (read) document.body.classList.add("reading");
  scrollToRow(index);
  drawRows();
  const record = await recordAt(index);
  if (state.open !== index) return; // another one was asked for meanwhile
  at("detail").replaceChildren(...detail(state.rows[index], record));
  at("detail").scrollTop = 0;
  history.replaceState(null, "", `#${index}`);
}

function detail(row, record) {
  const top = make(
    "header",
    {},
    make("button", { className: "back", type: "button", onclick: backToList }, "← List"),
    make("h2", { dir: "auto" }, said(row.question || "(no question)")),
    make("p", { className: "chips" }, ...chips(row)),
  );
  const notes = row.notes.map((note) => make("p", { className: "notice" }, `${note[0].toUpperCase()}${note.slice(1)}.`));
  return [
    top,
    ...notes,
    facts(row, record),
    siblings(row),
    ...Object.entries(record.texts).map(([name, text]) => difference(name, text, record)),
    toolbar(),
    promptBlock(record),
    ...blocks(record),
    ...looseSearches(record),
  ].filter(Boolean);
}

function chips(row) {
  const texts = [words(row.stop), row.status !== row.stop && row.status, plural(row.searches, "search", "searches")];
  texts.push(row.source, row.file, row.index != null && `sample ${row.index}`);
  const shown = texts.filter(Boolean).map((text) => make("span", { className: "chip" }, said(text)));
  return [badge(row), ...shown];
}

function facts(row, record) {
  const environment = row.tokens - row.trained;
  const main = {
    gold: row.gold.join(" / ") || "—",
    answer: row.answer ?? "none",
    tokens: `${plural(row.trained, "trained", "trained")}, ${environment.toLocaleString("en")} not`,
    "mean logprob": number(row.log_prob, 3),
  };
  const parts = Object.entries(record.parts).filter(([name]) => name !== "answer");
  const others = Object.entries(record.facts);
  const more = others.length ? make("details", {}, make("summary", {}, "More of the rollout"), tiles("", others)) : null;
  return make("div", { className: "card" }, tiles("", Object.entries(main)), tiles("Reward parts", parts), more);
}

function tiles(title, entries) {
  if (!entries.length) return null;
  const value = (item) =>
    item === true ? "yes" : item === false ? "no" : typeof item === "number" ? rewardText(item) : (item ?? "none");
  return make(
    "section",
    {},
    title ? make("h3", {}, title) : null,
    make(
      "dl",
      { className: "tiles" },
      ...entries.map(([name, item]) =>
        make("div", {}, make("dt", {}, visible(words(name))), make("dd", {}, said(value(item)))),
      ),
    ),
  );
}

/** The samples that were compared with this one. */
function siblings(row) {
  const group = row.group === null ? [] : groupOf(row);
  if (group.length < 2) return null;
  const links = group.map((index) => {
    const link = make("button", { type: "button", onclick: () => openRow(index) }, badge(state.rows[index]));
    if (index === row.number) link.setAttribute("aria-current", "true");
    return link;
  });
  return make("nav", { className: "group", "aria-label": "Group" }, `Group of ${group.length}`, ...links);
}

const groupOf = (row) => state.rows.filter((other) => other.group === row.group).map((other) => other.number);

/** The Sample's text beside what its ids decode to, with the part that differs marked. */
function difference(name, text, { ids, start }) {
  const decoded = name === "prompt" ? textOf(ids, 0, start) : textOf(ids, start, ids.length);
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

// ---- tokens ---------------------------------------------------------------------------------------------------------

function toolbar() {
  const choice = (name, title, key) => {
    const button = make("button", { type: "button", onclick: () => colourBy(name), title: `Key ${key}` }, title);
    button.dataset.colour = name;
    button.setAttribute("aria-pressed", state.colour === name);
    return button;
  };
  const legend = (name, entries) =>
    make("span", { className: `legend ${name}` }, ...entries.map(([kind, text]) => make("span", { className: kind }, text)));
  const bounds = PROBABILITIES.map((p, index) => [`t m1 p${index}`, index ? `> ${p}` : `p > ${p}`]);
  return make(
    "div",
    { className: "toolbar" },
    make("span", { className: "joined" }, choice("mask", "Mask", "m"), choice("prob", "Log-probability", "l")),
    legend("by-mask", [["t m1", "trained"], ["t m0", "not trained"]]),
    legend("by-prob", [...bounds, [`t m1 p${bounds.length}`, `≤ ${PROBABILITIES.at(-1)}`]]),
    make("button", { type: "button", id: "fold", onclick: foldAll, title: "Key o" }, foldTitle()),
  );
}

function colourBy(name) {
  state.colour = name;
  document.body.dataset.colour = name;
  for (const button of document.querySelectorAll("button[data-colour]")) {
    button.setAttribute("aria-pressed", button.dataset.colour === name);
  }
}

function promptBlock(record) {
  if (!record.start) return null;
  return folded("prompt", ["Prompt"], record.start, () => [tokenText(record, 0, record.start)]);
}

/** The response, turn by turn: the model's turns, and foldable what the environment said. */
function blocks(record) {
  const parts = partsOf(record);
  const inline = searchesAreInline(record, parts);
  let [turn, search] = [0, 0];
  return parts.map(({ kind, begin, end }) => {
    const text = () => tokenText(record, begin, end);
    if (kind === "turn") {
      const title = make("h3", {}, `Model, turn ${++turn}`, make("small", {}, plural(end - begin, "token")));
      return make("section", { className: "block model" }, title, text());
    }
    if (kind !== "observation" || !inline) return folded("env", [words(kind)], end - begin, () => [text()]);
    const found = record.searches[search++];
    return folded("env", searchTitle(search, found), end - begin, () => [text(), documentList(found, "As retrieved")]);
  });
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

const maskAt = (mask, index) => (mask === null ? 1 : mask[index]); // no mask means that all is trained

const searchesAreInline = ({ searches }, parts) =>
  searches.length > 0 && parts.filter(({ kind }) => kind === "observation").length === searches.length;

function looseSearches(record) {
  if (searchesAreInline(record, partsOf(record))) return [];
  return record.searches.map((search, index) =>
    folded("env", searchTitle(index + 1, search), null, () => [documentList(search, "")]),
  );
}

function searchTitle(count, { query, error, documents }) {
  const outcome = error ? ` failed: ${visible(error)}` : ` → ${plural(documents.length, "document")}`;
  return [`Search ${count}: “`, said(query), `”${outcome}`];
}

function documentList({ documents }, title) {
  const items = documents.map(([name, text]) => make("li", { dir: "auto" }, make("strong", {}, said(name)), " ", said(text)));
  if (!items.length) return make("p", { className: "muted" }, "No document came back.");
  return make("div", { className: "documents" }, title ? make("h4", {}, title) : null, make("ol", {}, ...items));
}

/** A block that is closed at first and filled when it is opened. */
function folded(kind, title, count, fill) {
  const size = count === null ? null : make("small", {}, plural(count, "token"));
  const block = make("details", { className: `block ${kind}` }, make("summary", {}, ...title, size));
  block.addEventListener("toggle", () => block.append(...fill()), { once: true });
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

/** One span per token, each with its own writing direction, in the order in which the model wrote them. */
function tokenText(record, from, to) {
  const spans = pieces(record.ids, from, to).map(([text, begin, end]) => {
    const shown = visible(text).replaceAll("\n", "↵\n").replaceAll("\t", "→\t");
    const span = make("span", { className: tokenClass(record, begin, end) }, shown || "∅");
    span.describe = () => describe(record, text, begin, end);
    return span;
  });
  return make("div", { className: "tokens" }, ...spans);
}

function tokenClass(record, begin, end) {
  if (begin < record.start) return "t";
  const index = begin - record.start;
  const known = (record.log_probs ?? []).slice(index, end - record.start).filter((value) => value != null);
  const mask = `t m${maskAt(record.mask, index) ?? "-none"}`;
  if (!known.length) return mask;
  const probability = Math.exp(Math.min(...known) / 1000);
  const level = PROBABILITIES.findIndex((bound) => probability > bound);
  return `${mask} p${level < 0 ? PROBABILITIES.length : level}`;
}

/** Lines about a token, or about the tokens of one character. */
function describe(record, text, begin, end) {
  const lines = [[JSON.stringify(visible(text))]];
  for (let i = begin; i < end; i++) {
    const index = i - record.start;
    if (index < 0) lines.push([`id ${record.ids[i]}`, `prompt ${i}`]);
    else lines.push([`id ${record.ids[i]}`, `position ${index}`, maskText(record.mask, index), logProbText(record, index)]);
  }
  return lines.map((line) => line.filter(Boolean).join(" · ")).join("\n");
}

function maskText(mask, index) {
  const value = maskAt(mask, index);
  return value === undefined ? "no mask" : `mask ${value}`;
}

function logProbText({ mask, log_probs }, index) {
  const value = log_probs?.[index];
  if (value == null || (value === 0 && maskAt(mask, index) === 0)) return ""; // a placeholder
  return `logprob ${number(value / 1000, 3)} (p ${Math.exp(value / 1000).toFixed(2)})`;
}

function showTip({ target }) {
  const tip = at("tip");
  tip.hidden = !target.describe;
  if (tip.hidden) return;
  tip.textContent = target.describe();
  const box = target.getClientRects()[0];
  const left = Math.min(box.left, innerWidth - tip.offsetWidth - 8);
  const below = box.bottom + 6;
  const top = below + tip.offsetHeight > innerHeight ? box.top - tip.offsetHeight - 6 : below;
  Object.assign(tip.style, { left: `${Math.max(8, left)}px`, top: `${top}px` });
}

// ---- keys -----------------------------------------------------------------------------------------------------------

const KEYS = {
  j: () => move(1),
  k: () => move(-1),
  m: () => colourBy("mask"),
  l: () => colourBy("prob"),
  o: foldAll,
  "[": () => moveInGroup(-1),
  "]": () => moveInGroup(1),
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
    document.body.classList.add("reading");
    at("detail").focus();
  },
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || at("help").open) return;
  if (event.target.closest("input, select")) {
    if (event.key === "Escape") at("list").focus();
    return;
  }
  const inList = !event.target.closest("main, button");
  const action = KEYS[event.key] ?? (inList ? LIST_KEYS[event.key] : undefined);
  if (!action) return;
  event.preventDefault();
  action();
}

function moveInGroup(steps) {
  const row = state.rows[state.open];
  if (!row || row.group === null) return;
  const group = groupOf(row);
  openRow(group[Math.max(0, Math.min(group.length - 1, group.indexOf(row.number) + steps))]);
}

function backToList() {
  document.body.classList.remove("reading");
  at("list").focus();
  scrollToRow(state.open); // on a narrow screen the list was hidden meanwhile
  drawRows();
}

// ---- start ----------------------------------------------------------------------------------------------------------

async function start() {
  const { rows, starts, tokens } = await unpack("index");
  Object.assign(state, { rows, starts, tokens });
  rows.forEach((row, index) => {
    row.number = index;
    row.text = [row.question, row.answer, ...row.gold].join("\n").toLowerCase();
  });
  labelRewards();
  makeFilters();
  colourBy(state.colour);
  applyFilters();
  at("list").addEventListener("scroll", () => requestAnimationFrame(drawRows));
  addEventListener("resize", drawRows);
  addEventListener("keydown", onKey);
  addEventListener("hashchange", openFromAddress);
  at("detail").addEventListener("pointerover", showTip);
  at("detail").addEventListener("scroll", () => (at("tip").hidden = true));
  at("help-button").onclick = KEYS["?"];
  openFromAddress();
  at("list").focus();
}

/** Page.html#12 shows trajectory 12. */
function openFromAddress() {
  const index = Number(location.hash.slice(1));
  const known = location.hash.length > 1 && index in state.rows;
  openRow(known ? index : state.shown[0], known);
}

start();
