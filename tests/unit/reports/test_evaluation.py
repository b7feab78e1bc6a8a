"""How figures are written: one unit and as many decimals in a column, and names that people use."""

import pandas as pd
import pytest

from neutreno.evaluation.per_layer import tables
from neutreno.reports.evaluation import metric_tables, metric_title, render
from neutreno.reports.layers import wide


def test_every_table_of_metrics_has_one_unit_and_as_many_decimals():
    metrics = {"val/top1": 90.37037, "val/loss": 0.4, "test/top1": 9.5, "val/ece": 3.25, "test/loss": 12.0}
    shown = metric_tables(metrics, [("parameters", "1,234")], ("top1",))
    shown = {table.columns[0]: dict(table.rows) for table in shown}
    assert shown["metric"] == {"val/top1": "90.37 %", "test/top1": "9.50 %"}
    assert shown["loss"] == {"val/loss": "0.4000", "test/loss": "12.0000"}
    assert shown["other metric"] == {"val/ece": "3.25"} and shown["figure"] == {"parameters": "1,234"}


TITLES = {"top1": "top-1", "miou": "mean IoU"}


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("val/top1", "val top-1"),
        ("val_crop0.9/top1", "val crop0.9 top-1"),
        ("background/val_miou", "background val mean IoU"),
        ("val/stop1", "val stop1"),
        ("escape_step/cosine", "escape step cosine"),
    ],
)
def test_a_metric_is_called_what_its_task_calls_it_else_by_its_name(name, title):
    assert metric_title(name, TITLES) == title


def rows(*means, sd=0.01):
    fixed = {"subset": "all", "metric": "residual", "stack": "blocks", "sd": sd}
    return pd.DataFrame([{**fixed, "layer": layer, "mean": mean} for layer, mean in enumerate(means)])


def test_a_column_of_layers_has_the_same_decimals_from_top_to_bottom():
    assert [*wide(rows(14.59, 12.0, 9.9), ["layer"]).iloc[:, 1]] == ["14.59 ± 0.01", "12.00 ± 0.01", "9.90 ± 0.01"]
    assert [*wide(rows(0.1, 0.2053), ["layer"]).iloc[:, 1]] == ["0.1000 ± 0.0100", "0.2053 ± 0.0100"]


def test_layers_that_nearly_vanish_are_written_in_powers_of_ten():
    assert [cell.split()[0] for cell in wide(rows(0.5, 2e-7), ["layer"]).iloc[:, 1]] == ["5.000e-01", "2.000e-07"]


def test_tables_of_the_metrics_that_are_probed_by_default_are_no_wider_than_a_terminal():
    draws = [
        {**row, "metric": metric, "subset": subset}
        for metric in ("cosine", "residual", "effective_rank")
        for subset in ("all", "patch")
        for row in rows(0.05, 0.5, 0.1234).to_dict("records")
    ]
    found = [*tables(draws)]
    assert [table.columns[0] for table in found] == ["layer", "layer, patch"]
    assert [row[0] for row in found[0].rows] == ["0 (embedding)", "1", "2"]
    page = render({"name": "x", "weights": "x", "tables": [vars(table) for table in found]})
    assert len(page.splitlines()) > 10 and max(map(len, page.splitlines())) <= 80
