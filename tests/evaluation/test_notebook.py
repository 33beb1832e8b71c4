"""The tour runs from its first cell to its last, on the toy run."""

import os
import pathlib

import nbclient
import nbformat
import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_TOUR = _ROOT / "notebooks/tour.ipynb"


def test_no_outputs_are_committed():
  notebook = nbformat.read(_TOUR, as_version=4)
  nbformat.validate(notebook)
  assert not any(cell.outputs or cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.slow
def test_tour(toy_run, monkeypatch):
  monkeypatch.setenv("HIERMEM_RUN", str(toy_run / "model"))
  monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]))
  notebook = nbformat.read(_TOUR, as_version=4)
  nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(_TOUR.parent)}}).execute()
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert all(cell.outputs for cell in code)
  shown = "\n".join(
    output.get("text", "") or output.get("data", {}).get("text/plain", "") for cell in code for output in cell.outputs
  )
  assert "a bank of 1,344 over 4 leaves" in shown and "level 2, cluster" in shown and "'m1': (2, 5, 16)" in shown
