"""Common text of the synthetic world: everyday scenes from a small grammar, without facts.

A document is one scene with two people from a short list. There are few patterns of
sentences, so that a small model can learn them completely.
"""

import numpy as np

# fmt: off
PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry",
          "Jack", "Kate", "Lucy", "Mark", "Nina", "Oscar", "Paul", "Rosa")
# fmt: on
# Placeholder -> what may stand for it.
VALUES: dict[str, tuple[str, ...]] = {
  "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
  "hour": ("early in the morning", "before noon", "after lunch", "in the afternoon", "late in the evening"),
  "sky": ("sunny", "cloudy", "rainy", "windy", "foggy", "warm", "cold"),
  "mood": ("happy", "tired", "hungry", "cheerful", "sleepy", "busy"),
  "clothes": ("coat", "hat", "scarf", "jacket", "sweater", "pair of boots"),
  "dish": ("soup", "stew", "cake", "pie", "tea", "toast"),
  "plant": ("roses", "potatoes", "tomatoes", "herbs", "peas", "apple trees"),
  "thing": ("book", "basket", "letter", "bag", "box", "parcel"),
  "place": ("park", "market", "library", "bakery", "school", "post office"),
  "pet": ("dog", "cat", "rabbit", "pony"),
  "count": ("two", "three", "four", "five", "six"),
}

# One tuple per scene: the first sentence, then sentences that may follow in any order.
SCENES: tuple[tuple[str, ...], ...] = (
  (
    "It was a {sky} {day}, and {p} went for a walk with {q}.",
    "{p} wore a warm {clothes}, because the wind was cold.",
    "They walked to the {place} and sat down on a bench.",
    "{q} was {mood} and talked about the {pet} at home.",
    "On the way back they met {count} friends near the {place}.",
    "{q} asked {p} to carry the {thing} for a while.",
    "When it began to rain, they ran home together.",
    "At home {p} made some {dish} and put the {thing} on the table.",
  ),
  (
    "On {day} {p} wanted to cook some {dish} for {q}.",
    "First {p} washed the bowl and took {count} spoons out of the drawer.",
    "Then {q} cut the bread and put the {thing} away.",
    "The kitchen was warm, and the window was open.",
    "They waited until the {dish} was ready, and then they ate it.",
    "{q} said that the {dish} was very good.",
    "After the meal {q} washed the plates, and {p} fed the {pet}.",
    "{p} was {mood}, and so was {q}.",
  ),
  (
    "{p} has a small garden next to the {place}.",
    "Every {day} {p} waters the {plant} {hour}.",
    "{q} often comes to help and brings a {thing}.",
    "When the day is {sky}, they work for {count} hours.",
    "The {pet} sleeps under the table and does not move.",
    "This year the {plant} are growing well.",
    "{q} gave {p} a new {clothes} to wear in the garden.",
    "In the end {p} is {mood}, and they drink some {dish}.",
  ),
  (
    "{hour}, {p} and {q} went to the {place} to buy a {thing}.",
    "The day was {sky}, and there were many people in the street.",
    "{p} looked at {count} of them and took the cheapest one.",
    "{q} also wanted a {clothes}, but it was too small.",
    "They paid, said thank you and left the shop.",
    "Outside they saw a {pet} that waited for its owner.",
    "{p} carried the {thing}, and {q} opened the door.",
    "They came home on foot, because the bus was late on {day}.",
  ),
  (
    "{q} wrote a letter to {p} on a {sky} {day}.",
    "In the letter {q} told a story about a {pet} and a {thing}.",
    "{p} read it {hour} and laughed {count} times.",
    "Then {p} went to the {place} to send an answer.",
    "{p} wrote that everyone in the family was {mood}.",
    "The answer arrived after {count} days.",
    "{q} put it into a drawer and kept it for years.",
    "They hope to meet again and eat some {dish} together.",
  ),
  (
    "The bus to the {place} leaves {hour}, and {p} must not be late.",
    "{q} has packed a {thing}, a {clothes} and some {dish}.",
    "On a {sky} day the trip takes {count} hours.",
    "{p} is {mood} and looks out of the window.",
    "{q} talks to the driver about the weather.",
    "A child in the next seat holds a small {pet}.",
    "They get off at the {place} and look for a place to rest.",
    "Next {day} they will take the same bus home.",
  ),
)


def common_text(rng: np.random.Generator) -> str:
  """One everyday document of 6 to 8 sentences, 50 to 90 words."""

  def pick(values):
    return values[rng.integers(len(values))]

  opening, *rest = pick(SCENES)
  order = rng.permutation(len(rest))[: rng.integers(5, len(rest) + 1)]
  p, q = rng.permutation(len(PEOPLE))[:2]
  # One value per placeholder and document, so that, for example, the weather is the same in all its sentences.
  chosen = {placeholder: pick(values) for placeholder, values in VALUES.items()}
  sentences = (s.format(p=PEOPLE[p], q=PEOPLE[q], **chosen) for s in [opening, *(rest[i] for i in order)])
  return " ".join(s[0].upper() + s[1:] for s in sentences)
