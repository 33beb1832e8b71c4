"""Packs the code for the hosts into one archive: a git commit, or the working tree as it is."""

import io
import pathlib
import subprocess
import tarfile

from hiermem_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[1]


def archive(commit: str, path: pathlib.Path) -> str:
  """Writes an archive of the code of a commit, or with "" of all files that git tracks or would add.

  Returns the short hash of the commit, followed by "+changes" where the working tree differs from it. The archive also
  holds this text, in the file COMMIT.

  Raises:
    InputError: there is no such commit, or this folder is not a git checkout.
  """
  if not (ROOT / ".git").exists():
    raise InputError(f"{ROOT} is no git checkout, whose code the hosts run; run tpu_setup in one")
  try:
    name = _git("rev-parse", "--short=12", "--verify", f"{commit or 'HEAD'}^{{commit}}").decode().strip()
    with tarfile.open(path, "w:gz", compresslevel=6) as out:
      if commit:
        with tarfile.open(fileobj=io.BytesIO(_git("archive", name))) as tar:
          for member in tar:
            out.addfile(member, tar.extractfile(member) if member.isfile() else None)
      else:
        name += "+changes" if _git("status", "--porcelain") else ""
        for file in _git("ls-files", "-z", "--cached", "--others", "--exclude-standard").decode().split("\0"):
          if file and (ROOT / file).exists():
            out.add(ROOT / file, file)
      note = tarfile.TarInfo("COMMIT")
      note.size = len(name)
      out.addfile(note, io.BytesIO(name.encode()))
  except subprocess.CalledProcessError as error:
    reason = error.stderr.decode(errors="replace").strip().splitlines()[-1]
    raise InputError(f"commit = {commit!r}: {reason}; name one that `git log` shows in {ROOT}") from None
  return name


def _git(*arguments: str) -> bytes:
  return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, check=True).stdout
