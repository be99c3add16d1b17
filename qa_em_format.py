"""Scores: is the answer right, how right, and what reward is that?

Normalisation, exact match, F1 and sub-EM, the gold answers of a label, and `score_trajectory`, the table of
outcome → reward. It does not parse the model's text: what the rollout acted on says what the answer is and whether
the format is valid (`search_rollout/samples/record.py`). All functions are pure and accept any text, None included: a
bad rollout earns little, it never raises. Standard library only.
"""

import ast
import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

_ARTICLES = frozenset({"a", "an", "the"})
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NAMES_NOTHING = frozenset(  # words that may surround an answer; none of them could be a second answer
    "is was are were be it its he she they his her their in on at of by to for from this that as with answer".split()
)


AnswerMetric: TypeAlias = Literal["em", "f1", "sub_em"]  # see `answer_credit`


class Score(NamedTuple):
    reward: float
    exact_match: bool  # the answer equals a gold answer
    valid_format: bool
    answer: str | None  # None: no answer was given
    retrieved_gold: bool  # a passage that was found holds a gold answer
    credit: float  # how right the answer is, from 0 to 1: see `answer_credit`


def score_trajectory(
    answer: str | None,
    golds: Sequence[str],
    *,
    valid_format: bool,
    searched: bool = False,
    passages: Iterable[str] = (),
    format_score: float = 0.2,
    final_format_score: float = 0.0,
    retrieval_score: float = 0.0,
    no_search_penalty: float = 0.0,
    answer_metric: AnswerMetric = "em",
) -> Score:
    """Score one trajectory by its answer (None: none was given). With all scores at 0 the reward is exact match.

    | answer right | format valid | reward                                                             |
    |--------------|--------------|--------------------------------------------------------------------|
    | yes          | yes          | 1.0                                                                |
    | yes          | no           | 1.0 - format_score                                                 |
    | no           | yes          | format_score (+ retrieval_score if a passage holds a gold answer)  |
    | no           | no           | final_format_score                                                 |
    | none given   | no           | 0.0                                                                |

    `answer_metric` says what right is; an answer that is right in part lies between its "no" and its "yes" row. Unless
    it `searched`, `no_search_penalty` is taken off the "no" rows, down to 0 at most: a right answer is never punished.
    `passages` are the texts that its searches found.
    """
    retrieved = any_holds_gold(passages, golds)
    right = exact_match(answer, golds)
    credit = 1.0 if right else answer_credit(answer, golds, answer_metric)
    best = 1.0 if valid_format else 1.0 - format_score
    if valid_format:
        least = format_score + (retrieval_score if retrieved else 0.0)
    else:
        least = 0.0 if answer is None else final_format_score
    if no_search_penalty and not searched:
        least = max(least - no_search_penalty, 0.0)
    reward = best if credit == 1.0 else least + (best - least) * credit
    return Score(reward, right, valid_format, answer, retrieved, credit)


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

    A gold answer that normalises to nothing ("A", "!!!") is compared literally, except for case and outer whitespace,
    so every gold answer accepts itself. A blank one accepts nothing.
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
    """The credit of an answer in the reward, from 0 to 1: 1 for an exact match, else the credit of the metric.

    As evaluation metrics, F1 and sub-EM reward naming several candidates or copying a document. As rewards they count
    only if every word of the answer is in the gold answer ("f1"), or names nothing ("sub_em": "It is in Paris"). A
    single word that might name something else makes the answer wrong.
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


def any_holds_gold(passages: Iterable[str], golds: Sequence[str]) -> bool:
    """True if a normalised passage contains a normalised gold answer as whole words."""
    everything = "\0".join(passages)
    wanted = [gold for gold in map(normalize_answer, golds) if gold] if everything else []
    for text in everything.lower().translate(_NO_PUNCTUATION).split("\0") if wanted else ():
        likely = [gold for gold in wanted if all(word in text for word in gold.split())]
        if likely:  # else no need for the slow part
            whole = f" {_without_articles(text)} "
            if any(f" {gold} " in whole for gold in likely):
                return True
    return False


# --- labels -------------------------------------------------------------------------------------------------------


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
