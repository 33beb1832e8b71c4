"""The fit against data made from a known law."""

import json

import numpy as np
import pytest

from hiermem_jax.errors import InputError

TRUTH = np.array([0.3, np.log(0.4), 0.4, 0.5, 0.15, 0.05])


@pytest.fixture(scope="module")
def law(script):
  script("report")
  return script("scaling_law")


def grid(rng, count=60):
  n = 10 ** rng.uniform(4, 6, count)
  f = n * rng.choice([0, 0.02, 0.1, 0.5, 2.0], count)
  m = np.where(f > 0, f * rng.choice([4, 16, 64, 256], count), 0)
  return np.stack([n, f, m, 10 ** rng.uniform(5, 7, count), np.full(count, 1024.0)], axis=1)


def test_ends_of_the_law(law):
  """Knowing nothing is the logarithm of the vocabulary; much later it is a power law above the entropy."""
  points = np.array([[1e5, 0, 0, 1e6, 1024], [1e5, 0, 0, 1e-3, 1024], [1e9, 0, 0, 4e14, 1024], [1e9, 0, 0, 1e14, 1024]])
  middle, nothing, much, less = law.law(TRUTH, points)
  np.testing.assert_allclose(middle, 0.3 + (np.log(1024) - 0.3) * (1 - np.exp(-0.4)))
  np.testing.assert_allclose(nothing, np.log(1024))
  np.testing.assert_allclose((less - 0.3) / (much - 0.3), 4**0.5, rtol=1e-3)
  tail = [1e6, 1024]
  more = law.law(TRUTH, np.array([[1e5, 1e4, 1e5, *tail], [1e5, 2e4, 1e5, *tail], [1e5, 1e4, 2e5, *tail]]))
  assert middle > more[0] > max(more[1:])


def test_exact_data_give_the_law(law):
  points = grid(np.random.default_rng(0))
  found = law.fit(points, law.law(TRUTH, points))
  np.testing.assert_allclose(found, TRUTH, rtol=0.02)


def test_noisy_data_give_intervals_around_it(law):
  rng = np.random.default_rng(1)
  points = grid(rng, 120)
  losses = law.law(TRUTH, points) * np.exp(0.01 * rng.standard_normal(120))
  best = law.fit(points, losses)
  fits = law.bootstrap(points, losses, best)
  np.testing.assert_array_equal(fits, law.bootstrap(points, losses, best))
  low, high = np.percentile(fits, [0.5, 99.5], axis=0)
  assert ((low <= TRUTH) & (high >= TRUTH)).sum() >= 5
  where = np.array([[2e6, 1e5, 6.4e6, 2e7, 1024]] * 3)
  measured = law.law(TRUTH, where) * np.exp(0.01 * rng.standard_normal(3))
  check = law.held_out_check(best, fits, points, losses, where, measured)
  assert check["inside"] and abs(check["error"]) < 0.03
  assert not law.held_out_check(best, fits, points, losses, where, 1.3 * measured)["inside"]


def test_a_folder_of_results(law, tmp_path, capsys):
  rng, lines = np.random.default_rng(2), []
  for seed in range(3):
    for number, (n, f, m, t, v) in enumerate(grid(np.random.default_rng(5), 20)):
      loss = float(law.law(TRUTH, np.array([[n, f, m, t, v]]))[0] * np.exp(0.005 * rng.standard_normal()))
      series = {"baseline" if f == 0 else "fetched": {"loss": loss}}
      settings = {"anchor": n, "fetched": f, "bank": m, "tokens": t, "vocabulary": v} | (
        {"held_out": True} if number == 19 else {}
      )
      lines.append({"name": f"r{number}", "seed": seed, "settings": settings, "result": {"series": series}})
  (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  (tmp_path / "README.md").write_text("# T\n\n<!-- results -->\nold\n<!-- /results -->\n\nend\n")
  assert law.main([str(tmp_path)]) == 0
  found = json.loads((tmp_path / "fit.json").read_text())
  assert found["runs"] == 57 and found["rms_error"] < 0.01
  readme = (tmp_path / "README.md").read_text()
  assert "old" not in readme and "| alpha |" in readme and readme.endswith("\n\nend\n")
  assert (tmp_path / "scaling.png").stat().st_size > 10_000 and (tmp_path / "scaling.svg").exists()
  (tmp_path / "README.md").write_text("no marks")
  assert law.main([str(tmp_path)]) == 2
  assert "add the lines <!-- results -->" in capsys.readouterr().err


def test_bad_input_is_named(law):
  points = grid(np.random.default_rng(0), 5)
  with pytest.raises(InputError, match="5 distinct runs cannot fix 6 parameters"):
    law.fit(points, np.ones(5))
  points = grid(np.random.default_rng(0), 10)
  points[0, 3] = 0
  with pytest.raises(InputError, match="must be positive"):
    law.fit(points, np.ones(10))
