"""The arms, on lists small enough to be worked out by hand."""

import math

import pytest
import torch

from logit_amplification.logits.amplification import amplify
from logit_amplification.logits.arms import ARMS
from logit_amplification.logits.sampling import nucleus
from logit_amplification.logits.vocabulary import ALPHA_ALONE, ARM_NAMES, GAPS

A = torch.tensor([2.0, 1.0, 0.0])
B = torch.tensor([1.0, 1.0, 1.0])
API_ARMS = [arm for arm in ARMS if arm.startswith(("api_", "a_list"))]


def kinds(*names):
    """The arms but those of some kinds, whatever the length of the list."""
    return [arm for arm in ARMS if arm.partition("_top")[0] not in names]


def test_settings_allow_exactly_the_arms_that_exist():
    assert set(ARMS) == set(ARM_NAMES) and len(ARMS) == 5 + 14 * 4


def test_the_full_arm_is_the_rule():
    assert torch.equal(ARMS["full"](amplify, A, B, 0.7), amplify(A, B, 0.7))


def test_the_plausible_arm_keeps_tokens_with_a_tenth_of_the_top_probability():
    a = torch.tensor([0.60, 0.061, 0.059, 0.28]).log()
    b = torch.tensor([0.25, 0.25, 0.25, 0.25]).log()
    kept = ARMS["plausible"](amplify, a, b, 1.0) > -torch.inf
    assert kept.tolist() == [True, True, False, True]


def test_nucleus_first_keeps_as_nucleus_before_b_is_looked_at():
    """0.5 + 0.3 + 0.15 crosses 0.9; B would like the last token best."""
    a = torch.tensor([0.05, 0.5, 0.15, 0.3]).log()
    b = torch.tensor([0.001, 0.333, 0.333, 0.333]).log()
    amplified = ARMS["nucleus_first"](amplify, a, b, 5.0)
    assert (amplified > -torch.inf).tolist() == [False, True, True, True]
    assert torch.equal(amplified[1:], amplify(a, b, 5.0)[1:])


def test_nucleus_first_is_the_samplers_nucleus():
    torch.manual_seed(0)
    a, b = torch.randn(4, 300) * 2, torch.randn(4, 300)
    kept = ARMS["nucleus_first"](amplify, a, b, 1.0) > -torch.inf
    ids, probabilities = nucleus(a, 0.9)
    assert torch.equal(kept, torch.zeros_like(kept).scatter(-1, ids, probabilities > 0))


def api_example():
    """25 tokens: A's list holds ids 0-19 and falls by id, B's holds 5-24 and rises."""
    a = -torch.arange(25.0)
    b = torch.arange(25.0)
    return a.log_softmax(-1), b.log_softmax(-1)


def test_candidates_know_b_completely():
    a, b = api_example()
    amplified = ARMS["candidates_top20"](amplify, a, b, 1.0)
    assert torch.equal(amplified[:20], amplify(a, b, 1.0)[:20])
    assert (amplified[20:] == -torch.inf).all()


def test_the_intersection_makes_no_value_up():
    a, b = api_example()
    amplified = ARMS["api_intersection"](amplify, a, b, 1.0)
    assert torch.allclose(amplified[5:20], amplify(a, b, 1.0)[5:20])
    assert (amplified[:5] == -torch.inf).all() and (amplified[20:] == -torch.inf).all()


def test_lists_that_share_nothing_leave_a_as_it_is():
    a, b = -torch.arange(60.0), torch.arange(60.0)
    amplified = ARMS["api_intersection"](amplify, a, b, 3.0)
    expected = a.masked_fill(torch.arange(60) >= 20, -torch.inf)
    assert torch.allclose(amplified.softmax(-1), expected.softmax(-1))


def test_api_floor_fills_a_missing_value_with_the_smallest_returned_one():
    a, b = api_example()
    amplified = ARMS["api_floor"](amplify, a, b, 1.0)
    assert amplified[3] == pytest.approx(float(2 * a[3] - b[5]))  # not in B's list: B's smallest
    assert amplified[22] == pytest.approx(float(2 * a[19] - b[22]))  # not in A's list: A's smallest
    assert amplified[10] == pytest.approx(float(2 * a[10] - b[10]))  # in both


def test_api_spread_shares_the_missing_mass_out_evenly():
    a, b = api_example()
    amplified = ARMS["api_spread"](amplify, a, b, 1.0)
    missing_from_b = math.log(float(b[:5].exp().sum()) / 5)
    assert amplified[3] == pytest.approx(float(2 * a[3]) - missing_from_b, rel=1e-5)
    assert amplified[10] == pytest.approx(float(2 * a[10] - b[10]))


@pytest.mark.parametrize(("arm", "fill"), [("api_zero", 0.0), ("api_minus13", -13.0)])
def test_a_fixed_fill_stands_for_a_missing_value(arm, fill):
    a, b = api_example()
    amplified = ARMS[arm](amplify, a, b, 1.0)
    assert amplified[3] == pytest.approx(float(2 * a[3]) - fill, rel=1e-6)


@pytest.mark.parametrize(("arm", "gap"), GAPS.items())
def test_a_gap_puts_a_missing_value_below_the_list(arm, gap):
    a, b = api_example()
    amplified = ARMS[arm](amplify, a, b, 2.0)
    assert amplified[3] == pytest.approx(float(3 * a[3] - 2 * (b[5] - gap)), rel=1e-6)


def test_gap_times_alpha_is_what_raises_a_token_that_only_a_has():
    """The law: twice the gap at half of alpha raises it as much."""
    a, b = api_example()
    floor = ARMS["api_floor"]
    for alpha, arm in ((3.0, "api_below1"), (1.0, "api_below3")):
        raised = ARMS[arm](amplify, a, b, alpha)[3] - floor(amplify, a, b, alpha)[3]
        assert float(raised) == pytest.approx(3.0, abs=1e-4)


def test_the_list_of_a_alone_has_no_token_of_bs():
    a, b = api_example()
    amplified = ARMS["a_list"](amplify, a, b, 1.0)
    assert amplified[3] == pytest.approx(float(2 * a[3] - b[5]))
    assert (amplified[20:] == -torch.inf).all() and (amplified[:20] > -torch.inf).all()


def test_the_overlap_is_the_shared_token_that_a_ranks_highest():
    a, b = api_example()
    for alpha in (0.5, 4.0):
        kept = ARMS["api_overlap"](amplify, a, b, alpha) > -torch.inf
        assert kept.nonzero()[:, 0].tolist() == [5]
    apart = torch.arange(60.0)
    kept = ARMS["api_overlap"](amplify, -apart, apart, 1.0) > -torch.inf
    assert kept.nonzero()[:, 0].tolist() == list(range(40, 60))  # nothing shared: B's list


def test_the_mixture_is_the_rule_on_probabilities_cut_off_at_zero():
    a, b = torch.tensor([0.6, 0.3, 0.1]).log(), torch.tensor([0.2, 0.7, 0.1]).log()
    found = ARMS["api_mixture"](amplify, a, b, 1.0).softmax(-1)
    assert found.tolist() == pytest.approx([1.0 / 1.1, 0.0, 0.1 / 1.1])


def test_temperature_is_a_sharpened_and_knows_no_b():
    one, other = (ARMS["temperature"](amplify, A, b, 1.0).softmax(-1) for b in (B, -B))
    assert torch.equal(one, other)
    assert torch.allclose(one, (A / 0.5).softmax(-1))


def test_a_random_direction_has_the_same_sizes_elsewhere_at_every_step():
    torch.manual_seed(5)
    a, b = torch.randn(2, 300), torch.randn(2, 300)
    moved = ARMS["random_direction"](amplify, a, b, 1.0) - a
    assert torch.allclose(moved.sort(-1).values, (a - b).sort(-1).values, atol=1e-5)
    assert not torch.allclose(moved, a - b, atol=0.1)
    again = ARMS["random_direction"](amplify, a.flip(0), b.flip(0), 1.0) - a.flip(0)
    assert torch.equal(again.flip(0), moved)


def test_api_sentinel_fills_a_missing_value_with_minus_9999():
    a, b = api_example()
    amplified = ARMS["api_sentinel"](amplify, a, b, 1.0)
    assert amplified[3] == pytest.approx(float(2 * a[3]) + 9999.0, rel=1e-6)
    assert amplified[22] == pytest.approx(-2 * 9999.0 - float(b[22]), rel=1e-6)


@pytest.mark.parametrize("arm", API_ARMS)
def test_without_amplification_an_api_arm_is_as_list(arm):
    """At alpha 0 what the list of B lacks is of no matter; intersections know less."""
    torch.manual_seed(0)
    a, b = torch.randn(2000) * 2, torch.randn(2000) * 2
    top = {"_top5": 5, "_top100": 100, "_top1000": 1000}.get("_" + arm.rsplit("_", 1)[1], 20)
    kept = ARMS[arm](amplify, a, b, 0.0).softmax(-1)
    best = set(a.topk(top).indices.tolist())
    if "intersection" in arm and best & set(b.topk(top).indices.tolist()):
        best &= set(b.topk(top).indices.tolist())
    inside = kept[list(best)]
    outside = 1 - inside.sum()
    assert (inside > 0).all()
    if any(kind in arm for kind in ("sentinel", "intersection", "overlap", "a_list", "mixture")):
        assert outside < 1e-6
    ratio = inside / a.softmax(-1)[list(best)]
    rounding = 0.02 if "rounded" in arm else 1e-3
    assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=rounding)


@pytest.mark.parametrize("arm", ["api_floor", "api_spread", "api_sentinel"])
def test_the_api_arms_know_no_token_outside_both_lists(arm):
    torch.manual_seed(0)
    a, b = torch.randn(200), torch.randn(200)
    kept = (ARMS[arm](amplify, a, b, 0.5) > -torch.inf).nonzero()[:, 0].tolist()
    assert set(kept) == set(a.topk(20).indices.tolist()) | set(b.topk(20).indices.tolist())


LONG = [a for a in kinds("api_overlap", "api_mixture") if "top1000" in a]


@pytest.mark.parametrize("arm", [*LONG, "full", "plausible"])
def test_lists_longer_than_the_vocabulary_change_nothing(arm):
    torch.manual_seed(2)
    a, b = torch.randn(3, 400), torch.randn(3, 400)
    expected = amplify(a, b, 2.0)
    if arm == "plausible":
        expected = expected.masked_fill(a < a.amax(-1, keepdim=True) + math.log(0.1), -torch.inf)
    found = ARMS[arm](amplify, a, b, 2.0)
    rounding = 0.02 if "rounded" in arm else 1e-6
    assert torch.allclose(found.softmax(-1), expected.softmax(-1), atol=rounding)


@pytest.mark.parametrize("arm", kinds(*ALPHA_ALONE))
def test_equal_contexts_make_alpha_irrelevant_in_every_arm(arm):
    """Pitfall: an arm whose values are made up differently for A and B is no longer flat."""
    torch.manual_seed(3)
    a = torch.randn(2, 1500) * 3
    one, other = (ARMS[arm](amplify, a, a.clone(), alpha).softmax(-1) for alpha in (0.0, 4.0))
    assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_treats_each_row_by_itself(arm):
    torch.manual_seed(1)
    a, b = torch.randn(3, 50), torch.randn(3, 50)
    alphas = torch.tensor([[0.0], [1.0], [3.0]])
    together = ARMS[arm](amplify, a, b, alphas)
    for row in range(3):
        alone = ARMS[arm](amplify, a[row], b[row], float(alphas[row]))
        assert torch.equal(together[row], alone)


@pytest.mark.parametrize("arm", kinds("api_overlap", "api_mixture"))
def test_an_arm_uses_the_rule_it_is_given(arm):
    constant = ARMS[arm](lambda a, b, alpha: torch.full_like(a, math.pi), A, B, 1.0)
    assert set(constant.tolist()) <= {torch.tensor(math.pi).item(), -math.inf}
