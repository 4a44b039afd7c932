"""The bar: it redraws where lines can be redrawn, and writes plain lines into a log."""

import io
import re

import pytest
from conftest import PROMPTS

from logit_amplification.engine.batch.batched import BatchedEngine
from logit_amplification.errors import Interrupted
from logit_amplification.models.loading import load_model
from logit_amplification.progress import LOG_SECONDS, Bar, SweepBar, glimpse
from logit_amplification.prompts.files import read_pairs
from logit_amplification.sweeps.sweep import sweep


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_a_terminal_gets_one_line_that_is_redrawn():
    out = Terminal()
    with Bar(total=4, file=out, mininterval=0, desc="x") as bar:
        for _ in range(4):
            bar.update()
    assert out.getvalue().count("\r") >= 4 and out.getvalue().count("\n") == 1


def test_a_log_gets_lines_without_control_characters():
    out = io.StringIO()
    with Bar(total=3, file=out, desc="x") as bar:
        bar.update(3)
    lines = out.getvalue().splitlines()
    assert [line[:8] for line in lines] == ["x:   0%|", "x: 100%|"]
    assert out.getvalue().isascii() and not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out.getvalue())


def test_a_log_gets_a_line_now_and_then_only(monkeypatch):
    now = [0.0]
    out = io.StringIO()
    bar = Bar(total=1000, file=out, desc="x")
    monkeypatch.setattr(bar, "_time", lambda: now[0])
    bar.last_print_t = bar.start_t = 0.0
    for _ in range(1000):
        now[0] += 0.1
        bar.update()
    bar.close()
    assert 3 <= len(out.getvalue().splitlines()) <= 100 / LOG_SECONDS + 3


def test_the_bar_of_a_sweep_tells_tokens_per_second_answers_time_left_and_the_last_text(capsys):
    with SweepBar(answers=4, max_new_tokens=10) as bar:
        bar.update(10)
        bar.answered(6, "Hello\x1b[31m there\n you")
        assert bar.total == 36  # an answer that ends early makes less to do
    line = capsys.readouterr().out.splitlines()[-1]
    assert re.search(r"tokens/s, .+ left, 1 of 4 answers, Hello", line) and "\x1b" not in line


def test_a_glimpse_is_one_short_line():
    assert glimpse("a\nb\tc\x07 d") == "a b c d"
    assert len(glimpse("word " * 100)) == 40 and glimpse("word " * 100).endswith("…")


def test_an_interrupted_sweep_says_in_one_line_what_is_kept(tiny, settings, tmp_path, monkeypatch):
    (tmp_path / "prompts.csv").write_text(PROMPTS)
    pairs = read_pairs(tmp_path / "prompts.csv")
    generate = BatchedEngine.generate

    def interrupted(*args, **options):
        for number, generation in enumerate(generate(*args, **options)):
            if number == 3:
                raise KeyboardInterrupt
            yield generation

    monkeypatch.setattr(BatchedEngine, "generate", interrupted)
    with pytest.raises(Interrupted) as told:
        sweep(tiny, pairs, settings)
    (line,) = told.value._render_traceback_()
    assert line.startswith("Interrupted. 3 of the 18 generations to make are in the journal")
    monkeypatch.undo()
    assert len(sweep(tiny, pairs, settings).records) == 18


def test_the_loading_of_weights_has_a_bar(settings, monkeypatch, capsys):
    monkeypatch.setattr("logit_amplification.models.loading.BAR_AFTER", 0.0)
    load_model(settings)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("loading weights:   0%") and last.startswith("loading weights: 100%")


def test_a_quick_load_shows_no_bar(settings, capsys):
    load_model(settings)
    assert capsys.readouterr().out == ""
