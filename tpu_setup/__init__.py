"""Creates TPU slices, sets up their hosts, runs verbs on them, and deletes the slices; see README.md in this folder.

`config` reads the configuration. `slices` declares what every kind of slice can do; `gcloud` and `local` are the two
kinds. `jobs` sets up the hosts and starts, watches and stops a run on them, `watch` repeats that until the run has
finished, and `sweep` does it for many runs. The scripts in `host/` run on the hosts. The training code knows nothing of
this folder.
"""
