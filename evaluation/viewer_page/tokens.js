// The text of ids with one span per token, coloured by mask or log-probability.

const PROBABILITIES = [0.9, 0.7, 0.5, 0.25, 0.1]; // between the six colours of log-probabilities

/** [text, begin, end] of record.ids[from:to]: a token each, but for tokens that are one character only together. */
function pieces({ ids, tokens }, from, to) {
  const found = [];
  for (let begin = from, end; begin < to; begin = end) {
    let text = tokens[ids[begin]];
    end = begin + 1;
    if (typeof text !== "string") {
      const bytes = [...text];
      while ((text = utf8(bytes, true)) === null && end < Math.min(to, begin + 8)) {
        const more = tokens[ids[end]];
        if (typeof more === "string") break;
        bytes.push(...more);
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

const textOf = (record, from, to) => pieces(record, from, to).map(([text]) => text).join("");

/** One span per token, each with its own writing direction, in the order in which the model wrote them. */
function tokenText(record, from, to) {
  const spans = pieces(record, from, to).map(([text, begin, end]) => {
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
    else {
      const mask = maskAt(record.mask, index);
      const known = mask === undefined ? "no mask" : `mask ${mask}`;
      lines.push([`id ${record.ids[i]}`, `position ${index}`, known, logProbText(record, index)]);
    }
  }
  return lines.map((line) => line.filter(Boolean).join(" · ")).join("\n");
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

function toolbar() {
  const choice = (name, title, key) =>
    button(title, () => colourBy(name), { title: `Key ${key}`, "data-colour": name, "aria-pressed": state.colour === name });
  const legend = (name, entries) =>
    make("span", { className: `legend ${name}` }, ...entries.map(([kind, text]) => make("span", { className: kind }, text)));
  const bounds = PROBABILITIES.map((p, index) => [`t m1 p${index}`, index ? `> ${p}` : `p > ${p}`]);
  return make(
    "div",
    { className: "toolbar" },
    make("span", { className: "joined" }, choice("mask", "Mask", "m"), choice("prob", "Log-probability", "l")),
    legend("by-mask", [["t m1", "trained"], ["t m0", "not trained"]]),
    legend("by-prob", [...bounds, [`t m1 p${bounds.length}`, `≤ ${PROBABILITIES.at(-1)}`]]),
    button(foldTitle(), foldAll, { id: "fold", title: "Key o" }),
  );
}

function colourBy(name) {
  state.colour = name;
  document.body.dataset.colour = name;
  for (const choice of document.querySelectorAll("button[data-colour]")) {
    choice.setAttribute("aria-pressed", choice.dataset.colour === name);
  }
}

const maskAt = (mask, index) => (mask === null ? 1 : mask[index]); // without a mask all tokens are trained
