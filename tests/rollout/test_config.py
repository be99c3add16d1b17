"""Settings: where they come from, which source wins, and what a wrong one says."""

import argparse
import logging

import pytest

import generate_with_search
from search_rollout.config import CHOICES, ENVIRONMENT, ConfigError, SearchConfig, load_config

DEFAULTS = generate_with_search.SEARCH_R1_CONFIGS
LOCAL = {"SEARCH_BACKEND": "local"}


def load(environment=None, **args):
    return load_config(DEFAULTS, {**LOCAL, **(environment or {})}, argparse.Namespace(**args))


def test_the_defaults_are_those_of_the_specification():
    config = load()
    assert (config.max_turns, config.topk, config.search_concurrency) == (3, 3, 256)
    assert (config.format_score, config.max_context_length) == (0.2, 16384)
    assert (config.max_obs_tokens, config.answer_reserve_tokens) == (500, 256)
    assert (config.llm_api_mode, config.token_tracking_mode, config.loss_mask_mode) == ("generate", "manual", "strict")
    assert config.track_log_probs is True
    assert config.retrieval_server_url == "http://localhost:8000"
    assert SearchConfig.__dataclass_fields__["search_backend"].default == "google"
    assert SearchConfig.__dataclass_fields__["google_api_key"].default == "YOUR_API_KEY"


def test_a_custom_config_file_wins_over_the_environment_and_that_over_the_table():
    assert load().topk == 3
    assert load({"SEARCH_R1_TOPK": "5"}).topk == 5
    assert load({"SEARCH_R1_TOPK": "5"}, topk=7).topk == 7
    assert load(retrieval_server_url="http://node:1").retrieval_server_url == "http://node:1"


def test_an_attribute_that_slime_leaves_none_is_not_a_setting():
    assert load({"SEARCH_R1_TOPK": "5"}, topk=None).topk == 5


def test_an_empty_variable_is_not_a_setting():
    assert load({"SEARCH_R1_TOPK": " "}).topk == 3


@pytest.mark.parametrize("word", ["false", "False", "0", "no"])
def test_booleans_are_read_from_words(word):
    assert load({"TRACK_LOG_PROBS": word}).track_log_probs is False


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("LLM_API_MODE", "xml", "generate, chat"),
        ("SEARCH_BACKEND", "bing", "google, local"),
        ("TOKEN_TRACKING_MODE", "auto", "manual, router_radix, router_handler"),
        ("LOSS_MASK_MODE", "none", "strict, simple"),
        ("TRACK_LOG_PROBS", "maybe", "true or false"),
        ("SEARCH_R1_TOPK", "three", "whole number"),
        ("SEARCH_R1_TOPK", "0", "from 1 up"),
        ("SEARCH_R1_FORMAT_SCORE", "2", "from 0 to 1"),
        ("SEARCH_R1_FORMAT_SCORE", "nan", "a number"),
        ("SEARCH_R1_MAX_OBS_TOKENS", "5", "from 32 up"),
        ("SEARCH_R1_SEARCH_TIMEOUT_S", "-1", "above 0"),
        ("RETRIEVAL_SERVER_URL", "localhost:8000", "http://"),
        ("RETRIEVAL_SERVER_URL", "http://a:1,b:2", "http://"),
        ("RETRIEVAL_SERVER_URL", ",", "http://"),
        ("SEARCH_FAILURE_MODE", "ignore", "observe, discard"),
        ("SEARCH_CACHE_MODE", "write", "off, readwrite, replay"),
        ("SEARCH_BUDGET", "-1", "from 0 up"),
        ("SEARCH_R1_SEARCH_CACHE_DAYS", "-1", "from 0 up"),
    ],
)
def test_a_bad_value_is_named_shown_and_explained(variable, value, allowed):
    with pytest.raises(ConfigError) as error:
        load({variable: value})
    assert variable in str(error.value) and repr(value)[1:-1] in str(error.value) and allowed in str(error.value)


def test_an_impossible_pair_of_modes_raises_with_the_valid_ones():
    with pytest.raises(ValueError) as error:
        load({"TOKEN_TRACKING_MODE": "router_handler"})
    assert str(error.value).startswith(
        "Invalid configuration: token_tracking_mode='router_handler' is NOT compatible with llm_api_mode='generate'"
    )
    for pair in ("generate + manual", "generate + router_radix", "chat + router_handler"):
        assert pair in str(error.value)


def test_web_search_needs_its_key_unless_it_is_only_replayed():
    google = {"SEARCH_BACKEND": "google"}
    assert load({**google, "GOOGLE_API_KEY": "a-key"}).search_backend == "google"
    assert load({**google, "SEARCH_CACHE": "f", "SEARCH_CACHE_MODE": "replay"}).caching == "replay"


def test_several_retriever_servers_are_given_with_commas():
    assert load({"RETRIEVAL_SERVER_URL": "http://a:1, https://b:2/retrieve,"}).retrieval_urls == [
        "http://a:1",
        "https://b:2/retrieve",
    ]


def test_the_cache_is_on_where_a_file_is_given():
    assert load().caching == "off"
    assert load({"SEARCH_CACHE": "f"}).caching == "readwrite"
    assert load({"SEARCH_CACHE": "f", "SEARCH_CACHE_MODE": "off"}).caching == "off"


def test_a_replay_without_a_recording_says_what_to_set():
    with pytest.raises(ConfigError, match="set SEARCH_CACHE to its file"):
        load({"SEARCH_CACHE_MODE": "replay"})


def test_a_password_in_a_url_is_refused_and_not_repeated():
    with pytest.raises(ConfigError) as error:
        load({"RETRIEVAL_SERVER_URL": "http://me:hunter2@node:1"})
    assert "RETRIEVAL_API_KEY" in str(error.value) and "hunter2" not in str(error.value)


def test_chat_with_router_radix_warns(caplog):
    with caplog.at_level(logging.WARNING):
        load({"LLM_API_MODE": "chat", "TOKEN_TRACKING_MODE": "router_radix"})
    assert caplog.text.count("structure of messages") == 1


@pytest.mark.parametrize("key", ["", "YOUR_API_KEY"])
def test_google_without_a_key_says_what_to_set(key):
    with pytest.raises(ConfigError, match=r"GOOGLE_API_KEY.*SEARCH_BACKEND=local"):
        load({"SEARCH_BACKEND": "google", "GOOGLE_API_KEY": key})


def test_an_unknown_key_in_the_table_is_an_error_and_an_unknown_variable_a_warning(caplog):
    with pytest.raises(ConfigError, match="max_turn'"):
        load_config({"max_turn": 3}, LOCAL, argparse.Namespace())
    load({"SEARCH_R1_MAX_TURN": "3"})
    assert "SEARCH_R1_MAX_TURN is not a setting" in caplog.text


def test_no_key_is_ever_in_a_repr():
    config = SearchConfig(search_backend="local", google_api_key="secret", retrieval_api_key="secret")
    assert "secret" not in repr(config)


def test_every_mode_of_the_readme_has_its_own_variable():
    assert {key for key in CHOICES if "mode" in key or "backend" in key} <= set(ENVIRONMENT)


def test_settings_are_read_once_for_the_same_args(monkeypatch):
    args = argparse.Namespace(search_backend="local")
    first = generate_with_search._config(args)
    monkeypatch.setenv("SEARCH_R1_TOPK", "9")
    assert generate_with_search._config(args) is first
    assert generate_with_search._config(argparse.Namespace(search_backend="local")).topk == 9
