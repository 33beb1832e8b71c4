"""The list of what can be bound for a verb: complete, explained, and bindable as it stands."""

import json

import pytest

from hiermem_jax import config_params, configuration
from hiermem_jax.verbs import CONFIGURED


def parameters(verb, *bindings):
  """Without what other tests have registered from modules of their own."""
  configuration.load([], bindings)
  known = {
    name: made for name, made in configuration.constructors().items() if made.__module__.startswith("hiermem_jax")
  }
  return {found.name: found for found in config_params.parameters(verb, known)}


@pytest.mark.parametrize("verb", CONFIGURED)
def test_every_name_is_explained_and_has_a_default_that_can_be_bound(verb):
  found = parameters(verb)
  assert found and all(parameter.type and parameter.help for parameter in found.values()), found
  bindings = [f"{name} = {parameter.default}" for name, parameter in found.items() if parameter.default is not None]
  configuration.load([], bindings)  # each name and each default is gin's
  assert not {f"{verb}.run_dir", "describe.as_json", "describe.run", "compile_pod.run"} & found.keys()


def test_train():
  found = parameters("train", "train.log_every = 7")
  steps, log_every, kind = found["train.steps"], found["train.log_every"], found["MemoryConfig.kind"]
  assert (steps.type, steps.default) == ("int", None)
  assert steps.help == "length of the run, which also sets the learning-rate schedule"
  assert log_every.default == "7" and kind.default == "'ffn'"
  assert found["ModelConfig.memory"].type == "MemoryConfig | None"
  owners = {name.partition(".")[0] for name in found}
  assert owners == {"train", "ModelConfig", "AnchorConfig", "MemoryConfig", "Objective", "OptimizerConfig", "MeshConfig",
                    "PartSettings", "CheckpointConfig", "ValidationConfig"}  # fmt: skip


def test_all_classes_that_an_argument_can_be_are_listed():
  owners = {name.partition(".")[0] for name in parameters("cluster")}
  assert {"LsaEncoder", "SentenceTransformer", "JsonlSource", "WorldSource", "WorldConfig"} <= owners
  assert "MemoryConfig" not in owners


def test_the_page_and_the_json_say_the_same():
  found = list(parameters("describe").values())
  page = config_params.text("describe", found).splitlines()
  assert "describe.context_length: int = 2048" in page
  assert page[-3:] == [
    "What is bound for train is read too: hiermem describe --params train",
    "What is bound for prepare is read too: hiermem describe --params prepare",
    "What is bound for cluster is read too: hiermem describe --params cluster",
  ]
  assert {line["name"] for line in json.loads(config_params.as_json(found))} == {parameter.name for parameter in found}
  assert config_params.text("run", list(parameters("run").values())).endswith("hiermem describe --params VERB")
