"""The reward: is the answer right, and does the trajectory keep to the protocol? And the metrics of an evaluation.

A model turn is `<think>…</think>` and then one action: `<search>query</search>`, which the environment answers with
`<information>…</information>`, or `<answer>…</answer>`, which ends the trajectory. In chat mode (style "tools") a turn
calls tools instead of `<search>`, and tool messages answer it. `score_trajectory` holds the table of outcome → reward;
the other functions are its parts. All are pure, take time linear in the length of the text, and
accept any text, None included: a bad rollout earns little, it never raises.
"""

import ast
import json
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Any, Literal, NamedTuple, TypeAlias

_TAG = re.compile(r"(</?(?:think|search|information|answer)>)")  # a group, so that split() keeps the tags
_CALL_BEGINS = ("{", "<|python_tag|>", "<tool_call>")
_ARTICLES = frozenset({"a", "an", "the"})
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NAMES_NOTHING = frozenset(  # words that may surround an answer; none of them could be a second answer
    "is was are were be it its he she they his her their in on at of by to for from this that as with answer".split()
)


class Segment(NamedTuple):
    """A stretch of the response with one author. A model turn is one segment."""

    source: Literal["model", "environment"]
    text: str
    kind: str = "turn"  # "turn" (model) | "observation" | "correction" (the model was told its action is invalid)


# A mapping with Segment's fields as keys, as in sample.metadata, or a sequence that begins with them.
SegmentLike: TypeAlias = Mapping[str, Any] | Sequence[Any]
Style: TypeAlias = Literal["xml", "tools"]  # how a turn searches: by <search>, or by calling a tool
AnswerMetric: TypeAlias = Literal["em", "f1", "sub_em"]  # see `answer_credit`


class Score(NamedTuple):
    reward: float
    exact_match: bool  # the answer equals a gold answer
    valid_format: bool
    answer: str | None  # None: no answer was given
    retrieved_gold: bool  # an observation holds a gold answer
    credit: float  # how right the answer is, from 0 to 1: see `answer_credit`


def score_trajectory(
    segments: Sequence[SegmentLike] | None,
    golds: Sequence[str],
    *,
    format_score: float = 0.2,
    final_format_score: float = 0.0,
    retrieval_score: float = 0.0,
    no_search_penalty: float = 0.0,
    answer_metric: AnswerMetric = "em",
    style: Style = "xml",
    think_opened: bool = False,
    end_of_turn: Sequence[str] = (),
    cut_off: bool = False,
) -> Score:
    """Score one trajectory. With all scores at 0 the reward is pure exact match.

    | answer right | format valid | reward                                                                 |
    |--------------|--------------|------------------------------------------------------------------------|
    | yes          | yes          | 1.0                                                                    |
    | yes          | no           | 1.0 - format_score                                                     |
    | no           | yes          | format_score (+ retrieval_score if an observation holds a gold answer) |
    | no           | no           | final_format_score                                                     |
    | none given   | no           | 0.0                                                                    |

    `answer_metric` says what right is; an answer that is right in part lies between its "no" and its "yes" row. Without
    an observation, `no_search_penalty` is taken off the "no" rows, down to 0 at most: a right answer is never punished.
    """
    filled = _as_segments(segments, think_opened)
    answer = _answer(filled, style, end_of_turn, cut_off)
    valid = _is_valid(filled, style, end_of_turn)
    retrieved = _retrieved_gold(filled, golds)
    right = exact_match(answer, golds)
    credit = 1.0 if right else answer_credit(answer, golds, answer_metric)
    best = 1.0 if valid else 1.0 - format_score
    if valid:
        least = format_score + (retrieval_score if retrieved else 0.0)
    else:
        least = 0.0 if answer is None else final_format_score
    if no_search_penalty and not any(map(_is_observation, filled)):
        least = max(least - no_search_penalty, 0.0)
    reward = best if credit == 1.0 else least + (best - least) * credit
    return Score(reward, right, valid, answer, retrieved, credit)


# --- the answer ---------------------------------------------------------------------------------------------------


def normalize_answer(text: str | None) -> str:
    """SQuAD normalisation: lower case, no ASCII punctuation, no articles, single spaces."""
    return _without_articles((text or "").lower().translate(_NO_PUNCTUATION))


def _without_articles(text: str) -> str:
    words = text.split()
    if "".join(words).isalnum():  # words end where blanks are: the same as below, and faster
        return " ".join([word for word in words if word not in _ARTICLES])
    return " ".join(_ARTICLE.sub(" ", " ".join(words)).split())


def exact_match(prediction: str | None, golds: Sequence[str]) -> bool:
    """Whether the normalised prediction equals a normalised gold answer.

    A gold answer of which normalisation leaves nothing ("A", "!!!") is compared as it stands, but for case and outer
    whitespace, so every gold answer accepts itself. A blank one accepts nothing.
    """
    return prediction is not None and any(_same_answer(prediction, gold) for gold in golds)


def _same_answer(prediction: str, gold: str) -> bool:
    wanted = normalize_answer(gold)
    if wanted:
        return normalize_answer(prediction) == wanted
    wanted = gold.strip().casefold()
    return wanted != "" and prediction.strip().casefold() == wanted


def f1(prediction: str | None, golds: Sequence[str]) -> float:
    """SQuAD's F1 over the words of the normalised prediction and gold answer; the best over all gold answers."""
    if exact_match(prediction, golds):
        return 1.0
    said = Counter(normalize_answer(prediction).split())
    return max((_word_f1(said, Counter(normalize_answer(gold).split())) for gold in golds), default=0.0)


def _word_f1(said: Counter[str], wanted: Counter[str]) -> float:
    common = (said & wanted).total()
    return 2 * common / (said.total() + wanted.total()) if common else 0.0


def sub_em(prediction: str | None, golds: Sequence[str]) -> bool:
    """Whether the normalised prediction holds a normalised gold answer as whole words."""
    said = f" {normalize_answer(prediction)} "
    wanted = filter(None, map(normalize_answer, golds))
    return exact_match(prediction, golds) or any(f" {gold} " in said for gold in wanted)


def answer_credit(answer: str | None, golds: Sequence[str], metric: AnswerMetric) -> float:
    """How right an answer is as a reward counts it, from 0 to 1: 1 for an exact match, else what the metric adds to it.

    As metrics of an evaluation F1 and sub-EM pay for naming several candidates, or for copying a document. As rewards
    they count only where every word of the answer stands in the gold answer ("f1"), or is one that names nothing
    ("sub_em": "It is in Paris"). A single word that might name something else, and the answer is wrong.
    """
    if exact_match(answer, golds):
        return 1.0
    said = normalize_answer(answer).split() if metric != "em" else []
    if len(said) > 100 or _NAMES_NOTHING.issuperset(said):
        return 0.0
    credit = _part_of_gold if metric == "f1" else _surrounds_gold
    return max((credit(said, normalize_answer(gold).split()) for gold in golds), default=0.0)


def _part_of_gold(said: list[str], gold: list[str]) -> float:
    counted, wanted = Counter(said), Counter(gold)
    return _word_f1(counted, wanted) if counted <= wanted else 0.0


def _surrounds_gold(said: list[str], gold: list[str]) -> float:
    if _NAMES_NOTHING.issuperset(gold):
        return 0.0
    before, found, after = f" {' '.join(said)} ".partition(f" {' '.join(gold)} ")
    return float(bool(found) and _NAMES_NOTHING.issuperset([*before.split(), *after.split()]))


def extract_answer(
    segments: Sequence[SegmentLike] | None,
    *,
    style: Style = "xml",
    think_opened: bool = False,
    end_of_turn: Sequence[str] = (),
    cut_off: bool = False,
) -> str | None:
    """The stripped content of the model's `<answer>…</answer>` outside thinking; None if there is none.

    The last turn that has one counts, since a rollout ends with an answer; several in that turn are none.
    A `<think>` hides what follows it up to `</think>`, or up to the end of its segment. With `think_opened` the prompt
    ended in `<think>`, so the first model turn begins inside it. In style "tools" only a model turn that is the last
    segment counts, and without tags it is the answer as it stands, unless it calls a tool or was `cut_off`.
    """
    return _answer(_as_segments(segments, think_opened), style, end_of_turn, cut_off)


def _answer(segments: Sequence[Segment], style: Style, end_of_turn: Sequence[str], cut_off: bool) -> str | None:
    turns = [segment.text for segment in segments if segment.source == "model"]
    if style == "tools":
        turns = turns[-1:] if segments and segments[-1].source == "model" else []
    answers = next(filter(None, map(_tagged_answers, reversed(turns))), [])
    if style == "tools" and turns and not answers and not cut_off:
        return _plain_answer(turns[0], end_of_turn)
    return answers[0] if len(answers) == 1 else None


def _tagged_answers(turn: str) -> list[str]:
    """What stands behind each `<answer>` outside thinking, up to its end or to the next one; an open one is none."""
    answers = []
    thinking, start = False, None  # start: where the content of an open <answer> begins
    for tag in _TAG.finditer(turn):
        match tag.group():
            case "</think>":
                thinking, start = False, None
            case _ if thinking:
                continue
            case "<think>":
                thinking, start = True, None
            case "<answer>" | "</answer>" as kind:
                if start is not None:
                    answers.append(turn[start : tag.start()].strip())
                start = tag.end() if kind == "<answer>" else None
    return answers


def _plain_answer(turn: str, end_of_turn: Sequence[str]) -> str | None:
    """What stands behind the thinking; None if the turn ends in it, calls a tool, or says nothing."""
    rest = turn.rpartition("</think>")[2]
    for end in end_of_turn:
        rest = rest.removesuffix(end)
    rest = rest.strip()
    if not rest or "<think>" in rest or rest.startswith(_CALL_BEGINS) or "<tool_call>" in rest:
        return None
    return rest


def _retrieved_gold(segments: Sequence[Segment], golds: Sequence[str]) -> bool:
    """Whether a normalised gold answer stands, as whole words, in a normalised observation."""
    wanted = [f" {normalized} " for normalized in map(normalize_answer, golds) if normalized]
    for segment in segments:
        if _is_observation(segment):
            # Normalisation glues words that only punctuation parts: without the space "<information>Paris" is one word.
            bare = _TAG.sub(" ", segment.text).lower().translate(_NO_PUNCTUATION)
            if any(all(word in bare for word in gold.split()) for gold in wanted):  # else no need for the slow part
                found = f" {_without_articles(bare)} "
                if any(gold in found for gold in wanted):
                    return True
    return False


# --- the format ---------------------------------------------------------------------------------------------------


class _State(Enum):
    TURN = auto()  # a model turn must follow
    OBSERVATION = auto()  # the model searched: an observation must follow
    DONE = auto()  # the model answered: nothing may follow
    INVALID = auto()  # whatever follows


def is_valid_format(
    segments: Sequence[SegmentLike] | None,
    *,
    style: Style = "xml",
    think_opened: bool = False,
    end_of_turn: Sequence[str] = (),
) -> bool:
    """Whether the trajectory is (search turn, observation)* answer turn, with nothing else anywhere.

    turn = `<think>…</think>` and `<search>…</search>` (not blank) or `<answer>…</answer>`, with no protocol tag inside
    either and only whitespace around them; one of `end_of_turn` (such as "<|im_end|>") may stand last.
    With `think_opened` the prompt ended in `<think>`, so the first turn lacks that tag.
    In style "tools" a search turn is `<think>…</think>` and calls; an observation behind it says that all were sound.
    """
    return _is_valid(_as_segments(segments, think_opened), style, end_of_turn)


def _is_valid(segments: Sequence[Segment], style: Style, end_of_turn: Sequence[str]) -> bool:
    state = _State.TURN
    after_turn = _state_after_turn if style == "xml" else _state_after_tool_turn
    for segment in segments:
        if state is _State.TURN and segment.source == "model":
            state = after_turn(segment.text, end_of_turn)
        elif state is _State.OBSERVATION and _is_observation(segment):
            state = _State.TURN
        else:
            return False
    return state is _State.DONE


def _state_after_tool_turn(text: str, end_of_turn: Sequence[str]) -> _State:
    if "<tool_response>" in text or "</tool_response>" in text:
        return _State.INVALID
    if _state_after_turn(text, end_of_turn) is _State.DONE:
        return _State.DONE
    before, _, rest = text.partition("<think>")
    thought, closed, calls = rest.partition("</think>")
    clean = closed and not before.strip() and not _TAG.search(thought) and not _TAG.search(calls)
    return _State.OBSERVATION if clean else _State.INVALID


def _state_after_turn(text: str, end_of_turn: Sequence[str]) -> _State:
    match _TAG.split(text):  # text and tags by turns, so a pattern that fits has met every tag of the text
        case [before, "<think>", _, "</think>", between, "<search>", query, "</search>", after] if query.strip():
            state = _State.OBSERVATION
        case [before, "<think>", _, "</think>", between, "<answer>", _, "</answer>", after]:
            state = _State.DONE
        case _:
            return _State.INVALID
    stray_text = before.strip() or between.strip() or after.strip() not in ("", *end_of_turn)
    return _State.INVALID if stray_text else state


# --- what comes in ------------------------------------------------------------------------------------------------


def split_response(response: str | None) -> list[Segment]:
    """Segments of a response that came as bare text: closed `<information>` blocks are the environment's.

    A block takes up to two newlines on either side, as the environment writes them. The texts joined give the response.
    Bare text cannot tell an observation from one the model made up: use the recorded segments where they exist.
    """
    text = response or ""
    segments = []
    position = 0
    while True:
        start = text.find("<information>", position)
        close = text.find("</information>", start) if start >= 0 else -1
        if close < 0:
            break
        if text.endswith("\n\n", position, start):
            start -= 2
        end = close + len("</information>")
        if text.startswith("\n\n", end):
            end += 2
        segments.append(Segment("model", text[position:start]))
        segments.append(Segment("environment", text[start:end], "observation"))
        position = end
    segments.append(Segment("model", text[position:]))
    return [segment for segment in segments if segment.text]


def gold_answers(label: object) -> list[str]:
    """The gold answers in a sample's label.

    A label is {"ground_truth": {"target": answers}} or any inner part of it, or the JSON or Python repr of one as a
    string. Answers are one value, or a list, tuple or array of them. Any other string is itself the gold answer.
    """
    if not isinstance(label, str):
        return _flatten(label)
    if label.lstrip().startswith(("{", "[")):
        for parse in (json.loads, _parse_repr):
            try:
                parsed = parse(label)
                if isinstance(parsed, (dict, list)):
                    return _flatten(parsed)
            except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                pass  # not this notation
    return [label]


def _flatten(label: Any) -> list[str]:
    if hasattr(label, "tolist"):  # a numpy array or scalar
        label = label.tolist()
    if label is None:
        return []
    if isinstance(label, Mapping):
        return _flatten(label.get("ground_truth", label.get("target")))
    if isinstance(label, (list, tuple)):
        return [answer for item in label for answer in _flatten(item)]
    return [str(label)]


def _parse_repr(text: str) -> object:
    return ast.literal_eval(_UnwrapNumpy().visit(ast.parse(text.strip(), mode="eval")))


class _UnwrapNumpy(ast.NodeTransformer):
    """array(['x'], dtype=object) → ['x']; np.str_('x') → 'x'."""

    def visit_Call(self, node: ast.Call) -> Any:
        if node.args and re.fullmatch(r"array|np\.\w+", ast.unparse(node.func)):
            return self.visit(node.args[0])
        return node


def _as_segments(segments: Sequence[SegmentLike] | None, think_opened: bool = False) -> list[Segment]:
    """Segments with every field filled in, and the `<think>` that the prompt supplied back in the first model turn."""
    filled = []
    for segment in segments or ():
        if isinstance(segment, Mapping):
            source, text, kind = segment.get("source"), segment.get("text"), segment.get("kind")
        else:
            source, text, kind, *_ = segment
        by_model = source == "model"  # text of unknown origin is not the model's
        if by_model and think_opened:
            text, think_opened = "<think>" + (text or ""), False
        filled.append(Segment("model" if by_model else "environment", text or "", kind or "turn"))
    return filled


def _is_observation(segment: Segment) -> bool:
    return segment.source == "environment" and segment.kind != "correction"
