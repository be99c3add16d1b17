"""slime's own way from a dump of samples to a gradient, on a CPU. Prints one line of JSON.

    python loss_on_dump.py DUMP [--without-log-probs] [--discard N] -- FLAG …      on the import path of slime's workers

Real: slime's parsers, its conversion to training data, schedule of micro batches, advantages, batches and policy loss,
Megatron's parallel state. Replaced: the logits, which come from the Hugging Face model in float32 (Megatron's packed
attention needs a GPU); Ray's object store; the GPU that the code asks for; the rewards, 0 and 1 in turns, since an
untrained model may earn none.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import ray
import torch

BATCH_KEYS = (
    *("tokens", "total_lengths", "response_lengths", "loss_masks", "rollout_mask_sums", "multimodal_train_inputs"),
    *("log_probs", "ref_log_probs", "rollout_log_probs", "advantages", "returns"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dump", type=Path)
    parser.add_argument("--without-log-probs", action="store_true", help="as TRACK_LOG_PROBS=false leaves the samples")
    parser.add_argument("--discard", type=int, metavar="N", help="make this sample one that the plugin discarded")
    cut = sys.argv.index("--")
    options, flags = parser.parse_args(sys.argv[1:cut]), sys.argv[cut + 1 :]
    pretend_a_gpu()
    args = slime_args(flags)
    samples = read_samples(options.dump)
    if options.discard is not None:
        discard(samples[options.discard])
    if options.without_log_probs:
        for sample in samples:
            sample.rollout_log_probs = None
    data = training_data(args, samples)
    print(json.dumps(gradients(args, data)))


def pretend_a_gpu() -> None:
    """Megatron asks which GPU there is, slime where tensors go."""
    h100 = types.SimpleNamespace(major=9, minor=0, name="H100", total_memory=80 << 30)
    torch.cuda.get_device_properties = lambda *_, **__: h100  # type: ignore[assignment]
    torch.cuda.get_device_capability = lambda *_, **__: (9, 0)  # type: ignore[assignment]
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment,return-value]
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[assignment,method-assign]
    ray.put = ray.get = lambda value, **_: value
    with contextlib.suppress(ImportError):  # slime's HEAD has a module that is asked instead
        from slime.utils import accelerator

        accelerator.current_device = lambda *_: "cpu"
        accelerator.device = lambda *_: torch.device("cpu")


def slime_args(flags: list[str]) -> argparse.Namespace:
    """The flags as slime's train.py reads them."""
    from slime.utils.arguments import parse_args

    sys.argv = ["train.py", *flags]
    with contextlib.redirect_stdout(io.StringIO()):  # Megatron prints every argument
        return parse_args()


def read_samples(dump: Path) -> list[Any]:
    """The samples, with rewards of 0 and 1 in turns."""
    from slime.utils.types import Sample

    samples = [Sample.from_dict(sample) for sample in torch.load(dump, weights_only=False)["samples"]]
    for number, sample in enumerate(samples):
        sample.reward = float(number % 2)
    return samples


def discard(sample: Any) -> None:
    """What the plugin does with a rollout whose engine failed."""
    from search_rollout.samples.fields import write_discarded
    from search_rollout.samples.record import RolloutRecord
    from search_rollout.trajectory import StopReason, Trajectory

    prompt = sample.tokens[: -sample.response_length]
    record = RolloutRecord(StopReason.ENGINE_FAILED, "discarded")
    write_discarded(sample, Trajectory(len(sample.tokens), prompt_ids=prompt), record, filler_id=0, reward=0.0)


def training_data(args: argparse.Namespace, samples: list[Any]) -> dict[str, Any]:
    """What the one trainer of a single GPU gets, advantages included."""
    import torch.distributed as dist
    from megatron.core import mpu
    from slime.backends.megatron_utils.actor import MegatronTrainRayActor
    from slime.backends.megatron_utils.loss import compute_advantages_and_returns
    from slime.ray.rollout import RolloutManager
    from slime.utils.misc import load_function

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mpu.initialize_model_parallel()
    kind = RolloutManager.__ray_metadata__.modified_class
    manager = kind.__new__(kind)
    manager.args = args
    manager.custom_reward_post_process_func = load_function(args.custom_reward_post_process_path)
    manager.custom_convert_samples_to_train_data_func = None
    manager.train_parallel_config = {"dp_size": 1, "cp_size": 1, "vpp_size": 1, "microbatch_group_size_per_vp_stage": 1}
    parts = manager._split_train_data_by_dp(manager._convert_samples_to_train_data(samples))
    partition = list(parts[0].inner["partition"])  # which slime's own reading takes away in some versions
    data = MegatronTrainRayActor._get_rollout_data(types.SimpleNamespace(args=args), parts)
    if args.use_kl_loss:  # the reference model's; its coefficient is 0
        data["ref_log_probs"] = [torch.zeros(length) for length in data["response_lengths"]]
    compute_advantages_and_returns(args, data)
    return {**data, "partition": partition}


def gradients(args: argparse.Namespace, data: dict[str, Any]) -> dict[str, Any]:
    """What the loss makes of the samples.

    `samples` has for each sample of the dump, in its order, its advantage and the response positions that get a
    gradient; `figures` has slime's figures of the loss, mean over the samples.
    """
    from slime.backends.megatron_utils.data import get_batch, get_data_iterator
    from slime.backends.megatron_utils.loss import loss_function
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args.hf_checkpoint, dtype=torch.float32).eval()
    (iterator,) = get_data_iterator(data)
    found: dict[int, dict[str, Any]] = {}
    figures: Counter[str] = Counter()
    schedule = iter(data["micro_batch_indices"])
    for micro_batches, size in zip(data["num_microbatches"], data["global_batch_sizes"], strict=True):
        for _ in range(micro_batches):
            batch = get_batch(iterator, BATCH_KEYS, args.data_pad_size_multiplier, args.allgather_cp)
            logits = logits_of(model, batch)
            loss, _, log = loss_function(args, batch, micro_batches, size, logits)
            loss.backward()
            figures.update(dict(zip(log["keys"], log["values"][1:].tolist(), strict=True)))  # sums over the samples
            assert logits.grad is not None
            touched = logits.grad[0].abs().sum(-1) > 0  # (T,)
            for index, sample in zip(next(schedule), by_sample(batch, touched), strict=True):
                found[data["partition"][index]] = sample
    means = {name: value / len(found) for name, value in figures.items()}
    return {"samples": [found[number] for number in sorted(found)], "figures": means}


def logits_of(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """(1, T, V) of the packed micro batch, padding included; a leaf, so that the loss's gradient ends there."""
    with torch.no_grad():
        parts = [model(tokens[None]).logits[0] for tokens in batch["unconcat_tokens"]]
    padding = torch.zeros(batch["tokens"].shape[1] - sum(map(len, parts)), parts[0].shape[-1])
    return torch.cat([*parts, padding])[None].requires_grad_()


def by_sample(batch: dict[str, Any], touched: torch.Tensor) -> list[dict[str, Any]]:
    """Splits a micro batch's positions up. The logits at a position predict the token behind it."""
    found, start = [], 0
    inside = torch.zeros_like(touched)
    for total, length, advantages in zip(
        batch["total_lengths"], batch["response_lengths"], batch["advantages"], strict=True
    ):
        end = start + total - 1
        inside[end - length : end] = True
        positions = touched[end - length : end].nonzero().flatten().tolist()
        found.append({"advantage": float(advantages[0]), "gradient_at": positions})
        start += total
    assert not (touched & ~inside).any(), "a prompt or the padding got a gradient"
    return found


if __name__ == "__main__":
    main()
