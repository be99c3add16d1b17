"""What a Ray job is told of the settings, and how keys reach it."""

import argparse
import json
from pathlib import Path

import pytest

from launch import job_environment
from search_rollout.config import ConfigError, load_config, variables


def test_every_given_setting_is_passed_on_and_nothing_else() -> None:
    environment = {name: "1" for name in variables().values()} | {"HOME": "/root", "SEARCH_R1_NONE": "1"}
    told = job_environment.job_variables(environment, joining=False)
    assert set(told) == set(variables().values()) - {"GOOGLE_API_KEY", "RETRIEVAL_API_KEY"}


def test_the_output_is_rays_runtime_env(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RETRIEVAL_SERVER_URL", 'http://a"b')
    assert job_environment.main(["PYTHONPATH=/x=y:/z w"]) == 0
    expected = {"env_vars": {"RETRIEVAL_SERVER_URL": 'http://a"b', "PYTHONPATH": "/x=y:/z w"}}
    assert json.loads(capsys.readouterr().out) == expected


def test_a_key_is_refused_where_only_a_file_can_carry_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", "s3cret")
    assert job_environment.main(["--joining"]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("error: GOOGLE_API_KEY cannot") and "GOOGLE_API_KEY_FILE" in output.err
    assert "s3cret" not in output.err + output.out


def test_the_placeholder_is_no_key() -> None:
    assert job_environment.job_variables({"GOOGLE_API_KEY": "YOUR_API_KEY"}, joining=True) == {}


def test_a_key_file_is_passed_by_its_absolute_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    told = job_environment.job_variables({"GOOGLE_API_KEY_FILE": "key", "GOOGLE_API_KEY": "s3cret"}, joining=True)
    assert told == {"GOOGLE_API_KEY_FILE": str(tmp_path / "key")}


def load(**environment: str) -> str:
    environment = {"SEARCH_BACKEND": "local", **environment}
    return load_config({}, environment, argparse.Namespace()).google_api_key


def test_a_key_is_read_from_its_file_unless_the_variable_is_set(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-the-file\n")
    assert load(GOOGLE_API_KEY_FILE=str(tmp_path / "key")) == "from-the-file"
    assert load(GOOGLE_API_KEY_FILE=str(tmp_path / "key"), GOOGLE_API_KEY="set") == "set"


def test_a_keys_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"GOOGLE_API_KEY_FILE names .*nothing.* cannot be read"):
        load(GOOGLE_API_KEY_FILE=str(tmp_path / "nothing"))


def test_only_keys_are_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "topk").write_text("5")
    environment = {"SEARCH_BACKEND": "local", "SEARCH_R1_TOPK_FILE": str(tmp_path / "topk")}
    assert load_config({}, environment, argparse.Namespace()).topk == 3
