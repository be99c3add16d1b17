"""The tables of README and docs say what the code does."""

import dataclasses
import re
from pathlib import Path

import pytest

import generate_with_search
from search_rollout.config import CHOICES, ENVIRONMENT, REWARD_PRESETS, VALID_PAIRS, SearchConfig
from search_rollout.protocols.base import FAULTS
from search_rollout.protocols.tools import MISTAKES

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "local_dense_retriever" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SPECIFIED = {  # by the user's specification: README has these seven
    *("LLM_API_MODE", "SEARCH_BACKEND", "TOKEN_TRACKING_MODE", "TRACK_LOG_PROBS", "LOSS_MASK_MODE"),
    *("RETRIEVAL_SERVER_URL", "GOOGLE_API_KEY"),
}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def rows_of(page: str) -> list[list[str]]:
    """The rows of all tables of a page."""
    lines = text_of(page).splitlines()
    return [
        [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
        for line in lines
        if line.startswith("|")
    ]


DEFAULTS = {field.name: field.default for field in dataclasses.fields(SearchConfig)}


@pytest.mark.parametrize(("page", "variables"), [("README.md", SPECIFIED), ("docs/CONFIGURATION.md", None)])
def test_the_table_of_variables_has_each_with_its_values_and_default(page: str, variables: set[str] | None):
    rows = {row[0]: row for row in rows_of(page) if row[0].isupper() and len(row) == 4}
    assert set(rows) == (variables or set(ENVIRONMENT.values()))
    for key, variable in ENVIRONMENT.items():
        if variable not in rows:
            continue
        if key in CHOICES:
            assert rows[variable][1] == ", ".join(CHOICES[key])
        assert rows[variable][2] == str(DEFAULTS[key]).replace("True", "true")


def test_the_table_of_keys_has_every_other_setting_with_its_default():
    rows = rows_of("docs/CONFIGURATION.md")
    keys = {row[0]: row[1] for row in rows if row[0] in DEFAULTS and row[0] not in ENVIRONMENT and len(row) == 3}
    assert keys == {key: str(value) for key, value in DEFAULTS.items() if key not in ENVIRONMENT}


def test_the_table_of_presets_has_each_with_its_scores():
    rows = {row[0]: row[1:-1] for row in rows_of("docs/REWARDS.md") if row[0] in REWARD_PRESETS and len(row) == 7}
    assert rows == {name: [str(score) for score in scores] for name, scores in REWARD_PRESETS.items()}


def test_the_table_of_faults_has_each_with_its_meaning():
    rows = {row[0]: row[1].replace("`", "") for row in rows_of("docs/REWARDS.md") if row[0] in FAULTS and len(row) == 2}
    assert rows == FAULTS
    assert all(f"`{mistake}`" in text_of("docs/REWARDS.md") for mistake in MISTAKES)


def test_the_table_in_the_code_repeats_the_defaults():
    assert {key: DEFAULTS[key] for key in generate_with_search.SEARCH_R1_CONFIGS} == (
        generate_with_search.SEARCH_R1_CONFIGS
    )


def test_the_table_of_pairs_has_every_valid_one():
    rows = rows_of("README.md")
    pairs = {(row[0], row[1]): row[2] for row in rows if row[0] in CHOICES["llm_api_mode"] and len(row) == 3}
    assert "invalid" in pairs.pop(("generate", "router_handler"))
    assert pairs == VALID_PAIRS


def test_the_readme_is_short():
    assert len(text_of("README.md").splitlines()) <= 180


def test_every_file_that_the_design_names_exists():
    design = text_of("docs/DESIGN.md")
    tree = design.split("```\ngenerate_with_search.py")[1].split("```")[0]
    for name in re.findall(r"^(\S+/)\s", tree, flags=re.MULTILINE):
        assert (ROOT / name).is_dir(), name
    folder = ROOT
    for line in design.split("```")[1].splitlines():
        if match := re.match(r"^(\S+/)(?:\s|$)", line):
            folder = ROOT / match[1]
        named = line if line.startswith("  ") else ""
        for name in re.findall(r"\b[a-z_]+\.(?:py|sh)\b", named):
            assert (folder / name).exists(), f"{folder.name}/{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], target
