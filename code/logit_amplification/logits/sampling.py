"""Draw a token from logits: temperature, top-k, nucleus, and a given uniform number.

Randomness is an argument. The same (seed, pair, sample, step) gives the same uniform number for
every alpha and arm (common random numbers), in every process and whatever else is in the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy
import torch
from torch import Tensor


class Draw(NamedTuple):
    """Tokens, and the log-probability of each under the distribution it was drawn from.

    tokens: (rows,) int64. logprobs: (rows,) float32, in nats, after temperature and truncation.
    """

    tokens: Tensor
    logprobs: Tensor


Sampler = Callable[[Tensor, Tensor], Draw]
"""(logits (rows, vocab), uniforms (rows,) in [0, 1)) -> Draw"""

BLOCK = 64  # tokens per block in `top_k`
FIRST_WIDTH = 64  # how many of the most likely tokens `nucleus` tries first


def uniforms(seed: int, pair_id: str, sample: int, count: int) -> Tensor:
    """Return `count` uniform numbers in [0, 1), one per step of this pair's sample.

    (count,) float64. The generator is Philox (Salmon et al. 2011), keyed with SHA-256 of the first
    three arguments, because Python's own hash() is salted per process. A larger `count` only adds
    numbers at the end.
    """
    digest = hashlib.sha256(f"{seed}\n{pair_id}\n{sample}".encode()).digest()
    generator = numpy.random.Generator(numpy.random.Philox(key=int.from_bytes(digest[:16], "big")))
    return torch.from_numpy(generator.random(count))


@lru_cache(maxsize=1024)
def make_sampler(temperature: float, top_k: int = 0, top_p: float = 1.0) -> Sampler:
    """Return a function that draws one token per row of logits.

    Temperature 0 is argmax, with log-probability 0. top_k 0 and top_p 1 are off. Equal arguments
    return the same function object, so that rows with equal settings can be drawn together.
    """
    if temperature == 0:
        return lambda logits, uniforms: Draw(logits.argmax(-1), torch.zeros_like(logits[:, 0]))

    def sample(logits: Tensor, uniforms: Tensor) -> Draw:
        ids, probabilities = nucleus(keep_top_k(logits / temperature, top_k), top_p)
        drawn = draw(probabilities, uniforms).to(ids.device)[:, None]
        # The nucleus is not renormalised, so divide by its mass. In float64, because its width
        # depends on the other rows in the batch, and the order of the sum depends on the width.
        held = _wide(probabilities)
        share = held.gather(-1, drawn.to(held.device))[:, 0] / held.sum(-1)
        return Draw(ids.gather(-1, drawn)[:, 0], share.log().float().to(ids.device))

    return sample


def drawn_logprobs(
    logits: Tensor, tokens: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Return the log-probability of tokens under the distribution that `make_sampler` draws from.

    logits: (rows, vocab). tokens: (rows,) int64. Returns (rows,) float64 in nats; -inf for tokens
    that truncation removes. The temperature must not be 0.
    """
    ids, probabilities = nucleus(keep_top_k(logits / temperature, top_k), top_p)
    held = _wide(probabilities)
    own = torch.where(ids == tokens[:, None], held, 0.0)
    return (own.sum(-1) / held.sum(-1)).log()


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Set all but the `top_k` largest logits to -inf; logits tied with the last stay. 0 is off."""
    if top_k == 0 or top_k >= logits.shape[-1]:
        return logits
    smallest = logits.topk(top_k).values[..., -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the `k` largest of each row in descending order, and their indices: (rows, k) each.

    logits: (rows, vocab). The k largest are all in the k blocks with the largest maxima, so only
    these blocks are sorted. On a CPU this takes half the time of torch.topk over the vocabulary.
    The result may differ from torch.topk's only in which of several equal values comes first or is
    left out.
    """
    rows, vocab = logits.shape
    if vocab % BLOCK or vocab < 4 * k * BLOCK:
        return tuple(logits.topk(k))
    blocks = logits.view(rows, -1, BLOCK)
    likely = blocks.amax(-1).topk(k, sorted=False).indices
    found = blocks.gather(1, likely[:, :, None].expand(-1, -1, BLOCK)).view(rows, -1).topk(k)
    return found.values, likely.gather(1, found.indices // BLOCK) * BLOCK + found.indices % BLOCK


def nucleus(logits: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Return the smallest set of most likely tokens whose mass reaches `top_p`.

    Nucleus sampling of Holtzman et al. 2020 (arXiv:1904.09751). The token that crosses `top_p`
    belongs to the set; among equally likely tokens the smaller id comes first. logits: (rows,
    vocab). Returns ids (rows, width) in ascending order, and their probabilities (rows, width),
    which are zero outside the set and not renormalised.
    """
    probabilities = torch.softmax(logits, -1)
    vocab = logits.shape[-1]
    if top_p >= 1:
        return torch.arange(vocab, device=logits.device).expand_as(logits), probabilities
    # On a GPU a full sort is cheap, and checking whether a partial sort was enough is not.
    width = min(FIRST_WIDTH, vocab) if logits.device.type == "cpu" else vocab
    while True:
        # To break ties by id, sort by id first, then stably by probability.
        ids = top_k(probabilities, width)[1].sort(-1).values
        top, order = probabilities.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
        ids = ids.gather(-1, order)
        ahead = _wide(top).cumsum(-1) - _wide(top)  # the mass before each token
        kept = (ahead < top_p).to(top.device)
        crossing = torch.where(kept, top, torch.inf).amin(-1)
        # All remaining tokens are less likely than the crossing token, so the set is exact.
        if width == vocab or bool((top[:, -1] < crossing).all()):
            break
        width = min(8 * width, vocab)
    ids, order = ids.sort(-1)
    return ids, torch.where(kept, top, 0.0).gather(-1, order)


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Return the index that each uniform number selects by the inverse CDF, in float64.

    probabilities: (rows, width), not negative, with any positive sum. uniforms: (rows,) in [0, 1).
    Returns (rows,) int64. An index with probability zero is never drawn.
    """
    cdf = _wide(probabilities).cumsum(-1)
    target = uniforms.to(cdf.device, torch.float64)[:, None] * cdf[:, -1:]
    # Rows of NaN, which the caller detects, would give an index out of range, and that would make
    # the GPU unusable for this process.
    return torch.searchsorted(cdf, target, right=True)[:, 0].clamp_(max=cdf.shape[-1] - 1)


def _wide(tensor: Tensor) -> Tensor:
    """Convert to float64; on the CPU for Apple's GPU, which has no float64."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
