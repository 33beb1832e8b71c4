"""Every run of every sweep, and every configuration at the paper's scale, resolves."""

import json
import pathlib

import pytest

from hiermem_jax import configuration, sweep

ROOT = pathlib.Path(__file__).parents[2]
SWEEPS = sorted(ROOT.glob("experiments/*/sweep*.json"))
TRAININGS = ["fig3_kinds_depth/paper", "table9_placement/paper", "fig4_sizes_ratio/paper", "fig4_sizes_ratio/paper_ratio",
             "fig4_sizes_ratio/paper_ratio_anchor", "tokens_per_parameter/paper", "scaling_curves/paper", "sensitivity/paper"]  # fmt: skip
EVALUATIONS = {
  "table3_rag/paper": ["DOCUMENTS = '/d'"],
  "fig6_blocking/paper": [],
  "fig1_elements/paper": ["CORPUS = '/c'"],
}


def flags(command):
  """gin files and bindings of a command line."""
  values = [flag.partition("=") for flag in command if flag.startswith("--gin_")]
  return ([value for name, _, value in values if name == f"--gin_{kind}"] for kind in ("file", "bindings"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_sweeps(path, monkeypatch):
  monkeypatch.chdir(ROOT)
  jobs = [job for job in sweep.jobs(sweep.load(path), pathlib.Path("/runs")) if job.seed == 0]
  for job in jobs:
    configuration.load(*flags(job.command))
    configuration.dry_run("run", run_dir=str(job.directory))
  settings = [json.dumps(job.settings, sort_keys=True) for job in jobs if job.name != "setup"]
  assert len(set(settings)) == len(settings)


@pytest.mark.parametrize("name", TRAININGS)
def test_trainings_at_the_papers_scale(name):
  bindings = ["train.dataset = '/d'"]
  if name.endswith("paper_ratio"):
    bindings += ["MemoryConfig.rows = (3840, 336, 6, 0)", "AnchorConfig.num_layers = 12", "train.init_from = '/a'"]
  configuration.load([str(ROOT / f"experiments/{name}.gin")], bindings)
  configuration.dry_run("train", run_dir="/runs/x")


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluations_at_the_papers_scale(name):
  configuration.load([str(ROOT / f"experiments/{name}.gin")], ["TaskSet.data = '/e'", *EVALUATIONS[name]])
  configuration.dry_run("evaluate_tasks", run_dir="/runs/x")


def test_every_paper_configuration_is_tested():
  found = {f"{path.parent.name}/{path.stem}" for path in ROOT.glob("experiments/*/paper*.gin")}
  assert found == {*TRAININGS, *EVALUATIONS}


@pytest.mark.parametrize("name", ["paper", "no_reading"])
def test_evaluation_files(name):
  configuration.load([str(ROOT / f"gin/evaluation/{name}.gin")], ["TaskSet.data = '/e'"])
  configuration.dry_run("evaluate_tasks", run_dir="/runs/x")
  tasks = configuration.bound_argument("evaluate_tasks", "tasks")
  assert len(tasks.names) == {"paper": 14, "no_reading": 13}[name]
