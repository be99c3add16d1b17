"""The viewer's page in headless Chromium; skipped where there is none."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from viewer_helpers import END, HOSTILE, byte_tokenizer, headless_chromium, sample, search, write_jsonl

from evaluation import view
from search_rollout.rewards import group_normalised

pytestmark = pytest.mark.model  # starts a browser, and imports transformers

TOKENIZER = byte_tokenizer()
SEARCH = ("turn", "<think>I look it up.</think>\n<search>capital of Kenya</search>")
FOUND = ("observation", "\n\n<information>Doc 1(Title: Kenya) Nairobi</information>\n\n")
ANSWER = ("turn", "<think>Só é.</think>\n<answer>Nairobi</answer>" + END)

Show = Callable[..., Page]  # samples → the page of them, opened


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with headless_chromium() as browser:
        yield browser


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Show]:
    """Opens a page of samples; at the end nothing may have failed in it, and nothing been asked of the network."""
    troubles: list[str] = []
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(10_000)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: troubles.append(message.text))
    page.on("request", lambda request: None if request.url.startswith("file:") else troubles.append(request.url))

    def show(*samples: dict[str, Any], address: str = "") -> Page:
        view.write_page([write_jsonl(tmp_path / "run.jsonl", list(samples))], TOKENIZER, tmp_path / "page.html")
        page.goto((tmp_path / "page.html").as_uri() + address)
        expect(page.locator("#count")).to_contain_text(" of ")
        expect(page.locator(".card")).to_have_count(1)  # a trajectory is shown a moment after the list
        return page

    yield show
    page.close()
    assert troubles == []


def questions(page: Page) -> list[str]:
    """The questions of the list, from the top."""
    return page.locator(".row .question").all_inner_texts()


def choice(page: Page, title: str) -> Locator:
    return page.get_by_role("combobox", name=title, exact=True)


def three() -> list[dict[str, Any]]:
    """A right answer with a search, a wrong one without, and a rollout that ended without an answer."""
    return [
        sample(TOKENIZER, [SEARCH, FOUND, ANSWER], prompt="Capital of Kenya?", searches=[search()], data_source="nq"),
        sample(TOKENIZER, [ANSWER], prompt="Capital of Mali?", reward=0.2, score={"answer": "Bama"}, data_source="nq"),
        sample(TOKENIZER, [SEARCH], prompt="Capital of Peru?", reward=0.0, stop="turns_used", data_source="hotpotqa"),
    ]


def bar(page: Page, facet: str, value: str) -> Locator:
    """A bar of the overview."""
    return page.locator(f'[data-choice="{facet}: {value}"]')


def bars(page: Page, facet: str) -> list[str]:
    """The values of a facet with their counts."""
    return [
        text.replace("\n", " ")
        for text in page.get_by_role("group", name=facet).get_by_role("button").all_inner_texts()
    ]


def test_bars_filter_on_click_and_say_how_many_each_would_show(show):
    page = show(*three())
    assert questions(page) == ["Capital of Kenya?", "Capital of Mali?", "Capital of Peru?"]
    expect(page.locator("#count")).to_have_text("3 of 3 · mean reward 0.400")
    for facet, value, expected in (
        ("Reward", "0.2", ["Capital of Mali?"]),
        ("Stop reason", "turns used", ["Capital of Peru?"]),
        ("Searches", "1", ["Capital of Kenya?"]),
        ("Set", "nq", ["Capital of Kenya?", "Capital of Mali?"]),
    ):
        bar(page, facet, value).click()
        assert questions(page) == expected
        expect(bar(page, facet, value)).to_have_attribute("aria-pressed", "true")
        bar(page, facet, value).click()  # once more: any value again
        assert len(questions(page)) == 3
    bar(page, "Set", "nq").click()
    for _ in range(2):  # a filter's own choice does not change what stands beside its choices
        assert bars(page, "Reward") == ["0 0", "0.2 1", "1 1"]
        bar(page, "Reward", "1").click()
    bar(page, "Reward", "1").click()
    bar(page, "Set", "hotpotqa").click()
    expect(page.get_by_text("No trajectory matches these filters.").first).to_be_visible()


def test_the_open_trajectory_is_always_one_of_the_list(show):
    page = show(*three())
    heading = page.locator("main h2").first
    bar(page, "Set", "hotpotqa").click()
    expect(heading).to_have_text("Capital of Peru?")
    page.get_by_label("Search", exact=True).fill("no such thing")
    expect(page.locator("main")).to_have_text("No trajectory matches these filters.")
    page.get_by_role("button", name="Clear filters").click()
    expect(page.locator(".row")).to_have_count(3)
    expect(heading).to_have_text("Capital of Kenya?")
    expect(page.get_by_role("button", name="Clear filters")).to_be_hidden()


def test_the_filtered_rows_can_be_saved(show):
    page = show(*three())
    bar(page, "Set", "nq").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    assert download.value.suggested_filename == "trajectories-filtered.jsonl"
    assert [json.loads(line)["question"] for line in lines] == ["Capital of Kenya?", "Capital of Mali?"]
    assert json.loads(lines[0]).items() >= {"reward": 1.0, "right": True, "gold": ["Nairobi"], "set": "nq"}.items()


def test_the_search_looks_at_questions_and_answers_and_on_request_at_all_of_the_text(show):
    page = show(*three())
    page.get_by_label("Search", exact=True).fill("BAMA")
    assert questions(page) == ["Capital of Mali?"]
    page.get_by_label("Search", exact=True).fill("só é")
    assert questions(page) == []
    page.get_by_label("in all of the text").check()
    expect(page.locator(".row")).to_have_count(2)
    page.get_by_label("Search", exact=True).fill("nairobi is the capital")  # in a document
    assert questions(page) == ["Capital of Kenya?"]


def test_the_list_can_be_sorted_both_ways_with_what_is_not_known_last(show):
    page = show(sample(TOKENIZER, [ANSWER], prompt="Capital of Chad?", reward=None), *three())
    choice(page, "Sort by").select_option("reward")
    assert questions(page) == ["Capital of Peru?", "Capital of Mali?", "Capital of Kenya?", "Capital of Chad?"]
    page.get_by_label("Reverse the order").click()
    assert questions(page) == ["Capital of Kenya?", "Capital of Mali?", "Capital of Peru?", "Capital of Chad?"]


def test_many_different_rewards_are_shown_as_ranges(show):
    page = show(*(sample(TOKENIZER, [ANSWER], reward=n / 16) for n in range(17)))
    assert bars(page, "Reward")[:2] == ["0 to 0.125 2", "0.125 to 0.25 2"]
    bar(page, "Reward", "0.875 to 1").click()
    assert page.locator(".row").count() == 3


def test_tokens_are_coloured_by_mask_or_by_log_probability(show):
    fields = three()[0]
    first = fields["loss_mask"].index(1)
    fields["rollout_log_probs"][first : first + 2] = [-0.01, -3.0]
    page = show(fields)
    trained = page.locator(".model .tokens .t")
    expect(trained.first).to_have_class("t m1 p0")
    expect(trained.nth(1)).to_have_class("t m1 p5")
    backgrounds = {}
    for title in ("Mask", "Log-probability"):
        page.get_by_role("button", name=title).click()
        backgrounds[title] = [background(trained.nth(n)) for n in (0, 1)]
    assert backgrounds["Mask"][0] == backgrounds["Mask"][1] != backgrounds["Log-probability"][1]
    assert backgrounds["Log-probability"][0] == "rgba(0, 0, 0, 0)"
    page.locator("summary", has_text="What the model read").click()
    observed = page.locator(".env .tokens .t")
    expect(observed.first).to_have_class("t m0 p0")
    page.keyboard.press("m")
    assert background(observed.first) not in ("rgba(0, 0, 0, 0)", backgrounds["Mask"][0])


def background(token: Locator) -> str:
    return token.evaluate("node => getComputedStyle(node).backgroundColor")


def test_hovering_over_a_token_shows_its_id_mask_and_log_probability(show):
    fields = sample(TOKENIZER, [("turn", "aé")])
    fields["rollout_log_probs"] = [-0.6931, -0.5, -0.25]
    page = show(fields)
    tokens, tip = page.locator(".model .tokens .t"), page.locator("#tip")
    expect(tokens).to_have_text(["a", "é"])  # the last two ids are one letter
    tokens.first.hover()
    a, *bytes_of_e = fields["tokens"][-3:]
    expect(tip).to_have_text(f'"a"\nid {a} · position 0 · mask 1 · logprob −0.693 (p 0.50)')
    tokens.last.hover()
    for n, token in enumerate(bytes_of_e):
        expect(tip).to_contain_text(f"id {token} · position {n + 1} · mask 1 · logprob −0.{50 // (n + 1)}")


def test_passages_are_cards_with_rank_title_and_the_gold_answer_marked(show):
    documents = [{"title": "Kenya", "text": "Its capital is NAIROBI; Nairobians live in Nairobi."}]
    documents += [{"title": "Mali", "text": "Its capital is Bamako."}]
    page = show(sample(TOKENIZER, [SEARCH, FOUND, ANSWER], searches=[search() | {"documents": documents}]))
    cards = page.locator(".passages li")
    assert [card.locator("h4").inner_text().split("\n") for card in cards.all()] == [
        ["1", "Kenya", "gold answer"],
        ["2", "Mali"],
    ]
    assert page.locator("mark.gold").all_inner_texts() == ["NAIROBI", "Nairobi"]
    expect(page.locator("summary", has_text="Search 1")).to_contain_text("capital of Kenya” → 2 documents")


@pytest.mark.parametrize("gold", ["", "(.*", "a|b", "\\", "New  York-City", "東京"])
def test_a_gold_answer_is_marked_as_text_not_as_a_pattern(show, gold):
    text = f"x {gold} y NEW YORK CITY z"
    fields = sample(TOKENIZER, [SEARCH, FOUND, ANSWER], searches=[search(text=text)])
    page = show(fields | {"label": {"ground_truth": {"target": [gold]}}})
    expect(page.locator(".passages p")).to_have_text(re.sub(r"\s+", " ", text))


def test_prompt_and_documents_open_and_close_by_click_or_key(show):
    page = show(three()[0])
    document = page.locator(".passages li", has_text="Nairobi is the capital.")
    expect(document).to_be_visible()
    page.locator("summary", has_text="Search 1").click()
    expect(document).to_be_hidden()
    page.keyboard.press("o")
    expect(document).to_be_visible()
    expect(page.locator(".prompt .tokens")).to_have_text("Capital of Kenya?")


def test_searches_without_their_own_observation_are_shown_after_the_response(show):
    failed = {"query": "Mali", "error": "timeout", "documents": []}
    page = show(sample(TOKENIZER, [SEARCH, FOUND, ANSWER], searches=[search(), failed]))
    titles = page.locator(".block.env > summary").all_inner_texts()
    assert titles[0].lower().startswith("observation")
    assert titles[1:] == ["Search 1: “capital of Kenya” → 1 document", "Search 2: “Mali” failed: timeout"]


def test_a_response_without_segments_is_cut_where_the_mask_changes(show):
    fields = three()[0]
    fields["metadata"]["search_r1"]["spans"] = []
    page = show(fields)
    expect(page.locator(".model h3")).to_have_count(2)
    expect(page.locator(".env summary").first).to_contain_text("not trained", ignore_case=True)


def test_reward_parts_stand_apart_from_evaluation_figures(show):
    page = show(three()[1] | {"scores": {"sub_em": 0.25, "em": 0.0}})
    expect(page.locator(".card > section").last.locator("dt")).to_have_text(["exact match"])
    expect(page.locator("main")).to_contain_text("Gold answer: Nairobi")
    figures = page.locator(".card details", has_text="Evaluation figures")
    expect(figures.locator("dl")).to_be_hidden()
    figures.locator("summary").click()
    expect(figures.locator("dd")).to_have_text(["0.25", "0"])
    expect(page.locator(".chips")).to_contain_text("answered")


def test_the_page_names_the_command_that_rescores_the_file(show, tmp_path):
    page = show(*three())
    page.locator("summary", has_text="Reward under another preset").click()
    expect(page.locator(".command")).to_contain_text(f"rescore {tmp_path / 'run.jsonl'} --preset paper")
    expect(page.locator(".command")).to_contain_text("""grep ', line 1"' rescored.jsonl""")


def test_a_group_shows_the_advantages_that_grpo_gives(show):
    rewards = [1.0, 0.2, 0.0, 0.2]
    samples = [sample(TOKENIZER, [ANSWER], reward=reward, group_index=7, index=n) for n, reward in enumerate(rewards)]
    samples += [sample(TOKENIZER, [ANSWER], reward=1.0, group_index=7, index=4, remove_sample=True)]
    page = show(*samples)
    group = page.get_by_role("navigation", name="Group")
    expect(group).to_contain_text("Group of 5, mean reward 0.350")
    expected = group_normalised([*rewards, 0.0], [True] * 4 + [False], size=5, by_deviation=True)
    shown = [text.replace("\u2212", "-") for text in group.locator("small").all_inner_texts()]
    assert [float(text) for text in shown] == [round(value, 2) for value in expected]
    group.get_by_role("button").nth(2).click()
    expect(page.locator("main .chips")).to_contain_text("sample 2")


def test_two_phases_are_compared_side_by_side(show):
    samples = []
    for number, (before, after) in enumerate([(1.0, 1.0), (1.0, 0.2), (0.2, 1.0), (0.2, 0.2), (0.2, 1.0)]):
        for phase, reward in (("before", before), ("after", after)):
            text = f"<answer>{phase} {number}</answer>"
            prompt = f"Question {number} ?"
            samples.append(
                sample(TOKENIZER, [("turn", text)], prompt=prompt, reward=reward, id=f"q-{number}", phase=phase)
            )
    samples.append(sample(TOKENIZER, [ANSWER], prompt="Never asked after ?", id="q-9", phase="before"))
    page = show(*samples)
    choice(page, "Compare A").select_option("before")
    choice(page, "with B").select_option("after")
    assert bars(page, "Outcome") == ["both right 1", "neither right 1", "only A right 1", "only B right 2"]
    bar(page, "Outcome", "only B right").click()
    assert questions(page) == ["Question 2 ?", "Question 4 ?"]
    page.locator(".row").nth(1).click()
    columns = page.locator(".side")
    expect(columns).to_have_count(2)
    for column, title, answer in ((0, "A: before", "before 4"), (1, "B: after", "after 4")):
        expect(columns.nth(column).locator("h2")).to_contain_text(title)
        expect(columns.nth(column).locator(".tokens")).to_contain_text(answer)
    left, right = (columns.nth(number).bounding_box() for number in (0, 1))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    page.reload()  # the address has it all
    expect(page.locator(".side").nth(1).locator(".tokens")).to_contain_text("after 4")


def test_a_text_that_differs_from_the_decoded_ids_is_shown_next_to_it(show):
    page = show(sample(TOKENIZER, [("turn", "Nairobi!")], response="Nairoba!"), three()[1])
    expect(page.locator("main .notice")).to_have_text("Text differs from decode(ids).")
    assert page.locator(".difference pre").all_inner_texts() == ["Nairoba!", "Nairobi!"]
    assert page.locator(".difference mark").all_inner_texts() == ["a", "i"]
    page.keyboard.press("j")
    expect(page.locator(".difference")).to_have_count(0)


def test_a_hostile_trajectory_is_shown_as_text_and_runs_nothing(show):
    fields = sample(
        TOKENIZER,
        [("turn", HOSTILE), ("observation", HOSTILE), ("turn", HOSTILE)],
        prompt=HOSTILE,
        searches=[search(HOSTILE, HOSTILE)],
        score={"answer": HOSTILE, HOSTILE: HOSTILE},
        response=HOSTILE + "\ud800",
        label={"ground_truth": {"target": [HOSTILE]}},
        data_source=HOSTILE,
        status=HOSTILE,
        weight_versions=[HOSTILE],
    )
    page = show(fields, fields | {"data_source": "nq"})
    page.keyboard.press("o")
    for summary in page.locator(".card summary").all():
        summary.click()
    expect(page.locator(".passages li")).to_have_count(1)
    assert page.locator("img, b, aside script, main script").count() == 0
    assert page.evaluate("window.wasHacked") is None
    text = page.locator("main").inner_text()
    for shown in ("<script>window.wasHacked=1</script>", "<b>bold</b> &lt;", "⟨U+202E⟩gnp.exe", "⟨U+0000⟩", "⟨U+D800⟩"):
        assert shown in text
    assert not set("\u202e\u202c\u200b\x00\x07") & set(page.locator("body").inner_text())


def test_right_to_left_tokens_stand_in_the_order_of_the_ids(show):
    page = show(sample(TOKENIZER, [("turn", "مر abc")]))
    tokens = page.locator(".model .tokens .t")
    expect(tokens).to_have_count(6)
    left = [tokens.nth(n).bounding_box()["x"] for n in range(6)]
    assert left == sorted(left)


def test_the_keyboard_moves_between_trajectories_and_groups(show):
    samples = [
        sample(TOKENIZER, [ANSWER], prompt=f"Question {n} ?", group_index=n // 3, index=n, reward=n % 2)
        for n in range(30)
    ]
    page = show(*samples)
    heading = page.locator("main h2").first
    for key, number in (
        ("j", 1), ("ArrowDown", 2), ("k", 1), ("ArrowUp", 0), ("ArrowUp", 0),
        ("]", 1), ("]", 2), ("]", 2), ("[", 1),
        ("PageDown", 11), ("End", 29), ("j", 29), ("Home", 0),
    ):  # fmt: skip
        page.keyboard.press(key)
        expect(heading).to_have_text(f"Question {number} ?")
    page.keyboard.press("End")
    expect(page.locator("[aria-selected=true]")).to_be_in_viewport()
    page.keyboard.press("/")
    page.keyboard.type("question 12")  # letters are typed, not obeyed
    expect(heading).to_have_text("Question 12 ?")
    page.keyboard.press("Escape")
    page.keyboard.press("x")
    expect(page.locator("#count")).to_contain_text("30 of 30")
    expect(heading).to_have_text("Question 12 ?")
    page.keyboard.press("j")
    expect(heading).to_have_text("Question 13 ?")
    page.keyboard.press("?")
    expect(page.get_by_role("heading", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("heading", name="Keys")).to_be_hidden()
    assert page.url.endswith("#q=sample-13%7Erun")


def test_the_address_names_the_question(show):
    samples = [fields | {"id": f"nq-{n}"} for n, fields in enumerate(three())]
    page = show(*samples, samples[2] | {"reward": 0.7}, address="#q=nq-2~run")
    expect(page.locator("main h2")).to_have_text("Capital of Peru?")
    expect(page.locator("main .badge").first).to_contain_text("0")
    page.keyboard.press("j")
    assert page.url.endswith("#q=nq-2%7Erun%7E2")  # the same question once more
    assert page.title() == "nq-2 · run"


def test_an_address_of_nothing_shows_the_first(show):
    for address in ("#q=never", "#12", "#q=__proto__", "#a=x&b=y", "#%"):
        page = show(*three(), address=address)
        expect(page.locator("main h2")).to_have_text("Capital of Kenya?")


def test_on_a_narrow_screen_list_and_trajectory_take_turns(show):
    page = show(*three())
    page.set_viewport_size({"width": 400, "height": 700})
    expect(page.locator("main")).to_be_hidden()
    page.locator(".row").nth(1).click()
    expect(page.locator("main h2")).to_have_text("Capital of Mali?")
    expect(page.locator("aside")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.get_by_role("button", name="List").click()
    expect(page.locator("main")).to_be_hidden()
    page.locator(".row").nth(2).click()
    expect(page.locator("main h2")).to_have_text("Capital of Peru?")
    page.go_back()
    expect(page.locator("aside")).to_be_visible()
    expect(page.locator("main")).to_be_hidden()
    page.go_forward()
    expect(page.locator("main h2")).to_have_text("Capital of Peru?")


@pytest.mark.slow
def test_ten_thousand_trajectories_open_and_filter_quickly(browser, tmp_path, capsys):
    """Words and documents differ from group to group, so that they compress no better than real ones."""
    from many_trajectories import TRAJECTORIES, write_many

    tokenizer, tokens = write_many(tmp_path / "many.jsonl")
    began = time.perf_counter()
    view.write_page([tmp_path / "many.jsonl"], tokenizer, tmp_path / "page.html")
    seconds = {"writing": time.perf_counter() - began}
    page = browser.new_page()
    began = time.perf_counter()
    page.goto((tmp_path / "page.html").as_uri(), wait_until="commit")
    expect(page.locator("main .model").first).to_be_visible(timeout=60_000)
    seconds["opening"] = time.perf_counter() - began
    count, chips = page.locator("#count"), page.locator("main .chips")
    for name, action, place, shown in (
        ("its last trajectory", lambda: page.keyboard.press("End"), chips, f"sample {TRAJECTORIES - 1}"),
        ("filtering", lambda: bar(page, "Searches", "1").click(), count, re.compile("^3,[0-9]{3} of 10,000")),
        ("reading all text", lambda: page.get_by_label("in all of the text").check(), count, "mean reward"),
    ):
        began = time.perf_counter()
        action()
        expect(place).to_contain_text(shown, timeout=60_000)
        seconds[name] = time.perf_counter() - began
    page.close()
    megabytes = (tmp_path / "page.html").stat().st_size / 1e6
    with capsys.disabled():
        print(f"\n{TRAJECTORIES:,} trajectories, {tokens / 1e6:.1f} million tokens: page {megabytes:.1f} MB", end="")
        print("".join(f", {name} {value:.2f} s" for name, value in seconds.items()))
    assert seconds["opening"] < 10 and seconds["filtering"] < 1 and seconds["its last trajectory"] < 1
