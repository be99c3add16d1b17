"""Each planted fault is found, by the row that names it; sound samples are passed."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from audit_helpers import CHAT, PROMPT, TOKENIZER, XML, audit, foreign, reported

pytestmark = pytest.mark.model

Fields = dict[str, Any]


def test_sound_samples_of_other_plugins_are_passed() -> None:
    assert reported(audit(foreign(), foreign(CHAT, index=1))) == {}


def trained(fields: Fields) -> list[int]:
    return [place for place, on in enumerate(fields["loss_mask"]) if on]


def env(fields: Fields) -> list[int]:
    return [place for place, on in enumerate(fields["loss_mask"]) if not on]


def put(fields: Fields, name: str, places: list[int], value: Any) -> None:
    values = list(fields[name])
    for place in places:
        values[place] = value
    fields[name] = values


def shorter_mask(fields: Fields) -> None:
    fields["loss_mask"] = fields["loss_mask"][:-1]


def whole_mask(fields: Fields) -> None:
    fields["loss_mask"] = [1] * (len(fields["tokens"]) - fields["response_length"]) + fields["loss_mask"]


def fewer_log_probs(fields: Fields) -> None:
    fields["rollout_log_probs"].pop()


def response_length_of_text(fields: Fields) -> None:
    fields["response_length"] = len(fields["response"]) * 5


def no_prompt(fields: Fields) -> None:
    fields["tokens"] = fields["tokens"][-fields["response_length"] :]


def prompt_in_response(fields: Fields) -> None:
    fields["response_length"] += 3
    fields["loss_mask"] = [1, 1, 1, *fields["loss_mask"]]
    fields["rollout_log_probs"] = [-0.1] * 3 + fields["rollout_log_probs"]


def response_in_prompt(fields: Fields) -> None:
    fields["response_length"] -= 2
    fields["loss_mask"], fields["rollout_log_probs"] = fields["loss_mask"][2:], fields["rollout_log_probs"][2:]


def shift(by: int) -> Callable[[Fields], None]:
    def change(fields: Fields) -> None:
        values = fields["rollout_log_probs"]
        fields["rollout_log_probs"] = [0.0, *values[:-1]] if by > 0 else [*values[1:], 0.0]

    return change


def masked_turn(fields: Fields) -> None:
    put(fields, "loss_mask", [place for place in trained(fields) if place < env(fields)[0]], 0)


def overshoot_kept_in_ids(fields: Fields) -> None:
    ids = TOKENIZER.encode(" and")
    fields["tokens"] = fields["tokens"] + ids
    fields["response_length"] += len(ids)
    fields["loss_mask"] = fields["loss_mask"] + [1] * len(ids)
    fields["rollout_log_probs"] = fields["rollout_log_probs"] + [-0.5] * len(ids)


def overshoot_cut_from_ids(fields: Fields) -> None:
    for name in ("tokens", "loss_mask", "rollout_log_probs"):
        fields[name] = fields[name][:-1]
    fields["response_length"] -= 1


def retokenised_response(fields: Fields) -> None:
    """Byte by byte: other ids than the engine's, while mask and log-probabilities are still the engine's."""
    start = len(fields["tokens"]) - fields["response_length"]
    pieces = "".join(TOKENIZER.convert_ids_to_tokens(fields["tokens"][start:]))
    fields["tokens"] = fields["tokens"][:start] + [TOKENIZER.convert_tokens_to_ids(letter) for letter in pieces]


def split_last_turn_history(fields: Fields) -> None:
    """The first turn in ids that no tokenizer would give; text and masks fit."""
    start = len(fields["tokens"]) - fields["response_length"]
    pieces = TOKENIZER.convert_ids_to_tokens(fields["tokens"])
    place = next(place for place in range(start, len(pieces)) if len(pieces[place]) > 1)
    letters = [TOKENIZER.convert_tokens_to_ids(letter) for letter in pieces[place]]
    fields["tokens"] = [*fields["tokens"][:place], *letters, *fields["tokens"][place + 1 :]]
    more = len(letters) - 1
    fields["response_length"] += more
    fields["loss_mask"] = [1] * more + fields["loss_mask"]
    fields["rollout_log_probs"] = [-0.3] * more + fields["rollout_log_probs"]


def spelled(text: str) -> list[int]:
    """A text in ids of single characters, special tokens too."""
    return [TOKENIZER.convert_tokens_to_ids("Ċ" if letter == "\n" else letter) for letter in text]


def spelled_template(fields: Fields) -> None:
    fields["prompt"] = "<|im_start|>user\nCapital?<|im_end|>\n"
    response = fields["tokens"][-fields["response_length"] :]
    fields["tokens"] = spelled("<|im_start|>user\nCapital?<|im_end|>\n") + response


def value(name: str, new: Any) -> Callable[[Fields], None]:
    return lambda fields: fields.update({name: new})


def at(name: str, which: Callable[[Fields], list[int]], new: Any, limit: int = 10**6) -> Callable[[Fields], None]:
    return lambda fields: put(fields, name, which(fields)[:limit], new)


def last_model_token(fields: Fields) -> list[int]:
    return trained(fields)[-1:]


def first_end_mark(fields: Fields) -> list[int]:
    end, start = TOKENIZER.eos_token_id, len(fields["tokens"]) - fields["response_length"]
    return [fields["tokens"][start:].index(end)]


NO_END = tuple((author, text.replace("</tool_call><|im_end|>", "</tool_call>")) for author, text in CHAT)
CUT_TAG = tuple((author, text.replace("</search>", "</search")) for author, text in XML)
CORRECTED = (
    ("model", "<think>x</think>"),
    ("environment", "\nMy previous action is invalid. If I want to search, I should. Let me try again.\n"),
    ("model", "<answer>Nairobi</answer>"),
)
FAULTS: dict[str, tuple[Any, Callable[[Fields], None], str, str, str]] = {
    "the mask is shorter": (XML, shorter_mask, "lengths", "✗", "loss_mask has"),
    "the mask covers the prompt": (XML, whole_mask, "lengths", "✗", "loss_mask has"),
    "log-probabilities are fewer": (XML, fewer_log_probs, "lengths", "✗", "rollout_log_probs has"),
    "response_length counts characters": (XML, response_length_of_text, "lengths", "✗", "response_length is"),
    "there is no prompt": (XML, no_prompt, "lengths", "✗", "at least one of which is the prompt's"),
    "tokens are no ids": (XML, value("tokens", ["a"]), "lengths", "✗", "not a list of whole numbers"),
    "the mask holds halves": (XML, at("loss_mask", trained, 0.5), "mask values", "✗", "holds 0.5"),
    "the mask holds log-probabilities": (XML, at("loss_mask", trained, -1.0), "mask values", "✗", "holds -1.0"),
    "nothing is trained": (XML, at("loss_mask", trained, 0), "trained at all", "✗", "0 everywhere"),
    "ids of another model": (XML, at("tokens", trained, 150_000, 2), "vocabulary", "✗", "150000 is outside"),
    "a negative id": (XML, at("tokens", trained, -100, 1), "vocabulary", "✗", "-100"),
    "status pending": (XML, value("status", "pending"), "status", "✗", "'pending'"),
    "truncated without status": ((*XML[:1], ("model", " and then")), lambda _: None, "status", "!", "was it cut"),
    "no reward": (XML, value("reward", None), "reward", "✗", "no reward"),
    "reward NaN": (XML, value("reward", math.nan), "reward", "✗", "nan"),
    "a reward without numbers": (XML, value("reward", {"em": None}), "reward", "✗", "em"),
    "prompt tokens are trained": (XML, prompt_in_response, "prompt", "✗", "of the prompt count as response"),
    "the response begins late": (XML, response_in_prompt, "prompt", "✗", "of the response count as prompt"),
    "a turn is masked": (XML, masked_turn, "model tokens", "✗", "turn 1 of the model is masked"),
    "some model tokens are masked": (XML, at("loss_mask", trained, 0, 3), "model tokens", "✗", "3 of"),
    "the last end-of-turn token is masked": (CHAT, at("loss_mask", last_model_token, 0), "turn ends", "✗", "last turn"),
    "an end-of-turn token is masked": (CHAT, at("loss_mask", first_end_mark, 0), "turn ends", "✗", "is masked"),
    "an end-of-turn token is left out": (NO_END, lambda _: None, "turn ends", "✗", "no end-of-turn token"),
    "a closing tag is cut": (CUT_TAG, lambda _: None, "turn ends", "✗", "closing tag is cut"),
    "observation tokens are trained": (XML, at("loss_mask", env, 1), "environment", "✗", "without a log-prob"),
    "tool responses are trained": (CHAT, at("loss_mask", env, 1), "environment", "✗", "environment are trained"),
    "correction text is trained": (CORRECTED, at("loss_mask", env, 1), "environment", "✗", "are trained"),
    "there is no mask": (XML, value("loss_mask", None), "environment", "✗", "are trained"),
    "log-probability NaN": (XML, at("rollout_log_probs", trained, math.nan, 1), "values", "✗", "nan"),
    "log-probability above 0": (XML, at("rollout_log_probs", trained, 0.2, 1), "values", "✗", "above 0"),
    "log-probability None": (XML, at("rollout_log_probs", trained, None, 1), "values", "✗", "None"),
    "log-probabilities 0.0": (XML, at("rollout_log_probs", trained, 0.0), "present", "✗", "in a row"),
    "shifted to the right": (XML, shift(1), "alignment", "✗", "to the right"),
    "shifted to the left": (XML, shift(-1), "alignment", "✗", "to the left"),
    "text trimmed, ids not": (XML, overshoot_kept_in_ids, "text of ids", "✗", "text is trimmed and the ids are not"),
    "ids cut, text not": (XML, overshoot_cut_from_ids, "text of ids", "✗", "ids are cut and the text is not"),
    "text of another sample": (XML, value("response", "nothing"), "text of ids", "✗", "text and ids differ"),
    "text is None": (XML, value("response", None), "text of ids", "✗", "NoneType"),
    "text without special tokens": (
        CHAT,
        lambda fields: fields.update(response=fields["response"].replace("<|im_end|>", "")),
        "text of ids",
        "!",
        "leaves out special tokens",
    ),
    "special tokens as text": (XML, spelled_template, "special tokens", "✗", "spelled out"),
    "the history was encoded again": (XML, split_last_turn_history, "history", "!", "encodes to other ids"),
    "the response was encoded again": (XML, retokenised_response, "prompt", "✗", "response count as prompt"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    parts, plant, row, mark, text = FAULTS[fault]
    fields = foreign(parts)
    plant(fields)
    finding = audit(foreign(), fields)[row]
    assert finding.mark == mark and text in finding.found and finding.remedy
    assert finding.found.startswith("1 of 2 samples; the first: ") and "(sample 1)" in finding.found


def test_history_is_wrong_where_text_was_sent_and_right_where_ids_were() -> None:
    fields = foreign()
    split_last_turn_history(fields)
    assert audit(fields, sent="text")["history"].mark == "✗"
    assert audit(fields, sent="ids")["history"].mark == "✓"


def test_samples_that_stand_there_twice_are_found() -> None:
    assert audit(foreign(), foreign(index=1), foreign())["duplicates"].mark == "✗"
    copies = [foreign(index=number) for number in range(4)]
    assert audit(*copies)["duplicates"].mark == "!"


def test_groups_of_other_sizes_are_found() -> None:
    samples = [foreign(index=number, group_index=number // 2) for number in range(5)]
    assert audit(*samples[:4])["groups"].mark == "✓"
    finding = audit(*samples)["groups"]
    assert finding.mark == "✗" and "1 of 1, 2 of 2" in finding.found


def test_log_probabilities_in_some_samples_only_are_found() -> None:
    findings = audit(foreign(), foreign(index=1, rollout_log_probs=None))
    assert findings["all or none"].mark == "✗"
    assert "all or none" not in audit(foreign(rollout_log_probs=None))


def test_the_auditor_says_what_it_cannot_know() -> None:
    silent = foreign((("model", "some"), ("environment", "thing"), ("model", "else<|im_end|>")))
    findings = audit(silent)
    assert findings["environment"].mark == findings["model tokens"].mark == "–"
    assert "nothing in the text separates" in findings["environment"].found
    assert reported(findings) == {}
    without = audit(foreign(), reader=None)
    assert {name for name, finding in without.items() if "--tokenizer" in finding.found} >= {
        *("vocabulary", "environment", "model tokens", "history")
    }
    assert reported(without) == {}


def test_a_trained_information_block_with_log_probabilities_may_be_the_models_own() -> None:
    fields = foreign(loss_mask=[1] * len(foreign()["loss_mask"]))
    fields["rollout_log_probs"] = [-0.4] * len(fields["loss_mask"])
    finding = audit(fields)["environment"]
    assert finding.mark == "!" and "the model wrote them itself" in finding.found


@pytest.mark.parametrize("change", [{"remove_sample": True, "loss_mask": [0]}, {"status": "aborted", "reward": None}])
def test_discarded_and_aborted_samples_are_no_fault(change: dict[str, Any]) -> None:
    fields = foreign(index=1)
    if "loss_mask" in change:
        one = {
            "tokens": [*TOKENIZER.encode(PROMPT), 0],
            "response": "",
            "response_length": 1,
            "rollout_log_probs": [0.0],
        }
        fields |= one
    assert reported(audit(foreign(CHAT), fields | change)) == {}


@pytest.mark.parametrize(
    "fields", [{}, {"tokens": None}, {"tokens": [], "response_length": 0}, {"response_length": True}]
)
def test_a_sample_without_tokens_is_a_fault_and_no_crash(fields: dict[str, Any]) -> None:
    assert audit(fields)["lengths"].mark == "✗"
