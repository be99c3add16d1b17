// Fork from here: appends other passages, or those of another query, to the recorded ids; the engine continues.

/** Only a served viewer can fork: an engine has to answer. */
function forkButton(row, record, index) {
  if (!isServed || !row.source) return null;
  return button("Fork from here …", () => showFork(row, record, record.searches[index].turn), { className: "fork" });
}

function showFork(row, record, turn) {
  const searches = record.searches.filter((search) => search.turn === turn);
  const title = make("h2", {}, `Fork at turn ${turn}`);
  const close = button("Cancel", () => at("fork").close());
  const how = make("p", { className: "how" }, server.fork?.how ?? "The viewer's server does not answer.");
  at("fork").replaceChildren(title, ...(server.fork?.ready ? [forkForm(row, record, turn, searches, close)] : [how, close]));
  at("fork").showModal();
}

function forkForm(row, record, turn, searches, close) {
  const editors = searches.map(searchEditor);
  const status = make("p", { role: "status", className: "notice", hidden: true });
  const go = make("button", { type: "submit", className: "primary" }, "Continue from here");
  const form = make(
    "form",
    {},
    make("p", { className: "muted" }, "The model's recorded ids stay the same; only what it reads next changes."),
    ...editors.map((editor) => editor.node),
    status,
    make("div", { className: "buttons" }, go, close),
  );
  form.onsubmit = async (event) => {
    event.preventDefault();
    go.disabled = true;
    Object.assign(status, { hidden: false, textContent: "Waiting for the engine …" });
    try {
      await runFork(row, record, turn, editors.map((editor) => editor.value()));
      at("fork").close();
    } catch (error) {
      status.textContent = error.message;
    }
    go.disabled = false;
  };
  return form;
}

/** One search: its query, to be searched again, or passages to be read as they stand here. */
function searchEditor({ query, documents }, number) {
  const field = make("input", { type: "text", value: query, "aria-label": `Query ${number + 1}` });
  const passages = make("div", {}, ...documents.map(passageEditor));
  const add = button("Add a passage", () => passages.append(passageEditor(["", ""])));
  const again = make("input", { type: "checkbox" });
  again.onchange = () => (passages.hidden = add.hidden = again.checked);
  field.oninput = () => {
    if (!again.checked) again.click();
  };
  const node = make("fieldset", {}, make("legend", {}, "Query"), field,
    make("label", { className: "check" }, again, " search for it, instead of these passages"), passages, add);
  const value = () => ({
    query: field.value,
    passages: again.checked ? null : [...passages.children].map((one) => [one.querySelector("input").value, one.querySelector("textarea").value]),
  });
  return { node, value };
}

function passageEditor([title, text]) {
  return make(
    "div",
    { className: "passage-editor" },
    make("input", { type: "text", value: title, "aria-label": "Title" }),
    button("Remove", (event) => event.target.parentElement.remove()),
    make("textarea", { rows: 3, value: text, "aria-label": "Text" }),
  );
}

async function runFork(row, record, turn, searches) {
  const open = state.open;
  const request = { run: row.source.run, generation: row.source.generation, row: row.local, turn, searches };
  const headers = { "Content-Type": "application/json", "X-Viewer-Token": server.fork.token };
  const found = await ask("/api/fork", {}, { method: "POST", headers, body: JSON.stringify(request) });
  const forked = { ...found.row, gold: row.gold, set: row.set, side: found.row.phase, source: null };
  if (state.open !== open) return; // another trajectory is open now
  const result = [`Forked at turn ${turn}`, forked, { ...found.record, tokens: found.tokens }];
  state.forked = { origin: [row, record], result };
  await drawDetail(state.rows[open]);
}
