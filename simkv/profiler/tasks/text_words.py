"""The words that the text tasks are made of: filler sentences without information, invented names, values.

The lists are the project's own and share no word with each other where a task would confuse them: no value and no
needle occurs in the filler.
"""

import numpy as np

__all__ = ["CRAFTS", "OBJECTS", "SHADES", "VALUES", "filler_sentences", "names"]


def _listed(text: str, separator: str | None = None) -> tuple[str, ...]:
    return tuple(text.split(separator))


_ADJECTIVES = _listed(
    "quiet early narrow distant gentle dusty careful plain heavy patient wet slow broad ordinary tired old warm "
    "empty modest steady pale rough idle sober"
)
_NOUNS = _listed(
    "farmer baker river street window garden teacher neighbour field morning kitchen letter driver meadow carpenter "
    "station shepherd table stairway visitor orchard courtyard sailor evening market roof cousin painter bench path "
    "doctor village"
)
_VERBS = _listed(
    "watches follows leaves remembers crosses visits describes passes meets repairs ignores sketches avoids reaches "
    "finds admires measures hears counts forgets"
)
_PLACES = _listed(
    "behind the hill, beside the bridge, near the mill, across the square, along the shore, under the trees, "
    "before supper, after the rain, without much hurry, on most days, for a while, at the far end",
    ", ",
)

SHADES = _listed("crimson silver violet golden ivory scarlet emerald bronze azure maroon turquoise indigo")
OBJECTS = _listed("lantern compass anchor chalice trumpet mirror saddle telescope goblet dagger kettle banner")
VALUES = _listed(
    "amber falcon cobalt harpoon juniper walnut granite otter saffron pelican thimble cedar marble badger copper "
    "lobster velvet turnip flint heron barley beacon walrus nutmeg quartz raven sickle parsnip topaz weasel hazel "
    "pebble cricket fennel garnet ferret mustard oyster pewter quill radish sparrow tallow urchin vanilla wicker "
    "yarrow zinc almond beetle cactus dolphin ebony feather ginger hammock iguana jasmine ketchup lemur magnet "
    "noodle orchid pepper rabbit sandal tulip viper whistle acorn biscuit camel dustpan elbow fossil gravel"
)
CRAFTS = _listed(
    "pottery weaving cheese clocks saddles glass bells baskets honey candles ropes barrels cider lace knives tiles "
    "soap paper boats spices violins gloves bricks carpets"
)

_STARTS = _listed("ba ce do fi gu ha je ko li mu na po ri su ta ve")
_MIDDLES = _listed("da le mi no ra se ti vo ka be lu go pe sa ni ru")
_ENDS = _listed("bel can dor fin gam hul jet kon lim mer nas pol rik sun tav wen")
_MOST_NAMES = len(_STARTS) * len(_MIDDLES) * len(_ENDS)


def names(rng: np.random.Generator, count: int) -> list[str]:
    """``count`` (at most 4096) different invented names of three syllables, lower case."""
    picked = rng.choice(_MOST_NAMES, size=count, replace=False)
    parts = np.unravel_index(picked, (len(_STARTS), len(_MIDDLES), len(_ENDS)))
    return [_STARTS[a] + _MIDDLES[b] + _ENDS[c] for a, b, c in zip(*parts, strict=True)]


def filler_sentences(rng: np.random.Generator, count: int) -> list[str]:
    """``count`` sentences that no question asks about, some of them short."""
    lists = (_ADJECTIVES, _NOUNS, _VERBS, _ADJECTIVES, _NOUNS, _PLACES)
    draws = rng.integers(0, [len(words) for words in lists], size=(count, len(lists))).tolist()
    short = rng.random(count) < 0.3
    sentences = []
    for row, brief in zip(draws, short, strict=True):
        first, who, does, second, whom, where = (words[i] for words, i in zip(lists, row, strict=True))
        middle = "" if brief else f" {second}"
        sentences.append(f"The {first} {who} {does} the{middle} {whom}" + ("." if brief else f" {where}."))
    return sentences
