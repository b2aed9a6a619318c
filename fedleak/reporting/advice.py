"""Advice for a terminal of 80 columns: where it leaks, what was tried, what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedleak.reporting import text
from fedleak.reporting.terminal import outside

_BAR = 24


def advice_report(
    metric: str,
    ranking: Mapping[str, float],
    layers: Sequence[str],
    tried: Sequence[tuple[str, float | None, float | None]],
    best: tuple[str, float | None, float | None],
    *,
    hides: bool,
    needed: bool,
    at_chance: bool,
    of_texts: bool,
    notes: Sequence[str],
) -> RenderableType:
    """Render advice for `rich.console.Console.print`.

    Args:
        metric: What layers are ranked by.
        ranking: Value by layer, the greatest first.
        layers: Those that leak most.
        tried: Protection, leak and accuracy; the first is what there was.
        best: The one that is advised.
        hides: Whether with it samples no longer count as reconstructed.
        needed: Whether they do as it is.
        at_chance: Whether the model has learnt too little to lose accuracy.
        of_texts: Whether leaks are shares of right tokens and not PSNR in dB.
        notes: What a reader must know beside that.
    """

    def leak(value: float | None) -> str:
        if value is None:
            return "nothing found"
        return text.percent(value) if of_texts else f"{text.decibel(value)} dB"

    _, leak_before, accuracy_before = tried[0]
    name, leak_after, accuracy_after = best
    said = f"{', '.join(layers)} leak{'s' if len(layers) == 1 else ''} most. " + (
        f"{name}: {leak(leak_before)} become {leak(leak_after)}, "
        f"accuracy {text.percent(accuracy_before)} becomes {text.percent(accuracy_after)}."
    )
    if not needed:
        said = (
            f"As it is, the attacks do not reconstruct the samples ({leak(leak_before)}): "
            "nothing to protect from these attacks."
        )
    elif not hides:
        said += " That is the most that was reached, and it does not hide the samples."
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("layer", overflow="fold")
    table.add_column(metric, justify="right")
    table.add_column("")
    most = max(ranking.values())
    for layer, value in ranking.items():
        bar = "█" * round(_BAR * value / most) if most > 0 else ""
        style = "red" if layer in layers else ""
        table.add_row(outside(layer), text.plain(value), bar, style=style)
    protections = Table(box=None, pad_edge=False, header_style="dim")
    protections.add_column("protection", overflow="fold")
    protections.add_column("right tokens" if of_texts else "mean PSNR", justify="right")
    protections.add_column("accuracy", justify="right")
    for each in tried:
        protections.add_row(
            outside(each[0]),
            leak(each[1]),
            text.percent(each[2]),
            style="green" if each == best else "",
        )
    chance = (
        "The model is no better than chance: what a protection costs in accuracy cannot be seen. "
        "Run more rounds."
    )
    once = Text("One run each, so small differences mean nothing.", "dim")
    return Group(
        Text(said, "bold"),
        Text(),
        table,
        Text(),
        protections,
        *([chance] if at_chance else []),
        once,
        *(outside(note) for note in notes),
    )
