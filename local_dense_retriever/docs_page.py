"""The page at /docs: one form to try /retrieve from. It loads nothing from elsewhere, so it works without a network."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Local dense retriever</title>
<style>
  body { font: 16px/1.5 sans-serif; max-width: 50em; margin: 2em auto }
  label { display: block }
  textarea, pre { width: 100%; white-space: pre-wrap }
</style>
<h1>Local dense retriever</h1>
<p><code>POST /retrieve</code> finds the passages nearest to each query.
<a href="openapi.json">openapi.json</a> describes all routes.</p>
<form>
  <label>Queries, one per line <textarea name="queries" rows="4" required>Who wrote Hamlet?</textarea></label>
  <label>Passages per query <input name="topk" type="number" min="1" max="100" value="3"></label>
  <label><input name="scores" type="checkbox"> with scores</label>
  <label>Key, if the server has one <input name="key" type="password" autocomplete="off"></label>
  <button>Search</button>
</form>
<pre hidden></pre>
<script>
  const form = document.querySelector("form"), output = document.querySelector("pre");
  form.addEventListener("submit", async event => {
    event.preventDefault();
    const { queries, topk, scores, key } = form.elements;
    const body = {
      queries: queries.value.split("\\n").filter(query => query.trim()),
      topk: Number(topk.value),
      return_scores: scores.checked,
    };
    const headers = key.value ? { Authorization: "Bearer " + key.value } : {};
    output.hidden = false;
    try {
      const reply = await fetch("retrieve", { method: "POST", headers, body: JSON.stringify(body) });
      output.textContent = reply.status + "\\n" + JSON.stringify(await reply.json(), null, 2);
    } catch (error) {
      output.textContent = String(error);
    }
  });
</script>
</html>
"""
