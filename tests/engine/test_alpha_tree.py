"""The tree of all greedy texts over an interval of alphas, against plain greedy decoding."""

import itertools
import random

import pytest
import torch

from decoding import TINY_CONTEXTS, generate
from logit_amplification.engine import alpha_tree as room
from logit_amplification.engine.alpha_tree import alpha_tree
from logit_amplification.engine.interface import Cell
from logit_amplification.logits.alpha_profile import likeliest
from logit_amplification.logits.sampling import make_sampler

LOW, HIGH, LENGTH = -0.5, 2.5, 6


def tree_of(tiny, name="one", **changed):
    options = {"max_new_tokens": LENGTH, "max_leaves": 400, "stop_ids": tiny.stop_ids}
    return alpha_tree(tiny.model, *TINY_CONTEXTS[name], LOW, HIGH, **(options | changed))


def greedy(tiny, name, alphas):
    """The greedy text at each alpha, by the engine."""
    cells = [Cell(name, alpha, 0) for alpha in alphas]
    made = generate(
        tiny.model,
        cells,
        TINY_CONTEXTS,
        sampler=make_sampler(0),
        seed=0,
        max_new_tokens=LENGTH,
        stop_ids=tiny.stop_ids,
        slots=64,
    )
    return {generation.cell.alpha: tuple(generation.token_ids) for generation in made}


@pytest.fixture(scope="module")
def names():
    return list(TINY_CONTEXTS)[:2]


def test_two_thousand_random_alphas_land_in_the_leaf_of_their_greedy_text(tiny, names):
    """Brute force. Within 1e-4 of a split float32's rounding may decide otherwise."""
    generator = random.Random(0)
    for name in names:
        tree = tree_of(tiny, name)
        assert len(tree.leaves) > 10 and not tree.left_out
        alphas = [generator.uniform(LOW, HIGH) for _ in range(1000)]
        near = [a for a in alphas if any(abs(a - split.alpha) < 1e-4 for split in tree.splits)]
        assert len(near) < 50
        for alpha, tokens in greedy(tiny, name, [a for a in alphas if a not in near]).items():
            assert tree.leaf(alpha).token_ids == tokens, alpha


def test_the_leaves_cover_the_interval_once_and_part_at_the_splits(tiny):
    tree = tree_of(tiny)
    assert tree.leaves[0].low == LOW and tree.leaves[-1].high == HIGH
    for one, following in itertools.pairwise(tree.leaves):
        assert one.high == following.low
        parting = next(
            step
            for step, pair in enumerate(zip(one.token_ids, following.token_ids, strict=False))
            if pair[0] != pair[1]
        )
        split = next(split for split in tree.splits if split.alpha == one.high)
        assert (split.step, split.before, split.after) == (
            parting,
            one.token_ids[parting],
            following.token_ids[parting],
        )
    assert len(tree.splits) == len(tree.leaves) - 1


def test_a_budget_of_leaves_keeps_the_widest_and_says_what_is_left_out(tiny):
    whole, few = tree_of(tiny), tree_of(tiny, max_leaves=5)
    assert len(few.leaves) <= 5 < len(whole.leaves)
    covered = sorted([(leaf.low, leaf.high) for leaf in few.leaves] + few.left_out)
    assert covered[0][0] == LOW and covered[-1][1] == HIGH
    assert all(a[1] == b[0] for a, b in itertools.pairwise(covered))
    for leaf in few.leaves:
        assert whole.leaf((leaf.low + leaf.high) / 2).token_ids == leaf.token_ids
    assert few.leaf(few.left_out[0][0]) is None


def test_equal_contexts_have_one_leaf(tiny):
    ids = TINY_CONTEXTS["one"][0]
    options = {"max_new_tokens": LENGTH, "stop_ids": tiny.stop_ids}
    tree = alpha_tree(tiny.model, ids, ids, -1.0, 8.0, **options)
    assert len(tree.leaves) == 1 and not tree.splits


def test_an_end_token_ends_its_leaf_only(tiny):
    """The second token of one leaf is made an end token: others go on."""
    whole = tree_of(tiny)
    end = whole.leaves[0].token_ids[1]
    tree = tree_of(tiny, stop_ids=frozenset({end}))
    assert {leaf.finish_reason for leaf in tree.leaves} == {"eos", "length"}
    for leaf in tree.leaves:
        assert (leaf.token_ids[-1] == end) == (leaf.finish_reason == "eos")
        assert end not in leaf.token_ids[:-1]


def test_attention_is_given_back(tiny):
    before = tiny.model.config._attn_implementation
    tree_of(tiny)
    assert tiny.model.config._attn_implementation == before


def test_the_demo_has_a_tree_too(demo):
    pair = [[1, 50, 60, 70], [1, 50, 61, 70]]
    tree = alpha_tree(demo.model, *pair, 0.0, 2.0, max_new_tokens=4, max_leaves=16)
    assert tree.leaves and all(len(leaf.token_ids) <= 4 for leaf in tree.leaves)


def test_the_likeliest_tokens_are_those_of_a_fine_grid():
    torch.manual_seed(0)
    for _ in range(50):
        a, b = torch.randn(40) * 2, torch.randn(40) * 2
        pieces = likeliest(a, b, -1.0, 3.0)
        assert pieces[0][0] == -1.0 and all(alpha < 3.0 for alpha, _ in pieces)
        for alpha in torch.linspace(-1, 2.99, 300, dtype=torch.float64).tolist():
            expected = int((a.double() + alpha * (a.double() - b.double())).argmax())
            assert [token for start, token in pieces if start <= alpha][-1] == expected


def test_a_leaf_holds_its_lower_end_only():
    leaf = room.Leaf(0.0, 1.0, (1,), "length")
    assert 0.0 in leaf and 1.0 not in leaf and 0.5 in leaf
