"""The served viewer in headless Chromium: runs that grow, two compared, a rollout forked; skipped without a browser."""

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from evaluation_helpers import ANSWER, SEARCH, fresh_state, save_tokenizer, serving, write_data  # noqa: F401
from fakes import Turn, tiny_tokenizer
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Page, expect
from viewer_helpers import HOSTILE, byte_tokenizer, headless_chromium, sample, search, write_jsonl

from evaluation import run as evaluation_run
from evaluation.fork_engine import ForkEngine
from evaluation.view_server import Browser

pytestmark = pytest.mark.model  # starts a browser, and imports transformers

TOKENIZER = byte_tokenizer()
WAIT_S = 20.0


def answered(number: int, reward: float = 1.0, **changes: Any) -> dict[str, Any]:
    """A sample that answers question `number`."""
    text = f"<answer>answer {number}</answer>"
    return sample(
        TOKENIZER, [("turn", text)], prompt=f"Question {number} ?", reward=reward, id=f"q-{number}", **changes
    )


def make_run(root: Path, name: str, samples: list[dict[str, Any]]) -> Path:
    """An evaluation's folder; returns its trajectories."""
    (root / name).mkdir(parents=True)
    (root / name / "settings.json").write_text(json.dumps({"model": f"/models/{name}-3B"}))
    return write_jsonl(root / name / "trajectories.jsonl", samples)


@contextmanager
def served(root: Path, tokenizer: Any = TOKENIZER, engine: ForkEngine | None = None) -> Iterator[str]:
    """The run browser in a thread of its own; yields its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def begin() -> tuple[web.AppRunner, str]:
        runner = web.AppRunner(Browser(root, lambda folder: tokenizer, engine=engine).app(None), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, f"http://127.0.0.1:{runner.addresses[0][1]}/"

    runner, url = asyncio.run_coroutine_threadsafe(begin(), loop).result(WAIT_S)
    try:
        yield url
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(WAIT_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    with headless_chromium() as browser:
        yield browser


@pytest.fixture
def page(chromium: Chromium) -> Iterator[Page]:
    """A page in which nothing may fail, and which asks no other host."""
    troubles: list[str] = []
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(15_000)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: troubles.append(message.text))
    page.on("request", lambda request: None if "//127.0.0.1:" in request.url else troubles.append(request.url))
    yield page
    page.close()
    expected = ("status of 4", "ERR_CONNECTION_REFUSED")  # refusals that the page shows; a server that a test stopped
    assert [trouble for trouble in troubles if not any(one in trouble for one in expected)] == []


def questions(page: Page) -> list[str]:
    return page.locator(".row .question").all_inner_texts()


def test_runs_are_listed_and_open_and_back_returns_to_the_list(page, tmp_path):
    make_run(tmp_path, "first", [answered(1)])
    make_run(tmp_path, "second", [answered(2), answered(3)])
    with served(tmp_path) as url:
        page.goto(url)
        expect(page.get_by_role("link", name="second")).to_be_visible()
        expect(page).to_have_title("Runs")
        page.get_by_role("link", name="second").click()
        expect(page.locator("main h2")).to_have_text("Question 2 ?")
        expect(page.locator("#title")).to_have_text("second")
        page.keyboard.press("j")
        expect(page).to_have_title("q-3 · second · second-3B")
        page.reload()
        expect(page.locator("main h2")).to_have_text("Question 3 ?")
        page.get_by_role("link", name="Runs").click()
        expect(page.get_by_role("link", name="first")).to_be_visible()
        page.get_by_role("link", name="first").click()
        expect(page.locator("main h2")).to_have_text("Question 1 ?")
        page.go_back()
        expect(page.get_by_role("link", name="second")).to_be_visible()
        (tmp_path / "third").mkdir()
        write_jsonl(tmp_path / "third" / "trajectories.jsonl", [answered(9)])  # appears by itself
        expect(page.get_by_role("link", name="third")).to_be_visible()


def test_a_running_run_grows_on_the_page_without_moving_what_is_read(page, tmp_path):
    file = make_run(tmp_path, "run", [answered(number) for number in range(30)])
    with served(tmp_path) as url:
        page.goto(f"{url}#run=run")
        page.locator(".row").nth(2).click()
        expect(page.locator("main h2")).to_have_text("Question 2 ?")
        page.locator("#list").evaluate("list => list.scrollTop = 200")
        half = json.dumps(answered(30))
        with file.open("a") as lines:
            lines.write(half[:100])
            lines.flush()
            time.sleep(2.5)
            expect(page.locator("#count")).to_contain_text("30 of 30")
            expect(page.locator("#trouble")).to_be_hidden()
            lines.write(half[100:] + "\n" + json.dumps(answered(31, reward=0.2)) + "\n")
        expect(page.locator("#count")).to_contain_text("32 of 32")
        expect(page.locator("main h2")).to_have_text("Question 2 ?")
        assert page.locator("#list").evaluate("list => list.scrollTop") == 200
        page.keyboard.press("End")
        expect(page.locator("main .tokens").last).to_have_text("<answer>answer 31</answer>")


def test_a_run_that_was_written_again_begins_again_on_the_page(page, tmp_path):
    file = make_run(tmp_path, "run", [answered(1), answered(2)])
    with served(tmp_path) as url:
        page.goto(f"{url}#run=run")
        expect(page.locator("#count")).to_contain_text("2 of 2")
        write_jsonl(file, [answered(7)])
        expect(page.locator("main h2")).to_have_text("Question 7 ?")
        expect(page.locator("#count")).to_contain_text("1 of 1")


def test_two_runs_are_compared_question_by_question(page, tmp_path):
    make_run(tmp_path, "a", [answered(number, reward) for number, reward in enumerate([1.0, 1.0, 0.2, 0.2])])
    make_run(tmp_path, "b", [answered(number, reward) for number, reward in enumerate([1.0, 0.2, 1.0, 0.2])])
    with served(tmp_path) as url:
        page.goto(url)
        for name in ("a", "b"):
            page.get_by_role("checkbox", name=f"Compare {name}").check()
        page.get_by_role("button", name="Compare the two").click()
        page.locator('[data-choice="Outcome: only B right"]').click()
        assert questions(page) == ["Question 2 ?"]
        titles = page.locator(".side > h2")
        expect(titles).to_have_count(2)
        assert [title.inner_text().split("\n")[0] for title in titles.all()] == ["A: a", "B: b"]
        page.set_viewport_size({"width": 390, "height": 800})
        page.locator(".row").first.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.go_back()
        expect(page.locator("aside")).to_be_visible()


def test_a_run_that_cannot_be_read_says_why(page, tmp_path):
    make_run(tmp_path, "run", [answered(1)])
    (tmp_path / "run" / "settings.json").unlink()
    with (tmp_path / "run" / "trajectories.jsonl").open("a") as lines:
        lines.write("nonsense\n")
    with served(tmp_path) as url:
        page.goto(f"{url}#run=run")
        expect(page.locator("#trouble")).to_contain_text("does not say which model was rolled out")
        page.goto(f"{url}#run=nothing")
        expect(page.locator("#trouble")).to_contain_text("There is no run of this name")
        (tmp_path / "run" / "settings.json").write_text('{"model": "x"}')
        page.goto(f"{url}#run=run")
        expect(page.locator("#trouble")).to_contain_text("line 2 is not JSON")
        expect(page.locator("main h2")).to_have_text("Question 1 ?")


def test_a_trajectory_that_could_not_be_fetched_opens_at_the_next_try(page, tmp_path):
    make_run(tmp_path, "run", [answered(1), answered(2)])
    with served(tmp_path) as url:
        page.route("**/api/chunk?*", lambda route: route.abort("connectionrefused"), times=1)
        page.goto(f"{url}#run=run")
        expect(page.locator("#detail .notice")).to_contain_text("The viewer's server does not answer")
        page.locator(".row").nth(1).click()
        page.locator(".row").first.click()
        expect(page.locator("#detail .notice")).to_have_count(0)
        expect(page.locator("main h2")).to_have_text("Question 1 ?")


def test_a_hostile_run_is_shown_as_text(page, tmp_path):
    name = "<img src=x onerror=window.wasHacked=1>"
    make_run(
        tmp_path, name, [sample(TOKENIZER, [("turn", HOSTILE)], prompt=HOSTILE, searches=[search(HOSTILE, HOSTILE)])]
    )
    with served(tmp_path) as url:
        page.goto(url)
        page.get_by_role("link", name=name).click()
        expect(page.locator("main h2")).to_contain_text("<img")
        assert page.locator("img, main script, header script").count() == 0
        assert page.evaluate("window.wasHacked") is None


def test_without_an_engine_the_button_says_what_to_start(page, tmp_path):
    make_run(
        tmp_path, "run", [sample(TOKENIZER, [("turn", "x"), ("observation", "y"), ("turn", "z")], searches=[search()])]
    )
    with served(tmp_path) as url:
        page.goto(f"{url}#run=run")
        page.get_by_role("button", name="Fork from here").click()
        expect(page.get_by_role("dialog", name="Fork")).to_contain_text("view --serve")
        expect(page.get_by_role("dialog", name="Fork")).to_contain_text("--engine URL")
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog", name="Fork")).to_be_hidden()


def reader(request: dict) -> Turn:
    """Searches, then answers with the city that the last document names."""
    text = tiny_tokenizer().decode(request["input_ids"])
    if "<information>Doc" not in text:
        return Turn(SEARCH.format(country="Kenya"))
    return Turn(ANSWER.format(answer=text.rpartition(" is ")[2].partition(".")[0]))


def test_a_rollout_is_forked_with_another_passage_and_with_another_query(page, tmp_path, capsys):
    model = save_tokenizer(tmp_path / "model")
    with serving(reader) as (engine, retriever):
        retriever.documents = ['"Kenya"\nThe capital of Kenya is Mombasa.']
        command = [
            "--model",
            model,
            "--engine",
            f"http://127.0.0.1:{engine.port}",
            "--search",
            f"local:{retriever.url}",
        ]
        command += ["--data", write_data(tmp_path / "data.jsonl"), "--output", tmp_path / "runs" / "eval"]
        with ThreadPoolExecutor() as elsewhere:  # playwright has an event loop in this thread
            assert elsewhere.submit(evaluation_run.main, [str(word) for word in command]).result() == 0
        fork_engine = ForkEngine(f"http://127.0.0.1:{engine.port}", f"local:{retriever.url}", 0.0, 512)
        from transformers import AutoTokenizer

        with served(tmp_path / "runs", AutoTokenizer.from_pretrained(model), fork_engine) as url:
            page.goto(f"{url}#run=eval")
            page.locator(".row", has_text="Kenya").click()
            expect(page.locator("main h2").first).to_contain_text("Kenya")
            expect(page.locator("main .card").first).to_contain_text("Mombasa")
            page.get_by_role("button", name="Fork from here").click()
            page.get_by_label("Text", exact=True).fill("The capital of Kenya is Nairobi.")
            page.get_by_role("button", name="Continue from here").click()
            recorded_side, forked_side = page.locator(".side").first, page.locator(".side").last
            expect(forked_side.locator("h2")).to_contain_text("Forked at turn 1")
            expect(forked_side.locator(".card").first).to_contain_text("Nairobi")
            expect(recorded_side.locator(".card").first).to_contain_text("Mombasa")
            expect(forked_side.locator(".chips .badge")).to_contain_text("✓ 1")
            sent = tiny_tokenizer().decode(engine.requests[-1]["input_ids"])
            assert sent.endswith('Doc 1(Title: "Kenya") The capital of Kenya is Nairobi.</information>\n\n')
            retriever.documents = ['"Kenya"\nThe capital of Kenya is Kisumu.']
            page.get_by_role("button", name="Fork from here").click()
            page.get_by_label("Query 1").fill("Kenya, capital city")
            page.get_by_role("button", name="Continue from here").click()
            expect(page.locator(".side").last.locator(".card").first).to_contain_text("Kisumu")
            assert retriever.queries[-1] == "Kenya, capital city"
            shutil.copytree(tmp_path / "runs" / "eval", tmp_path / "runs" / "other")
            page.goto(f"{url}#run=eval&run=other")
            page.get_by_role("button", name="Fork from here").first.click()  # of the first of two that are compared
            page.get_by_role("button", name="Continue from here").click()
            expect(page.locator(".side > h2").first).to_contain_text("Recorded")
            page.get_by_role("button", name="Fork from here").click()
            engine.script = lambda _: Turn(status=400, body={"error": "no"})
            page.get_by_role("button", name="Continue from here").click()
            expect(page.get_by_role("dialog", name="Fork").get_by_role("status")).to_contain_text("answered 400")
            expect(page.get_by_role("button", name="Continue from here")).to_be_enabled()


def test_another_site_cannot_read_runs_or_fork(chromium, tmp_path):
    make_run(tmp_path, "run", [answered(1)])
    with served(tmp_path) as url, served(tmp_path) as other_site:
        page = chromium.new_page()
        page.goto(other_site.replace("127.0.0.1", "localhost"))
        for script in (
            f"fetch('{url}api/runs')",
            f"fetch('{url}api/fork', {{method: 'POST', headers: {{'X-Viewer-Token': 'x'}}, body: '{{}}'}})",
        ):
            assert page.evaluate(f"{script}.then(r => r.text()).catch(() => 'refused')") == "refused"
        page.close()


@pytest.mark.slow
def test_ten_thousand_trajectories_are_served_while_they_are_read_and_then_at_once(page, tmp_path, capsys):
    from many_trajectories import write_many

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").write_text('{"model": "many"}')
    tokenizer, tokens = write_many(tmp_path / "run" / "trajectories.jsonl")
    seconds = {}
    with served(tmp_path, tokenizer) as url:
        for visit in ("first rows", "again, all rows"):
            began = time.perf_counter()
            page.goto(f"{url}?{len(seconds)}#run=run", wait_until="commit")
            expect(page.locator("main .model").first).to_be_visible(timeout=60_000)
            seconds[visit] = time.perf_counter() - began
            if "again" in visit:
                expect(page.locator("#count")).to_contain_text("10,000 of 10,000")
                seconds["again, all rows"] = time.perf_counter() - began
            else:
                expect(page.locator("#count")).not_to_contain_text("reading on", timeout=400_000)
                seconds["all read"] = time.perf_counter() - began
    with capsys.disabled():
        print(f"\n10,000 trajectories, {tokens / 1e6:.1f} million tokens, served:", end="")
        print("".join(f" {name} {value:.2f} s," for name, value in seconds.items()))
    assert seconds["first rows"] < 10 and seconds["again, all rows"] < 10
