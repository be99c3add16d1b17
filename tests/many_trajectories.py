"""JSONL of many trajectories of a real tokenizer's tokens, as large as a training run leaves them."""

import functools
import json
import random
from pathlib import Path
from typing import Any

from real_tokenizers import real_tokenizer
from viewer_helpers import sample, search

TRAJECTORIES, GROUP = 10_000, 8
QUERY = "<think>{}</think>\n<search>{}</search>"
ANSWER = "<think>{}</think>\n<answer>{}</answer><|im_end|>"


def write_many(path: Path) -> tuple[Any, int]:
    """Writes groups with up to two searches of three documents; returns the tokenizer and the number of tokens."""
    tokenizer = real_tokenizer("qwen2.5")
    remembering = Remembering(tokenizer)
    choose = random.Random(0)
    tokens = 0
    words = [token for token in map(tokenizer.decode, range(1_000, 40_000)) if token.strip().isalpha()]

    def text(count: int) -> str:
        return "".join(choose.choices(words, k=count))

    with path.open("w", encoding="utf-8") as lines:
        for number in range(TRAJECTORIES):
            if number % GROUP == 0:
                prompt = f"{text(150)} Question: {text(12)}"
                found = [search(text(6)) | {"documents": [document(text) for _ in range(3)]} for _ in range(2)]
            searches = found[: choose.randrange(3)]
            parts = []
            for entry in searches:
                observation = "\n".join(f"{title} {body}" for title, body in map(dict.values, entry["documents"]))
                parts += [("turn", QUERY.format(text(60), entry["query"])), ("observation", observation)]
            parts.append(("turn", ANSWER.format(text(60), text(3))))
            fields = sample(
                remembering,
                parts,
                prompt=prompt,
                reward=choose.choice([0.0, 0.2, 1.0]),
                searches=searches,
                group_index=number // GROUP,
                index=number,
                data_source=choose.choice(["nq", "hotpotqa"]),
            )
            fields["rollout_log_probs"] = [-choose.expovariate(2.0) if on else 0.0 for on in fields["loss_mask"]]
            tokens += len(fields["tokens"])
            lines.write(json.dumps(fields) + "\n")
    return tokenizer, tokens


class Remembering:
    """Encodes what a group shares once: encoding takes most of the time here."""

    def __init__(self, tokenizer: Any) -> None:
        self.encode = functools.lru_cache(maxsize=16)(tokenizer.encode)


def document(text: Any) -> dict[str, str]:
    """One of the size of a passage of Wikipedia."""
    return {"title": text(3), "text": text(130)}
