"""The law and its fit against numbers worked out without the code under test."""

import json
import math

import numpy as np
import pytest
import scipy.optimize

from hiermem_jax.errors import InputError

# What the data below are made of: E, C, alpha, beta, phi, mu.
TRUTH = {"E": 0.3, "C": 0.4, "alpha": 0.4, "beta": 0.5, "phi": 0.15, "mu": 0.05}


@pytest.fixture(scope="module")
def law(script):
  script("report")
  return script("scaling_law")


def written_out(setting, E, C, alpha, beta, phi, mu):  # noqa: N803 (as in the law)
  """The law of the module's docstring for one setting (N, F, M, T, vocabulary), as it stands there."""
  n, f, m, t, vocabulary = setting
  r = C * (n / 1e5) ** -alpha * (t / 1e6) ** -beta * (1 + f / n) ** -phi * (1 + m / n) ** -mu
  return E + (math.log(vocabulary) - E) * (1 - math.exp(-r))


def settings(seed, count=60):
  """Random settings: anchors of 1e4 to 1e6 parameters, 1e5 to 1e7 tokens, a fifth without memory."""
  rng = np.random.default_rng(seed)
  n = 10 ** rng.uniform(4, 6, count)
  f = n * rng.choice([0, 0.02, 0.1, 0.5, 2.0], count)
  m = np.where(f > 0, f * rng.choice([4, 16, 64, 256], count), 0)
  return np.stack([n, f, m, 10 ** rng.uniform(5, 7, count), np.full(count, 1024.0)], axis=1)


def losses_at(points, noise=0.0, seed=0):
  rng = np.random.default_rng(seed)
  exact = np.array([written_out(point, **TRUTH) for point in points])
  return exact * np.exp(noise * rng.standard_normal(len(points)))


def as_named(parameters):
  """Fitted parameters by name; C itself."""
  named = dict(zip(TRUTH, parameters))
  return named | {"C": math.exp(named["C"])}


def test_law_at_points_worked_out_by_hand(law):
  """With E = 1, C = 0.5, exponents of 1 and a vocabulary of e^3, where all powers are simple fractions."""
  parameters = np.array([1.0, math.log(0.5), 1.0, 1.0, 1.0, 1.0])
  rows = {  # N, F, M, T: r
    (1e5, 0, 0, 1e6): 0.5,
    (2e5, 0, 0, 1e6): 0.25,
    (1e5, 0, 0, 4e6): 0.125,
    (1e5, 1e5, 0, 1e6): 0.25,
    (1e5, 0, 3e5, 1e6): 0.125,
    (2e5, 2e5, 6e5, 5e5): 0.0625,  # 0.5 / 2 * 2 / 2 / 4
  }
  found = law.law(parameters, np.array([[*row, math.exp(3)] for row in rows]))
  np.testing.assert_allclose(found, [1 + 2 * (1 - math.exp(-r)) for r in rows.values()], rtol=1e-12)


def test_ends_of_the_law(law):
  """An untrained model knows the vocabulary alone; from one with little left to learn the excess falls as a power."""
  parameters = np.array([TRUTH["E"], math.log(TRUTH["C"]), *list(TRUTH.values())[2:]])
  sizes = [(1e5, 1e-9), (1e10, 1e14), (2e10, 1e14), (1e10, 2e14)]  # anchor, tokens
  points = np.array([[n, 0, 0, tokens, 1024] for n, tokens in sizes])
  untrained, large, twice, longer = law.law(parameters, points)
  assert untrained == pytest.approx(math.log(1024))
  assert (large - 0.3) / (twice - 0.3) == pytest.approx(2 ** TRUTH["alpha"], rel=1e-3)
  assert (large - 0.3) / (longer - 0.3) == pytest.approx(2 ** TRUTH["beta"], rel=1e-3)


def test_fit_finds_the_parameters_that_made_the_data(law):
  points = settings(0)
  assert as_named(law.fit(points, losses_at(points))) == pytest.approx(TRUTH, rel=0.02)


def test_a_few_wrong_runs_do_not_move_the_fit(law):
  """Huber's loss: two of sixty runs that diverged are outvoted; least squares would bend."""
  points = settings(0)
  losses = losses_at(points, noise=0.002)
  losses[[7, 31]] *= 1.5
  assert as_named(law.fit(points, losses)) == pytest.approx(TRUTH, rel=0.1)


def test_intervals_are_as_wide_as_the_theory_of_least_squares_says(law):
  """Standard deviations of resampled fits against scipy's covariance, with its own fit of the law written out."""
  points = settings(1, 120)
  losses = losses_at(points, noise=0.01, seed=1)
  best = law.fit(points, losses)
  fits = law.bootstrap(points, losses, best)
  np.testing.assert_array_equal(fits, law.bootstrap(points, losses, best))  # the same seed

  def log_losses(_, e, log_c, *exponents):
    return np.log([written_out(point, e, math.exp(log_c), *exponents) for point in points])

  expected, covariance = scipy.optimize.curve_fit(log_losses, None, np.log(losses), p0=best)
  np.testing.assert_allclose(best, expected, atol=0.5 * np.sqrt(np.diag(covariance)).max())
  ratios = fits.std(axis=0) / np.sqrt(np.diag(covariance))
  assert (ratios > 0.6).all() and (ratios < 1.6).all(), ratios
  assert (np.abs(best - fits.mean(axis=0)) < fits.std(axis=0)).all()


def test_resamples_of_few_runs_can_be_fitted(law):
  """Most resamples of seven runs have fewer than the six distinct ones that a fit needs; others are drawn."""
  points = settings(0, 7)
  losses = losses_at(points)
  assert np.isfinite(law.bootstrap(points, losses, law.fit(points, losses))).all()


def test_check_of_runs_held_out(law):
  """Runs as the law has them are inside an interval of plus and minus two standard deviations of the noise; others not."""
  points = settings(1, 120)
  losses = losses_at(points, noise=0.01, seed=1)
  best = law.fit(points, losses)
  fits = law.bootstrap(points, losses, best)
  where = np.array([[3e5, 3e4, 5e5, 3e6, 1024.0]] * 3)
  truth = written_out(where[0], **TRUTH)
  check = law.held_out_check(best, fits, points, losses, where, truth * np.array([0.99, 1.0, 1.01]))
  assert check["predicted"] == pytest.approx(truth, rel=0.01) and check["measured"] == pytest.approx(truth)
  assert check["error"] == pytest.approx(check["predicted"] / truth - 1)
  low, high = check["interval"]
  assert low / truth == pytest.approx(1 - 0.02, abs=0.008) and high / truth == pytest.approx(1 + 0.02, abs=0.008)
  assert check["inside"]
  for measured in ([1.0, 1.0, 1.05], [0.95, 1.0, 1.0]):  # one of three is enough
    assert not law.held_out_check(best, fits, points, losses, where, truth * np.array(measured))["inside"]


def line(setting, seed, series, **extra):
  n, f, m, t, vocabulary = setting
  held = {"anchor": n, "fetched": f, "bank": m, "tokens": t, "vocabulary": vocabulary, **extra}
  return {"name": "r", "seed": seed, "settings": held, "series": series, "result": {"series": series}}


def test_the_loss_of_a_run(law):
  """With fetched memory, also where a model without any was measured beside it; of a run without memory the baseline's."""
  both = {"baseline": {"loss": 5.0}, "generic": {"loss": 4.0}, "fetched": {"loss": 3.0}}
  assert law.loss_of(line([1, 1, 1, 1, 1], 0, both)) == 3.0
  assert law.loss_of(line([1, 0, 0, 1, 1], 0, {"baseline": {"loss": 5.0}})) == 5.0


def test_a_folder_of_results(law, tmp_path, capsys):
  """Losses of each run are beside losses that must not be read; the last setting is held out."""
  points = settings(5, 20)
  lines = []
  for seed in range(3):
    for number, (point, loss) in enumerate(zip(points, losses_at(points, noise=0.005, seed=seed))):
      own = {"fetched": {"loss": loss}, "generic": {"loss": 9.0}} | ({"baseline": {"loss": 8.0}} if number % 2 else {})
      series = own if point[1] else {"baseline": {"loss": loss}}
      lines.append(line(point, seed, series, **({"held_out": True} if number == 19 else {})))
  (tmp_path / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
  (tmp_path / "README.md").write_text("# T\n\n<!-- results -->\nold\n<!-- /results -->\n\nend\n")
  assert law.main([str(tmp_path)]) == 0
  found = json.loads((tmp_path / "fit.json").read_text())
  assert found["runs"] == 57 and found["rms_error"] == pytest.approx(0.005, rel=0.3)
  assert found["rms_error"] < found["worst_error"] < 4 * found["rms_error"]
  for name, cell in found["parameters"].items():
    assert cell["interval"][0] <= cell["value"] <= cell["interval"][1]
    if name in ("C", "alpha", "beta", "phi"):
      assert cell["value"] == pytest.approx(TRUTH[name], rel=0.15), name
  assert found["held_out"]["predicted"] == pytest.approx(written_out(points[19], **TRUTH), rel=0.03)
  readme = (tmp_path / "README.md").read_text()
  assert "old" not in readme and readme.endswith("\n\nend\n")
  assert f"| alpha | {found['parameters']['alpha']['value']:.3g} |" in readme
  assert (tmp_path / "scaling.png").stat().st_size > 10_000 and (tmp_path / "scaling.svg").exists()
  (tmp_path / "README.md").write_text("no marks")
  assert law.main([str(tmp_path)]) == 2
  assert "add the lines <!-- results -->" in capsys.readouterr().err


def test_bad_input_is_named(law):
  with pytest.raises(InputError, match="5 distinct runs cannot fix 6 parameters"):
    law.fit(settings(0, 5), np.ones(5))
  for change in ((0, 3, 0.0), (0, 0, 0.0), (1, 1, -1.0), (1, 2, -1.0)):
    points = settings(0, 10)
    points[change[0], change[1]] = change[2]
    with pytest.raises(InputError, match="must be positive"):
      law.fit(points, np.ones(10))
  with pytest.raises(InputError, match="must be positive"):
    law.fit(settings(0, 10), np.zeros(10))
