"""A generated text in the explorer: its tokens are buttons, shaded by KL(amplified || A)."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

from ..logits.vocabulary import PER_TOKEN
from ..reports.figures.token_view import FULL_COLOUR, shade
from ..statistics.wording import counted
from .exploration import Text, first_difference

try:
    import ipywidgets as widgets
except ImportError:
    widgets = None

SHADES = 8
SHOWN = ("kl_amplified_a", "nll_a", "rank_a", "entropy")  # when the mouse rests on a token


class TextColumn:
    """A text whose tokens are buttons; the first that differs from the reference is marked."""

    def __init__(self, text: Text, clicked: Callable[[int], None]):
        self.text, self.clicked = text, clicked
        self.head = widgets.HTML()
        self.tokens = widgets.Box(layout=widgets.Layout(flex_flow="row wrap"))
        self.root = widgets.VBox([self.head, self.tokens])
        self.styles: dict[int, Any] = {}
        self.at_hand: int | None = None

    def refresh(self, shown: Sequence[str], reference: Text, growing: bool) -> None:
        """Show the tokens that there are by now. growing: whether more are being made."""
        have = list(self.tokens.children)
        for button, token in zip(have, shown, strict=False):
            if button.description != _readable(token):  # a character that was half there
                button.description = _readable(token)
        if len(have) < len(shown):
            new = [self._button(place, shown[place]) for place in range(len(have), len(shown))]
            self.tokens.children = (*have, *new)
        ids, others = self.text.generation.token_ids, reference.generation.token_ids
        parts = first_difference(ids, others)
        for place, button in enumerate(self.tokens.children):
            _set_class(button, "lda-parts", place == parts)
        self.head.value = (
            f"<b>alpha {self.text.alpha:g}</b>, {self._told(parts, reference, growing)}"
        )

    def mark(self, place: int | None) -> None:
        """Mark the token that is looked at."""
        for number, button in enumerate(self.tokens.children):
            _set_class(button, "lda-at-hand", number == place)

    def _told(self, parts: int | None, reference: Text, growing: bool) -> str:
        generation = self.text.generation
        ended = {"eos": "ended", "length": "cut at the limit"}
        ended |= {None: "growing" if growing else "stopped; Generate makes it whole"}
        count = counted(len(generation.token_ids), "token")
        told = f"{count}, {ended.get(generation.finish_reason, 'error')}"
        if generation.error:
            told += f": {html.escape(generation.error)}"
        if parts is not None:
            told += f"; first differs from alpha {reference.alpha:g} at token {parts + 1} (marked)"
        elif self.text is not reference:
            told += f"; so far the same as alpha {reference.alpha:g}"
        return told

    def _button(self, place: int, token: str) -> Any:
        measures = dict(zip(PER_TOKEN, self.text.generation.per_token[place], strict=True))
        level = round(min(measures["kl_amplified_a"], FULL_COLOUR) / FULL_COLOUR * SHADES)
        button = widgets.Button(
            description=_readable(token),
            tooltip="\n".join(f"{name}: {measures[name]:.3g}" for name in SHOWN),
            style=self._style(level),
        )
        button.add_class("lda-token")
        button.on_click(lambda _: self.clicked(place))
        return button

    def _style(self, level: int) -> Any:
        """Tokens of one shade share a style: a message less for each."""
        if level not in self.styles:
            background, ink = shade(level / SHADES * FULL_COLOUR)
            self.styles[level] = widgets.ButtonStyle(button_color=background, text_color=ink)
        return self.styles[level]


def _readable(token: str) -> str:
    """What stands on a token's button: never nothing."""
    return token.replace("\n", "⏎") or "·"


def _set_class(widget: Any, name: str, wanted: bool) -> None:
    if wanted != (name in widget._dom_classes):
        (widget.add_class if wanted else widget.remove_class)(name)
