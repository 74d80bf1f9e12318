"""The notebooks run from top to bottom as committed, and show their figures."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["01_first_run.ipynb"])
def test_notebook_runs_and_shows_figures(name: str) -> None:
    """Every cell of the notebook runs without an error, and at least three figures come out."""
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [] == [output for output in outputs if output.output_type == "error"]
    assert 3 <= sum("image/png" in output.get("data", {}) for output in outputs)
