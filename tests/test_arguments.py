"""Arguments checked against their annotations, on functions made for it."""

import dataclasses
import inspect
from typing import Literal

import pytest

from hiermem_jax.arguments import checked, with_fields_of
from hiermem_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Size:
  width: int
  height: float = 1.0


def area(*, size: Size | None, names: tuple[str, ...] = (), unit: Literal["m", "km"] = "m", scale: float = 1.0):
  """The docstring."""
  return size, names, unit, scale


def test_a_checked_function_is_the_function():
  function = checked(area, "area")
  assert inspect.signature(function) == inspect.signature(area) and function.__doc__ == "The docstring."
  assert function(size=Size(2), names=("a", "b"), unit="km", scale=3) == (Size(2), ("a", "b"), "km", 3)
  assert function(size=None) == (None, (), "m", 1.0)


@pytest.mark.parametrize(
  "arguments, message",
  [
    ({}, 'area.size: not bound; bind in a gin file or with --gin_bindings="area.size = ..."'),
    ({"size": 3}, "area.size = 3: must be Size | None; bind such a value"),
    ({"size": Size}, "area.size = @Size: must be Size | None; write @Size() to construct one"),
    ({"size": None, "unit": "cm"}, "area.unit = 'cm': must be Literal['m', 'km']; bind such a value"),
    ({"size": None, "scale": "3"}, "area.scale = '3': must be float; bind such a value"),
    ({"size": None, "names": "ab"}, "area.names = 'ab': must be tuple[str, ...]; bind such a value"),
  ],
)
def test_what_does_not_fit_is_named(arguments, message):
  with pytest.raises(InputError) as caught:
    checked(area, "area")(**arguments)
  assert str(caught.value) == message


def test_every_element_of_a_tuple_is_checked():
  """Wherever it is: one of 300 is wrong."""
  for place in range(300):
    names = ["x"] * 300
    names[place] = 1
    with pytest.raises(InputError, match="must be tuple"):
      checked(area, "area")(size=None, names=tuple(names))


@pytest.mark.parametrize(
  "value, fits",
  [((100, 105), True), (None, True), ((1, "a"), False), ((1,), False), ((1, 2, 3), False), (7, False)],
)
def test_a_tuple_of_a_given_length(value, fits):
  def profile(*, steps: tuple[int, int] | None):
    return steps

  if fits:
    assert checked(profile, "profile")(steps=value) == value
  else:
    with pytest.raises(InputError, match="profile.steps = .*: must be tuple"):
      checked(profile, "profile")(steps=value)


def test_fields_of_an_argument_become_arguments():
  def draw(*, path: str, size: Size, color: str = "red"):
    """Draws."""
    return path, size, color

  function = with_fields_of(draw, "size")
  assert str(inspect.signature(function)) == "(*, path: str, color: str = 'red', width: int, height: float = 1.0)"
  assert function(path="p", width=2) == ("p", Size(2), "red")
  assert function(path="p", width=2, height=3.0, color="blue") == ("p", Size(2, 3.0), "blue")
  with pytest.raises(InputError, match=r"^draw.width: not bound"):
    checked(function, "draw")(path="p")
