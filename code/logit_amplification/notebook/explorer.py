"""The explorer of the notebook: drag alpha, generate, read side by side, click on a token.

    explore(model, pairs)

Only ipywidgets' own widgets are used, so it works wherever they do: JupyterLab, Jupyter Notebook,
VS Code, Voilà. Where there are none, a still picture takes its place.
"""

from __future__ import annotations

import asyncio
import html
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from IPython.display import HTML

from ..errors import BadInput
from ..logits.amplification import Rule, amplify
from ..logits.next_token import HIGH, LOW, STEP
from ..models.loading import LoadedModel
from ..prompts.pairs import Message, PromptPair, is_raw, make_pair, prefill_of
from ..settings import Settings, load_settings
from .exploration import Exploration, Text
from .next_token_view import next_token_html, side_by_side
from .text_column import TextColumn

try:
    import ipywidgets as widgets
except ImportError:
    widgets = None

STILL_ALPHAS = (0.0, 0.5, 1.0, 2.0, 4.0)
TYPED = "typed"
EDITED = "(edited)"  # in the menu of pairs, once a field is another than the pair's
START = 2.0  # where the slider stands at first: what amplification does can be seen
OPENING_SECONDS = 20  # on a slow machine the first texts are cut, and no cell waits for them
STYLE = """<style>
.lda-texts .lda-token {width: auto; min-width: 0; height: auto; margin: 0; padding: 0;
  line-height: 1.7; white-space: pre; box-shadow: none; border-radius: 2px; flex: none}
.lda-texts .lda-token:focus-visible {outline: 2px solid #0072B2; outline-offset: 1px}
.lda-texts .lda-token.lda-parts {border-left: 4px solid #CC2277}
.lda-texts .lda-token.lda-at-hand {outline: 3px solid #CC2277; outline-offset: 0; z-index: 1}
/* The band below the slider has the slider's own place and width. */
.lda-alpha {margin: 2px 0}
.lda-alpha .widget-label, .lda-alpha .widget-readout {width: 64px; min-width: 64px; max-width: 64px;
  margin: 0; box-sizing: border-box}
.lda-alpha .slider-container {margin: 0; flex: 1 1 auto}
.lda-alpha .noUi-target {margin: 0 12px}
.lda-bars .next-token {padding: 0}
.lda-bars .next-token .strip {margin: .2em 74px .8em}
</style>"""
COPY_STYLE = """<style>
.lda-copy code {display: block; white-space: pre-wrap; overflow-wrap: anywhere; color: inherit;
  background: none; font-size: 12px; line-height: 1.4; margin-top: .3em}
</style>"""


def explore(
    model: LoadedModel,
    pairs: Sequence[PromptPair],
    settings: Settings | None = None,
    *,
    rule: Rule = amplify,
    alphas: Sequence[float] = (0.0, 1.0, START),
) -> Any:
    """Return the explorer for a cell to show; without ipywidgets, a still picture of it.

    settings: sampling, seed and length; by default those of `.env` and the environment. rule: as
    in `sweep`. alphas: texts of the first pair that are there when it opens, as far as they get in
    `OPENING_SECONDS`; empty for none. Raises BadInput for more than `MOST_TEXTS` of them.
    """
    exploration = Exploration(model, settings or load_settings(), rule)
    exploration.read(pairs[0])
    trouble = _first_texts(exploration, alphas)
    if widgets is None:
        return HTML(_alert(trouble) + _still(exploration))
    opened = Explorer(exploration, pairs)
    opened.status.value = _alert(trouble)
    return opened


def _first_texts(exploration: Exploration, alphas: Sequence[float]) -> str:
    """Make the texts of the start; what a rule does wrong is returned, and the rest goes on."""
    until = time.monotonic() + OPENING_SECONDS
    try:
        for _ in exploration.generating([float(alpha) for alpha in alphas]):
            if time.monotonic() > until:
                exploration.stop()
    except BadInput as error:
        return str(error)
    return ""


def _alert(trouble: str) -> str:
    return f'<b role="alert">error: {html.escape(trouble)}</b>' if trouble else ""


def _still(exploration: Exploration) -> str:
    """The first token at a few alphas, and the texts."""
    texts = "".join(
        f"<p><b>alpha {text.alpha:g}</b> {html.escape(''.join(exploration.token_texts(text)))}</p>"
        for text in exploration.texts
    )
    return side_by_side(exploration.choice, STILL_ALPHAS, exploration.token_text) + texts


class Explorer:
    """The widgets around an `Exploration`."""

    def __init__(self, exploration: Exploration, pairs: Sequence[PromptPair]):
        self.state, self.pairs = exploration, {pair.id: pair for pair in pairs}
        self.still = _still(exploration)
        self.columns: list[TextColumn] = []
        self.pair = widgets.Dropdown(description="Pair", options=list(self.pairs))
        self.fields = {
            (side, role): _field(f"{side}, {role}")
            for side in "AB"
            for role in ("system", "user", "prefill")
        }
        self.raw = {side: _raw_box(side) for side in "AB"}
        self.alpha = widgets.FloatSlider(
            value=START, min=LOW, max=HIGH, step=STEP, description="alpha", readout_format=".2f"
        )
        self.alpha.layout.width = "100%"
        self.alpha.add_class("lda-alpha")
        self.place = widgets.HTML()
        self.bars = widgets.HTML()
        self.bars.add_class("lda-bars")
        self.status = widgets.HTML()
        self.line = widgets.HTML()
        self.others = widgets.Text(value="0, 1, 2", description="Alphas")
        self.texts = widgets.Box()
        self.texts.add_class("lda-texts")
        self.texts.layout.display = "grid"
        self.texts.layout.grid_template_columns = "repeat(auto-fit, minmax(240px, 1fr))"
        self.texts.layout.grid_gap = "12px"
        self.buttons = {
            "read": _button("Read A and B", "let the model read what stands in the fields"),
            "first": _button("First token", "back to the first token of the answer"),
            "here": _button("Generate at this alpha", "one text, token by token"),
            "all": _button("Generate side by side", "one text for each of the alphas given"),
            "stop": _button("Stop", "end the texts here"),
            "clear": _button("Clear", "remove the texts"),
        }
        self.root = self._laid_out()
        self._show_pair()
        self._listen()
        self._moved()

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """Widgets where the frontend has them, the still picture where it has not."""
        return {"text/html": self.still, **self.root._repr_mimebundle_(**options)}

    def _laid_out(self) -> Any:
        sides = [
            widgets.VBox(
                [*(field for (of, _), field in self.fields.items() if of == side), self.raw[side]]
            )
            for side in "AB"
        ]
        for side in sides:
            side.layout.flex = "1 1 50%"
        row = partial(widgets.HBox, layout=widgets.Layout(flex_flow="row wrap"))
        buttons = self.buttons
        return widgets.VBox(
            [
                widgets.HTML(STYLE),
                row([self.pair, buttons["read"]]),
                widgets.HBox(sides),
                row([self.place, buttons["first"]]),
                self.alpha,
                self.bars,
                row(
                    [
                        buttons["here"],
                        self.others,
                        buttons["all"],
                        buttons["stop"],
                        buttons["clear"],
                    ]
                ),
                self.status,
                self.texts,
                self.line,
            ]
        )

    def _listen(self) -> None:
        self.pair.observe(self._pair_chosen, "value")
        self.alpha.observe(lambda _: self._redraw(), "value")
        for side, box in self.raw.items():
            box.observe(lambda _, side=side: self._raw_chosen(side), "value")
        actions = {
            "read": self._read,
            "first": self._look,
            "here": lambda: self._generate(lambda: [self.alpha.value]),
            "all": lambda: self._generate(lambda: parse_alphas(self.others.value)),
            "stop": self.state.stop,
            "clear": self._clear,
        }
        for name, action in actions.items():
            self.buttons[name].on_click(partial(self._clicked, action))
        self.buttons["stop"].disabled = True

    def _clicked(self, action: Callable[[], None], _button: Any) -> None:
        with self._telling():
            action()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What goes wrong is told below the bars: a button has no cell to fail in."""
        self.status.value = ""
        try:
            yield
        except Exception as error:
            told = str(error) if isinstance(error, BadInput) else f"{type(error).__name__}: {error}"
            self.status.value = _alert(told)

    # ------------------------------------------------------------------- reading, looking

    def _pair_chosen(self, _change: Any) -> None:
        if self.pair.value not in self.pairs:
            return
        with self._telling():
            self._show_pair()
            self._read()

    def _show_pair(self) -> None:
        self.chosen = pair = self.pairs[self.pair.value]
        for side, chat in (("A", pair.a), ("B", pair.b)):
            begun = prefill_of(chat)
            self.fields[side, "system"].value = _system(chat)
            self.fields[side, "user"].value = chat[-2 if begun else -1]["content"]
            self.fields[side, "prefill"].value = begun
            self.raw[side].value = is_raw(chat)

    def _raw_chosen(self, side: str) -> None:
        """A raw text stands alone."""
        for role in ("system", "prefill"):
            self.fields[side, role].disabled = self.raw[side].value

    def _read(self) -> None:
        written = self._written_pair()
        self.state.read(written)
        self._name_pair(is_edited=written is not self.chosen)
        self._moved()

    def _name_pair(self, *, is_edited: bool) -> None:
        """Let the menu say whether the model has read a pair or what was made of it."""
        self.pair.unobserve(self._pair_chosen, "value")  # other options choose the first of them
        self.pair.options = [*self.pairs, *[EDITED] * is_edited]
        self.pair.value = EDITED if is_edited else self.chosen.id
        self.pair.observe(self._pair_chosen, "value")

    def _written_pair(self) -> PromptPair:
        """The pair that is chosen, or what its fields have become."""
        pair = self.chosen
        chats = {
            side.lower(): _edited(
                chat,
                *(self.fields[side, role].value for role in ("system", "user", "prefill")),
                raw=self.raw[side].value,
            )
            for side, chat in (("A", pair.a), ("B", pair.b))
        }
        row = {"id": TYPED, "category": TYPED, **chats}
        row |= {"base": list(pair.base)} if pair.base else {}
        written = make_pair(row, TYPED, pair.sources)
        return pair if (written.a, written.b) == (pair.a, pair.b) else written

    def _look(self, text: Text | None = None, place: int = 0) -> None:
        self.state.look(text, place)
        self._moved(text, place)
        if text and self.alpha.value != text.alpha:
            self.alpha.value = text.alpha

    def _moved(self, text: Text | None = None, place: int = 0) -> None:
        """Show another place."""
        where = "The first token of the answer"
        if text:
            before = html.escape("".join(self.state.token_texts(text)[max(0, place - 8) : place]))
            where = f"Token {place + 1} of the text at alpha {text.alpha:g}, after “{before}”"
        self.place.value = f"<b>{where}</b>"
        self._show_texts()
        for column in self.columns:
            column.mark(place if column.text is text else None)
        self._redraw()

    def _redraw(self) -> None:
        self.bars.value = next_token_html(
            self.state.choice, self.alpha.value, self.state.token_text
        )
        self.line.value = copy_button(self.state.as_python(self.alpha.value))

    # ------------------------------------------------------------------------- generating

    def _generate(self, alphas: Callable[[], list[float]]) -> None:
        wanted, written = alphas(), self._written_pair()
        known = self.state.encoded.pair
        if (written.a, written.b) != (known.a, known.b):  # edited since the model read it
            self._read()
        work = self._generating(wanted)
        try:
            self.task = asyncio.get_running_loop().create_task(work)  # the slider stays alive
        except RuntimeError:  # no event loop: not in a notebook
            asyncio.run(work)

    async def _generating(self, alphas: list[float]) -> None:
        with self._telling(), self._busy():
            await self.state.generate(alphas, self._show_texts)
            self._show_texts()

    @contextmanager
    def _busy(self) -> Iterator[None]:
        for name in ("here", "all", "stop"):
            self.buttons[name].disabled = name != "stop"
        try:
            yield
        finally:
            for name in ("here", "all", "stop"):
                self.buttons[name].disabled = name == "stop"

    def _clear(self) -> None:
        self.state.clear()
        self._moved()

    def _show_texts(self) -> None:
        if [column.text for column in self.columns] != self.state.texts:
            known = {id(column.text): column for column in self.columns}
            self.columns = [
                known.get(id(text)) or TextColumn(text, partial(self._token_clicked, text))
                for text in self.state.texts
            ]
            self.texts.children = [column.root for column in self.columns]
        for column in self.columns:
            told = self.state.token_texts(column.text)
            column.refresh(told, self.state.reference, self.state.running is not None)

    def _token_clicked(self, text: Text, place: int) -> None:
        with self._telling():
            self._look(text, place)


# ---------------------------------------------------------------------------------------- parts


def copy_button(line: str) -> str:
    """Return a button that copies a line of Python, and the line to select where it cannot."""
    shown = html.escape(line)
    return (
        f'{COPY_STYLE}<div class="lda-copy"><button type="button" data-line="{shown}" onclick="'
        "navigator.clipboard.writeText(this.dataset.line)"
        ".then(() => {this.textContent = 'Copied'})\">Copy as Python</button>"
        f"<code>{shown}</code></div>"
    )


def parse_alphas(text: str) -> list[float]:
    """Return the alphas of a line like "0, 0.5, 2". Raises BadInput, naming what is none."""
    alphas = []
    for part in text.replace(",", " ").split():
        try:
            alphas.append(float(part))
        except ValueError:
            raise BadInput(f"Alphas: {part!r:.40}; allowed: numbers, like 0, 0.5, 2") from None
        if not abs(alphas[-1]) <= 1000:
            raise BadInput(f"Alphas: {part!r:.40}; allowed: from -1000 to 1000")
    return alphas


def _edited(
    chat: Sequence[Message], system: str, user: str, prefill: str, *, raw: bool
) -> list[Message]:
    """A chat with another system text, last message and prefill; turns in between stay."""
    if raw:
        return [{"role": "raw", "content": user}]
    turns = [dict(message) for message in chat if message["role"] in ("user", "assistant")]
    before = turns[: -2 if prefill_of(chat) else -1]
    first = [{"role": "system", "content": system}] if system.strip() else []
    begun = [{"role": "assistant", "content": prefill}] if prefill.strip() else []
    return [*first, *before, {"role": "user", "content": user}, *begun]


def _system(chat: Sequence[Message]) -> str:
    return chat[0]["content"] if chat[0]["role"] == "system" else ""


def _raw_box(side: str) -> Any:
    return widgets.Checkbox(
        description=f"{side} is raw text",
        tooltip="the user's text goes to the model as it is, without a chat template",
        indent=False,
    )


def _field(label: str) -> Any:
    field = widgets.Textarea(description=label, rows=2)
    field.layout.width = "98%"
    return field


def _button(label: str, tooltip: str) -> Any:
    return widgets.Button(
        description=label, tooltip=tooltip, layout=widgets.Layout(width="max-content", flex="none")
    )
