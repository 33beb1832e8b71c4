"""The documentation: links lead somewhere, commands name files, bindings and verbs that exist, versions agree."""

import ast
import contextlib
import functools
import importlib
import inspect
import pathlib
import re
import shlex

import gin
import pytest

import hiermem_jax
from hiermem_jax import configuration
from hiermem_jax.models.memory import KINDS
from hiermem_jax.verbs import VERBS

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = sorted(
  path
  for path in ROOT.rglob("*.md")
  if not any(part[0] == "." or part == "runs" for part in path.relative_to(ROOT).parts)
)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def page_id(path):
  return str(path.relative_to(ROOT))


def heading_anchors(path):
  """The anchors that GitHub gives a page's headings."""
  prose = FENCED.sub("", path.read_text())
  titles = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
  shown = [re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", title) for title in titles]
  return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in shown}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_relative_links_lead_somewhere(page):
  links = [link for link in LINK.findall(FENCED.sub("", page.read_text())) if "://" not in link]
  for link in links:
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    assert target.exists(), f"{page_id(page)}: {link} is not there"
    assert not anchor or anchor in heading_anchors(target), f"{page_id(page)}: {link} names no heading there"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_paths_in_the_text_exist(page):
  text = re.sub(r"New file `[^`]+`", "", FENCED.sub("", page.read_text()))
  for path in re.findall(r"`((?:tests|gin|experiments|hiermem_jax|docs|tpu_setup|notebooks|\.ci)/[\w./-]+)`", text):
    made = page.name == "CONTRIBUTING.md" and path.startswith("experiments/learning_rate")
    assert made or (ROOT / path).exists(), f"{page_id(page)}: {path} is not there"


def shell_lines(text):
  """Command lines of the bash blocks of a page, continued lines joined, variables that a block sets replaced."""
  for language, block in FENCED.findall(text):
    if language == "bash":
      block = re.sub(r" *\\\n *", " ", block)
      for name, value in re.findall(r'^(\w+)="(.*)"$', block, re.MULTILINE):
        block = block.replace(f"${name}", value)
      for line in re.sub(r"\$\w+", "0", block).splitlines():
        yield from re.split(r"; (?:do )?| && | \| | &(?= )", line.partition("  #")[0].strip())


def verb_commands(text):
  """Verb and flags of each command line that runs a verb: directly, through make, or on a pod."""
  for line in shell_lines(text):
    words = shlex.split(line)
    for before, word, *rest in (words[i - 1 :] for i in range(1, len(words))):
      if before == "-m" and word.removeprefix("hiermem_jax.") in VERBS:
        yield word.removeprefix("hiermem_jax."), rest
      elif word in VERBS and (before in ("hiermem", "hiermem_jax") or (before == "--" and "tpu_setup" in words)):
        yield word, rest
      elif (before, word) == ("make", "quickstart"):
        arguments = [flag for value in rest if value.startswith("ARGS=") for flag in shlex.split(value[5:])]
        yield "run", ["--gin_file=gin/runs/quickstart.gin", "--run_dir=runs/quickstart", *arguments]


def values(flags, name):
  return [flag.partition("=")[2] for flag in flags if flag.startswith(f"--{name}=")]


def quoted_commands(text):
  """What is indented by two spaces and starts a verb, with the lines that continue it, as a bash block."""
  blocks = re.findall(r"^  +(?:for .*; do )?python -m hiermem_jax.*(?:(?<=\\)\n.*)*", text, re.MULTILINE)
  return "".join(f"```bash\n{block}\n```\n" for block in blocks)


@functools.cache
def commands():
  """(page, verb, flags) of every command: in pages, in the comments of gin files, in the docstrings of verbs."""
  texts = {path: path.read_text() for path in PAGES}
  for path in ROOT.glob("gin/**/*.gin"):
    comments = re.findall(r"^#(?: (.*))?$", path.read_text(), re.MULTILINE)
    texts[path] = quoted_commands("\n".join(comments))
  for verb in VERBS:
    path = ROOT / f"hiermem_jax/{verb}.py"
    texts[path] = quoted_commands(ast.get_docstring(ast.parse(path.read_text())))
  return [(page_id(path), verb, flags) for path, text in texts.items() for verb, flags in verb_commands(text)]


def test_the_commands_are_found():
  pages = {page for page, _, _ in commands()}
  assert {"README.md", "docs/manual.md", "docs/pods.md", "docs/data.md", "docs/evaluation.md"} <= pages
  assert {"gin/runs/a2.gin", "gin/phases/toy.gin", "hiermem_jax/train.py", "hiermem_jax/evaluate_tasks.py"} <= pages
  assert {"train", "evaluate_tasks", "describe", "compile_pod", "run"} <= {verb for _, verb, _ in commands()}
  assert len(commands()) > 50


def test_gin_files_named_in_the_documentation_exist():
  for page in PAGES:
    for path in re.findall(r"--gin_file=([\w./]+)", page.read_text()):
      assert (ROOT / path).is_file(), f"{page_id(page)}: --gin_file={path} is not there"


def test_commands_are_accepted(monkeypatch):
  """Names, types and required bindings of every complete command ('...' stands for what a reader fills in)."""
  monkeypatch.chdir(ROOT)
  seen = set()
  for page, verb, flags in commands():
    names = {flag[2:].partition("=")[0] for flag in flags if flag.startswith("--")}
    assert names <= set(VERBS[verb].flags), f"{page}: {verb} has no flag {names - set(VERBS[verb].flags)}"
    key = (verb, *flags)
    if "..." in " ".join(flags) or key in seen:
      continue
    seen.add(key)
    try:
      configuration.load(values(flags, "gin_file"), values(flags, "gin_bindings"))
      if VERBS[verb].has_run_dir:
        configuration.dry_run(verb, run_dir="/runs/x")
      elif not names & {"diff", "params"} and not VERBS[verb].looks:
        configuration.require_read(verb, names | {"as_json"})
    except Exception as error:
      raise AssertionError(f"{page}: {verb} {' '.join(flags)}") from error
  assert len(seen) > 20


def test_gin_names_in_the_text_exist():
  """Of `MemoryConfig.kind = 'ffn'` in running text: that there is such a parameter."""
  configuration.register()
  known, unknown = set(), set()
  for page in PAGES:
    for code in re.findall(r"`([^`\n]+)`", FENCED.sub("", page.read_text())):
      for owner, name in re.findall(r"\b(\w+)\.(?!py\b)(\w+)\b", code):
        with contextlib.suppress(ValueError):  # gin knows no such owner
          parameters = inspect.signature(gin.get_configurable(owner)).parameters
          (known if name in parameters else unknown).add((page_id(page), f"{owner}.{name}"))
  assert not {name for page, name in unknown if page != "CHANGELOG.md"}, unknown  # which has names of before
  assert len(known) > 30


def test_the_library_page_names_what_there_is():
  page = (ROOT / "docs/library.md").read_text()
  assert set(re.findall(r"\bhm\.(\w+)", page)) == set(hiermem_jax.__all__)
  members = set(re.findall(r"\bmodel\.(\w+)", page)) - {"json"}
  assert members >= {"route", "topics", "logits", "generate", "log_likelihood", "block"}
  attributes = inspect.signature(hiermem_jax.LanguageModel).parameters.keys() | set(dir(hiermem_jax.LanguageModel))
  assert members <= attributes | {"config", "tokenizer", "metadata"}
  for name in re.findall(r"^\| `(\w+\.\w+\.\w+)`", page, re.MULTILINE):
    module, _, attribute = f"hiermem_jax.{name}".rpartition(".")
    assert hasattr(importlib.import_module(module), attribute), name


def test_the_manual_names_every_verb_phase_and_kind():
  manual = (ROOT / "docs/manual.md").read_text()
  phases = {path.name for path in (ROOT / "gin/phases").glob("*.gin")} - {"common.gin", "chain.gin"}
  missing = {f"`{name}`" for name in (*VERBS, *phases)} | {f"`'{kind}'`" for kind in KINDS}
  assert not {name for name in missing if name not in manual}


def test_the_index_has_every_page():
  index = (ROOT / "docs/README.md").read_text()
  assert all(f"({path.name})" in index for path in ROOT.glob("docs/*.md") if path.name != "README.md")


def test_the_index_of_experiments_has_every_folder():
  index = (ROOT / "experiments/README.md").read_text()
  assert all(f"({path.parent.name}/README.md)" in index for path in ROOT.glob("experiments/*/README.md"))


def test_the_changelog_gives_gin_names_that_there_are():
  section = (ROOT / "CHANGELOG.md").read_text().partition("### Gin names\n")[2].partition("\n###")[0]
  now = [line.split(" | ")[-1] for line in section.splitlines() if line.startswith("| `")]
  names = [name for cell in now for name in re.findall(r"`([A-Za-z_]+)\.(\w+)", cell)]
  assert len(names) > 20
  configuration.register()
  for owner, name in names:
    assert name in inspect.signature(gin.get_configurable(owner)).parameters, f"{owner}.{name}"


def test_versions_agree():
  version = hiermem_jax.__version__
  assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
  newest = re.search(r"^## \[?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
  assert newest and newest[1] == version
