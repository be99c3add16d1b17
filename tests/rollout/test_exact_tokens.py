"""Every trained token is traced to the engine call and position that sampled it.

The engine here is an adversary: it splits its text into tokens in ways that no tokenizer would, lets the last token
overshoot a stop, and gives each token a log-probability that names (request, position).
"""

import random

from fakes import FakeEngine, FakeRetriever, Turn, tiny_tokenizer
from rollout_helpers import PARAMS, make_sample, plugin, recorded, response_ids, roll_out

TOKENIZER = tiny_tokenizer()
SINGLE = {text: TOKENIZER.convert_tokens_to_ids(text) for text in TOKENIZER.get_vocab() if len(text) == 1}


def strange_split(text: str, choose: random.Random) -> list[int]:
    """Ids that decode to `text`, some of them cut into single bytes where the tokenizer would merge."""
    ids: list[int] = []
    for token in TOKENIZER.encode(text):
        piece = TOKENIZER.convert_ids_to_tokens(token)
        if token not in TOKENIZER.all_special_ids and choose.random() < 0.5:
            ids += [SINGLE[symbol] for symbol in piece]
        else:
            ids.append(token)
    assert TOKENIZER.decode(ids) == text
    return ids


def adversary(choose: random.Random) -> FakeEngine:
    def script(request: dict) -> Turn:
        overshoot = choose.choice(["", "\n\n", " and"])
        if len(engine.requests) % 4 == 3:
            text = f"<think>It is Nairobi.</think>\n<answer>Nairobi</answer>{overshoot}"
        elif choose.random() < 0.3:
            text = choose.choice(["no action<|im_end|>", "<search> </search>", "<think>open <answer>x</answer>"])
        else:
            text = f"<think>I need the capital.</think>\n<search>capital of Kenya</search>{overshoot}"
        return Turn(ids=strange_split(text, choose))

    engine = FakeEngine(TOKENIZER, script)
    return engine


async def test_every_trained_token_was_sampled_by_the_engine_at_its_position(monkeypatch):
    non_canonical = 0
    for seed in range(50):
        engine = adversary(random.Random(seed))
        async with plugin(monkeypatch, TOKENIZER, engine, FakeRetriever()) as (args, _):
            sample = await roll_out(args, make_sample(), PARAMS)
        ids, mask, log_probs = response_ids(sample), sample.loss_mask, sample.rollout_log_probs
        prompt = len(sample.tokens) - len(ids)
        traced = 0
        for number, (request, sampled) in enumerate(zip(engine.requests, engine.sampled, strict=True)):
            start = len(request["input_ids"]) - prompt  # ids in: the call continues exactly what stands before it
            assert sample.tokens[: prompt + start] == request["input_ids"]
            assert ids[start : start + len(sampled)] == sampled  # ids out: verbatim
            assert mask[start : start + len(sampled)] == [1] * len(sampled)
            expected = [engine.log_prob(number, position) for position in range(len(sampled))]
            assert log_probs[start : start + len(sampled)] == expected
            traced += len(sampled)
        assert sum(mask) == traced  # and nothing else is trained
        assert all(value == 0.0 for value, trained in zip(log_probs, mask, strict=True) if not trained)
        assert sum(segment.tokens for segment in recorded(sample).spans) == len(ids)
        non_canonical += TOKENIZER.encode(sample.response) != ids
    assert non_canonical == 50  # encoding the text again would have given other tokens every time
