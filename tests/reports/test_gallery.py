"""Every figure can be drawn from records alone, and holds what it should."""

import warnings

import pytest

from logit_amplification.errors import BadInput
from logit_amplification.reports.figures import gallery, style
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


def test_model_text_is_drawn_as_it_is():
    """A dollar sign must not start mathematics, nor a tag markup."""
    figure = gallery.draw_texts(*make_sweep(VALUES), "a1")
    drawn = [text.get_text() for text in figure.axes[0].texts]
    assert r"answer 1.0 <b>\$x\$</b>" in drawn


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="VISUALIZATIONS_DIR"):
        style.save_figures({}, tmp_path / "file" / "below")
