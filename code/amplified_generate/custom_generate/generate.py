"""Run `model.generate` on logits_a + alpha * (logits_a - logits_b), with any of its samplers.

A is the prompt passed to `generate`, B another prompt for the same model. Both are read in one
batch, and every new token is appended to both. transformers loads this file for
`model.generate(..., custom_generate=FOLDER, trust_remote_code=True)`; it needs nothing else.
"""

import copy
import functools
import inspect

import torch
from transformers import DynamicCache

# Options of `generate` that cannot work when every forward also reads B's rows.
WITHOUT = (
    *("assistant_model", "prompt_lookup_num_tokens", "inputs_embeds", "guidance_scale"),
    *("cache_implementation", "cache", "past_key_values", "negative_prompt_ids"),
    *("output_hidden_states", "output_attentions"),
)


def generate(
    model,
    inputs=None,
    input_ids=None,
    attention_mask=None,
    b_input_ids=None,
    b_attention_mask=None,
    alpha=1.0,
    **arguments,
):
    """Return what `model.generate` returns, for A amplified against B.

    b_input_ids: (rows, length) int64, B's prompts, one row for each of A's (or one for all),
    left-padded; b_attention_mask: 0 for padding, by default there is none. alpha: 0 is A alone, -1
    is B alone. The logits that `output_logits` returns, and those that samplers see, are the
    amplified ones, in float32. Raises ValueError for options that would not give the amplified
    distribution.
    """
    ids_a = input_ids if input_ids is not None else inputs
    if ids_a is None or b_input_ids is None:
        raise ValueError("input_ids and b_input_ids are needed: the prompts of A and of B")
    for name in WITHOUT:
        asked = arguments.get(name), getattr(arguments.get("generation_config"), name, None)
        if any(one is not None and one is not False for one in asked):
            raise ValueError(f"{name} cannot be used together with amplification")
    if len(b_input_ids) not in (1, len(ids_a)):
        raise ValueError(
            f"B has {len(b_input_ids)} rows and A {len(ids_a)}; allowed: as many, or one"
        )
    ids_b = b_input_ids.expand(len(ids_a), -1).to(ids_a.device)
    mask_a = torch.ones_like(ids_a) if attention_mask is None else attention_mask
    mask_b = torch.ones_like(ids_b) if b_attention_mask is None else b_attention_mask
    mask_b = mask_b.expand(len(ids_a), -1).to(ids_a.device)
    length = max(ids_a.shape[1], ids_b.shape[1])
    added = length - ids_a.shape[1]
    (ids_a, mask_a), (ids_b, mask_b) = (
        [
            torch.nn.functional.pad(part, (length - part.shape[1], 0), value=value)
            for part, value in zip(side, (_padding(model), 0), strict=True)
        ]
        for side in ((ids_a, mask_a), (ids_b, mask_b))
    )
    if config := arguments.get("generation_config"):
        arguments["generation_config"] = config = copy.deepcopy(config)
        for name in ("max_length", "min_length"):
            if getattr(config, name, None):
                setattr(config, name, getattr(config, name) + added)
    for name in ("max_length", "min_length"):
        if arguments.get(name):
            arguments[name] += added
    reading = _reading_both(model, ids_b, mask_b, alpha)
    parameters = inspect.signature(model.forward).parameters
    # transformers 5.24 renamed the argument for the cache.
    arguments["cache" if "cache" in parameters else "past_key_values"] = _PairedCache()
    made = reading.generate(input_ids=ids_a, attention_mask=mask_a, **arguments)
    if torch.is_tensor(made):
        return made[:, added:]
    made.sequences = made.sequences[:, added:]
    return made


def _padding(model):
    """Return a pad token (or the end token): logits processors see it in front of a prompt."""
    config = model.generation_config
    for token in (config.pad_token_id, config.eos_token_id):
        if token is not None:
            return token[0] if isinstance(token, list) else token
    return 0


class _PairedCache(DynamicCache):
    """Keys and values of A's rows, followed by those of B's."""

    def reorder_cache(self, beam_idx):
        """Reorder B's rows along with A's beams."""
        super().reorder_cache(torch.cat([beam_idx, beam_idx + len(beam_idx)]))


def _reading_both(model, ids_b, mask_b, alpha):
    """Return a model that shares everything with this one, but whose forward also reads B's rows.

    The model itself is not changed: another thread may be using it.
    """

    class ReadingBoth(type(model)):
        @functools.wraps(type(model).forward)
        def forward(self, input_ids=None, attention_mask=None, **others):
            rows, fed = input_ids.shape
            times, length = rows // len(ids_b), ids_b.shape[1]  # beams, or answers per prompt
            end = attention_mask.shape[1]
            b, seen = (part.repeat_interleave(times, 0) for part in (ids_b, mask_b))
            # The part of B's prompt that is fed now; later tokens are the same for A and B.
            own = b[:, end - fed : end]
            b = torch.cat([own, input_ids[:, own.shape[1] :]], 1)
            seen = torch.cat([seen[:, :end], attention_mask[:, length:]], 1)
            mask = torch.cat([attention_mask, seen])
            others["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -fed:]
            made = model(input_ids=torch.cat([input_ids, b]), attention_mask=mask, **others)
            logits_a, logits_b = made.logits.float().chunk(2)
            made.logits = logits_a + alpha * (logits_a - logits_b)
            return made

    reading = object.__new__(ReadingBoth)
    # A `forward` set by hooks is left out: it would hide ours, and calling `model` runs it anyway.
    reading.__dict__.update(
        {name: own for name, own in model.__dict__.items() if name != "forward"}
    )
    return reading
