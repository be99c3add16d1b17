"""The README's tables say what the code does."""

import dataclasses
import re
from pathlib import Path

import pytest

import generate_with_search
from search_rollout.config import CHOICES, ENVIRONMENT, REWARD_PRESETS, VALID_PAIRS, SearchConfig

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "local_dense_retriever" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ROWS = [
    [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
    for line in README.splitlines()
    if line.startswith("|")
]
DEFAULTS = {field.name: field.default for field in dataclasses.fields(SearchConfig)}


def test_the_table_of_variables_has_each_with_its_values_and_default():
    rows = {row[0]: row for row in ROWS if row[0].isupper() and len(row) == 4}
    assert set(rows) == set(ENVIRONMENT.values())
    for key, variable in ENVIRONMENT.items():
        if key in CHOICES:
            assert rows[variable][1] == ", ".join(CHOICES[key])
        assert rows[variable][2] == str(DEFAULTS[key]).replace("True", "true")


def test_the_table_of_keys_has_every_other_setting_with_its_default():
    rows = {row[0]: row[1] for row in ROWS if row[0] in DEFAULTS and row[0] not in ENVIRONMENT and len(row) == 3}
    assert rows == {key: str(value) for key, value in DEFAULTS.items() if key not in ENVIRONMENT}


def test_the_table_of_presets_has_each_with_its_scores():
    rows = {row[0]: row[1:-1] for row in ROWS if row[0] in REWARD_PRESETS and len(row) == 7}
    assert rows == {name: [str(score) for score in scores] for name, scores in REWARD_PRESETS.items()}


def test_the_table_in_the_code_repeats_the_defaults():
    assert {key: DEFAULTS[key] for key in generate_with_search.SEARCH_R1_CONFIGS} == (
        generate_with_search.SEARCH_R1_CONFIGS
    )


def test_the_table_of_pairs_has_every_valid_one():
    pairs = {(row[0], row[1]): row[2] for row in ROWS if row[0] in CHOICES["llm_api_mode"] and len(row) == 3}
    assert "invalid" in pairs.pop(("generate", "router_handler"))
    assert pairs == VALID_PAIRS


def test_every_file_that_the_readme_and_the_design_name_exists():
    design = (ROOT / "docs" / "DESIGN.md").read_text(encoding="utf-8")
    for text in (README, design):
        tree = text.split("```\ngenerate_with_search.py")[1].split("```")[0]
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
