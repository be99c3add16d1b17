// Text and elements. Text of trajectories enters the document only as text nodes.

const at = (id) => document.getElementById(id);

/** A node with these properties, and attributes if a name has a dash; children are nodes or strings. */
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

const button = (title, onclick, properties = {}, ...children) =>
  make("button", { type: "button", onclick, ...properties }, title, ...children);

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
