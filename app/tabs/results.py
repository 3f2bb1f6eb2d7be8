"""The tab that shows what was measured and kept in `results/`: a table, and a plot of one of its columns."""

from __future__ import annotations

import math
from typing import Any

import gradio as gr
import pandas as pd

from app.measured import Table, read_tables
from app.tabs.tables import html_table
from app.words import t

EMPTY = "Nothing is measured yet. Benches write rows here with --results results/NAME.jsonl."


class ResultsTab:
    """The components of the tab. `refresh` reads the folder again."""

    def __init__(self) -> None:
        self.empty = gr.Markdown(t(EMPTY))
        self.table = gr.Dropdown([], label=t("Table"), elem_id="results-table-name")
        self.rows = gr.HTML("", elem_id="results-table")
        self.quantity = gr.Dropdown([], label=t("Plot"), elem_id="results-quantity")
        self.plot = gr.BarPlot(x="value", y="subject", elem_id="results-plot", height=320)
        options = {"preprocess": False, "show_progress": "hidden", "api_visibility": "private"}
        shown = [self.rows, self.quantity, self.plot]
        self.table.change(self._show, self.table, shown, **options)
        self.quantity.input(self._show_plot, [self.table, self.quantity], self.plot, **options)

    def refresh(self) -> dict[Any, Any]:
        """What is in the folder now."""
        tables = read_tables()
        names = [(one.name, index) for index, one in enumerate(tables)]
        return {
            self.empty: gr.update(visible=not tables),
            self.table: gr.update(
                choices=names, value=len(names) - 1 if names else None, visible=bool(names)
            ),
            self.quantity: gr.update(visible=bool(names)),
            self.plot: gr.update(visible=bool(names)),
        }

    @property
    def outputs(self) -> list[Any]:
        """What `refresh` changes."""
        return [self.empty, self.table, self.quantity, self.plot]

    def _show(self, index: Any) -> tuple[str, Any, Any]:
        table = _table(index)
        if table is None:
            return "", gr.update(choices=[], value=None), None
        rows = [[name, *(table.cell(name, one) for one in table.quantities)] for name in table.rows]
        text = html_table(["", *table.quantities], rows)
        first = table.quantities[0]
        code = html_table(["command"], [[table.command]])
        return text + code, gr.update(choices=table.quantities, value=first), _frame(table, first)

    def _show_plot(self, index: Any, quantity: Any) -> pd.DataFrame | None:
        table = _table(index)
        if table is None or quantity not in table.quantities:
            raise ValueError("there is no such column: choose one of the table")
        return _frame(table, quantity)


def _table(index: Any) -> Table | None:
    tables = read_tables()
    return tables[index] if type(index) is int and 0 <= index < len(tables) else None


def _frame(table: Table, quantity: str) -> pd.DataFrame:
    """Subjects and values of one column; what is not finite has no bar."""
    measured = ((name, row[quantity]["value"]) for name, row in table.rows.items() if quantity in row)
    finite = [
        (name, value) for name, value in measured if not isinstance(value, str) and math.isfinite(value)
    ]
    return pd.DataFrame(finite, columns=["subject", "value"])
