"""The record of a rollout: what it did, turn by turn, as JSON values in `sample.metadata["search_r1"]`.

The rollout writes it once. Reward, resume, metrics, evaluation, viewer, demo and preflight read it only through this
module, so they score and show exactly what the rollout acted on. No text is stored twice: a turn's text is in the
sample's ids, a passage only here.

    {"version": 2, "trajectory_id": …, "stop_reason": …, "spans": [[kind, tokens], …], "turns": [Turn, …],
     "search_counts": {…}, "search_seconds": …, "score": {…}}

`spans` cover the response's ids in order. The reward adds `score`, an abort adds `resume`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from search_rollout.protocols.base import Action
from search_rollout.search.passage import Passage, SearchResult
from search_rollout.trajectory import StopReason

METADATA_KEY = "search_r1"
VERSION = 2

SpanKind = Literal["turn", "observation", "correction"]  # the model writes turns, the environment the rest


class RecordError(ValueError):
    """The record cannot be read; the message says why."""


class Span(NamedTuple):
    """A stretch of the response written by one author."""

    kind: SpanKind
    tokens: int


@dataclass
class Turn:
    """One turn of the model: the action that the rollout executed, and the results of its searches."""

    action: Literal["search", "answer", "invalid"]
    answer: str | None = None
    queries: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)  # tool calls that could not be run, by kind
    fault: str | None = None  # how it violates the format: a key of protocols.base.FAULTS
    results: list[SearchResult] = field(default_factory=list)  # one per query; empty if the searches were not made

    @classmethod
    def of(cls, action: Action) -> "Turn":
        """The turn of an action that is about to be executed."""
        answer = action.text if action.kind == "answer" else None
        return cls(action.kind, answer, action.queries, action.mistakes, action.fault)

    @property
    def is_clean(self) -> bool:
        """True if the turn keeps to the format and all its tool calls are valid."""
        return self.action != "invalid" and self.fault is None and not self.mistakes


@dataclass
class RolloutRecord:
    stop: StopReason
    trajectory_id: str = ""
    spans: list[Span] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)  # an open turn cut by an abort is only in `spans`
    search_counts: dict[str, int] = field(default_factory=dict)  # of queries, and of them by where results came from
    search_seconds: float = 0.0  # spent waiting for searches
    score: dict[str, Any] | None = None  # qa_em_format.Score as a dict
    resume: dict[str, Any] | None = None  # see `samples.resume`

    @property
    def discarded(self) -> bool:
        """True if the rollout failed through no fault of the model, so it is not trained."""
        return self.stop.discards

    @property
    def searches(self) -> list[SearchResult]:
        return [result for turn in self.turns for result in turn.results]

    @property
    def passages(self) -> Iterator[Passage]:
        return (passage for result in self.searches for passage in result.passages)

    @property
    def answer(self) -> str | None:
        """The answer; None if the rollout did not end with one."""
        return self.turns[-1].answer if self.turns and self.stop is StopReason.ANSWERED else None

    @property
    def searched(self) -> bool:
        """Whether the model read an observation."""
        return any(span.kind == "observation" for span in self.spans)

    @property
    def valid_format(self) -> bool:
        """True if the rollout is exactly (search turn, observation)* answer turn, with every turn clean."""
        return (
            self.answer is not None
            and all(turn.is_clean and turn.action == "search" for turn in self.turns[:-1])
            and self.turns[-1].is_clean
            and [span.kind for span in self.spans] == ["turn", *["observation", "turn"] * (len(self.turns) - 1)]
        )

    @property
    def model_turns(self) -> int:
        """The number of the model's turns, including an open one."""
        return sum(span.kind == "turn" for span in self.spans)

    @property
    def corrections(self) -> int:
        return sum(span.kind == "correction" for span in self.spans)

    def as_json(self) -> dict[str, Any]:
        """JSON values; `read_record` gives the record back."""
        optional = {"score": self.score, "resume": self.resume}
        return {
            "version": VERSION,
            "trajectory_id": self.trajectory_id,
            "stop_reason": self.stop.value,
            "spans": [list(span) for span in self.spans],
            "turns": [_turn_json(turn) for turn in self.turns],
            "search_counts": self.search_counts,
            "search_seconds": self.search_seconds,
            **{key: value for key, value in optional.items() if value is not None},
        }


def record_of(sample: Any) -> RolloutRecord | None:
    """The record in a slime Sample; None if this plugin did not roll it out. Raises RecordError."""
    found = _found(sample)
    return read_record(found) if found else None


def is_discarded(sample: Any) -> bool:
    """True if this plugin discarded the slime Sample; does not parse the rest of its record."""
    stop = _found(sample).get("stop_reason")
    return any(reason.discards for reason in StopReason if reason.value == stop)


def score_of(sample: Any) -> Mapping[str, Any] | None:
    """The score in a slime Sample's record, without parsing the rest; None if this plugin did not score it."""
    score = _found(sample).get("score")
    return score if isinstance(score, Mapping) else None


def store(sample: Any, record: RolloutRecord) -> None:
    """Stores the record in the sample's metadata, in a copy, because siblings may share the dict."""
    sample.metadata = {**metadata_of(sample), METADATA_KEY: record.as_json()}


def store_score(sample: Any, score: Mapping[str, Any]) -> None:
    """Adds the score to the sample's record, creating one for samples of other rollout functions."""
    sample.metadata = {**metadata_of(sample), METADATA_KEY: {**_found(sample), "score": dict(score)}}


def forget(sample: Any) -> None:
    sample.metadata = {key: value for key, value in metadata_of(sample).items() if key != METADATA_KEY}


def read_record(found: Mapping[str, Any]) -> RolloutRecord:
    """Parses a record of this version or of version 1 from JSON values. Raises RecordError."""
    version = found.get("version", 1) if isinstance(found, Mapping) else None
    if version not in (1, VERSION):
        raise RecordError(f"the record has version {version!r}; this code reads up to {VERSION}")
    try:
        record = _read(found) if version == VERSION else _read_version_1(found)
        record.score, record.resume = (
            None if found.get(name) is None else dict(found[name]) for name in ("score", "resume")
        )
        return record
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise RecordError(f"the record of the rollout is damaged: {error!r}") from error


def search_counts(results: Iterable[SearchResult]) -> dict[str, int]:
    """Counts the queries, the failed ones, and the others by the source of their results."""
    origins = Counter("failed" if result.error else result.origin for result in results)
    return {"queries": origins.total(), **{name: origins[name] for name in ("backend", "cache", "shared", "failed")}}


def metadata_of(sample: Any) -> dict[str, Any]:
    """The sample's metadata, which early slime leaves at NaN or None."""
    return sample.metadata if isinstance(sample.metadata, dict) else {}


def _found(sample: Any) -> Mapping[str, Any]:
    found = metadata_of(sample).get(METADATA_KEY)
    return found if isinstance(found, Mapping) else {}


def _turn_json(turn: Turn) -> dict[str, Any]:
    """The turn as JSON, without empty fields: most turns have only a few."""
    fields = {**vars(turn), "results": [_result_json(result) for result in turn.results]}
    return {key: value for key, value in fields.items() if value is not None and value != []}


def _result_json(result: SearchResult) -> dict[str, Any]:
    return {
        "passages": [passage.as_row() for passage in result.passages],
        "error": result.error,
        "seconds": round(result.seconds, 4),
        "origin": result.origin,
    }


def _read(found: Mapping[str, Any]) -> RolloutRecord:
    return RolloutRecord(
        StopReason(found["stop_reason"]),
        found["trajectory_id"],
        [Span(kind, tokens) for kind, tokens in found["spans"]],
        [_read_turn(turn) for turn in found["turns"]],
        found["search_counts"],
        float(found["search_seconds"]),
    )


def _read_turn(found: Mapping[str, Any]) -> Turn:
    queries, results = list(found.get("queries", ())), found.get("results", ())
    return Turn(
        found["action"],
        found.get("answer"),
        queries,
        list(found.get("mistakes", ())),
        found.get("fault"),
        [_read_result(query, one) for query, one in zip(queries, results, strict=True)] if results else [],
    )


def _read_result(query: str, found: Mapping[str, Any]) -> SearchResult:
    passages = [Passage(*row) for row in found["passages"]]
    return SearchResult(query, passages, found["error"], float(found["seconds"]), found["origin"])


def _read_version_1(found: Mapping[str, Any]) -> RolloutRecord:
    """Reads a record of 0.1, which has texts and documents in two lists and no actions; turns may be incomplete."""
    stop = StopReason(found["stop_reason"])
    spans = [Span(segment["kind"], segment["tokens"]) for segment in found["segments"]]
    results = [
        SearchResult(
            search["query"],
            [Passage(document["title"], document["text"]) for document in search["documents"]],
            search.get("error"),
            float(search.get("seconds", 0.0)),
            search.get("origin", "backend"),
        )
        for search in found["searches"]
    ]
    turns = [Turn("search", queries=[result.query for result in results], results=results)] if results else []
    if stop is StopReason.ANSWERED:
        turns.append(Turn("answer", answer=(found.get("score") or {}).get("answer")))
    counts = found.get("search_counts") or search_counts(results)
    return RolloutRecord(
        stop, found.get("trajectory_id", ""), spans, turns, counts, float(found.get("search_seconds", 0.0))
    )
