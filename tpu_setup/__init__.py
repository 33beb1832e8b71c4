"""From nothing to a finished run on a TPU pod, and back to nothing: `python -m tpu_setup --help`, or README.md here.

Knows the `gcloud` command line and this repository's files; the training code knows nothing of it. `config` holds what
is asked for, `slices` what every kind of slice can do, `gcloud` and `local` the two kinds, `host/` what runs on a host.
"""
