r"""A scaling law for hierarchical memories, fitted to runs, with bootstrap intervals and a check on a run held out.

  python experiments/scaling_law.py experiments/scaling_curves

reads results.jsonl there and writes fit.json, scaling.png, scaling.svg and the README's section.

The law, for held-out loss L in nats per token:

  L = E + (L0 - E) * (1 - exp(-r))
  r = C * (N / 1e5)**-alpha * (T / 1e6)**-beta * (1 + F/N)**-phi * (1 + M/N)**-mu

N   parameters of the anchor without embeddings        T   training tokens
F   parameters fetched for a sequence                   M   parameters of the bank
E   loss that no model gets below: the entropy of the text
L0  loss of knowing nothing: the logarithm of the vocabulary (a run's setting `vocabulary`)
r   what is left to learn; C is that of 1e5 parameters after 1e6 tokens without memory
alpha, beta   how a larger anchor and more tokens help
phi   how much it helps to fetch more, at the same bank       mu   how much a larger bank helps, at the same fetch

Where little is left to learn (small r) this is a power law above E; runs that are short or small approach L0. It has no
term for how many tokens a block sees, so it holds where banks are small beside the tokens.
"""

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from report import COLORS, load, measure, replace_section
from scipy.optimize import least_squares

from hiermem_jax import files
from hiermem_jax.errors import InputError

AXES = ("anchor", "fetched", "bank", "tokens", "vocabulary")  # settings of a run: N, F, M, T, exp(L0)
NAMES = ("E", "C", "alpha", "beta", "phi", "mu")
_LOWER = np.array([0.0, -15.0, 0.0, 0.0, -1.0, -1.0])  # C as a logarithm
_UPPER = np.array([10.0, 15.0, 3.0, 3.0, 5.0, 5.0])
_RESAMPLES = 200


def law(parameters: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Loss [n] at points [n, 5] of `AXES`; `parameters` [6] as in `NAMES`, C as a natural logarithm."""
  e, log_c, alpha, beta, phi, mu = parameters
  n, f, m, t, vocabulary = points.T
  dense = np.exp(log_c - alpha * np.log(n / 1e5) - beta * np.log(t / 1e6))
  left = dense * (1 + f / n) ** -phi * (1 + m / n) ** -mu
  return e + (np.log(vocabulary) - e) * -np.expm1(-left)


def fit(points: np.ndarray, losses: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
  """Parameters [6] of the law: least squares of log losses with Huber's loss, the best of many starts.

  Args:
    points: float [n, 5] of `AXES`; F and M may be zero.
    losses: float [n], nats.
    start: where to start alone, for resamples.

  Raises:
    InputError: fewer points than the law has parameters, or numbers that are not positive.
  """
  if len(np.unique(points, axis=0)) < len(NAMES):
    raise InputError(f"{len(np.unique(points, axis=0))} distinct runs cannot fix {len(NAMES)} parameters; run more")
  if (points[:, [0, 3]] <= 0).any() or (points < 0).any() or (losses <= 0).any():
    raise InputError("anchor sizes, tokens and losses must be positive, memory sizes at least 0; leave such runs out")

  def residuals(parameters):
    return np.log(law(parameters, points)) - np.log(losses)

  starts = [start]
  if start is None:
    low = losses.min()
    starts = [
      np.array([share * low, log_c, alpha, beta, 0.1, 0.1])
      for share in (0.1, 0.6)
      for log_c in (-2.0, 0.0)
      for alpha in (0.2, 0.6, 1.2)
      for beta in (0.2, 0.6, 1.2)
    ]
  settings = {"bounds": (_LOWER, _UPPER), "loss": "huber", "f_scale": 0.02}
  results = [least_squares(residuals, np.clip(x, _LOWER + 1e-9, _UPPER - 1e-9), **settings) for x in starts]
  return min(results, key=lambda result: result.cost).x


def bootstrap(points: np.ndarray, losses: np.ndarray, best: np.ndarray, seed: int = 0) -> np.ndarray:
  """Parameters [resamples, 6] of fits to runs drawn again with replacement."""
  rng, fits = np.random.default_rng(seed), []
  while len(fits) < _RESAMPLES:
    chosen = rng.integers(len(points), size=len(points))
    if len(np.unique(points[chosen], axis=0)) >= len(NAMES):
      fits.append(fit(points[chosen], losses[chosen], start=best))
  return np.array(fits)


def held_out_check(
  best: np.ndarray, fits: np.ndarray, points: np.ndarray, losses: np.ndarray, where: np.ndarray, measured: np.ndarray
) -> dict[str, Any]:
  """Predictions for runs that the fit has not seen.

  Args:
    best: fitted parameters [6].
    fits: of resamples [r, 6].
    points: [n, 5] that were fitted.
    losses: [n] that were fitted.
    where: [m, 5] the runs held out.
    measured: [m] their losses.

  Returns:
    Mean over the m runs of `predicted`, `measured` and the relative `error`; the 95% `interval` of a single run's
    prediction (of resampled fits, with residuals of the fit added), and whether all runs are `inside`.
  """
  rng = np.random.default_rng(1)
  residuals = np.log(losses) - np.log(law(best, points))
  draws = np.array([law(parameters, where[:1])[0] for parameters in fits])[:, None]
  low, high = np.percentile(draws * np.exp(rng.choice(residuals, (len(fits), 5))), [2.5, 97.5])
  predicted = float(law(best, where[:1])[0])
  return {
    "predicted": predicted,
    "measured": float(measured.mean()),
    "error": float(predicted / measured.mean() - 1),
    "interval": [float(low), float(high)],
    "inside": bool(((measured >= low) & (measured <= high)).all()),
  }


def analyse(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The fit to the runs of a sweep, whose settings have `AXES` and maybe `held_out`."""

  def arrays(held_out):
    chosen = [line for line in lines if bool(line["settings"].get("held_out")) == held_out]
    points = np.array([[line["settings"][k] for k in AXES] for line in chosen], float)
    return points, np.array([loss_of(line) for line in chosen])

  (points, losses), (where, measured) = arrays(False), arrays(True)
  best = fit(points, losses)
  fits = bootstrap(points, losses, best)
  shown, low, high = (_plain(x) for x in (best, *np.percentile(fits, [2.5, 97.5], axis=0)))
  result = {
    "runs": len(losses),
    "parameters": {n: {"value": v, "interval": [a, b]} for n, v, a, b in zip(NAMES, shown, low, high)},
    "rms_error": float(np.sqrt(np.mean((law(best, points) / losses - 1) ** 2))),
    "worst_error": float(np.abs(law(best, points) / losses - 1).max()),
  }
  if len(measured):
    result["held_out"] = held_out_check(best, fits, points, losses, where, measured)
  return result


def loss_of(line: Mapping[str, Any]) -> float:
  """Held-out loss: with fetched memory, or of a model without any."""
  value = measure(line, "fetched.loss")
  return measure(line, "baseline.loss") if value is None else value


def _plain(parameters: np.ndarray) -> list[float]:
  """Parameters with C itself."""
  return [float(np.exp(value)) if name == "C" else float(value) for name, value in zip(NAMES, parameters)]


def _logged(result: Mapping[str, Any]) -> np.ndarray:
  values = [result["parameters"][name]["value"] for name in NAMES]
  return np.array([np.log(value) if name == "C" else value for name, value in zip(NAMES, values)])


def page(result: Mapping[str, Any]) -> str:
  """The fit in Markdown."""
  rows = ["| parameter | value | 95% interval |", "|---|---:|---|"]
  for name, cell in result["parameters"].items():
    rows.append(f"| {name} | {cell['value']:.3g} | {cell['interval'][0]:.3g} to {cell['interval'][1]:.3g} |")
  rows += ["", f"{result['runs']} runs; error of the fit {100 * result['rms_error']:.1f}% (root mean square), at most"]
  rows[-1] += f" {100 * result['worst_error']:.1f}%."
  if check := result.get("held_out"):
    rows.append(
      f"The run held out: predicted {check['predicted']:.3f}, measured {check['measured']:.3f} nats (error"
      f" {100 * check['error']:+.1f}%); 95% interval {check['interval'][0]:.3f} to {check['interval'][1]:.3f}, the"
      f" runs are {'inside' if check['inside'] else '**not all inside**'}."
    )
  rows += ["", "![loss by anchor size, tokens, fetched and bank parameters](scaling.png)"]
  return "\n".join(rows)


def draw(lines: Sequence[Mapping[str, Any]], result: Mapping[str, Any], directory: pathlib.Path) -> None:
  """Loss along each axis through the base run, with the law; predicted against measured.

  The base is the run with memory that most others differ from in one setting.
  """
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  parameters = _logged(result)
  keys = {"anchor": "anchor parameters N", "tokens": "training tokens T", "fetched": "fetched parameters F"}
  keys["bank"] = "bank parameters M"
  settings = [tuple(line["settings"][k] for k in AXES) for line in lines]
  points, losses = np.array(settings, float), np.array([loss_of(line) for line in lines])
  held = np.array([bool(line["settings"].get("held_out")) for line in lines])
  with_memory = [setting for setting in settings if setting[AXES.index("bank")]] or settings
  base = max(with_memory, key=lambda x: sum(np.not_equal(x, other).sum() == 1 for other in set(settings)))
  base = dict(zip(AXES, base))
  figure, axes = plt.subplots(1, 5, figsize=(19, 3.8), layout="constrained")
  for axis, (key, label) in zip(axes, keys.items()):
    column = AXES.index(key)
    others = [k for k in base if k != key]
    for number, memory in enumerate((True, False)):
      at = base if memory else base | {"fetched": 0, "bank": 0}
      if not memory and key in ("fetched", "bank"):
        continue
      on = np.array([all(dict(zip(base, s))[k] == at[k] for k in others) for s in settings]) & ~held
      xs = np.unique(points[on, column])
      means = [losses[on & (points[:, column] == x)].mean() for x in xs]
      errors = [losses[on & (points[:, column] == x)].std() for x in xs]
      color = COLORS[number]
      label_of = "with memory" if memory else "anchor alone"
      axis.errorbar(xs, means, errors, fmt="o", color=color, capsize=2, label=label_of)
      if len(xs) > 1:
        grid = np.tile([float(at[k]) for k in AXES], (50, 1))
        grid[:, column] = np.geomspace(max(xs.min(), 1), xs.max(), 50)
        axis.plot(grid[:, column], law(parameters, grid), color=color, lw=1)
    axis.set_xscale("log")
    axis.minorticks_off()
    axis.set_xlabel(label)
  axes[0].set_ylabel("held-out loss, nats")
  axes[0].legend(frameon=False, fontsize=8)
  predicted = law(parameters, points)
  axes[4].scatter(predicted[~held], losses[~held], s=12, color=COLORS[0], label="fitted")
  axes[4].scatter(predicted[held], losses[held], s=28, marker="*", color=COLORS[3], label="held out")
  ends = [min(predicted.min(), losses.min()), max(predicted.max(), losses.max())]
  axes[4].plot(ends, ends, color="#808080", lw=0.8)
  axes[4].set_xlabel("predicted, nats")
  axes[4].legend(frameon=False, fontsize=8)
  for axis in axes:
    axis.spines[["top", "right"]].set_visible(False)
  for kind in ("png", "svg"):
    with files.written(directory / f"scaling.{kind}") as file:
      figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
  plt.close(figure)


def main(argv: Sequence[str]) -> int:
  """The command line; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("experiment", type=pathlib.Path, help="its folder")
  folder = parser.parse_args(argv).experiment
  try:
    lines = load(folder / "results.jsonl")
    result = analyse(lines)
    files.write_json(folder / "fit.json", result, indent=2)
    draw(lines, result, folder)
    print(page(result))
    replace_section(folder / "README.md", page(result))
  except (InputError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
