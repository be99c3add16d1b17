// Loads rows and records, from blocks of this page or from the server that sent it. Both have the same contents.

const CHUNKS_KEPT = 4; // unpacked chunks of records to keep per source
const POLL_MS = 2000; // polling interval for a run that may grow

const state = {
  sources: [], // one per run; a static page is one source
  rows: [], // of all sources, in order of arrival
  shown: [], // numbers of the rows that pass the filters, sorted
  open: -1, // row number
  pending: "", // key of the row named in the address, until it is loaded
  forked: null, // { origin: [row, record], result: [title, row, record] }, shown instead of the open row
  colour: "mask",
  unfolded: false,
  texts: new Map(), // row number: its whole text, once searched
};
const isServed = !at("index");

/** A block of a static page. */
async function unpack(id) {
  const packed = Uint8Array.from(atob(at(id).textContent), (letter) => letter.charCodeAt(0));
  const json = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(json).json();
}

/** What the server answers, or a static page has for that; an Error with the server's sentence if it refuses. */
async function ask(path, parameters = {}, options = {}) {
  if (!isServed) return unpack(path === "/api/index" ? "index" : `chunk-${parameters.number}`);
  const response = await fetch(`${path}?${new URLSearchParams(parameters)}`, options).catch(() => {
    throw new Error("The viewer's server does not answer; start it again.");
  });
  if (!response.ok) throw new Error(await response.text());
  return response.json();
}

class Source {
  constructor(run) {
    Object.assign(this, { run, generation: 0, count: 0, tokenCount: 0, starts: [], tokens: {}, chunks: new Map() });
    Object.assign(this, { more: true, error: "", rescore: {}, model: "" });
  }

  /** Reads what is new; true if there are new rows. `restart` is called if the run was written again. */
  async read(restart) {
    const index = await this.ask("/api/index", { rows: this.count, tokens: this.tokenCount });
    if (this.generation && index.generation !== this.generation) return restart();
    const { rows, tokens, ...rest } = index;
    Object.assign(this, { more: false, error: "", generation: 0 }, rest); // a static page has none of these
    Object.assign(this.tokens, tokens);
    this.tokenCount += Object.keys(tokens).length;
    if (rows.length) this.chunks.delete(this.starts.length - 1); // the last one grew
    for (const row of rows) {
      Object.assign(row, { source: this, local: this.count++, set: row.source || "none", number: state.rows.length });
      row.text = [row.id, row.question, row.answer, ...row.gold].join("\n").toLowerCase();
      row.side = row.phase ? `${row.file}, ${row.phase}` : row.file;
      row.key = keyOf(row);
      state.rows.push(row);
    }
    return rows.length > 0;
  }

  ask(path, parameters) {
    return ask(path, { run: this.run, generation: this.generation, ...parameters });
  }

  chunkAt(number) {
    const chunk = this.chunks.get(number) ?? this.ask("/api/chunk", { number });
    this.chunks.delete(number);
    this.chunks.set(number, chunk);
    chunk.catch(() => this.chunks.delete(number)); // to be asked for again
    if (this.chunks.size > CHUNKS_KEPT) this.chunks.delete(this.chunks.keys().next().value);
    return chunk;
  }
}

const keys = new Map(); // key: row number

/** The name of a row in links: its question's id and what tells it from others with the same. */
function keyOf(row) {
  const side = [row.source.run, row.phase, row.file].filter((part, at, all) => part && all.indexOf(part) === at);
  const name = [row.id || `sample-${row.index ?? row.local}`, ...side].join("~");
  let key = name;
  for (let n = 2; keys.has(key); n++) key = `${name}~${n}`;
  keys.set(key, row.number);
  return key;
}

async function recordOf(row) {
  const { starts, tokens } = row.source;
  const number = starts.findLastIndex((start) => start <= row.local);
  const records = await row.source.chunkAt(number);
  return { ...records[row.local - starts[number]], tokens };
}

/** The text of every response and document, in lower case; chunk by chunk, so that the page stays alive. */
async function readAllTexts(progress) {
  for (const source of state.sources) {
    const rows = state.rows.filter((row) => row.source === source);
    for (let number = 0; number < source.starts.length; number++) {
      const [begin, end] = [source.starts[number], source.starts[number + 1] ?? rows.length];
      if (rows.slice(begin, end).every((row) => state.texts.has(row.number))) continue;
      progress(number / source.starts.length);
      const records = await source.chunkAt(number);
      records.slice(0, end - begin).forEach(({ ids, start, searches }, index) => {
        const found = searches.flatMap((search) => [search.query, ...search.documents.flat()]);
        const text = [textOf({ ids, tokens: source.tokens }, start, ids.length), ...found].join("\n").toLowerCase();
        state.texts.set(rows[begin + index].number, text);
      });
    }
  }
}
