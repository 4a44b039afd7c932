"""The page of all figures: captions from the data, nothing from elsewhere, the same bytes again."""

import re

from logit_amplification.evaluation import stats
from logit_amplification.reports import contact_sheet
from logit_amplification.reports.figures import gallery, style
from logit_amplification.statistics.wording import format_estimate
from made_records import make_sweep

VALUES = {"a1": [1, 2], "a2": [3, 4], "b1": [5, 6], "null": [1, 1]}


def two_arms():
    run, records = make_sweep(VALUES)
    return run, records + make_sweep(VALUES, arm="api_sentinel")[1]


def test_every_figure_has_a_caption_with_its_numbers():
    run, records = two_arms()
    told = gallery.captions(records)
    assert set(told) == set(gallery.draw_all(run, records))
    expected = format_estimate(stats.dose(stats.to_frame(records[:8]), "nll_a").loc[1.0])
    assert expected in told["dose_response"] and "n = 3 families" in told["outcomes"]
    assert "Arm api_sentinel minus full at alpha 1" in told["arms"]


def test_the_page_shows_every_figure_and_needs_nothing_from_elsewhere():
    run, records = two_arms()
    names = list(gallery.draw_all(run, records))
    page = contact_sheet.write_page(run, records, names)
    for name in names:
        assert f'src="{name}.png"' in page and f'href="{name}.svg"' in page
    assert "<script" not in page and "http" not in page
    assert not re.search(r'alt=""', page)


def test_names_of_pairs_are_escaped():
    run, records = make_sweep({"<b>": [1, 2], "c": [1, 2]})
    page = contact_sheet.write_page(run, records, ["text_by_alpha"])
    assert "pair &lt;b&gt;" in page and "<b>," not in page


def test_controls_alone_have_a_page_too():
    run, records = make_sweep({"null": [1, 1]})
    assert "<figure" in contact_sheet.write_page(run, records, ["arms"])


def test_the_same_data_give_the_same_svg(tmp_path):
    for folder in ("one", "two"):
        drawn = {"arms": gallery.draw_arms(*two_arms())}
        style.save_figures(drawn, tmp_path / folder)
    assert (tmp_path / "one" / "arms.svg").read_bytes() == (tmp_path / "two/arms.svg").read_bytes()
    assert "NLL under A" in (tmp_path / "one" / "arms.svg").read_text()  # text stays text


def test_lines_can_be_told_apart_without_colour():
    """In greyscale the marker has to say it: one of its own for every line of a panel."""
    for axes in gallery.draw_arms(*two_arms()).axes:
        markers = [container.lines[0].get_marker() for container in axes.containers]
        assert len(set(markers)) == len(markers) == 2
    assert len(set(style.MARKERS)) == len(style.COLOURS)
