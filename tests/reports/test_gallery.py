"""Every figure can be drawn from records alone, and holds what it should."""

import warnings

import pytest
from matplotlib.figure import Figure

from logit_amplification.errors import BadInput
from logit_amplification.evaluation import stats
from logit_amplification.reports import report
from logit_amplification.reports.figures import doses, gallery, style
from logit_amplification.statistics import intervals
from made_records import FIGURES, make_sweep

VALUES = {"a1": [1, 2], "a2": [3, 4], "b1": [5, 6], "null": [1, 1]}


def test_all_figures_are_saved_as_png_without_a_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = style.save_figures(gallery.draw_all(*make_sweep(VALUES)), tmp_path / "new")
    assert (
        {path.name for path in paths} == FIGURES == {p.name for p in (tmp_path / "new").iterdir()}
    )
    starts = {".png": b"\x89PNG", ".svg": b"<?xml"}
    assert all(path.read_bytes().startswith(starts[path.suffix]) for path in paths)


@pytest.mark.parametrize("values", [{"null": [1, 1]}, {"a": [1, 2]}, {"a": [1], "b": [2]}])
def test_small_sweeps_can_be_drawn_too(tmp_path, values):
    alphas = (0.0, 1.0)[: len(next(iter(values.values())))]
    assert style.save_figures(gallery.draw_all(*make_sweep(values, alphas=alphas)), tmp_path)


@pytest.mark.parametrize(
    "draw", [gallery.draw_dose_response, gallery.draw_response_length, gallery.draw_logits]
)
def test_every_panel_has_a_title_and_labelled_axes(draw):
    figure = draw(*make_sweep(VALUES))
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert len(panels) >= 3
    for axes in panels:
        assert axes.get_title(loc="left") and axes.get_xlabel() and axes.get_ylabel()


@pytest.mark.parametrize(
    "draw", [gallery.draw_dose_response, gallery.draw_response_length, gallery.draw_logits]
)
def test_the_legend_covers_no_panel(draw):
    figure = draw(*make_sweep(VALUES))
    figure.canvas.draw()
    (legend,) = figure.subfigs[1].legends
    box = legend.get_window_extent()
    assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)
    (note,) = figure.subfigs[1].texts
    assert not box.overlaps(note.get_window_extent())
    assert "n = 3" in " ".join(text.get_text() for text in legend.get_texts())


def test_the_mean_line_is_the_mean_over_pairs_without_the_null_pair():
    panel = gallery.draw_dose_response(*make_sweep(VALUES)).axes[1]
    means = next(line for line in panel.lines if line.get_color() == style.MEAN)
    assert list(means.get_ydata()) == pytest.approx([3.0, 4.0])


def test_intervals_end_where_a_measure_does():
    """Two pairs far apart have an interval of the NLL that would reach below 0."""
    values = {"a": [1, 1], "b": [9, 9]}
    assert stats.dose(stats.to_frame(make_sweep(values)[1]), "nll_a")["lower"].min() < 0
    figure = gallery.draw_dose_response(*make_sweep(values))
    (band,) = figure.axes[1].collections
    assert band.get_paths()[0].vertices[:, 1].min() == 0
    assert "too few pairs" in figure.subfigs[0].get_suptitle()


def test_model_text_is_drawn_as_it_is():
    """A dollar sign must not start mathematics, nor a tag markup."""
    figure = gallery.draw_texts(*make_sweep(VALUES), "a1")
    drawn = [text.get_text() for text in figure.axes[0].texts]
    assert r"answer 0.0 <b>\$x\$</b>" in drawn


def test_the_first_difference_from_a_is_marked_and_b_comes_first():
    run, records = make_sweep({"a": [1, 1, 1], "null": [1, 1, 1]}, alphas=(-1.0, 0.0, 2.0))
    figure = gallery.draw_texts(run, records, "a")
    drawn = [text.get_text() for text in figure.axes[0].texts]
    heads = [text for text in drawn if text.startswith("alpha")]
    assert heads == ["alpha -1: B", "alpha 0: A", "alpha 2"]
    assert r"answer ▶2.0 <b>\$x\$</b>" in drawn and r"answer 0.0 <b>\$x\$</b>" in drawn


def test_without_a_choice_the_text_is_that_of_a_typical_pair():
    rows = {"slow": [0, 1], "typical": [1, 3], "fast": [0, 9], "null": [0, 0]}
    figure = gallery.draw_texts(*make_sweep(rows, measure="log_ratio_a_b"))
    drawn = [text.get_text() for text in figure.axes[0].texts]
    assert "One question from B over A to larger alpha (typical)" in drawn


def test_b_is_left_out_of_the_figures_that_go_from_a_on():
    run, records = make_sweep({"a": [9, 1, 1], "b": [9, 1, 2]}, alphas=(-1.0, 0.0, 2.0))
    panel = gallery.draw_dose_response(run, records).axes[1]
    means = next(line for line in panel.lines if line.get_color() == style.MEAN)
    assert list(means.get_xdata()) == [0.0, 2.0]


def test_at_most_three_arms_share_a_panel():
    run, records = make_sweep(VALUES)
    for arm in ("plausible", "api_floor", "api_spread"):
        records += make_sweep(VALUES, arm=arm)[1]
    for draw in (gallery.draw_arms, gallery.draw_path):
        for axes in draw(run, records).axes:
            assert len(axes.containers or axes.lines) <= 3


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="VISUALIZATIONS_DIR"):
        style.save_figures({}, tmp_path / "file" / "below")


def declaring(values, arm="full"):
    """A sweep whose pairs declare an attribute, which has these values at each alpha."""
    run, records = make_sweep(values, arm=arm)
    values = iter(value for row in values.values() for value in row)
    return run, [r | {"attributes": r["attributes"] | {"declared": next(values)}} for r in records]


def test_the_declared_attribute_is_counted_as_the_report_counts_it():
    run, records = declaring({"a": [1, 4], "b": [2, 1], "c": [2, 2], "d": [1, 2], "e": [0, 1]})
    told = "rises in 3 families"
    assert any(f"{told}, falls in 1 and stays in 1" in f for f in report.findings(run, records))
    figure = gallery.draw_attribute(run, records)
    assert f"{told} and falls in 1 at alpha 1" in figure.subfigs[0].get_suptitle()
    by_distance, by_attribute = figure.axes
    assert [bar.get_width() for bar in by_attribute.patches] == [3, -1]
    assert [tick.get_text() for tick in by_attribute.get_yticklabels()] == ["length (5)"]
    (line,) = (part.lines[0] for part in by_distance.containers)
    assert list(line.get_ydata()) == pytest.approx([0, (3 - 1) / 5])


def test_a_control_that_grows_as_much_is_drawn_beside_the_pairs():
    run, records = declaring({name: [n, 4 + n] for n, name in enumerate("abcdef")})
    _, moved = declaring({name: [n, 4 + n] for n, name in enumerate("abcdef")})
    for record in moved:
        record |= {"pair_id": f"{record['pair_id']}~paraphrase", "control": "paraphrase"}
    for record in (*records, *moved):
        record["measures"] = record["measures"] | {"kl_sampled_a": record["alpha"]}
    figure = gallery.draw_attribute(run, [*records, *moved])
    assert len(figure.axes[0].containers) == 2
    assert "not shown to grow more than under A's paraphrase" in figure.subfigs[0].get_suptitle()


def test_without_a_declared_attribute_the_figure_says_how_to_declare_one():
    run, records = make_sweep(VALUES)
    figure = gallery.draw_attribute(run, [r | {"attribute": ""} for r in records])
    assert not figure.axes
    assert "column “attribute”" in figure.subfigs[0].texts[-1].get_text()


def test_an_interval_that_goes_on_beyond_the_frame_ends_in_an_arrowhead():
    axes = Figure().subplots()
    estimates = [intervals.Estimate(1.0, -9.0, 9.0, 2), intervals.Estimate(2.0, 1.0, 5.0, 9)]
    doses.draw_forest(axes, [("wide", estimates[0]), ("narrow", estimates[1])])
    heads = [line.get_marker() for line in axes.lines if line.get_marker() in ("<", ">")]
    assert heads == ["<", ">"]
    low, high = axes.get_xlim()
    assert -9 < low < 0 and 5 < high < 9
