"""Arms, outcomes and the path side by side; the profile; and one generation token by token."""

import re

import pandas
import pytest

from logit_amplification.engine.alpha_tree import AlphaTree, Leaf, Split
from logit_amplification.reports.figures import gallery, style, token_view, tree_view
from logit_amplification.reports.figures.profile_view import draw_profile
from made_records import make_record, make_sweep

VALUES = {"a1": [1, 2], "a2": [3, 4], "b1": [5, 6], "null": [1, 1]}


def two_arms():
    run, records = make_sweep(VALUES)
    return run, records + make_sweep(VALUES, arm="api_sentinel")[1]


@pytest.mark.parametrize("draw", [gallery.draw_arms, gallery.draw_outcomes, gallery.draw_path])
def test_every_panel_is_titled_and_labelled_and_the_legend_covers_none(draw):
    figure = draw(*two_arms())
    figure.canvas.draw()
    (legend,) = figure.subfigs[1].legends
    box = legend.get_window_extent()
    for axes in figure.axes:
        assert axes.get_title(loc="left") and axes.get_xlabel() and axes.get_ylabel()
        assert not box.overlaps(axes.get_window_extent())


def test_each_arm_has_a_line_at_its_means_over_pairs_without_the_null_pair():
    panel = gallery.draw_arms(*two_arms()).axes[0]
    lines = [container.lines[0] for container in panel.containers]
    assert [list(line.get_ydata()) for line in lines] == [pytest.approx([3.0, 4.0])] * 2
    assert len({line.get_color() for line in lines}) == 2
    assert len({line.get_marker() for line in lines}) == 2


def test_outcome_shares_are_those_of_the_answers():
    run, records = make_sweep(VALUES)
    records[1]["outcome"] = {"label": "incoherent", "evidence": "by hand"}
    incoherent, refusal, other = gallery.draw_outcomes(run, records).axes
    shares = [list(axes.containers[0].lines[0].get_ydata()) for axes in (incoherent, other)]
    assert shares[0] == pytest.approx([0, 1 / 3]) and shares[1] == pytest.approx([1, 2 / 3])
    assert not refusal.containers


def test_refusals_are_drawn_only_where_they_can_be_told_from_the_scorers_errors():
    run, records = make_sweep({f"p{n}": [1, 1] for n in range(40)})
    refusal = gallery.draw_outcomes(run, records).axes[1]
    assert not refusal.containers and "Not measurable" in refusal.texts[0].get_text()
    for record in records[::2]:
        record["outcome"] = {"label": "refusal", "evidence": "by hand"}
    refusal = gallery.draw_outcomes(run, records).axes[1]
    assert list(refusal.containers[0].lines[0].get_ydata()) == [1, 0] and not refusal.texts


def test_the_profile_marks_the_alphas_of_the_sweep():
    curves = {name: [0.0, 1.0, 2.0] for name in ("kl_amplified_a", "entropy", "cross_entropy")}
    profiles = pandas.DataFrame(
        {"pair_id": "a", "alpha": [-1.0, 0.0, 1.0], "changed_share": 0.0, **curves}
    )
    figure = draw_profile(profiles, profiles, [0.0, 0.5, 9.0], "title")
    for axes in figure.axes:
        marks = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"]
        assert marks == [0.0, 0.5]


# ------------------------------------------------------------------------------------ token view


def record_with(tokens, values):
    record = make_record("a", 1.0)
    return record | {"per_token": {"token": tokens, "kl_amplified_a": values, "nll_a": values}}


def test_text_of_the_model_is_escaped_and_every_token_has_its_numbers():
    tokens = ["<script>alert(1)</script>", ' "quoted"', "&amp;", "\n"]
    page = token_view.tokens_html(make_sweep(VALUES)[0], record_with(tokens, [0.0, 1.5, 9.0, 0.1]))
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "&amp;amp;" in page and "&quot;quoted&quot;" in page
    assert len(re.findall("<span ", page)) == 4
    assert "nll_a: 1.5" in page and "http" not in page


def test_a_darker_background_is_a_larger_divergence():
    page = token_view.tokens_html(make_sweep(VALUES)[0], record_with(["a", "b", "c"], [0, 0.4, 5]))
    shades = re.findall(r"<span style=\"background:(#[0-9a-f]{6})", page)
    light = [sum(bytes.fromhex(shade[1:])) for shade in shades]
    assert light[0] > light[1] > light[2] and light[0] > 700


def test_the_figure_breaks_lines_between_tokens_and_shows_all_of_them(tmp_path):
    tokens = [f" word{number}$" for number in range(60)] + ["\n", "x" * 300]
    figure = token_view.draw_tokens(make_sweep(VALUES)[0], record_with(tokens, [0.5] * 62))
    drawn = {text.get_text() for text in figure.axes[0].texts}
    assert all(rf"word{number}\$" in {t.strip() for t in drawn} for number in range(60))
    png, svg = style.save_figures({"tokens": figure}, tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG") and "word59$" in svg.read_text()


def test_an_empty_answer_can_be_shown():
    run = make_sweep(VALUES)[0]
    assert token_view.draw_tokens(run, record_with([], []))
    assert "<p" in token_view.tokens_html(run, record_with([], []))


# -------------------------------------------------------------------------------------- alpha tree


def test_the_tree_shows_every_split_and_the_widest_texts():
    leaves = [Leaf(0.0, 0.5, (1, 2, 3), "length"), Leaf(0.5, 2.0, (1, 4), "eos")]
    tree = AlphaTree(0.0, 3.0, leaves, [Split(1, 0.5, 2, 4)], [(2.0, 3.0)])
    figure = tree_view.draw_tree(tree, lambda ids: f"text {ids} for $5", "title")
    above, below = figure.axes
    (line,) = above.lines
    assert list(line.get_xdata()) == [0.5, 0.5] and list(line.get_ydata()) == [1, 3]
    assert "33.3% of the interval is left out" in above.get_title(loc="left")
    drawn = [text.get_text() for text in below.texts]
    assert drawn == [
        "1:  0.000 to 0.500",
        r"text (1, 2, 3) for \$5",
        "2:  0.500 to 2.000",
        r"text (1, 4) for \$5",
    ]
