"""How slime turns a file of prompt data into Samples, for text."""

import json
from collections.abc import Iterator
from typing import Any

from slime.utils.types import Sample


def read_file(path: str) -> Iterator[dict[str, Any]]:
    if path.endswith(".jsonl"):
        with open(path, encoding="utf-8") as lines:
            yield from (json.loads(line) for line in lines if line.strip())
    elif path.endswith(".parquet"):
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    else:
        raise ValueError(f"{path} is neither .jsonl nor .parquet.")


class Dataset:
    """Samples with prompt, label and metadata from these columns."""

    def __init__(
        self,
        path: str,
        tokenizer: Any,
        processor: Any,
        max_length: int | None,
        *,
        prompt_key: str = "text",
        label_key: str | None = None,
        tool_key: str | None = None,
        metadata_key: str = "metadata",
        apply_chat_template: bool = False,
        apply_chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.samples = []
        for row in read_file(path):
            prompt, metadata = row[prompt_key], row.get(metadata_key) or {}
            tools = None
            if tool_key is not None and tool_key in row:
                tools = row[tool_key]
                tools = metadata["tools"] = json.loads(tools) if isinstance(tools, str) else tools
                assert isinstance(tools, list), f"tools must be a list, not {type(tools)}"
            if apply_chat_template:
                messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
                prompt = tokenizer.apply_chat_template(
                    messages,
                    tools=tools,
                    tokenize=False,
                    add_generation_prompt=True,
                    **(apply_chat_template_kwargs or {}),
                )
            label = row[label_key] if label_key is not None else None
            self.samples.append(Sample(prompt=prompt, label=label, metadata=metadata))
        if max_length is not None and self.samples and isinstance(self.samples[0].prompt, str):
            ids = tokenizer([sample.prompt for sample in self.samples], add_special_tokens=False)["input_ids"]
            self.samples = [sample for sample, one in zip(self.samples, ids, strict=True) if len(one) <= max_length]

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def __len__(self) -> int:
        return len(self.samples)
