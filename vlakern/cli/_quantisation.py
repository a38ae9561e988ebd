"""What int8 or fp8 costs a policy, as a table."""

import dataclasses
from typing import Any

from rich.markup import escape
from rich.table import Table

from vlakern.cli._common import console

__all__ = ["report"]


def report(policy: str, dtype: str, seed: int) -> dict[str, Any]:
    """Measures, prints two tables and returns the report as plain data."""
    from vlakern.infer.quantisation import measure_quantisation

    found = measure_quantisation(policy, dtype, seed=seed)
    title = escape(f"error of {dtype} in {found.policy}, relative, on seeded observations")
    layers = Table(title=title, title_justify="left", show_edge=False)
    actions = Table(
        title=escape(f"error of actions, normalised units ({found.engine})"),
        title_justify="left",
        show_edge=False,
    )
    for table, first, columns in (
        (layers, "layer", ("weights", "product", "product in bf16")),
        (actions, "actions", ("mean", "p99", "max")),
    ):
        table.add_column(first, overflow="fold")
        for column in columns:
            table.add_column(column, justify="right")
    for layer in found.layers:
        errors = (layer.weight, layer.product, layer.bf16)
        layers.add_row(layer.name, *("not run" if x is None else f"{x:.1e}" for x in errors))
    for name, error in (
        (f"{dtype} against bf16", found.actions),
        ("bf16 against fp32", found.bf16),
    ):
        actions.add_row(name, *(f"{value:.4f}" for value in dataclasses.astuple(error)))
    console().print(layers)
    console().print()
    console().print(actions)
    return dataclasses.asdict(found)
