"""Samples of other plugins as slime dumps them, sound until a test plants a fault; and what an auditor says of them."""

from pathlib import Path
from typing import Any

from fakes import tiny_tokenizer

from evaluation.audit_checks import Audit
from evaluation.audited import Audited, Reader
from evaluation.verdict_table import Finding

TOKENIZER = tiny_tokenizer()
READER = Reader(TOKENIZER)
PROMPT = "What is the capital of Kenya?\n"
XML = (  # as slime's own search-r1 example writes it
    ("model", "<think>I need the capital.</think>\n<search>capital of Kenya</search>"),
    ("environment", "\n\n<information>The capital of Kenya is Nairobi.</information>\n\n"),
    ("model", "<think>It is Nairobi.</think>\n<answer>Nairobi</answer>"),
)
CHAT = (
    ("model", "<tool_call>capital of Kenya</tool_call><|im_end|>"),
    (
        "environment",
        "\n<|im_start|>user\n<tool_response>Nairobi</tool_response><|im_end|>\n<|im_start|>assistant\n",
    ),
    ("model", "<answer>Nairobi</answer><|im_end|>"),
)


def foreign(parts: tuple[tuple[str, str], ...] = XML, **changes: Any) -> dict[str, Any]:
    """The fields of a sound sample without a record."""
    encoded = [(author, TOKENIZER.encode(text)) for author, text in parts]
    mask = [int(author == "model") for author, ids in encoded for _ in ids]
    fields = {
        "index": 0,
        "group_index": 0,
        "prompt": PROMPT,
        "tokens": TOKENIZER.encode(PROMPT) + [token for _, ids in encoded for token in ids],
        "response": "".join(text for _, text in parts),
        "response_length": len(mask),
        "reward": 1.0,
        "loss_mask": mask,
        "rollout_log_probs": [-0.1 - number / 1000 if on else 0.0 for number, on in enumerate(mask)],
        "status": "completed",
        "metadata": {},
    }
    return fields | changes


def audit(*samples: dict[str, Any], reader: Reader | None = READER, sent: str = "") -> dict[str, Finding]:
    """The verdicts on these samples by name."""
    audit = Audit()
    for number, fields in enumerate(samples):
        audit.add(Audited(fields, f"sample {number}", Path("dump.pt"), reader, sent))
    return {row.name: row.finding for row in audit.rows()}


def reported(findings: dict[str, Finding], marks: str = "✗!") -> dict[str, str]:
    """What is wrong or doubtful, by name."""
    return {name: finding.found for name, finding in findings.items() if finding.mark in marks}
