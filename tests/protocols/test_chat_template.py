"""A user turn appended to a conversation equals what a fresh render of the whole conversation holds there."""

import pytest
from fakes import tiny_tokenizer

from search_rollout.protocols.chat_template import next_turn_ids, render_prompt

TOKENIZER = tiny_tokenizer()
AGAIN = [{"role": "user", "content": "again"}]


def test_the_appended_turn_equals_a_fresh_render_after_the_assistants_words():
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    whole = render_prompt(TOKENIZER, [*messages, {"role": "user", "content": "again"}])
    sampled = TOKENIZER.encode("A<|im_end|>")
    prompt = TOKENIZER.encode(render_prompt(TOKENIZER, messages[:1]))
    ids = prompt + sampled + next_turn_ids(TOKENIZER, AGAIN, sampled[-1])
    assert TOKENIZER.decode(ids) == whole


def test_an_end_of_turn_that_was_not_sampled_is_supplied():
    ids = next_turn_ids(TOKENIZER, AGAIN, TOKENIZER.convert_tokens_to_ids("x"))
    assert ids[0] == TOKENIZER.eos_token_id
    assert next_turn_ids(TOKENIZER, AGAIN, TOKENIZER.eos_token_id) == ids[1:]


def test_a_template_that_rewrites_its_last_assistant_turn_makes_no_difference():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert next_turn_ids(tokenizer, AGAIN, tokenizer.eos_token_id) == next_turn_ids(
        TOKENIZER, AGAIN, TOKENIZER.eos_token_id
    )


@pytest.mark.parametrize("kwargs", [{}, {"flag": "ON"}])
def test_template_arguments_reach_the_template(kwargs):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ flag or 'off' }}{% for m in messages %}{{ m.content }}{% endfor %}{{ flag or 'off' }}"
    text = tokenizer.decode(next_turn_ids(tokenizer, [{"role": "user", "content": "x"}], -1, **kwargs))
    assert text == "x" + kwargs.get("flag", "off")
