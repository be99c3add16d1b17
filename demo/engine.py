"""An inference engine with continuous batching: for the demo on a CPU, what SGLang is on a GPU.

One thread owns the model. In a loop it admits waiting requests, computes their new prompt tokens, and samples one token
for every running request. `demo/engine_server.py` serves it with SGLang's `/generate` API.

Precision: in bfloat16 mode the linear layers are stored in bfloat16 and everything runs under autocast. That is
numerically equal to the trainer with its float32 weights, so their log-probabilities differ only by rounding.
"""

import copy
import hashlib
import logging
import math
import random
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from demo.admission_order import PATIENCE_S, AdmissionOrder
from demo.numerics import computing, output_logits
from demo.slot_cache import ATTENTION, SlotCache

logger = logging.getLogger(__name__)

SLOTS = 32  # requests that run at the same time
LOGITS_ROWS = 256  # prompt log-probabilities computed at once: 50 MB with a vocabulary of 49,152
PREFILL_TOKENS = 4096  # maximum per forward pass, including padding; bounds memory


@dataclass(frozen=True)
class SamplingParams:
    """The subset of SGLang's sampling parameters that the engine knows; temperature 0 is greedy."""

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    sampling_seed: int = -1  # tokens depend on it and their position; -1 = the engine's own random numbers
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    no_stop_trim: bool = False

    @classmethod
    def from_json(cls, given: dict) -> "SamplingParams":
        """Parses SGLang's JSON. Raises ValueError, in one sentence, for unknown or unsupported values."""
        unknown = sorted(set(given) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(f"sampling_params has {unknown}, which this engine does not know.")
        known = {key: value for key, value in given.items() if value is not None}
        stop = known.pop("stop", ())
        stop = (stop,) if isinstance(stop, str) else stop
        stop_ids = known.pop("stop_token_ids", ())
        if not isinstance(stop, list | tuple) or not all(isinstance(text, str) and text for text in stop):
            raise ValueError(f"sampling_params.stop is {stop!r}; it must be strings that are not empty.")
        if not isinstance(stop_ids, list | tuple) or not all(type(token) is int for token in stop_ids):
            raise ValueError(f"sampling_params.stop_token_ids is {stop_ids!r}; it must be a list of integers.")
        for key, value in known.items():
            kind = type(getattr(cls, key))  # of the default
            if type(value) is not kind and (type(value), kind) != (int, float):
                raise ValueError(f"sampling_params.{key} is {value!r}; it must be of type {kind.__name__}.")
        params = cls(stop=tuple(stop), stop_token_ids=tuple(stop_ids), **known)
        if params.max_new_tokens < 0 or not 0 < params.top_p <= 1 or (params.top_k < 1 and params.top_k != -1):
            raise ValueError("sampling_params need max_new_tokens >= 0, 0 < top_p <= 1, and top_k >= 1 or -1 for all.")
        if params.temperature != 0 and not 1e-6 <= params.temperature < math.inf:
            raise ValueError("sampling_params.temperature must be 0, which is greedy, or finite and at least 1e-6.")
        return params


@dataclass
class Request:
    """One call of /generate while it waits or runs."""

    request_id: str
    input_ids: list[int]
    params: SamplingParams
    logprob_start_len: int = -1  # first prompt position whose log-probability is kept; -1 = none
    done: "Future[Request]" = field(default_factory=Future)
    input_log_probs: list[float | None] = field(default_factory=list)  # the first is None, as in SGLang
    output_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finish_reason: dict | None = None
    cached_tokens: int = 0
    weight_version: str = ""

    @property
    def key(self) -> str:
        """Identifies the request within a step. Requests with equal ids and seed are interchangeable."""
        return hashlib.sha256(f"{self.params.sampling_seed} {self.input_ids}".encode()).hexdigest()[:16]


class Engine:
    """Owns a copy of the policy. `submit` is thread-safe; close with `close()` or a `with` block."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        dtype: torch.dtype = torch.bfloat16,
        slots: int = SLOTS,
        max_length: int = 1024,
        seed: int = 0,
    ) -> None:
        if slots < 1 or max_length < 2:
            raise ValueError("An engine needs at least 1 slot and a max_length of at least 2 tokens.")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.weight_version = "0"
        self._dtype = dtype
        self._model = _inference_copy(model, dtype)
        device = model.device
        self._cache = SlotCache(model.config, slots=slots, max_length=max_length, dtype=dtype, device=device)
        self._slot_ids = torch.full((slots, max_length), -1, device=device)  # which token each key belongs to
        self._running: dict[int, Request] = {}  # slot -> request
        self._waiting: deque[Request] = deque()
        self._eos_ids = _eos_ids(model, tokenizer)
        self._random = torch.Generator(device).manual_seed(seed)
        self._order: AdmissionOrder | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, request: Request) -> "Future[Request]":
        """Queues a request; its future holds it when it is finished. Raises ValueError if it can never fit."""
        if not request.input_ids:
            raise ValueError("A request needs at least one token in input_ids.")
        if len(request.input_ids) >= self.max_length:
            raise ValueError(f"{len(request.input_ids)} input tokens do not fit: the limit is {self.max_length - 1}.")
        if not all(0 <= token < self._model.config.vocab_size for token in request.input_ids):
            raise ValueError("input_ids holds an id outside the model's vocabulary.")
        if not -1 <= request.logprob_start_len <= len(request.input_ids):
            raise ValueError("logprob_start_len must be a position of input_ids, its length, or -1 for none.")
        with self._changed:
            if self._closing:
                raise RuntimeError("The engine is closed.")
            request.done.set_running_or_notify_cancel()  # from here on only `abort` can cancel it
            self._waiting.append(request)
            self._changed.notify_all()
        return request.done

    def abort(self, request_id: str | None = None) -> None:
        """Immediately ends one request, or all, with finish reason "abort" and the tokens sampled so far."""
        with self._changed:
            for request in [*self._waiting, *self._running.values()]:
                if request_id in (None, request.request_id) and not request.finish_reason:
                    request.finish_reason = {"type": "abort", "message": "aborted on request"}
            self._changed.notify_all()

    def load_weights(self, model: PreTrainedModel, version: str) -> None:
        """Copies the trainer's weights and clears the cache of keys. Call it between rollouts."""
        with self._changed:
            self._check_idle("The weights of a busy engine cannot be exchanged")
            source = model.state_dict()
            with torch.no_grad():
                for name, tensor in self._model.state_dict().items():
                    tensor.copy_(source[name])
            self._slot_ids.fill_(-1)
            self.weight_version = version

    def begin_step(self, followed: Sequence[Sequence[int | str]] | None = None) -> AdmissionOrder:
        """Clears the cache of keys, and starts recording the order in which requests are admitted.

        `followed` is the record of an earlier step; requests are then admitted in that order. On the same machine the
        replies to the same requests, each with a sampling_seed, are then equal bit by bit.
        """
        with self._changed:
            self._check_idle("A busy engine cannot begin a step")
            self._slot_ids.fill_(-1)
            self._order = AdmissionOrder(followed)
            return self._order

    def _check_idle(self, refusal: str) -> None:
        if self._running or self._waiting:
            raise RuntimeError(f"{refusal}; wait for its requests first.")

    def close(self) -> None:
        """Aborts running requests and ends the engine's thread."""
        with self._changed:
            self._closing = True
            self.abort()
        self._thread.join()

    def _run(self) -> None:
        with torch.inference_mode(), computing(self._model, self._dtype):
            while True:
                with self._changed:
                    self._retire()  # before waiting: a finished request may have to leave before the next is due
                    self._wait_for_work()
                    self._retire()  # requests aborted in the meantime
                    if self._closing and not self._running:
                        return
                    admitted = self._admit()
                    if self._order and (admitted or self._running):
                        self._order.note([request for _, request in admitted])
                try:
                    if admitted:
                        self._prefill(admitted)
                    elif self._running:
                        self._forward(sorted(self._running))
                except Exception as error:  # our bug: report it to every caller and keep running
                    logger.exception("engine step failed")
                    self._fail_all(error)

    def _wait_for_work(self) -> None:
        """Returns when there is a pass to compute, or the engine closes (lock held)."""

        def ready() -> bool:
            if self._closing or not self._order or not self._order.follows:
                return bool(self._waiting or self._running or self._closing)
            due = self._order.due(self._waiting)
            return due is not None and bool(due or self._running)

        while not self._changed.wait_for(ready, timeout=PATIENCE_S):
            if self._order and self._order.follows and (self._waiting or self._running):
                self._order.abandon()

    def _fail_all(self, error: Exception) -> None:
        with self._changed:
            for request in self._running.values():
                request.done.set_exception(error)
            self._running.clear()
            self._slot_ids.fill_(-1)

    def _retire(self) -> None:
        """Returns every finished request to its caller (lock held)."""
        for slot, request in list(self._running.items()):
            if request.finish_reason:
                del self._running[slot]
                request.done.set_result(request)
        for request in [request for request in self._waiting if request.finish_reason]:
            self._waiting.remove(request)
            request.done.set_result(request)

    def _admit(self) -> list[tuple[int, Request]]:
        """Assigns slots to waiting requests, reusing the longest prefix found in any slot (lock held).

        A request equal to one admitted in the same round waits for the next round, when it can copy all keys.
        """
        admitted: list[tuple[int, Request]] = []
        free = [slot for slot in range(len(self._slot_ids)) if slot not in self._running]
        waiting = list(self._waiting)
        for request in (self._order.due(waiting) or []) if self._order else waiting:
            if not free:
                break
            if any(other.input_ids == request.input_ids for _, other in admitted):
                continue
            common = self._common_prefixes(request.input_ids)
            best = int(common.argmax())
            slot = max(free, key=lambda s: (int(common[s]), -s))
            request.cached_tokens = min(int(common[best]), _reusable(request))
            if common[slot] < request.cached_tokens:
                self._cache.copy_prefix(best, slot, request.cached_tokens)
            self._slot_ids[slot, request.cached_tokens :] = -1  # not computed yet, so never copied
            self._slot_ids[slot, : request.cached_tokens] = torch.tensor(request.input_ids[: request.cached_tokens])
            request.weight_version = self.weight_version
            free.remove(slot)
            self._waiting.remove(request)
            self._running[slot] = request
            admitted.append((slot, request))
        return admitted

    def _common_prefixes(self, ids: list[int]) -> torch.Tensor:
        """(slots,) number of leading tokens that each slot's keys share with `ids`."""
        equal = self._slot_ids[:, : len(ids)] == torch.tensor(ids)
        return equal.cumprod(dim=1).sum(dim=1)

    def _prefill(self, admitted: list[tuple[int, Request]]) -> None:
        """Computes the prompts of admitted requests, in passes of similar length, and samples one token for each."""
        todo = sorted(admitted, key=lambda item: len(item[1].input_ids) - item[1].cached_tokens)
        while todo:
            batch = [todo.pop()]
            longest = len(batch[0][1].input_ids) - batch[0][1].cached_tokens
            while todo and (len(batch) + 1) * longest <= PREFILL_TOKENS:
                batch.append(todo.pop())
            self._forward([slot for slot, _ in batch])

    def _forward(self, slots: list[int]) -> None:
        """One pass over what each slot has no keys of, its last token or its prompt; samples one token for each."""
        requests = [self._running[slot] for slot in slots]
        new_ids = [request.output_ids[-1:] or request.input_ids[request.cached_tokens :] for request in requests]
        ends = [len(request.input_ids) + len(request.output_ids) for request in requests]
        lengths = torch.tensor([len(ids) for ids in new_ids])
        starts = torch.tensor(ends) - lengths
        steps = torch.arange(int(lengths.max()))
        # Shorter rows repeat their last token at its position, which is harmless.
        columns = torch.minimum(steps, lengths[:, None] - 1)  # (B, T)
        input_ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in new_ids], batch_first=True)
        input_ids = input_ids.gather(1, columns)
        positions = starts[:, None] + columns
        hidden = self._model.model(
            input_ids,
            attention_mask=self._cache.select(slots, positions),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        last = hidden[torch.arange(len(slots)), lengths - 1]  # (B, hidden)
        for row, request in zip(hidden, requests, strict=True):
            if request.logprob_start_len >= 0 and not request.output_ids:
                request.input_log_probs = self._input_log_probs(request, row)
        logits = output_logits(self._model, last)
        tokens, log_probs = sample(logits, [r.params for r in requests], self._random, ends)
        for slot, ids, start in zip(slots, new_ids, starts.tolist(), strict=True):
            self._slot_ids[slot, start : start + len(ids)] = torch.tensor(ids)
        for request, token, log_prob in zip(requests, tokens, log_probs, strict=True):
            self._append(request, token, log_prob)

    def _input_log_probs(self, request: Request, hidden: torch.Tensor) -> list[float | None]:
        """Log-probabilities of the prompt's ids from logprob_start_len on, always at temperature 1.

        `hidden` (T, D) starts after the reused keys; each state predicts the next id.
        """
        ids = torch.tensor(request.input_ids[request.logprob_start_len :], dtype=torch.long)
        states = hidden[request.logprob_start_len - request.cached_tokens :]
        log_probs: list[float | None] = [None] * min(len(ids), 1)
        for first in range(1, len(ids), LOGITS_ROWS):
            following = ids[first : first + LOGITS_ROWS, None]  # (N, 1)
            logits = output_logits(self._model, states[first - 1 : first - 1 + len(following)])
            log_probs += torch.log_softmax(logits, dim=-1).gather(1, following)[:, 0].tolist()
        return log_probs

    def _append(self, request: Request, token: int, log_prob: float) -> None:
        params = request.params
        if request.finish_reason:  # aborted during the pass
            return
        if params.max_new_tokens == 0:
            request.finish_reason = {"type": "length", "length": 0}
            return
        request.output_ids.append(token)
        request.log_probs.append(log_prob)
        used = len(request.input_ids) + len(request.output_ids)
        if token in params.stop_token_ids or (token in self._eos_ids and not params.ignore_eos):
            request.finish_reason = {"type": "stop", "matched": token}
        elif (matched := self._matched_stop(request)) is not None:
            request.finish_reason = {"type": "stop", "matched": matched}
        elif len(request.output_ids) >= params.max_new_tokens or used >= self.max_length:
            request.finish_reason = {"type": "length", "length": len(request.output_ids)}

    def _matched_stop(self, request: Request) -> str | None:
        if not request.params.stop:
            return None
        longest = max(len(stop.encode()) for stop in request.params.stop)
        tail = self.tokenizer.decode(request.output_ids[-longest - 1 :])  # a token holds at least a byte
        return next((stop for stop in request.params.stop if stop in tail), None)


def sample(
    logits: torch.Tensor, params: list[SamplingParams], generator: torch.Generator, positions: Sequence[int] = ()
) -> tuple[list[int], list[float]]:
    """Samples one token per row from `logits` (B, V) float32; `positions` matter only for rows with a seed.

    A token's log-probability is that of softmax(logits / temperature), before top-k and top-p, as in SGLang;
    greedy rows (temperature 0) report it at temperature 1.
    """
    temperature = torch.tensor([p.temperature or 1.0 for p in params])
    log_probs = torch.log_softmax(logits / temperature[:, None], dim=-1)
    kept = log_probs
    if any(p.top_k > 0 or p.top_p < 1 for p in params):
        kept = torch.stack([_nucleus(row, p) for row, p in zip(log_probs, params, strict=True)])
    # Inverts the cumulative distribution at one uniform number per row: far cheaper than torch.multinomial here.
    cumulative = kept.exp().cumsum(dim=-1, dtype=torch.float64)
    uniform = torch.rand(len(params), 1, generator=generator, dtype=torch.float64)
    for row, (p, position) in enumerate(zip(params, positions, strict=False)):
        if p.sampling_seed >= 0:
            uniform[row] = random.Random(f"{p.sampling_seed} {position}").random()
    uniform *= cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, uniform, right=True).clamp(max=logits.shape[1] - 1)[:, 0]
    greedy = torch.tensor([p.temperature == 0 for p in params])
    tokens = torch.where(greedy, log_probs.argmax(dim=-1), tokens)
    return tokens.tolist(), log_probs.gather(1, tokens[:, None])[:, 0].tolist()


def _reusable(request: Request) -> int:
    """Maximum number of prompt tokens with reusable keys; requested log-probabilities must be computed."""
    last = len(request.input_ids) - 1
    return last if request.logprob_start_len < 0 else min(last, request.logprob_start_len)


def _nucleus(log_probs: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """(V,) with -inf outside the top-k tokens and outside the smallest set with top-p of the probability."""
    values, order = log_probs.sort(descending=True)
    before = values.exp().cumsum(0) - values.exp()  # probability of all likelier tokens
    keep = before < params.top_p
    if params.top_k > 0:
        keep[params.top_k :] = False
    return torch.full_like(log_probs, -torch.inf).scatter(0, order[keep], values[keep])


def _inference_copy(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    inference = copy.deepcopy(model).eval().requires_grad_(False)
    inference.config._attn_implementation = ATTENTION
    for module in inference.model.modules():  # the output layer stays in float32
        if isinstance(module, torch.nn.Linear):
            module.to(dtype)
    return inference


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    ids = {tokenizer.eos_token_id}
    for config in (model.config, model.generation_config):
        value = getattr(config, "eos_token_id", None)
        ids |= set(value) if isinstance(value, list) else {value}
    return {token for token in ids if token is not None}
